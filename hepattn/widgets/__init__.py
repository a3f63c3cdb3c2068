"""Explorers: pictures with controls, for notebooks. Each has a plain state that a test can set."""

from typing import TYPE_CHECKING, Any

from hepattn.widgets.attention import AttentionExplorer
from hepattn.widgets.base import Explorer, choice, slider
from hepattn.widgets.events import EventExplorer

if TYPE_CHECKING:
    from hepattn.widgets.training import TrainingExplorer, learning_curves

__all__ = ["AttentionExplorer", "EventExplorer", "Explorer", "TrainingExplorer", "choice", "learning_curves", "slider"]


def __getattr__(name: str) -> Any:
    """What trains is imported when it is asked for: pytorch-lightning takes seconds, and other explorers need none."""
    if name in {"TrainingExplorer", "learning_curves"}:
        from hepattn.widgets import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
