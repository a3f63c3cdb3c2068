"""A mask given pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from hepattn.masks.base import Mask, Place, Span
from hepattn.sequence import Layout

__all__ = ["Dense"]


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """The fully realised mask of masked attention: one bool tensor (queries, keys) for each event, True = may attend.

    A row without True gives zeros. Compared and hashed by identity, since the tensors are data.

    Args:
        tensors: one tensor (queries, keys), or a sequence with one for each event of the batch.

    Raises:
        ValueError: a tensor is not a bool matrix, or the shapes do not fit the events that it is used on.
    """

    tensors: tuple[Tensor, ...]

    def __init__(self, tensors: Tensor | Sequence[Tensor]) -> None:
        each = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        for tensor in each:
            if tensor.ndim != 2 or tensor.dtype != torch.bool:
                raise ValueError(
                    "Dense takes a bool matrix (queries, keys) for each event, "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        object.__setattr__(self, "tensors", each)

    @override
    def check(self, queries: Layout, keys: Layout) -> None:
        if len(self.tensors) != queries.batch:
            raise ValueError(f"Dense has masks for {len(self.tensors)} events, the batch has {queries.batch}")
        for event, sizes in enumerate(zip(queries.host_lengths, keys.host_lengths, strict=True)):
            self.check_event(*sizes, event)

    @override
    def check_event(self, queries: int, keys: int, event: int) -> None:
        if event >= len(self.tensors):
            raise ValueError(f"Dense has masks for {len(self.tensors)} events, none for event {event}")
        if self.tensors[event].shape != (queries, keys):
            have = tuple(self.tensors[event].shape)
            raise ValueError(f"Dense has a mask of shape {have} for event {event} of {queries} queries and {keys} keys")

    @override
    def allowed(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        device = query.device
        flat = torch.cat([t.reshape(-1) for t in self.tensors]).to(device)
        sizes = torch.tensor([0, *(t.numel() for t in self.tensors)][:-1], device=device)
        base = sizes.cumsum(0)[place.event]
        return flat[base + query.to(torch.int64) * place.keys + key]

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(query.first.shape, key.first.shape)
        some = torch.ones(shape, dtype=torch.bool, device=query.first.device)
        return some, ~some
