"""`TrainingExplorer`: a hit filter learns in a thread, by the loop of the command line, and five panels show how.

Pictures are drawn by the main thread, between two steps; training never draws and never blocks the kernel.
"""

import asyncio
import atexit
import html
import io
import logging
import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ipywidgets
import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import override

from hepattn.data.dataset import HitBatch, collate, hit_batch
from hepattn.data.schema import Event, Selection
from hepattn.metrics import Fraction, binned_fraction, clopper_pearson, roc_auc
from hepattn.plotting import style
from hepattn.training.callbacks import RemoteControl, TrainingStopped
from hepattn.training.cli import NOT_OURS, FilterCLI, resolve_configs
from hepattn.training.data import EventDataModule
from hepattn.training.module import HitFilterModule, read_checkpoint
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["TrainingExplorer", "learning_curves"]

RATES = (1e-5, 1e-1)
"""Least and largest learning rate of the slider."""

SHARE = 8.0
"""The held-out events are judged at most for one in so many seconds, however long it takes to judge them."""

WINDOWS = (16, 32, 64, 128, 256, 512)
THRESHOLDS = np.linspace(0.0, 1.0, 101)
BINS = np.linspace(0.0, 1.0, 41)
PT_BINS = 7
DPI = 75
RUN_OF_LOSSES = 50
"""Steps over which the loss is averaged for the thick line."""

State = Literal["idle", "training", "paused", "stopped", "finished", "failed"]


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """Held-out events, ready to be judged. n hits of all events, the first `shown` of them in the drawn event."""

    batch: HitBatch
    target: NDArray[np.bool_]  # (n,) True = the hit lies on a reconstructable particle
    pt: NDArray[np.float64]  # (n,) GeV, of the hit's particle; NaN for noise
    x: NDArray[np.float32]  # (shown,) mm
    y: NDArray[np.float32]
    selection: Selection

    @classmethod
    def of(cls, events: Sequence[Event], features: Sequence[str], selection: Selection) -> "_HeldOut":
        batches = [hit_batch(event, features, selection) for event in events]
        pt = [
            np.append(_pt(event), np.nan)[batch.particle.numpy()] for event, batch in zip(events, batches, strict=True)
        ]
        first = batches[0].row.numpy()
        batch = collate(batches)
        target = batch.target.numpy()
        return cls(batch, target, np.concatenate(pt), events[0].hits.x[first], events[0].hits.y[first], selection)

    @property
    def pt_edges(self) -> NDArray[np.float64]:
        low = max(self.selection.pt_min, 0.1)
        return np.geomspace(low, max(20.0, 4 * low), PT_BINS + 1)


def _pt(event: Event) -> NDArray[np.float64]:
    assert event.particles is not None
    return np.asarray(event.particles.pt, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """What the filter made of the held-out events after `step` steps; n hits."""

    step: int
    scores: NDArray[np.float64]  # (n,)
    auc: float
    wanted: NDArray[np.float64]  # (40,) counts of hits in `BINS`
    others: NDArray[np.float64]
    efficiency: NDArray[np.float64]  # (101,) at `THRESHOLDS`
    purity: NDArray[np.float64]

    @classmethod
    def of(cls, step: int, scores: NDArray[np.float64], target: NDArray[np.bool_]) -> "_Snapshot":
        kept = len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS)
        good = int(target.sum()) - np.searchsorted(np.sort(scores[target]), THRESHOLDS)
        gap = np.full(len(THRESHOLDS), np.nan)
        return cls(
            step,
            scores,
            roc_auc(scores, target),
            np.histogram(scores[target], BINS)[0].astype(np.float64),
            np.histogram(scores[~target], BINS)[0].astype(np.float64),
            np.divide(good, target.sum(), out=gap.copy(), where=target.any()),
            np.divide(good, kept, out=gap.copy(), where=kept > 0),
        )


class TrainingExplorer(Explorer):
    """Trains a hit filter in a thread and shows how it learns; everything the buttons do is a method here too.

    `threshold` and `learning_rate` (the peak of the schedule) act at once; `window`, `pt_min`, `attention` and `begin`
    at the next start. The loop is the command line's: the same Trainer, module, data and seeds, with a `RemoteControl`
    between the steps. A threshold that moves only cuts kept scores again. Without an event loop (in a script or test)
    nothing is drawn while training goes on; `wait` draws at its end.

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
        self._snapshot: _Snapshot | None = None
        self._judged = (0.0, 0.0)  # when (s), and how long it took
        module, data, trainer = self._build([f"--model.network.attention={attention}"])
        network = module.model.config
        data.setup("fit")
        self._data, self._held_out_events = data, data.events("validation")[: max(held_out, 1)]
        self.total_steps = trainer.max_steps
        self._prepare(module)
        controls = {
            "threshold": slider("threshold", 0.5, 0.01, 0.99, 0.01),
            "learning_rate": _rate_slider(module.optimiser_config.learning_rate),
            "window": choice("window", sorted({*WINDOWS, network.window}), network.window),
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
        self._panels = _Panels(module.model.config.selection)
        super().__init__(self._panels.figure, controls, dpi=DPI)
        for name, button in self._buttons.items():
            button.on_click(lambda _, name=name: self._pressed(name))
        self.controls["learning_rate"].observe(self._rate_moved, names="value")

    # what the buttons do

    def start(self, *, resume: bool | None = None, paused: bool = False) -> None:
        """Begins to train, and returns at once.

        Args:
            resume: go on from the last checkpoint; None does what `begin` says
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
        settings = [f"--model.network.{name}={getattr(self, name)}" for name in ("window", "pt_min", "attention")]
        remote = RemoteControl(
            self.checkpoint_path,
            learning_rate=self.learning_rate,
            paused=paused,
            on_step=self._stepped,
            on_rest=self._judge,
        )
        module, data, trainer = self._build(
            [*settings, f"--model.optimiser.learning_rate={self.learning_rate}"], [remote]
        )
        data.share(self._data)
        begun = 0
        if resume:
            checkpoint = read_checkpoint(self.checkpoint_path)
            module.on_load_checkpoint(checkpoint)  # refuses another filter's
            begun = int(checkpoint["global_step"])
        self._prepare(module)
        self.error, self._snapshot, self._remote = None, None, remote
        if not resume:
            self._before = self.aucs or self._before
        self.losses = self.losses[:begun] if len(self.losses) >= begun else []
        self.aucs = [one for one in self.aucs if one[0] < begun]
        self.steps, self.total_steps = begun, trainer.max_steps
        path = self.checkpoint_path if resume else None
        self._thread = threading.Thread(target=self._train, args=(remote, trainer, module, data, path), daemon=True)
        atexit.register(self.close)
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
        return np.zeros(0) if self._snapshot is None else self._snapshot.scores

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
            with _silence():
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
        if self._snapshot is not None and self._snapshot.step == step:
            return
        began = time.perf_counter()
        assert isinstance(module, HitFilterModule)
        module.eval()
        with torch.no_grad():
            batch = self._held_out.batch.to(module.device)
            scores = module(batch).sigmoid().double().cpu().numpy()
        module.train()
        self._snapshot = _Snapshot.of(step, scores, self._held_out.target)
        self.aucs.append((step, self._snapshot.auc))
        now = time.perf_counter()
        self._judged = (now, now - began)
        self._ask_to_draw()

    # the main thread

    def _build(
        self, more: Sequence[str], callbacks: Sequence[pl.Callback] = ()
    ) -> tuple[HitFilterModule, EventDataModule, pl.Trainer]:
        """As the command line builds them; it also sets the seeds. Logs and validation are left to the explorer."""
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        arguments = [*self._arguments, *more, *(f"--trainer.{name}=false" for name in off)]
        arguments += ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
        with warnings.catch_warnings(), _silence():
            for words in NOT_OURS:
                warnings.filterwarnings("ignore", message=words)
            cli = FilterCLI(
                HitFilterModule,
                EventDataModule,
                trainer_class=pl.Trainer,
                trainer_defaults={"callbacks": list(callbacks)},
                save_config_callback=None,
                parser_kwargs={"exit_on_error": False},
                run=False,
                args=resolve_configs(arguments),
            )
        cli.model.check_end(cli.trainer)
        cli.datamodule.read_for(cli.model.model.config)
        return cli.model, cli.datamodule, cli.trainer

    def _prepare(self, module: HitFilterModule) -> None:
        config = module.model.config
        self._held_out = _HeldOut.of(self._held_out_events, config.features, config.selection)

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
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None
            text = self.update()
            self.picture.value = self._panels.png()
            self.drawings += 1
            self.numbers.value = text

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "learning_rate" and "controls" in self.__dict__:  # this slider's own bounds are exponents
            if not RATES[0] <= value <= RATES[1]:
                raise ValueError(f"learning_rate lies between {RATES[0]:g} and {RATES[1]:g}, not {value!r}")
            self.controls[name].value = value
            return
        super().__setattr__(name, value)

    @property
    @override
    def view(self) -> ipywidgets.VBox:
        """Buttons, controls, picture and numbers."""
        row = ipywidgets.Layout(flex_flow="row wrap")
        live = [self.controls[name] for name in ("threshold", "learning_rate")]
        later = [self.controls[name] for name in ("window", "pt_min", "attention", "begin")]
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
        snapshot, held_out = self._snapshot, self._held_out
        self._panels.move_curves(self.losses, self.aucs, self._before, self.total_steps)
        lines = [f"<b>{self.state}</b>, step {self.steps} of {self.total_steps}"]
        if self.losses:
            lines[0] += f", loss {np.mean(self.losses[-RUN_OF_LOSSES:]):.3f} (mean of {RUN_OF_LOSSES} steps)"
        if snapshot is not None and len(snapshot.scores) == len(held_out.target):
            efficiency, purity = self._panels.move_scores(snapshot, held_out, self.threshold)
            lines.append(
                f"{len(self._held_out_events)} held-out events after {snapshot.step} steps, "
                f"{html.escape(str(held_out.selection))}: AUC {snapshot.auc:.4f}; at threshold {self.threshold:.2f} "
                f"efficiency {efficiency}, purity {purity}"
            )
        if self.state in {"stopped", "finished"} and self.checkpoint_path.is_file():
            lines.append(f"checkpoint in {html.escape(str(self.checkpoint_path))}")
        if self.error is not None:
            lines.append(_sentence(self.error))
        return "<br>".join(lines)


class _Panels:
    """The figure and the artists in it, made once and moved.

    Axes with their words are drawn only when limits change; what moves is drawn over a copy of that background, which
    takes a fifth of the time.
    """

    def __init__(self, selection: Selection) -> None:
        with style.context():
            self.figure: Figure = style.Figure(figsize=(14.0, 7.6), dpi=DPI, layout="constrained")
            self.canvas = FigureCanvasAgg(self.figure)
            grid = self.figure.subplots(2, 3, gridspec_kw={"width_ratios": [1, 1, 1.75]})
            (self.loss, self.auc, self.event), (self.histogram, self.curve, self.pt) = grid
            self._make_curves()
            self._make_scores(selection)
            self._make_event()
        self.moving: list[Artist] = [self.raw, self.mean, self.old, self.new, self.wanted, self.others, self.cut]
        self.moving += [self.trade, self.cross, self.point, self.bars, self.fractions, *self.groups]
        for artist in self.moving:
            artist.set_animated(True)
        self._background: Any = None
        self._drawn_for: object = None

    def png(self) -> bytes:
        """The picture."""
        limits = [(ax.get_xlim(), ax.get_ylim()) for ax in self.figure.axes]
        if limits != self._drawn_for:
            self.canvas.draw()
            self.figure.set_layout_engine("none")
            self._background, self._drawn_for = self.canvas.copy_from_bbox(self.figure.bbox), limits
        self.canvas.restore_region(self._background)
        for artist in self.moving:
            assert artist.axes is not None
            artist.axes.draw_artist(artist)
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def _make_curves(self) -> None:
        (self.raw,) = self.loss.plot([], [], color=style.FAINT, linewidth=0.8, label="each step")
        (self.mean,) = self.loss.plot([], [], color=style.BLUE, label=f"mean of {RUN_OF_LOSSES}")
        _label(self.loss, "training", "step", "loss")
        self.loss.legend(loc="upper right")
        (self.old,) = self.auc.plot([], [], color=style.GREY, linestyle="--", label="training before")
        (self.new,) = self.auc.plot([], [], color=style.BLUE, marker=".", markersize=5, label="this training")
        _label(self.auc, "held-out events", "step", "area under ROC curve")
        self.auc.set_ylim(0.45, 1.0)
        self.auc.grid(color=style.PAPER)
        self.auc.legend(loc="lower right")

    def _make_scores(self, selection: Selection) -> None:
        none = np.zeros(len(BINS) - 1)
        self.wanted = self.histogram.stairs(none, BINS, color=style.BLUE, linewidth=2, label="wanted")
        self.others = self.histogram.stairs(
            none, BINS, color=style.VERMILLION, linestyle="--", linewidth=2, label="other hits"
        )
        self.cut = self.histogram.axvline(0.5, color=style.BLACK, linewidth=1.2, label="threshold")
        _label(self.histogram, "", "score of held-out hits", f"hits per {BINS[1]:.3g}")
        self.histogram.set_xlim(0, 1)
        self.histogram.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=3,
            columnspacing=1.0,
            handlelength=1.4,
            borderaxespad=0.1,
        )
        (self.trade,) = self.curve.plot([], [], color=style.BLUE)
        (self.point,) = self.curve.plot([], [], "o", color=style.BLACK, markersize=7, label="at the threshold")
        self.cross = LineCollection([], color=style.BLACK, linewidth=1.5)
        self.curve.add_collection(self.cross, autolim=False)
        _label(self.curve, "every threshold", "efficiency", "purity")
        self.curve.set(xlim=(0, 1.02), ylim=(0, 1.02))
        self.curve.grid(color=style.PAPER)
        self.curve.legend(loc="lower left")
        (self.fractions,) = self.pt.plot([], [], "o", color=style.BLUE, markersize=5)
        self.bars = LineCollection([], color=style.BLUE, linewidth=1.5)
        self.pt.add_collection(self.bars, autolim=False)
        _label(self.pt, "wanted hits kept, 68.3 % intervals", "pT of the particle [GeV]", "efficiency")
        self.pt.set_xscale("log")
        self._pt_axis(selection.pt_min)

    def _pt_axis(self, low: float) -> None:
        self.pt_min = low
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if tick >= low * 0.99]
        self.pt.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        self.pt.minorticks_off()
        self.pt.set(xlim=(max(low, 0.1) * 0.9, 22), ylim=(0, 1.02))
        self.pt.grid(color=style.PAPER)

    def _make_event(self) -> None:
        self.groups: list[Line2D] = []
        for label, colour, marker, size in (
            ("dropped, rightly", style.FAINT, "o", 1.6),
            ("kept, not wanted", style.ORANGE, "o", 2.6),
            ("kept, wanted", style.BLUE, "o", 2.6),
            ("lost", style.BLACK, "X", 4.5),
        ):
            self.groups += self.event.plot(
                [], [], marker, color=colour, markersize=size, markeredgewidth=0, label=label
            )
        _label(self.event, "one of the held-out events", "x [mm]", "y [mm]")
        self.event.set_aspect("equal", adjustable="box")
        self.event.set_anchor("W")
        legend = self.event.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.5, handletextpad=0.1, borderaxespad=0.1
        )
        legend.set_in_layout(False)  # it stands where the square leaves room

    def move_curves(
        self,
        losses: Sequence[float],
        aucs: Sequence[tuple[int, float]],
        before: Sequence[tuple[int, float]],
        total: int,
    ) -> None:
        """The two upper left panels."""
        values = np.array(losses)
        self.raw.set_data(np.arange(1, len(values) + 1), values)
        self.mean.set_data(*_running_mean(values))
        for line, points in ((self.new, aucs), (self.old, before)):
            line.set_data([step for step, _ in points], [auc for _, auc in points])
        right = max(total, 1, *(step for step, _ in before)) if before else max(total, 1)
        self.loss.set_xlim(0, max(total, 1))
        self.auc.set_xlim(0, right * 1.01)
        finite = values[np.isfinite(values)]
        highest = 1.1 * float(np.quantile(finite, 0.995)) if len(finite) else 1.5
        self.loss.set_ylim(0, math.ceil(4 * highest) / 4)  # in coarse moves: each one redraws the axes

    def move_scores(self, snapshot: _Snapshot, held_out: _HeldOut, threshold: float) -> tuple[Fraction, Fraction]:
        """All that depends on scores; returns efficiency and purity at the threshold."""
        kept, target = snapshot.scores >= threshold, held_out.target
        good = int((kept & target).sum())
        efficiency, purity = Fraction(good, int(target.sum())), Fraction(good, int(kept.sum()))
        self.wanted.set_data(snapshot.wanted)
        self.others.set_data(snapshot.others)
        highest = 1.1 * max(snapshot.wanted.max(), snapshot.others.max(), 1)
        self.histogram.set_ylim(0, 1.5 ** math.ceil(math.log(highest, 1.5)))
        self.cut.set_xdata([threshold, threshold])
        self.trade.set_data(snapshot.efficiency, snapshot.purity)
        self.point.set_data([efficiency.value], [purity.value])
        across, up = efficiency.interval, purity.interval
        self.cross.set_segments(
            [
                np.array([(across[0], purity.value), (across[1], purity.value)]),
                np.array([(efficiency.value, up[0]), (efficiency.value, up[1])]),
            ]
        )
        self._move_pt(held_out, kept)
        self._move_event(held_out, kept)
        return efficiency, purity

    def _move_pt(self, held_out: _HeldOut, kept: NDArray[np.bool_]) -> None:
        edges, wanted = held_out.pt_edges, held_out.target
        # particles above the last edge count in the last bin
        bins = binned_fraction(np.minimum(held_out.pt[wanted], edges[-1]), kept[wanted], edges)
        low, high = clopper_pearson([one.passed for one in bins], [one.total for one in bins])
        centre = np.sqrt(edges[1:] * edges[:-1])
        segments = [np.array([(x, a), (x, b)]) for x, a, b in zip(centre, low, high, strict=True)]
        value = np.array([one.value for one in bins])
        segments += [np.array([(a, v), (b, v)]) for a, b, v in zip(edges[:-1], edges[1:], value, strict=True)]
        self.bars.set_segments(segments)
        self.fractions.set_data(centre, value)
        if held_out.selection.pt_min != self.pt_min:
            self._pt_axis(held_out.selection.pt_min)

    def _move_event(self, held_out: _HeldOut, kept: NDArray[np.bool_]) -> None:
        x, y = held_out.x, held_out.y
        keep, want = kept[: len(x)], held_out.target[: len(x)]
        for line, chosen in zip(self.groups, (~keep & ~want, keep & ~want, keep & want, ~keep & want), strict=True):
            line.set_data(x[chosen], y[chosen])
        reach = 200.0 * math.ceil(1.02 * float(max(np.abs(x).max(), np.abs(y).max(), 1.0)) / 200.0)
        self.event.set(xlim=(-reach, reach), ylim=(-reach, reach))


def learning_curves(trainings: Mapping[str, TrainingExplorer]) -> Figure:
    """Draw the loss and the area under the ROC curve of several trainings against their steps.

    Args:
        trainings: name -> explorer that has trained

    Returns:
        The figure, two panels: loss (mean of 50 steps), and AUC on the held-out events.
    """
    figure, (loss, auc) = style.canvas(2, width=5.6, height=4.2)
    with style.context():
        for i, (name, one) in enumerate(trainings.items()):
            look: dict[str, Any] = {
                "color": style.CYCLE[i % len(style.CYCLE)],
                "linestyle": ("-", "--", ":", "-.")[i % 4],
            }
            loss.plot(*_running_mean(np.array(one.losses)), label=name, **look)
            auc.plot(*zip(*one.aucs, strict=True), marker=".", label=f"{name}, last {one.auc:.3f}", **look)
        _label(loss, f"training, mean of {RUN_OF_LOSSES} steps", "step", "loss")
        events = {len(one._held_out_events) for one in trainings.values()}  # noqa: SLF001
        _label(auc, f"{max(events, default=0)} held-out events", "step", "area under ROC curve")
        auc.set_ylim(0.45, 1.0)
        for panel in (loss, auc):
            panel.grid(color=style.PAPER)
            panel.legend()
    return figure


def _running_mean(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and mean loss of the (at most) 50 steps up to each."""
    if not len(values):
        return np.zeros(0), np.zeros(0)
    total = np.append(0.0, np.cumsum(values))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - RUN_OF_LOSSES, 0)
    return end.astype(np.float64), (total[end] - total[begin]) / (end - begin)


def _label(ax: Axes, title: str, across: str, up: str) -> None:
    ax.set_title(title)
    ax.set_xlabel(across)
    ax.set_ylabel(up)


def _rate_slider(value: float) -> Any:
    low, high = (math.log10(rate) for rate in RATES)
    return ipywidgets.FloatLogSlider(
        value=value, min=low, max=high, step=0.1, description="learning rate", style={"description_width": "initial"}
    )


def _sentence(error: BaseException) -> str:
    return f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"


@contextmanager
def _silence() -> Iterator[None]:
    """Drops what pytorch-lightning logs in this thread: it would land in whichever cell is at hand."""
    thread = threading.get_ident()
    handlers = [one for name in ("pytorch_lightning", "lightning_fabric") for one in logging.getLogger(name).handlers]

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.INFO

    for words in (r".*does not have many workers", r".*LeafSpec.*is deprecated"):
        warnings.filterwarnings("ignore", message=words)  # nobody here can do anything about them
    for handler in handlers:
        handler.addFilter(of_others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_others)
