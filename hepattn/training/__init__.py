"""Training: Lightning modules, the data they read, and the command line. Loops know models, not the other way round."""

from hepattn.training.data import EventDataModule
from hepattn.training.module import HitFilterModule, load_checkpoint
from hepattn.training.optimise import OptimiserConfig, make_optimiser, make_schedule

__all__ = [
    "EventDataModule",
    "HitFilterModule",
    "OptimiserConfig",
    "load_checkpoint",
    "make_optimiser",
    "make_schedule",
]
