"""A mask given pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from hepattn.masks.base import Mask, Place, Span
from hepattn.sequence import Layout

__all__ = ["Dense"]


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """The fully realised mask of masked attention: one bool tensor (queries, keys) for each event, True = may attend.

    Queries and keys are tokens: of a padded batch the valid ones, without the padding. A row without True gives zeros.
    Compared and hashed by identity, since the tensors are data.

    Args:
        tensors: one tensor (queries, keys), or a sequence with one for each event of the batch.

    Raises:
        ValueError: a tensor is not a bool matrix, or the shapes do not fit the events that it is used on.
    """

    tensors: tuple[Tensor, ...]
    _flat: Tensor = field(init=False, repr=False)
    _starts: Tensor = field(init=False, repr=False)
    _elsewhere: "dict[torch.device, Dense]" = field(init=False, repr=False)

    def __init__(self, tensors: Tensor | Sequence[Tensor]) -> None:
        each = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        for tensor in each:
            if tensor.ndim != 2 or tensor.dtype != torch.bool:
                raise ValueError(
                    "Dense takes a bool matrix (queries, keys) for each event, "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if len({tensor.device for tensor in each}) > 1:
            raise ValueError(f"Dense takes tensors on one device, got {sorted({str(t.device) for t in each})}")
        object.__setattr__(self, "tensors", each)
        # kernels read all events from one flat tensor
        parts = [tensor.reshape(-1) for tensor in each] or [torch.zeros(0, dtype=torch.bool)]
        flat = torch.cat(parts) if len(parts) != 1 else parts[0]
        starts = torch.tensor([0, *(tensor.numel() for tensor in each)][: len(each)], dtype=torch.int64).cumsum(0)
        object.__setattr__(self, "_flat", flat)
        object.__setattr__(self, "_starts", starts.to(flat.device))
        object.__setattr__(self, "_elsewhere", {})

    @property
    @override
    def realised(self) -> bool:
        return True

    @override
    def __repr__(self) -> str:  # the tensors themselves would drown every message
        shapes = ", ".join(f"{rows} x {columns}" for rows, columns in (tensor.shape for tensor in self.tensors[:3]))
        return f"Dense({shapes}{', ...' if len(self.tensors) > 3 else ''})"

    @override
    def to(self, device: torch.device) -> "Dense":
        if self._flat.device == device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = Dense([tensor.to(device) for tensor in self.tensors])
        return self._elsewhere[device]

    @override
    def of_event(self, event: int) -> "Dense":
        return self if len(self.tensors) == 1 else Dense(self.tensors[event])

    def stacked(self) -> Tensor:
        """(events, queries, keys), without a copy.

        Raises:
            ValueError: the events' masks differ in shape.
        """
        shapes = {tuple(tensor.shape) for tensor in self.tensors}
        if len(shapes) != 1:
            raise ValueError(f"only masks of one shape can be stacked, got {sorted(shapes)}")
        return self._flat.view(len(self.tensors), *shapes.pop())

    @override
    def check(self, queries: Layout, keys: Layout) -> None:
        if self._starts.shape[0] != queries.batch:
            raise ValueError(f"Dense has masks for {len(self.tensors)} events, the batch has {queries.batch}")
        if torch.compiler.is_compiling():  # lengths are values, which a graph can't read
            return
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
        index = self._starts[place.event] + query.to(torch.int64) * place.keys + key
        return self._flat[index.clamp(0, self._flat.shape[0] - 1)]  # a key outside of the event is no key: any answer

    @override
    def rows(self, some: slice, place: Place, device: torch.device | str) -> Tensor:
        """A view: looking pairs up one by one would take 8 bytes for each."""
        return self.tensors[int(place.event)][some].to(device)

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        """Reads every pair once, a run of queries at a time; a traced graph, which knows no run, is cautious."""
        shape = (query.first.shape[0], key.first.shape[1])
        some = torch.ones(shape, dtype=torch.bool, device=query.first.device)
        if torch.compiler.is_compiling():
            return some, ~some
        every = torch.zeros_like(some)
        first, last = key.first[0], key.last[0]
        event = torch.as_tensor(place.event, device=some.device).expand(shape[0], 1)
        for row, values in enumerate(torch.cat([query.first, query.last, event], dim=1).tolist()):
            tensor = self.tensors[values[2]][values[0] : values[1] + 1]
            low, high = first.clamp(max=tensor.shape[1]), (last + 1).clamp(0, tensor.shape[1])
            any_row, all_row = (_sums(column) for column in (tensor.any(0), tensor.all(0)))
            some[row] = any_row[high] > any_row[low]
            every[row] = all_row[high] - all_row[low] == last + 1 - first
        return some, every


def _sums(column: Tensor) -> Tensor:
    """`(n + 1,)` how many are True before each place."""
    return torch.cat([column.new_zeros(1, dtype=torch.int64), column.cumsum(0)])
