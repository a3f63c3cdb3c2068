"""What runs beside the training: a checkpoint on Ctrl-C, the speed, scores written to disk."""

import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from pytorch_lightning.trainer.states import TrainerFn
from typing_extensions import override

from hepattn.data.dataset import HitBatch
from hepattn.models.hit_filter import HitFilter


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
    """Writes the filter as hit_filter.safetensors beside the checkpoints when training ends; `HitFilter.load` reads it.

    It is the filter of the last step, the end of the schedule.
    """

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes and says where."""
        if is_dry(trainer) or not trainer.is_global_zero or not isinstance(pl_module.model, HitFilter):
            return
        note = f"{trainer.global_step} steps"
        path = pl_module.model.save(checkpoint_folder(trainer) / "hit_filter.safetensors", note=note)
        sys.stdout.write(f"\nweights in {path}\n")
