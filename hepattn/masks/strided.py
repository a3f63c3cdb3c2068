"""Local window for cross-attention between sequences of different length."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hepattn.masks.base import Mask, Place, Span, check_size, turns

__all__ = ["Strided"]


@dataclass(frozen=True)
class Strided(Mask):
    """Query i of Q is centred on `c_i = i * N / Q` among N keys and attends to key j when `|j - c_i| <= size / 2`.

    Both are ordered in phi; with `wrap=True` the distance is circular in the N keys. All arithmetic is exact, on
    integers. `Strided(2, wrap=True)` for three queries on six keys::

        1 1 0 0 0 1
        0 1 1 1 0 0
        0 0 0 1 1 1

    Args:
        size: width in keys, at least 1.
        wrap: close the window over the ends of each event.
        transposed: the same relation read from the other side (hits attend to queries).
    """

    size: int
    wrap: bool = False
    transposed: bool = False

    def __post_init__(self) -> None:
        check_size("Strided", self.size)

    @property
    def transpose(self) -> "Strided":
        """The mask of keys attending to queries."""
        return Strided(self.size, self.wrap, not self.transposed)

    @override
    def allowed(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        few, many, i, j = (_wide(x) for x in (place.queries, place.keys, query, key))
        if self.transposed:
            few, many, i, j = many, few, j, i
        # |j - i N / Q| <= size / 2, multiplied by 2 Q
        distance = (j * few - i * many).abs()
        near = 2 * distance <= self.size * few
        return near | (2 * (few * many - distance) <= self.size * few) if self.wrap else near

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        few, many, i, j = place.queries, place.keys, query, key
        if self.transposed:
            few, many, i, j = many, few, key, query
        reach = self.size * few
        lowest = 2 * (j.first * few - i.last * many)
        highest = 2 * (j.last * few - i.first * many)
        if self.wrap:  # the same, and once around either way
            turn = turns(lowest.device) * (2 * few * many)
            lowest, highest = lowest + turn, highest + turn
        some = (lowest <= reach) & (highest >= -reach)
        every = (lowest >= -reach) & (highest <= reach)
        return (some.any(0), every.any(0)) if self.wrap else (some, every)


def _wide(x: int | Tensor) -> Any:
    """int64: products of two positions need not fit into 32 bits."""
    return x.to(torch.int64) if isinstance(x, Tensor) else x
