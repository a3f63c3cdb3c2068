"""What goes into a model comes out of it: packed, padded or nested; converted at its two ends only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hepattn.sequence import Packed

Sequences = Packed | Tensor
"""Packed; or padded (B, N, dim) with `valid` (B, N); or a jagged nested tensor."""


def enter(x: Sequences, valid: Tensor | None, dim: int, owner: str) -> tuple[Packed, Callable[[Tensor], Sequences]]:
    """The packed form of x, and the way back for new values (T, ...), in the form that x had.

    Args:
        x: packed, padded (with `valid`) or nested.
        valid: (B, N) bool, True = a token; padding holds zeros on the way back. None means that a padded tensor has no
            padding. Only padded tensors take it.
        dim: channels that are expected.
        owner: who asks, for the message.

    Raises:
        TypeError: x is none of the three, or `valid` was given with a form that knows its lengths.
        ValueError: another number of channels or dimensions.
    """
    if isinstance(x, Packed):
        packed: Packed = x
        leave: Callable[[Tensor], Sequences] = x.with_values
    elif not isinstance(x, Tensor):
        raise TypeError(
            f"{owner} got {type(x).__name__}, expected Packed, a padded tensor with valid=, or a nested tensor."
        )
    elif x.is_nested:
        packed, leave = _enter_nested(x)
    else:
        return _enter_padded(x, valid, dim, owner)
    if valid is not None:
        raise TypeError(f"{owner} got valid= with packed or nested input, which knows its lengths: leave valid= out.")
    if packed.values.ndim != 2 or packed.values.shape[1] != dim:
        raise ValueError(f"{owner} got values of shape {tuple(packed.values.shape)}, expected (T, {dim}).")
    return packed, leave


def _enter_nested(x: Any) -> tuple[Packed, Callable[[Tensor], Tensor]]:
    """Nested tensors of the same offsets, the object itself, can be added and stacked: what leaves takes those of x."""
    return Packed.from_nested(x), partial(torch.nested.nested_tensor_from_jagged, offsets=x.offsets())


def _enter_padded(x: Tensor, valid: Tensor | None, dim: int, owner: str) -> tuple[Packed, Callable[[Tensor], Tensor]]:
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(
            f"{owner} got a tensor of shape {tuple(x.shape)}, expected padded (B, N, {dim}) with valid= (B, N): "
            "for one event write x[None], for events one after another Packed(x, lengths)."
        )
    if valid is None:
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    packed = Packed.from_padded(x, valid)

    def leave(values: Tensor) -> Tensor:
        padded = values.new_zeros(*valid.shape, *values.shape[1:])
        padded[valid] = values
        return padded

    return packed, leave
