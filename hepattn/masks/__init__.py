"""Masks: who may attend to whom, as data (`Window(1024, wrap=True) | GlobalTokens([0])`)."""

from hepattn.masks.base import Mask
from hepattn.masks.dense import Dense
from hepattn.masks.strided import Strided
from hepattn.masks.tokens import GlobalTokens
from hepattn.masks.window import Window

__all__ = ["Dense", "GlobalTokens", "Mask", "Strided", "Window"]
