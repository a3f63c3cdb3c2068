"""What the command lines of all trainings share: trainer, callbacks, checks that come before any work, configurations.

`filter_cli.py` and `track_cli.py` say what they train, and with which data.
"""

import argparse
import logging
import re
import sys
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from hepattn.attention import available_backends
from hepattn.attention.backends.registry import BACKENDS
from hepattn.training.base import TrainingModule, read_checkpoint, say
from hepattn.training.callbacks import (
    CheckpointOnInterrupt,
    ExportWeights,
    LastCheckpoint,
    Speed,
    checkpoint_folder,
    is_dry,
)
from hepattn.training.data import EventDataModule

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


def common_callbacks(monitor: str) -> list[Callback]:
    """What every run has: best and last checkpoint, one on Ctrl-C, weights on their own, the speed, a bar.

    Args:
        monitor: the logged number by which the best checkpoint is chosen: the larger the better
    """
    checkpoint = ModelCheckpoint(monitor=monitor, mode="max", filename=f"best-{{step}}-{{{monitor}:.4f}}")
    return [
        checkpoint,
        LastCheckpoint(),
        CheckpointOnInterrupt(),
        ExportWeights(),
        LearningRateMonitor("step"),
        Speed(),
        TQDMProgressBar(refresh_rate=10),
    ]


class TaskTrainer(Trainer):
    """pytorch-lightning's Trainer; the callbacks of a configuration come on top of the task's own.

    A configured callback replaces the default one of its class.
    """

    LOGS: ClassVar[str]
    """Name of the folder of runs."""

    def __init__(self, *args: Any, callbacks: list[Callback] | Callback | None = None, **kwargs: Any) -> None:
        given = [] if callbacks is None else [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
        ours = [one for one in self.defaults() if not any(type(other) is type(one) for other in given)]
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
            kwargs["logger"] = CSVLogger(kwargs.get("default_root_dir") or ".", name=self.LOGS)
        super().__init__(*args, callbacks=[*ours, *given], **kwargs)

    @classmethod
    @abstractmethod
    def defaults(cls) -> list[Callback]:
        """The callbacks that every run of the task has."""


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml beside what a run writes; `predict` writes its predictions and nothing else."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes it."""
        if stage != "predict":
            super().setup(trainer, pl_module, stage)


class TaskCLI(LightningCLI):
    """LightningCLI with the checks that must come before any work."""

    model: TrainingModule
    datamodule: EventDataModule
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
        if path is None:
            return
        if path in {"best", "last", "hpc"}:
            path = self._settings()["ckpt_path"] = self._named_checkpoint(path)
        self.checkpoint = read_checkpoint(path, self._module().MODEL)

    def _named_checkpoint(self, word: str) -> str:
        """The checkpoint that the newest run has left, for the word "last".

        pytorch-lightning knows no last checkpoint but its own, and would begin anew in silence.

        Raises:
            ValueError: another word
            FileNotFoundError: there is none
        """
        runs = Path(self._settings()["trainer"].get("default_root_dir") or ".") / self._module().MODEL.KIND
        found = [path for name in ("last", "interrupted") for path in runs.glob(f"*/checkpoints/{name}.ckpt")]
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if word != "last":
            known = "" if newest is None else f", such as {newest}"
            raise ValueError(f"--ckpt_path takes a file{known}, or the word last, not {word}")
        if newest is None:
            raise FileNotFoundError(
                f"--ckpt_path last: no run in {runs} has left a last.ckpt or interrupted.ckpt; give a file"
            )
        say(f"the last checkpoint is {newest}")
        return str(newest)

    def _settings(self) -> Any:
        return self.config[self.config.subcommand] if self.config.get("subcommand") else self.config

    def _module(self) -> type[TrainingModule]:
        assert isinstance(self.model_class, type)
        assert issubclass(self.model_class, TrainingModule)
        return self.model_class

    def before_instantiate_classes(self) -> None:
        """Refuses to test or apply a model of random weights.

        Raises:
            ValueError: nothing was given to test or apply
        """
        config = self._settings()
        if self.subcommand not in {None, "fit"} and not config.get("ckpt_path") and not config["model"].get("weights"):
            raise ValueError(
                f"{self.subcommand} needs a trained {self._module().NOUN}: "
                "give --ckpt_path FILE.ckpt or --model.weights FILE.safetensors"
            )

    def before_fit(self) -> None:
        """Opens the events, before the trainer makes folders: a wrong path leaves nothing behind."""
        self.model.check_end(self.trainer)
        if self.trainer.val_check_interval == 0:
            raise ValueError(
                "trainer.val_check_interval is a number of steps >= 1 or a fraction of a pass, not 0; "
                "trainer.limit_val_batches 0 leaves validation out"
            )
        self._open("fit")

    def after_fit(self) -> None:
        """Says which checkpoint a later command can take."""
        kept = any(isinstance(callback, LastCheckpoint) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if kept and self.trainer.is_global_zero and not is_dry(self.trainer):
            sys.stdout.write(f"checkpoint in {checkpoint_folder(self.trainer) / 'last.ckpt'}\n")

    def before_validate(self) -> None:
        """The same."""
        self._open("validate")

    def before_test(self) -> None:
        """The same."""
        self._open("test")

    def before_predict(self) -> None:
        """The same; predictions are all that is written."""
        self._open("predict")
        self.trainer.logger = None

    def _check_device(self, stage: str) -> None:
        """Refuses several devices, and a kernel that the device hasn't.

        Raises:
            ValueError: one of them
        """
        devices = self.trainer.num_devices * self.trainer.num_nodes
        if devices > 1:
            raise ValueError(
                f"trainer.devices and trainer.num_nodes ask for {devices} devices, among which the stream of events "
                "is not distributed: set --trainer.devices 1 --trainer.num_nodes 1"
            )
        backend, kind = self._settings()["model"].get("backend"), self.trainer.strategy.root_device.type
        if backend in BACKENDS:
            missing = available_backends(kind)[backend] if stage == "fit" else BACKENDS[backend].missing(kind)
            if isinstance(missing, str):
                raise ValueError(
                    f"model.backend {backend} can't be used on {kind}: {missing}; auto takes what is there"
                )

    def _open(self, stage: str) -> None:
        self._check_device(stage)
        if self.checkpoint is not None:
            self.model.on_load_checkpoint(self.checkpoint)  # refuses another model's
        self.datamodule.trainer = self.trainer  # says on which device to prepare
        self.datamodule.read_for(self.model.model.config)
        self.datamodule.setup(stage)


def run(
    module: type[TrainingModule], data: type[EventDataModule], trainer: type[TaskTrainer], argv: Sequence[str]
) -> int:
    """Runs a task's command line.

    Args:
        module: what is trained
        data: what it is trained on
        trainer: with the task's callbacks
        argv: what stands after `hepattn TASK`

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
            TaskCLI(
                module,
                data,
                trainer_class=trainer,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={"exit_on_error": False, **{name: {"exit_on_error": False} for name in COMMANDS}},
                args=arguments,
            )
    except argparse.ArgumentError as error:
        raise ValueError(_sentence(error)) from error
    except MisconfigurationException as error:
        raise ValueError(" ".join(str(error).split())) from error
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
    """The report of jsonargparse in one sentence: which setting takes what, and what it got, where it says so."""
    text = str(error)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    several = re.findall(r"Subtypes: \[(.*)\]\n", text)
    got = re.findall(r"(?:Given|Got) value: (.*)", text)
    single = re.findall(r"Expected a (.*)\. Got value: ", text)
    kinds = several + single
    if keys and len(keys) == len(got) == len(kinds):  # of settings in settings the innermost is wrong
        return f"{'.'.join(keys)} takes {_kinds(kinds[-1])}, not {got[0]}"
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    return " ".join(lines)


def _kinds(types: str) -> str:
    """`typing.Literal[32, 'bf16'], <class 'NoneType'>` as "32, bf16 or null"."""
    plain = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
    words: list[str] = []
    for literal, name, other in re.findall(
        r"typing\.Literal\[(.*?)\]|<class '(?:\w+\.)*(\w+)'>|([^\s,\[]+(?:\[[^\]]*\])?)", types
    ):
        if literal:
            words += [word.strip("' ") for word in literal.split(",")]
        else:
            words.append(plain.get(name, name) or re.sub(r"\b(?:\w+\.)+", "", other))
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
