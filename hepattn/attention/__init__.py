"""Attention: `attend`, exact weights, and the kernels behind them."""

from hepattn.attention.backends.base import KernelRefusal
from hepattn.attention.backends.registry import available_backends
from hepattn.attention.functional import attend
from hepattn.attention.weights import attention_weights

__all__ = ["KernelRefusal", "attend", "attention_weights", "available_backends"]
