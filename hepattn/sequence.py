"""Packed sequences: several events in one tensor, and the doors to padded and nested tensors.

Everything inside a model is *packed*: `values` has shape `(T, ...)`, the events stand one after another, and `lengths`
says where each ends. Padding and nested tensors exist only at a model's entrance and exit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Layout", "Lengths", "Packed", "Role", "run_of"]

T = TypeVar("T")


class Role(IntEnum):
    """What a token is; a layout's `roles` hold these numbers."""

    HIT = 0
    """Comes from the data; in a decoder a query, too."""
    REGISTER = 1
    """Learned, stands between hits (arXiv:2309.16588, interspersed)."""
    GLOBAL_REGISTER = 2
    """Learned, attends to all of its event and is attended by all."""
    CLS = 3
    """The same, and read out for the event."""

    @property
    def title(self) -> str:
        """Its name in figures: "hit", "register", "global register", "CLS"."""
        return "CLS" if self is Role.CLS else self.name.lower().replace("_", " ")


def _as_lengths(lengths: "Sequence[int] | Tensor") -> Tensor:
    """`(B,)` int64 on the CPU, checked; the caller's own tensor is never changed."""
    tensor = torch.as_tensor(lengths, device="cpu")
    if not isinstance(lengths, Tensor) and not len(lengths):  # torch takes [] for floats
        tensor = tensor.to(torch.int64)
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"lengths must be one integer an event, shape (B,); got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.to(torch.int64)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each event of a packed tensor begins and ends, on one device.

    Built once at a model's entrance and handed to every `attend`, so that index tensors which depend on the lengths
    alone are computed once for all layers (`cached`).

    Attributes:
        lengths: `(B,)` int64 on the CPU, tokens of each event.
        offsets: `(B + 1,)` int64 on `device`, the first token of each event, and the total at the end.
        total: T, the number of tokens.
        roles: `(T,)` uint8 on `device`, the `Role` of each token; None: all are hits. Recorded with every attention
            call; no kernel reads it.
    """

    lengths: Tensor
    offsets: Tensor
    total: int
    roles: Tensor | None = None
    _cache: dict[object, object] = field(default_factory=dict, repr=False)
    _traced: bool = field(default_factory=torch.compiler.is_compiling, repr=False)

    @classmethod
    def of(cls, lengths: "Lengths", device: torch.device | str, *, total: int | None = None) -> "Layout":
        """Layout of `lengths` on `device`; `total` (T) is checked where it is given, and lengths=None is one sequence.

        Raises:
            ValueError: lengths are not one integer an event, are negative, or do not sum to `total`.
        """
        if isinstance(lengths, Layout):
            if total is not None and lengths.total != total:
                raise ValueError(f"the layout describes {lengths.total} tokens, the tensor has {total}")
            return lengths
        if lengths is None:
            if total is None:
                raise ValueError("lengths=None means one sequence, whose length must then be given as total")
            lengths = torch.full((1,), total, dtype=torch.int64)
        host = _as_lengths(lengths)
        if not torch.compiler.is_compiling():  # reading values on the host would break a traced graph
            if bool((host < 0).any()):
                raise ValueError(f"lengths must not be negative, got {host.tolist()}")
            summed = int(host.sum())
            if total is not None and summed != total:
                raise ValueError(f"lengths {_brief(host)} sum to {summed}, but the tensor has {total} tokens")
            total = summed
        if total is None:
            raise ValueError("inside torch.compile a layout needs the number of tokens: Layout.of(..., total=T)")
        zero = torch.zeros(1, dtype=torch.int64)
        return cls(host, torch.cat([zero, host.cumsum(0)]).to(device), total)

    def entered(self, total: int) -> "Layout":
        """Inside torch.compile a copy that belongs to the graph, so that `cached` keeps what layers share; else itself.

        Args:
            total: T as the graph knows it: the length of a packed tensor of these tokens.

        Raises:
            ValueError: outside of a graph, another number of tokens.
        """
        if torch.compiler.is_compiling():
            return Layout(self.lengths, self.offsets, total)
        return Layout.of(self, self.device, total=total)

    @property
    def device(self) -> torch.device:
        """The device of every index tensor."""
        return self.offsets.device

    @property
    def batch(self) -> int:
        """B, the number of events."""
        return self.lengths.shape[0]

    @property
    def max_length(self) -> int:
        """Length of the longest event; inside torch.compile its upper bound T, which needs no value on the host."""
        if torch.compiler.is_compiling():
            return self.total
        return self.cached("max_length", lambda: int(self.lengths.max()) if self.batch else 0)

    @property
    def host_lengths(self) -> list[int]:
        """The lengths as Python integers."""
        return self.cached("host_lengths", self.lengths.tolist)

    @property
    def event(self) -> Tensor:
        """`(T,)` int64: which event each token belongs to."""
        return self.cached("event", lambda: run_of(self.offsets, self._token))

    @property
    def position(self) -> Tensor:
        """`(T,)` int64: position of each token inside its own event."""
        return self.cached("position", lambda: self._token - self.offsets[self.event])

    @property
    def _token(self) -> Tensor:
        return torch.arange(self.total, device=self.device)

    def cached(self, key: object, build: Callable[[], T]) -> T:
        """What `build` returned the first time that `key` was asked for.

        A graph keeps only what belongs to layouts made inside of it: another layout would outlive the graph's tensors.
        """
        if torch.compiler.is_compiling() and not self._traced:
            return build()
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]  # type: ignore[return-value]


Lengths = Layout | Sequence[int] | Tensor | None


def run_of(offsets: Tensor, index: Tensor) -> Tensor:
    """Which run each index lies in; `offsets` (R + 1,) are the first indices of runs, and the end of the last.

    All offsets are searched, the 0 too: the graphs of torch 2.11 search a slice such as `offsets[1:]` from its tensor's
    start.
    """
    return torch.searchsorted(offsets, index, right=True) - 1


def _brief(lengths: Tensor) -> str:
    values = lengths.tolist()
    return str(values) if len(values) <= 6 else f"[{values[0]}, {values[1]}, ..., {values[-1]}] ({len(values)} events)"


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens of B events, one event after another.

    Attributes:
        values: `(T, ...)`, any dtype and device.
        lengths: `(B,)` int64 on the CPU, tokens of each event; their sum is T. Lists and tuples are accepted.
        order: `(T,)` int64 or None; set by `sort`: token t stood at `order[t]` before.

    Raises:
        TypeError: the values are no tensor.
        ValueError: they have no dimension, or the lengths are not integers of shape (B,), are negative or do not sum to
            T.
    """

    values: Tensor
    lengths: Tensor
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor):
            raise TypeError(
                f"Packed got values of type {type(self.values).__name__}, expected a tensor (T, ...), such as "
                "torch.as_tensor(values)"
            )
        if not self.values.ndim:
            raise ValueError("Packed got one number without a dimension, expected values of shape (T, ...)")
        layout = Layout.of(self.lengths, "cpu", total=self.values.shape[0])
        object.__setattr__(self, "lengths", layout.lengths)

    @property
    def offsets(self) -> Tensor:
        """`(B + 1,)` int64 on the CPU."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])

    @property
    def layout(self) -> Layout:
        """The layout on the device of the values (built anew at every call: keep it)."""
        return Layout.of(self.lengths, self.values.device, total=self.values.shape[0])

    def with_values(self, values: Tensor) -> "Packed":
        """The same events with other values `(T, ...)`."""
        return replace(self, values=values)

    def split(self) -> list[Tensor]:
        """The events one by one, `(n_b, ...)` each, as views."""
        return list(self.values.split(self.lengths.tolist()))

    # -- padded --
    @classmethod
    def from_padded(cls, padded: Tensor, valid: Tensor) -> "Packed":
        """Packs `padded` (B, N, ...); `valid` (B, N) bool, True = a token. Valid tokens keep their order.

        Raises:
            ValueError: `valid` is not bool of shape (B, N).
        """
        if valid.dtype != torch.bool or valid.shape != padded.shape[:2]:
            raise ValueError(
                f"valid must be bool of shape {tuple(padded.shape[:2])} (True = a token), "
                f"got {valid.dtype} {tuple(valid.shape)}"
            )
        return cls(padded[valid], valid.sum(1).cpu())

    def to_padded(self, length: int | None = None) -> tuple[Tensor, Tensor]:
        """`(B, N, ...)` with zeros in the padding, and `valid` (B, N) bool; N is the longest event or `length`."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        size = longest if length is None else length
        if size < longest:
            raise ValueError(f"length={size} would cut an event of {longest} tokens; nothing is truncated here")
        device = self.values.device
        valid = torch.arange(size, device=device) < self.lengths.to(device)[:, None]
        padded = self.values.new_zeros(valid.shape + self.values.shape[1:])
        return padded.index_put(valid.nonzero(as_tuple=True), self.values), valid

    # -- nested --
    @classmethod
    def from_nested(cls, nested: Any) -> "Packed":
        """Packs a nested tensor of layout `torch.jagged`, whose ragged dimension is the first after the batch.

        Raises:
            ValueError: the tensor is not nested, not jagged, or has holes between its events.
        """
        if not nested.is_nested or nested.layout != torch.jagged:
            raise ValueError(
                "expected torch.nested.nested_tensor(..., layout=torch.jagged), "
                f"got a tensor of shape {tuple(nested.shape) if not nested.is_nested else 'nested, strided layout'}"
            )
        if nested.lengths() is not None or getattr(nested, "_ragged_idx", 1) != 1:
            raise ValueError(
                "a nested tensor with holes or a transposed ragged dimension: call .contiguous() on it first"
            )
        return cls(nested.values(), nested.offsets().diff().cpu())

    def to_nested(self) -> Tensor:
        """A nested tensor of layout `torch.jagged` that shares the values."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets.to(self.values.device))

    # -- order --
    def sort(self, key: Tensor) -> "Packed":
        """Orders the tokens of each event by `key` (T,), ascending and stable; `unsort` undoes it.

        Raises:
            ValueError: the key is coarser than float32 (float16 has about 11,600 distinct values in a turn of phi, so
                neighbours would be shuffled), is not of shape (T,), or holds a NaN.
        """
        count = self.values.shape[0]
        if key.shape != (count,):
            raise ValueError(f"the key must have shape ({count},), got {tuple(key.shape)}")
        if key.is_floating_point() and torch.finfo(key.dtype).bits < 32:
            raise ValueError(f"the key must be float32 or finer, got {key.dtype}: cast the coordinates, not the key")
        if not torch.compiler.is_compiling() and bool(key.isnan().any()):
            raise ValueError(f"the key holds {int(key.isnan().sum())} NaN; every token needs a place in the order")
        by_key = torch.argsort(key, stable=True)
        event = self.layout.event
        order = by_key[torch.argsort(event[by_key], stable=True)]
        before = order if self.order is None else self.order[order]
        return Packed(self.values[order], self.lengths, before)

    def unsort(self) -> "Packed":
        """The tokens in the order that they had before the first `sort`; a Packed never sorted comes back as it is."""
        if self.order is None:
            return self
        inverse = torch.empty_like(self.order)
        inverse[self.order] = torch.arange(len(self.order), device=self.order.device)
        return Packed(self.values[inverse], self.lengths)
