"""What runs beside the training: a checkpoint on Ctrl-C, a remote control, the speed, scores written to disk."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from hepattn.data.dataset import HitBatch
from hepattn.models.hit_encoder import HitModel
from hepattn.training.data import EventDataModule


class CheckpointOnInterrupt(Callback):
    """Ctrl-C (SIGINT) finishes the step at hand, writes a checkpoint and ends; a second Ctrl-C ends at once.

    A training that is resumed from it goes on as if it had not been stopped, bit for bit.

    Args:
        name: file in the folder of the checkpoints
    """

    def __init__(self, name: str = "interrupted.ckpt") -> None:
        self.name = name
        self.asked = False
        self._before: Any = None

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to SIGINT, where that is possible (main thread)."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: int | FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Writes and stops, if asked to: here all states belong to the same step.

        Where gradients of several batches are summed, it is the end of the sum that counts: no checkpoint holds a part
        of one. A validation at hand is finished first, since half of its scores would be lost.
        """
        if not self.asked or trainer.fit_loop._should_accumulate():  # noqa: SLF001
            return
        path = checkpoint_folder(trainer) / self.name
        if trainer.global_step and not is_dry(trainer):
            trainer.save_checkpoint(path)
            sys.stderr.write(f"\nstopped after step {trainer.global_step}; resume with --ckpt_path {path}\n")
        raise KeyboardInterrupt

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives SIGINT back."""
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)
            self._before = None


class TrainingStopped(Exception):  # noqa: N818  (no error: someone asked for it)
    """Leaves `Trainer.fit` after `RemoteControl.stop`."""


class RemoteControl(Callback):
    """Pauses, steps and stops a training from another thread, and changes some of its settings while it runs.

    It waits between two steps of the optimiser, where all states belong to the same step. What is done here changes no
    number of the training, except a learning rate that is set, and a window or pT cut, see `change`.

    Args:
        checkpoint: written when training stops or ends; None writes none
        learning_rate: peak of the schedule, from the next step on; None leaves it as configured (and as a checkpoint
            had it)
        paused: begin before the first step, and wait there
        on_step: called in the training's thread after each step, with the module, the number of steps done and the loss
        on_rest: the same before training waits, stops or ends, and before its first step, with the module and the steps
        on_change: the same after the model's window or pT cut has changed
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        learning_rate: float | None = None,
        paused: bool = False,
        on_step: Callable[[pl.LightningModule, int, float], None] | None = None,
        on_rest: Callable[[pl.LightningModule, int], None] | None = None,
        on_change: Callable[[pl.LightningModule, int], None] | None = None,
    ) -> None:
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.learning_rate = learning_rate
        self.on_step, self.on_rest, self.on_change = on_step, on_rest, on_change
        self.paused, self.ended = paused, False
        self._allowed, self._resting, self._aside = 0, False, 0
        self._stopping, self._saving = False, True
        self._wanted: dict[str, Any] = {}
        self._change = threading.Condition()

    def pause(self) -> None:
        """Finishes the step at hand and waits."""
        with self._change:
            self.paused, self._allowed = True, 0
            self._change.notify_all()

    def resume(self) -> None:
        """Goes on."""
        with self._change:
            self.paused, self._resting = False, False
            self._change.notify_all()

    def step(self, steps: int = 1) -> None:
        """Does so many steps (now, if it is paused) and waits again."""
        with self._change:
            if not self.paused:
                self._allowed = 0
            self.paused, self._resting = True, False
            self._allowed += steps
            self._change.notify_all()

    def change(self, *, window: int | None = None, pt_min: float | None = None) -> None:
        """Another window of the encoder, or pT cut (GeV) of what is to be learnt, after the step at hand.

        It is so at once where training waits, and in the checkpoint that it leaves. None changes nothing.
        """
        with self._change:
            asked = {"window": window, "pt_min": pt_min}
            self._wanted |= {name: value for name, value in asked.items() if value is not None}
            self._resting = False
            self._change.notify_all()

    def stop(self, *, save: bool = True) -> None:
        """Finishes the step at hand, writes the checkpoint unless `save` is False, and leaves `Trainer.fit`."""
        with self._change:
            self._stopping, self._saving = True, save
            self._change.notify_all()

    def end(self) -> None:
        """Whoever runs the trainer says here that it has returned, for `wait`."""
        with self._change:
            self.ended = True
            self._change.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until training is paused and at rest, or has ended; False where `timeout` (s) came first."""
        with self._change:
            return self._change.wait_for(lambda: self.ended or self._resting, timeout)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Training does not begin another step inside this block, which needs the processor more."""
        with self._change:
            self._aside += 1
        try:
            yield
        finally:
            with self._change:
                self._aside -= 1
                self._change.notify_all()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits before the first step, if paused."""
        self._set_model(trainer, pl_module)
        if self.on_rest is not None:
            self.on_rest(pl_module, trainer.global_step)
        self._gate(trainer, pl_module, seen=True)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Reports the step; waits or stops, if asked to. A sum of several batches' gradients is one step."""
        if trainer.fit_loop._should_accumulate():  # noqa: SLF001
            return
        if self.on_step is not None:
            self.on_step(pl_module, trainer.global_step, float(outputs["loss"]))
        if trainer.global_step != trainer.max_steps:
            self._gate(trainer, pl_module)

    def _gate(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, seen: bool = False) -> None:
        """Where the training's thread waits.

        Raises:
            TrainingStopped: that was asked for
        """
        with self._change:
            resting = (self._stopping and self._saving) or (self.paused and not self._allowed)
        if resting and not seen and self.on_rest is not None:
            self.on_rest(pl_module, trainer.global_step)
        while self._wait_for_leave():
            self._set_model(trainer, pl_module)
        if self._stopping:
            if self._saving and trainer.global_step:
                self._write(trainer)
            raise TrainingStopped
        self._set_learning_rate(trainer)

    def _wait_for_leave(self) -> bool:
        """Until training may go on or has to stop (False), or the model is to be changed before (True)."""
        with self._change:
            while not self._stopping and (self._aside or (self.paused and not self._allowed and not self._wanted)):
                self._resting = self.paused and not self._allowed and not self._wanted
                self._change.notify_all()
                self._change.wait()
            self._resting = False
            if self._wanted and not (self._stopping and not self._saving):
                return True
            if self.paused and not self._stopping:
                self._allowed -= 1
            return False

    def _set_model(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the model the window and the cut that were asked for, and the data the latter."""
        with self._change:
            wanted, self._wanted = self._wanted, {}
        model, data = pl_module.model, getattr(trainer, "datamodule", None)
        if not wanted or not isinstance(model, HitModel):
            return
        before = model.config
        model.change(**wanted)
        if model.config == before:
            return
        if isinstance(data, EventDataModule) and model.config.selection != before.selection:
            data.select(model.config.selection)
        if self.on_change is not None:
            self.on_change(pl_module, trainer.global_step)

    def _set_learning_rate(self, trainer: pl.Trainer) -> None:
        """Moves the peak of each schedule, and with it the rate of the coming step."""
        peak = self.learning_rate
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if (
                peak is None
                or not isinstance(schedule, LambdaLR)
                or schedule.base_lrs == [peak] * len(schedule.base_lrs)
            ):
                continue
            schedule.base_lrs = [peak] * len(schedule.base_lrs)
            for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
                group["initial_lr"], group["lr"] = peak, peak * factor(schedule.last_epoch)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the checkpoint."""
        if self.on_rest is not None:
            self.on_rest(pl_module, trainer.global_step)
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if self.checkpoint is not None and not is_dry(trainer):
            trainer.save_checkpoint(self.checkpoint)


class LastCheckpoint(Callback):
    """Writes last.ckpt after every validation and when training ends.

    `ModelCheckpoint(save_last=True)` does so only where the monitored number is among its best: what it calls last is
    the last one that got better.
    """

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes, unless this is no validation of a training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the end of the training."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if not is_dry(trainer):
            trainer.save_checkpoint(checkpoint_folder(trainer) / "last.ckpt")


def checkpoint_folder(trainer: pl.Trainer) -> Path:
    """Where checkpoints of this run go: the checkpoint callback's folder, else the trainer's."""
    callback = trainer.checkpoint_callback
    folder = getattr(callback, "dirpath", None) or trainer.log_dir or trainer.default_root_dir
    return Path(folder)


def is_dry(trainer: pl.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))


class Speed(Callback):
    """Prints steps, seconds inside them, steps / s, threads and peak GPU memory when training ends."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self._began = 0.0

    @override
    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops it: loading and validation are not counted."""
        self.seconds += time.perf_counter() - self._began
        self.steps += 1

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line."""
        if not self.steps or not trainer.is_global_zero:
            return
        rate, threads = self.steps / self.seconds, torch.get_num_threads()
        line = f"{self.steps} steps in {self.seconds:.1f} s: {rate:.1f} steps / s, {threads} threads"
        if pl_module.device.type == "cuda":
            line += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on {torch.cuda.get_device_name()}"
        sys.stdout.write(f"\n{line}\n")


class ScoreWriter(BasePredictionWriter):
    """Writes what `predict` gives as one Parquet file: columns event_id, hit (row in the event), score.

    Args:
        path: the file
    """

    def __init__(self, path: str = "scores.parquet") -> None:
        super().__init__("epoch")
        self.path = path

    @override
    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Writes all batches' scores."""
        frames = [_frame(batch, scores) for batch, scores in predictions]
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(frames, ignore_index=True).to_parquet(path, index=False)
        sys.stdout.write(f"\nscores of {sum(map(len, frames))} hits in {path}\n")


def _frame(batch: HitBatch, scores: torch.Tensor) -> pd.DataFrame:
    ids = torch.tensor(batch.event_ids).repeat_interleave(batch.inputs.lengths)
    return pd.DataFrame({"event_id": ids.numpy(), "hit": batch.row.numpy(), "score": scores.numpy()})


class ExportWeights(Callback):
    """Writes the model as hit_filter.safetensors or maskformer.safetensors beside the checkpoints when training ends.

    It is the model of the last step, the end of the schedule; `HitFilter.load` or `MaskFormer.load` reads it.
    """

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes and says where."""
        if is_dry(trainer) or not trainer.is_global_zero or not isinstance(pl_module.model, HitModel):
            return
        note = f"{trainer.global_step} steps"
        model = pl_module.model
        path = model.save(checkpoint_folder(trainer) / f"{model.KIND}.safetensors", note=note)
        sys.stdout.write(f"\nweights in {path}\n")
