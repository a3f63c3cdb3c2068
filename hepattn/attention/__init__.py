"""Attention: `attend`, exact weights, and the kernels behind them."""

from hepattn.attention.backends.base import KernelRefusal
from hepattn.attention.backends.registry import available_backends
from hepattn.attention.bias import DistanceBias
from hepattn.attention.functional import attend
from hepattn.attention.weights import TopWeights, attention_image, attention_top, attention_weights

__all__ = [
    "DistanceBias",
    "KernelRefusal",
    "TopWeights",
    "attend",
    "attention_image",
    "attention_top",
    "attention_weights",
    "available_backends",
]
