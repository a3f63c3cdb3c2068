"""`hepattn track fit | validate | test | predict`: pytorch-lightning's command line over the tracker.

```
hepattn track fit --config tracking.yaml --trainer.fast_dev_run 10
hepattn track fit --config tracking.yaml --data.path FOLDER               # any folder of simulated or TrackML events
hepattn track fit --config tracking.yaml --model.network.filter MY/hit_filter.safetensors
hepattn track fit --config tracking.yaml --ckpt_path RUN/checkpoints/last.ckpt         # goes on exactly
hepattn track test --config tracking.yaml --model.weights FILE.safetensors
hepattn track predict --config tracking.yaml --ckpt_path RUN/checkpoints/last.ckpt --data.path FOLDER
```

The hit filter that the configuration names judges every event first. A configuration is looked for as a file first,
then by its bare name among those that ship with the package.
"""

from collections.abc import Sequence

from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from hepattn.models.maskformer import MaskFormer
from hepattn.training.cli import TaskTrainer, common_callbacks, run
from hepattn.training.track_data import TrackDataModule
from hepattn.training.track_writer import TrackWriter
from hepattn.training.tracking import TrackerModule


def default_callbacks() -> list[Callback]:
    """What every run has: see `common_callbacks`; and tracks written to disk."""
    return [*common_callbacks("val_efficiency"), TrackWriter()]


class TrackTrainer(TaskTrainer):
    """The Trainer of trackers, with `default_callbacks`."""

    LOGS = MaskFormer.KIND

    @classmethod
    @override
    def defaults(cls) -> list[Callback]:
        return default_callbacks()


def main(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
        argv: what stands after `hepattn track`

    Returns:
        0

    Raises:
        ValueError: a setting, file or folder that can't be used, in one sentence
    """
    return run(TrackerModule, TrackDataModule, TrackTrainer, argv)
