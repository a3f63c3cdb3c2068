"""Tokens that attend to all, and that all attend to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from hepattn.masks.base import Mask, Place, Span, as_indices

__all__ = ["GlobalTokens"]


@dataclass(frozen=True)
class GlobalTokens(Mask):
    """The tokens at `indices` of each event attend to all its tokens, and all attend to them (CLS, registers).

    Alone it is the cross of those rows and columns; with a window write `Window(w) | GlobalTokens(...)`.
    `GlobalTokens([0])` and `Window(2) | GlobalTokens([0])` on five tokens::

        1 1 1 1 1        1 1 1 1 1
        1 0 0 0 0        1 1 1 0 0
        1 0 0 0 0        1 1 1 1 0
        1 0 0 0 0        1 0 1 1 1
        1 0 0 0 0        1 0 0 1 1

    Args:
        indices: positions counted from the start of each event; one beyond an event's end names no token.
    """

    indices: tuple[int, ...]

    def __init__(self, indices: Sequence[int]) -> None:
        object.__setattr__(self, "indices", as_indices("GlobalTokens", indices))

    @override
    def allowed(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        first, *rest = self.indices
        found = (query == first) | (key == first)
        for index in rest:
            found = found | (query == index) | (key == index)
        return found

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        indices = torch.tensor(self.indices, device=query.first.device)
        q_in = _count(indices, query)
        k_in = _count(indices, key)
        some = (q_in > 0) | (k_in > 0)
        every = (q_in == query.last - query.first + 1) | (k_in == key.last - key.first + 1)
        return some, every


def _count(indices: Tensor, span: Span) -> Tensor:
    """How many of the sorted `indices` lie in each run."""
    return torch.searchsorted(indices, span.last, right=True) - torch.searchsorted(indices, span.first)
