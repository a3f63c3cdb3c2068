"""A training set up as the command line sets it up, for an explorer that watches it: no logs, no words, no bars."""

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytorch_lightning as pl

from hepattn.training.cli import NOT_OURS, TaskCLI, resolve_configs
from hepattn.training.data import EventDataModule
from hepattn.training.filtering import HitFilterModule

__all__ = ["build", "silence"]


def build(
    arguments: Sequence[str], callbacks: Sequence[pl.Callback] = ()
) -> tuple[HitFilterModule, EventDataModule, pl.Trainer]:
    """The module, data and Trainer of `hepattn filter fit`; it also sets the seeds. Nothing is logged or validated.

    Args:
        arguments: of the command line, `--config` among them
        callbacks: of the Trainer, besides the configuration's

    Raises:
        ValueError: a setting that can't be used
        FileNotFoundError: no such configuration
    """
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    arguments = [*arguments, *(f"--trainer.{name}=false" for name in off)]
    arguments += ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
    with warnings.catch_warnings(), silence():
        for words in NOT_OURS:
            warnings.filterwarnings("ignore", message=words)
        cli = TaskCLI(
            HitFilterModule,
            EventDataModule,
            trainer_class=pl.Trainer,
            trainer_defaults={"callbacks": list(callbacks)},
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
            run=False,
            args=resolve_configs(arguments),
        )
    assert isinstance(cli.model, HitFilterModule)
    cli.model.check_end(cli.trainer)
    cli.datamodule.read_for(cli.model.model.config)
    return cli.model, cli.datamodule, cli.trainer


@contextmanager
def silence() -> Iterator[None]:
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
