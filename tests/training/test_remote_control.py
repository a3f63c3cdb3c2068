"""The remote control on a trainer as such; tests/widgets/test_training.py drives it through an explorer."""

import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl

from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilterConfig
from hepattn.training import EventDataModule, HitFilterModule, load_checkpoint, read_checkpoint
from hepattn.training.callbacks import RemoteControl, TrainingStopped


def begin(remote: RemoteControl, events: Path, **options) -> tuple[threading.Thread, list[BaseException]]:
    """Trains in a thread, with a list of what ended it."""
    network = HitFilterConfig(features=("x", "y", "z"), window=8, encoder=EncoderConfig(8, 1, 2))
    data = EventDataModule(str(events), validation=2, test=2)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings = {"max_steps": 50, "accelerator": "cpu", "limit_val_batches": 0, **quiet, **options}
    trainer = pl.Trainer(callbacks=[remote], **settings)  # type: ignore[arg-type]
    ends: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit(HitFilterModule(network), datamodule=data)
        except TrainingStopped as end:
            ends.append(end)
        finally:
            remote.end()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    return thread, ends


def test_a_step_is_one_of_the_optimiser_where_batches_are_summed(toy_folder, tmp_path):
    seen: list[int] = []
    path = tmp_path / "left.ckpt"
    remote = RemoteControl(path, paused=True, on_step=lambda _, step, __: seen.append(step))
    thread, ends = begin(remote, toy_folder, accumulate_grad_batches=2)
    remote.step(3)
    assert remote.wait(30)
    assert seen == [1, 2, 3]
    remote.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(ends[0], TrainingStopped)
    checkpoint = read_checkpoint(path)
    assert checkpoint["global_step"] == 3
    assert checkpoint["EventDataModule"] == {"consumed": 6}
    assert load_checkpoint(path).config.encoder.dim == 8


def test_it_waits_aside_and_without_a_checkpoint_leaves_none(toy_folder, tmp_path):
    steps: list[int] = []
    remote = RemoteControl(tmp_path / "left.ckpt", on_step=lambda _, step, __: steps.append(step))
    with remote.aside():
        thread, ends = begin(remote, toy_folder)
        assert not remote.wait(0.5)
        assert steps == []
        remote.stop(save=False)  # answers although it stands aside
        thread.join(30)
    assert len(ends) == 1
    assert not (tmp_path / "left.ckpt").exists()


@pytest.mark.parametrize("path", [None, "end.ckpt"])
def test_the_end_of_a_training_is_kept(toy_folder, tmp_path, path):
    file = None if path is None else tmp_path / path
    remote = RemoteControl(file)
    thread, ends = begin(remote, toy_folder, max_steps=2)
    assert remote.wait(30)
    thread.join(30)
    assert ends == []
    assert list(tmp_path.glob("*.ckpt")) == ([] if file is None else [file])
