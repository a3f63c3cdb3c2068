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

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger

from hepattn.training.callbacks import CheckpointOnInterrupt, ExportWeights, LastCheckpoint, ScoreWriter, Speed
from hepattn.training.data import EventDataModule
from hepattn.training.module import HitFilterModule, read_checkpoint

COMMANDS = ("fit", "validate", "test", "predict")
NOT_OURS = (
    r"(?s).*JSONARGPARSE",
    r"(?s).*[Dd]eprecated",
    r".*is not supported by the model summary",
    r".*does not have many workers",
    r".*number of training batches .* is smaller than the logging interval",
    r"The dirpath has changed",
    r".*Checkpoint directory .* exists and is not empty",
)
"""Warnings of pytorch-lightning that its user can do nothing about, or that say nothing here."""

CONFIGS = Path(__file__).parent.parent / "configs"


def default_callbacks() -> list[Callback]:
    """What every run has: best and last checkpoint, one on Ctrl-C, weights on their own, the speed, scores."""
    checkpoint = ModelCheckpoint(monitor="val_auc", mode="max", filename="best-{step}-{val_auc:.4f}")
    return [
        checkpoint,
        LastCheckpoint(),
        CheckpointOnInterrupt(),
        ExportWeights(),
        LearningRateMonitor("step"),
        Speed(),
        ScoreWriter(),
        TQDMProgressBar(refresh_rate=10),
    ]


class FilterTrainer(Trainer):
    """pytorch-lightning's Trainer; the callbacks of a configuration come on top of `default_callbacks`.

    A configured callback replaces the default one of its class.
    """

    def __init__(self, *args: Any, callbacks: list[Callback] | Callback | None = None, **kwargs: Any) -> None:
        given = [] if callbacks is None else [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
        ours = [one for one in default_callbacks() if not any(type(other) is type(one) for other in given)]
        if kwargs.get("enable_checkpointing") is False:
            ours = [one for one in ours if not isinstance(one, ModelCheckpoint | LastCheckpoint)]
        if kwargs.get("enable_progress_bar") is False:
            ours = [one for one in ours if not isinstance(one, TQDMProgressBar)]
        if kwargs.get("fast_dev_run"):
            kwargs["logger"] = False
            ours = [one for one in ours if not isinstance(one, ModelCheckpoint)]
        if kwargs.get("logger") is False:
            ours = [one for one in ours if not isinstance(one, LearningRateMonitor)]
        elif kwargs.get("logger") is None or kwargs.get("logger") is True:
            kwargs["logger"] = CSVLogger(kwargs.get("default_root_dir") or ".", name="hit_filter")
        super().__init__(*args, callbacks=[*ours, *given], **kwargs)


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml beside what a run writes; `predict` writes scores and nothing else."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes it."""
        if stage != "predict":
            super().setup(trainer, pl_module, stage)


class FilterCLI(LightningCLI):
    """LightningCLI with the checks that must come before any work."""

    checkpoint: dict[str, Any] | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Seeds are on by default, so that two equal commands give equal numbers."""
        parser.set_defaults({"seed_everything": 1})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Only the given arguments count, whatever `sys.argv` holds; the checkpoint is read before anyone else does.

        Raises:
            ValueError: the checkpoint is of something else
            FileNotFoundError: it isn't there
        """
        self.config = parser.parse_args(args)
        path = self._settings().get("ckpt_path")
        self.checkpoint = None if path is None or path in {"best", "last", "hpc"} else read_checkpoint(path)

    def _settings(self) -> Any:
        return self.config[self.config.subcommand] if self.config.get("subcommand") else self.config

    def before_instantiate_classes(self) -> None:
        """Refuses to test or apply a filter of random weights.

        Raises:
            ValueError: nothing was given to test or apply
        """
        config = self._settings()
        if self.subcommand not in {None, "fit"} and not config.get("ckpt_path") and not config["model"].get("weights"):
            raise ValueError(
                f"{self.subcommand} needs a trained filter: "
                "give --ckpt_path FILE.ckpt or --model.weights FILE.safetensors"
            )

    def before_fit(self) -> None:
        """Opens the events, before the trainer makes folders: a wrong path leaves nothing behind."""
        self.model.check_end(self.trainer)
        self._open("fit")

    def before_validate(self) -> None:
        """The same."""
        self._open("validate")

    def before_test(self) -> None:
        """The same."""
        self._open("test")

    def before_predict(self) -> None:
        """The same; scores are all that is written."""
        self._open("predict")
        self.trainer.logger = None

    def _open(self, stage: str) -> None:
        if self.checkpoint is not None:
            self.model.on_load_checkpoint(self.checkpoint)  # refuses another filter's
        self.datamodule.read_for(self.model.model.config)
        self.datamodule.setup(stage)


def main(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
        argv: what stands after `hepattn filter`

    Returns:
        0

    Raises:
        ValueError: a setting, file or folder that can't be used, in one sentence
    """
    arguments = resolve_configs(argv)
    names = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.cloud_io")
    talk = [logging.getLogger(name) for name in names]
    for logger in talk:
        logger.addFilter(_worth_saying)
    try:
        with warnings.catch_warnings():
            for message in NOT_OURS:
                warnings.filterwarnings("ignore", message=message)
            FilterCLI(
                HitFilterModule,
                EventDataModule,
                trainer_class=FilterTrainer,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={"exit_on_error": False, **{name: {"exit_on_error": False} for name in COMMANDS}},
                args=arguments,
            )
    except argparse.ArgumentError as error:
        raise ValueError(_sentence(error)) from error
    finally:
        for logger in talk:
            logger.removeFilter(_worth_saying)
    return 0


def _worth_saying(record: logging.LogRecord) -> bool:
    """False for advertisements, and for what concerns the program and not who uses it."""
    words = record.getMessage()
    return "Tip: For seamless" not in words and not words.startswith(("`weights_only` was not set", "Loading `train"))


def resolve_configs(argv: Sequence[str]) -> list[str]:
    """The arguments, with each `--config NAME` that is no file replaced by the packaged configuration of that name.

    Raises:
        FileNotFoundError: neither a file nor a packaged configuration has that name
    """
    out = list(argv)
    for i, word in enumerate(out):
        if word.startswith("--config="):
            out[i] = f"--config={_config(word.removeprefix('--config='))}"
        elif word in {"--config", "-c"} and i + 1 < len(out):
            out[i + 1] = _config(out[i + 1])
    return out


def _config(name: str) -> str:
    if Path(name).is_file():
        return name
    packaged = CONFIGS / name
    if packaged.is_file():
        return str(packaged)
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise FileNotFoundError(f"there is no configuration {name}; the package has {known}")


def _sentence(error: argparse.ArgumentError) -> str:
    """The last and most specific line of jsonargparse's report."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return " ".join(lines)
