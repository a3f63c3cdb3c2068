"""`TrainingExplorer`: a hit filter learns in a thread, by the loop of the command line, and five panels show how.

Pictures are drawn by the main thread, between two steps; training never draws and never blocks the kernel.
"""

import asyncio
import atexit
import html
import math
import sys
import threading
import time
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import ipywidgets
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from typing_extensions import override

from hepattn.models.hit_filter import HitFilter, HitFilterConfig
from hepattn.training.base import read_checkpoint
from hepattn.training.callbacks import RemoteControl, TrainingStopped
from hepattn.training.data import EventDataModule
from hepattn.training.filtering import HitFilterModule
from hepattn.training.openmp import release_workers
from hepattn.widgets.base import Explorer, choice, log_slider, slider
from hepattn.widgets.held_out import HeldOut, Judgement
from hepattn.widgets.training_panels import RUN_OF_LOSSES, TrainingPanels
from hepattn.widgets.training_run import build, silence

__all__ = ["TrainingExplorer"]

RATES = (1e-5, 1e-1)
"""Least and largest learning rate of the slider."""

SHARE = 8.0
"""The held-out events are judged at most for one in so many seconds, however long it takes to judge them."""

WINDOWS = (16, 32, 64, 128, 256, 512)

State = Literal["idle", "training", "paused", "stopped", "finished", "failed"]


class TrainingExplorer(Explorer):
    """Trains a hit filter in a thread and shows how it learns; everything the buttons do is a method here too.

    `threshold`, `learning_rate` (the peak of the schedule), `window` and `pt_min` act at once, `attention` and `begin`
    at the next start. The loop is the command line's: the same Trainer, module, data and seeds, with a `RemoteControl`
    between the steps. A threshold that moves only cuts kept scores again. A window or pT cut holds from the next step
    on, for the held-out events too, which are judged anew; the checkpoint has them, so that going on is exact. Without
    an event loop (in a script or test) nothing is drawn while training goes on; `wait` draws at its end.

    Args:
        config: a configuration of `hepattn filter fit`: a file, or its name among those of the package
        *arguments: more of the command line's, such as `--data.limit=20`
        steps: length of the training and its schedule; None takes the configuration's
        attention: False sees each hit alone
        folder: of the checkpoint that is left when training stops or ends, last.ckpt; made when it is needed
        held_out: validation events that are judged while training goes on; the first one is drawn
        every: seconds between two judgements, at least

    Raises:
        ValueError: a setting that can't be used
        FileNotFoundError: no such configuration
    """

    def __init__(
        self,
        config: str = "hit_filter.yaml",
        *arguments: str,
        steps: int | None = None,
        attention: bool = True,
        folder: str | Path = "checkpoints/lesson",
        held_out: int = 4,
        every: float = 1.0,
    ) -> None:
        self._arguments = ["--config", config, *arguments]
        if steps is not None:
            self._arguments.append(f"--trainer.max_steps={steps}")
        self.folder, self.every = Path(folder), every
        self.error: BaseException | None = None
        self._outcome: State = "idle"
        self.steps = 0
        self.losses: list[float] = []
        self.aucs: list[tuple[int, float]] = []
        self._before: list[tuple[int, float]] = []
        self._remote: RemoteControl | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drawing_asked = False
        self._judgement: Judgement | None = None
        self._judged = (0.0, 0.0)  # when (s), and how long it took
        module, data, trainer = build([*self._arguments, *_network(attention)])
        network, extra = module.model.config, getattr(module.model.encoder, "extra", None)
        least = None if extra is None else extra.smallest_window(wrap=True)
        with redirect_stderr(sys.stdout):  # a notebook shows what goes to stderr on red, as if it had gone wrong
            data.setup("fit")
        self._data, self._held_out_events = data, data.events("validation")[: max(held_out, 1)]
        self.total_steps = trainer.max_steps
        self._prepare(module)
        controls = {
            "threshold": slider("threshold", 0.5, 0.01, 0.99, 0.01),
            "learning_rate": log_slider("learning rate", module.optimiser_config.learning_rate, *RATES),
            "window": choice(
                "window", sorted({network.window, *(one for one in WINDOWS if one >= (least or 1))}), network.window
            ),
            "pt_min": slider("pT cut [GeV]", float(network.pt_min), 0.1, 3.0, 0.1),
            "attention": choice("model", {"with attention": True, "each hit alone": False}, attention),
            "begin": choice("begin with", {"new weights": "new", "the last checkpoint": "checkpoint"}),
        }
        self._buttons = {
            name: ipywidgets.Button(description=text, icon=icon, layout=ipywidgets.Layout(width="auto"))
            for name, text, icon in (
                ("start", "start", "play"),
                ("pause", "pause", "pause"),
                ("resume", "resume", "forward"),
                ("step", "one step", "step-forward"),
                ("stop", "stop", "stop"),
            )
        }
        self._panels = TrainingPanels(module.model.config.selection)
        super().__init__(self._panels.figure, controls, moving=self._panels.moving, dpi=75)
        for name, button in self._buttons.items():
            button.on_click(lambda _, name=name: self._pressed(name))
        self.controls["learning_rate"].observe(self._rate_moved, names="value")
        for name in ("window", "pt_min"):
            self.controls[name].observe(self._model_moved, names="value")

    # what the buttons do

    def start(self, *, resume: bool | None = None, paused: bool = False) -> None:
        """Begins to train, and returns at once.

        Args:
            resume: go on from the last checkpoint, with the window and pT cut that the controls have now; None does
                what `begin` says
            paused: wait before the first step

        Raises:
            RuntimeError: it trains already
            FileNotFoundError: there is no checkpoint to go on from
            ValueError: the checkpoint is of another filter, or a setting is impossible
        """
        if self.running:
            raise RuntimeError("it trains already: stop it first")
        resume = self.begin == "checkpoint" if resume is None else resume
        self._find_loop()
        checkpoint = read_checkpoint(self.checkpoint_path) if resume else None
        live = {"window": self.window, "pt_min": self.pt_min}
        network = dict(live)
        if checkpoint is not None:  # begins as it was; what has been moved since then is changed before the first step
            saved = HitFilterConfig.from_json(checkpoint[HitFilter.KIND])
            network |= {name: getattr(saved, name) for name in live}
        settings = [f"--model.network.{name}={value}" for name, value in network.items()]
        remote = RemoteControl(
            self.checkpoint_path,
            learning_rate=self.learning_rate,
            paused=paused,
            on_step=self._stepped,
            on_rest=self._judge,
            on_change=self._changed,
        )
        remote.change(**live)
        module, data, trainer = build(
            [
                *self._arguments,
                *_network(self.attention),
                *settings,
                f"--model.optimiser.learning_rate={self.learning_rate}",
            ],
            [remote],
        )
        data.share(self._data)
        begun = 0
        if checkpoint is not None:
            module.on_load_checkpoint(checkpoint)  # refuses another filter's
            begun = int(checkpoint["global_step"])
        self._prepare(module)
        self.error, self._judgement, self._remote = None, None, remote
        if not resume:
            self._before = self.aucs or self._before
        self.losses = self.losses[:begun] if len(self.losses) >= begun else []
        self.aucs = [one for one in self.aucs if one[0] < begun]
        self.steps, self.total_steps = begun, trainer.max_steps
        path = self.checkpoint_path if resume else None
        self._thread = threading.Thread(target=self._train, args=(remote, trainer, module, data, path), daemon=True)
        atexit.register(self.close)
        release_workers()
        self._thread.start()
        self._ask_to_draw()

    def pause(self) -> None:
        """Finishes the step at hand and waits."""
        self._running_remote().pause()
        self._ask_to_draw()

    def resume(self) -> None:
        """Goes on after a pause."""
        self._running_remote().resume()
        self._ask_to_draw()

    def step(self, steps: int = 1) -> None:
        """Does one step (or so many) and waits; begins a training, if none is going on."""
        if not self.running:
            self.start(paused=True)
        self._running_remote().step(steps)

    def stop(self, timeout: float | None = 60.0) -> None:
        """Finishes the step at hand, writes the checkpoint, and ends the thread.

        Raises:
            TimeoutError: the step at hand took longer than `timeout` (s)
        """
        self._end(save=True, timeout=timeout)
        self._ask_to_draw()

    def close(self, timeout: float | None = 60.0) -> None:
        """Ends the thread without a checkpoint. The picture stays."""
        if self.running:
            self._end(save=False, timeout=timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until training has ended, or is paused and at rest; then draws.

        Returns:
            False where `timeout` (s) came first

        Raises:
            Exception: what ended the training, if it failed
        """
        rested = self._remote is None or self._remote.wait(timeout)
        if self._remote is not None and self._remote.ended and self._thread is not None:
            self._thread.join(timeout)
        self.draw()
        if self.error is not None:
            raise self.error
        return rested

    # what can be read

    @property
    def running(self) -> bool:
        """Whether there is a training, be it paused."""
        return self._remote is not None and not self._remote.ended

    @property
    def state(self) -> State:
        """What it does, or how the last training ended."""
        if self._remote is None or self._remote.ended:
            return self._outcome
        return "paused" if self._remote.paused else "training"

    @property
    def auc(self) -> float:
        """Area under the ROC curve on the held-out events when they were last judged; NaN before."""
        return self.aucs[-1][1] if self.aucs else math.nan

    @property
    def scores(self) -> NDArray[np.float64]:
        """(n_hits,) scores of the hits of all held-out events when they were last judged; empty before."""
        return np.zeros(0) if self._judgement is None else self._judgement.scores

    @property
    def checkpoint_path(self) -> Path:
        """Where `stop` and the end of a training leave the checkpoint."""
        return self.folder / "last.ckpt"

    # the training's thread

    def _train(
        self,
        remote: RemoteControl,
        trainer: pl.Trainer,
        module: HitFilterModule,
        data: EventDataModule,
        path: Path | None,
    ) -> None:
        state: State = "finished"
        try:
            with silence():
                trainer.fit(module, datamodule=data, ckpt_path=path)
        except TrainingStopped:
            state = "stopped"
        except BaseException as error:  # noqa: BLE001  (shown below the picture, raised by wait)
            self.error, state = error, "failed"
        finally:
            self._outcome = state
            atexit.unregister(self.close)
            remote.end()
            self._ask_to_draw()

    def _stepped(self, module: pl.LightningModule, step: int, loss: float) -> None:
        self.losses.append(loss)
        self.steps = step
        when, took = self._judged
        if time.perf_counter() - when >= max(self.every, SHARE * took):
            self._judge(module, step)

    def _judge(self, module: pl.LightningModule, step: int) -> None:
        """Scores the held-out events between two steps, when the weights stand still."""
        judged = self._judgement
        if judged is not None and judged.step == step and judged.held_out is self._held_out:
            return
        began = time.perf_counter()
        assert isinstance(module, HitFilterModule)
        module.eval()
        with torch.no_grad():
            batch = self._held_out.batch.to(module.device)
            scores = module(batch).sigmoid().double().cpu().numpy()
        module.train()
        self._judgement = Judgement.of(step, scores, self._held_out)
        self.aucs.append((step, self._judgement.auc))
        now = time.perf_counter()
        self._judged = (now, now - began)
        self._ask_to_draw()

    def _changed(self, module: pl.LightningModule, step: int) -> None:
        """Judges the held-out events anew, with the window and the targets that hold from now on."""
        assert isinstance(module, HitFilterModule)
        self._prepare(module)
        self._judge(module, step)

    # the main thread

    def _prepare(self, module: HitFilterModule) -> None:
        config = module.model.config
        self._held_out = HeldOut.of(self._held_out_events, config.features, config.selection)

    def _end(self, *, save: bool, timeout: float | None) -> None:
        self._running_remote().stop(save=save)
        assert self._thread is not None
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the training did not end in {timeout} s")

    def _running_remote(self) -> RemoteControl:
        if self._remote is None or not self.running:
            raise RuntimeError("nothing is training: start it first")
        return self._remote

    def _pressed(self, name: str) -> None:
        """A button: what goes wrong is shown below the picture."""
        try:
            if name == "stop":
                self._running_remote().stop()  # without waiting for its end, which draws
            else:
                getattr(self, name)()
        except Exception as error:  # noqa: BLE001
            self.numbers.value = _sentence(error)

    def _rate_moved(self, _: Any) -> None:
        if self._remote is not None:
            self._remote.learning_rate = self.learning_rate

    def _model_moved(self, _: Any) -> None:
        if self._remote is not None:
            self._remote.change(window=self.window, pt_min=self.pt_min)

    def _find_loop(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def _ask_to_draw(self) -> None:
        """From any thread: the main loop draws soon, once for all who asked meanwhile."""
        if self._loop is None or self._drawing_asked:
            return
        self._drawing_asked = True
        try:
            self._loop.call_soon_threadsafe(self._draw_later)
        except RuntimeError:  # the loop is closed
            self._loop = None

    @override
    def _draw_later(self) -> None:
        self._drawing_asked = False
        super()._draw_later()

    @override
    def draw(self) -> None:
        """Draws the present state now; training waits that long before its next step."""
        with nullcontext() if self._remote is None else self._remote.aside():
            super().draw()
        if self.running:
            release_workers()  # whatever a cell has computed meanwhile in this thread

    @property
    @override
    def view(self) -> ipywidgets.VBox:
        """Buttons, controls, picture and numbers."""
        row = ipywidgets.Layout(flex_flow="row wrap")
        live = [self.controls[name] for name in ("threshold", "learning_rate", "window", "pt_min")]
        later = [self.controls[name] for name in ("attention", "begin")]
        return ipywidgets.VBox(
            [
                ipywidgets.HBox([*self._buttons.values(), *live], layout=row),
                ipywidgets.HBox([ipywidgets.Label("at the next start:"), *later], layout=row),
                self.picture,
                self.numbers,
            ]
        )

    @override
    def update(self) -> str:
        """Moves all lines and points; the model is not called."""
        judgement = self._judgement
        self._panels.move_curves(self.losses, self.aucs, self._before, self.total_steps)
        lines = [f"<b>{self.state}</b>, step {self.steps} of {self.total_steps}"]
        if self.losses:
            lines[0] += f", loss {np.mean(self.losses[-RUN_OF_LOSSES:]):.3f} (mean of {RUN_OF_LOSSES} steps)"
        if judgement is not None:
            efficiency, purity = self._panels.move_scores(judgement, self.threshold)
            cuts = html.escape(str(judgement.held_out.selection))
            lines.append(
                f"{len(self._held_out_events)} held-out events after {judgement.step} steps, {cuts}: "
                f"AUC {judgement.auc:.4f}; at threshold {self.threshold:.2f} efficiency {efficiency}, purity {purity}"
            )
        if self.state in {"stopped", "finished"} and self.checkpoint_path.is_file():
            lines.append(f"checkpoint in {html.escape(str(self.checkpoint_path))}")
        if self.error is not None:
            lines.append(_sentence(self.error))
        return "<br>".join(lines)


def _network(attention: bool) -> list[str]:
    """Arguments for a filter that sees other hits, or each hit alone."""
    return ["--model.network.attention=true"] if attention else ["--config", "hit_filter_mlp.yaml"]


def _sentence(error: BaseException) -> str:
    return f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
