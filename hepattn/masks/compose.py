"""`&` and `|` of masks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from hepattn.masks.base import Mask, Place, Span
from hepattn.sequence import Layout

__all__ = ["Both", "Either"]


@dataclass(frozen=True)
class _Pair(Mask):
    left: Mask
    right: Mask

    @property
    @override
    def realised(self) -> bool:
        return self.left.realised or self.right.realised

    @override
    def to(self, device: torch.device) -> Mask:
        left, right = self.left.to(device), self.right.to(device)
        return self if left is self.left and right is self.right else type(self)(left, right)

    @override
    def of_event(self, event: int) -> Mask:
        left, right = self.left.of_event(event), self.right.of_event(event)
        return self if left is self.left and right is self.right else type(self)(left, right)

    @override
    def check(self, queries: Layout, keys: Layout) -> None:
        self.left.check(queries, keys)
        self.right.check(queries, keys)

    @override
    def check_event(self, queries: int, keys: int, event: int) -> None:
        self.left.check_event(queries, keys, event)
        self.right.check_event(queries, keys, event)


@dataclass(frozen=True)
class Both(_Pair):
    """`left & right`: allowed where both allow. `Window(2) & Dense(...)` keeps the window's pairs that Dense allows."""

    @override
    def allowed(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        return self.left.allowed(query, key, place) & self.right.allowed(query, key, place)

    @override
    def rows(self, some: slice, place: Place, device: torch.device | str) -> Tensor:
        return self.left.rows(some, place, device) & self.right.rows(some, place, device)

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        some, every = self.left.relate(query, key, place)
        other_some, other_every = self.right.relate(query, key, place)
        return some & other_some, every & other_every


@dataclass(frozen=True)
class Either(_Pair):
    """`left | right`: allowed where one allows; a pair that both allow is still one pair."""

    @override
    def allowed(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        return self.left.allowed(query, key, place) | self.right.allowed(query, key, place)

    @override
    def rows(self, some: slice, place: Place, device: torch.device | str) -> Tensor:
        return self.left.rows(some, place, device) | self.right.rows(some, place, device)

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        some, every = self.left.relate(query, key, place)
        other_some, other_every = self.right.relate(query, key, place)
        return some | other_some, every | other_every
