"""Explorers: pictures with controls, for notebooks. Each has a plain state that a test can set."""

from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["Explorer", "choice", "slider"]
