"""Explorers: pictures with controls, for notebooks. Each has a plain state that a test can set."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hepattn.widgets.attention import AttentionExplorer
from hepattn.widgets.base import Explorer, choice, slider
from hepattn.widgets.encodings import EncodingExplorer
from hepattn.widgets.events import EventExplorer
from hepattn.widgets.heads import HeadExplorer
from hepattn.widgets.kernels import KernelExplorer
from hepattn.widgets.masks import MaskExplorer
from hepattn.widgets.ordering import OrderingExplorer
from hepattn.widgets.peers import PeerExplorer
from hepattn.widgets.performance import PerformanceExplorer
from hepattn.widgets.queries import QueryExplorer
from hepattn.widgets.track_toys import TrackToyExplorer
from hepattn.widgets.windows import WindowExplorer

if TYPE_CHECKING:
    from hepattn.widgets.curves import learning_curves
    from hepattn.widgets.training import TrainingExplorer

__all__ = [
    "AttentionExplorer",
    "EncodingExplorer",
    "EventExplorer",
    "Explorer",
    "HeadExplorer",
    "KernelExplorer",
    "MaskExplorer",
    "OrderingExplorer",
    "PeerExplorer",
    "PerformanceExplorer",
    "QueryExplorer",
    "TrackToyExplorer",
    "TrainingExplorer",
    "WindowExplorer",
    "choice",
    "learning_curves",
    "slider",
]

TRAINS = {"TrainingExplorer": "hepattn.widgets.training", "learning_curves": "hepattn.widgets.curves"}
"""Names that are imported when they are asked for: pytorch-lightning takes seconds, and other explorers need none."""


def __getattr__(name: str) -> Any:
    """A name of `TRAINS`."""
    if name in TRAINS:
        return getattr(import_module(TRAINS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
