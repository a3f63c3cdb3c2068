"""`hepattn filter fit | validate | test | predict`: pytorch-lightning's command line over the hit filter.

```
hepattn filter fit --config hit_filter.yaml --trainer.fast_dev_run 10
hepattn filter fit --config hit_filter.yaml --data.path FOLDER               # any folder of simulated or TrackML events
hepattn filter fit --config hit_filter.yaml --ckpt_path RUN/checkpoints/last.ckpt        # goes on exactly
hepattn filter test --config hit_filter.yaml --model.weights FILE.safetensors
hepattn filter predict --config hit_filter.yaml --ckpt_path RUN/checkpoints/last.ckpt --data.path FOLDER
```

A configuration is looked for as a file first, then by its bare name among those that ship with the package.
"""

from collections.abc import Sequence

from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from hepattn.models.hit_filter import HitFilter
from hepattn.training.callbacks import ScoreWriter
from hepattn.training.cli import TaskTrainer, common_callbacks, run
from hepattn.training.data import EventDataModule
from hepattn.training.filtering import HitFilterModule


def default_callbacks() -> list[Callback]:
    """What every run has: see `common_callbacks`; and scores written to disk."""
    return [*common_callbacks("val_auc"), ScoreWriter()]


class FilterTrainer(TaskTrainer):
    """The Trainer of hit filters, with `default_callbacks`."""

    LOGS = HitFilter.KIND

    @classmethod
    @override
    def defaults(cls) -> list[Callback]:
        return default_callbacks()


def main(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
        argv: what stands after `hepattn filter`

    Returns:
        0

    Raises:
        ValueError: a setting, file or folder that can't be used, in one sentence
    """
    return run(HitFilterModule, EventDataModule, FilterTrainer, argv)
