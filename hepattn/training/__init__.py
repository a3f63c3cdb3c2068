"""Training: Lightning modules, the data they read, and the command line. Loops know models, not the other way round."""

from hepattn.training.base import TrainingModule, load_checkpoint, read_checkpoint
from hepattn.training.data import EventDataModule
from hepattn.training.filtering import HitFilterModule
from hepattn.training.optimise import OptimiserConfig, make_optimiser, make_schedule
from hepattn.training.track_data import TrackDataModule
from hepattn.training.tracking import TrackerModule

__all__ = [
    "EventDataModule",
    "HitFilterModule",
    "OptimiserConfig",
    "TrackDataModule",
    "TrackerModule",
    "TrainingModule",
    "load_checkpoint",
    "make_optimiser",
    "make_schedule",
    "read_checkpoint",
]
