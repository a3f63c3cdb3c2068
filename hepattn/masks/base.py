"""`Mask`: who may look at whom, as data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hepattn.sequence import Layout

__all__ = ["Mask", "MaskMod", "PackedPairs", "Place", "Span"]

Index = Tensor


@dataclass(frozen=True, eq=False)
class Place:
    """The sizes at a pair of tokens: everything that a mask may ask besides two positions.

    Attributes:
        queries, keys: the number of queries and keys of the event that the pair lies in (integers, or integer tensors
            that broadcast with the positions).
        event: index of the event in the batch (likewise).
    """

    queries: int | Tensor
    keys: int | Tensor
    event: int | Tensor = 0


@dataclass(frozen=True, eq=False)
class Span:
    """Runs of consecutive positions inside one event: first and last position, inclusive, as int64 tensors."""

    first: Tensor
    last: Tensor


class Mask(ABC):
    """Who may attend to whom inside one event. Immutable; True = may attend.

    A mask is defined by `allowed` alone. `relate` is the same statement about runs of tokens, from which block-sparse
    indices are built without looking at single pairs. Masks are combined with `&` and `|`.
    """

    @property
    def realised(self) -> bool:
        """Whether it holds the pairs of certain events, as `Dense` does: compared by identity, in no graph a key."""
        return False

    @abstractmethod
    def allowed(self, query: Index, key: Index, place: Place) -> Tensor:
        """Bool of the broadcast shape of `query` and `key`, positions in one event: True = may attend."""

    @abstractmethod
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        """`(some, every)` for runs of queries against runs of keys.

        `some` is False only where no pair is allowed, `every` is True only where all pairs are. In between a mask may
        be cautious (some=True, every=False): the pairs are then looked at one by one.
        """

    def to(self, device: torch.device) -> "Mask":  # noqa: ARG002
        """The mask with its tensors on `device`: itself, unless it holds any that are elsewhere."""
        return self

    def of_event(self, event: int) -> "Mask":  # noqa: ARG002
        """The mask of that event of a batch where it stands alone: itself, unless it holds pairs of each event."""
        return self

    def check(self, queries: Layout, keys: Layout) -> None:  # noqa: B027  (most masks fit all events)
        """Raises ValueError, in one sentence, where the mask does not fit the events of a batch."""

    def check_event(self, queries: int, keys: int, event: int) -> None:  # noqa: B027
        """Raises ValueError, in one sentence, where the mask does not fit one event."""

    def __and__(self, other: "Mask") -> "Mask":
        from hepattn.masks.compose import Both

        return Both(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        from hepattn.masks.compose import Either

        return Either(self, other) if isinstance(other, Mask) else NotImplemented

    def dense(
        self, queries: int, keys: int | None = None, *, event: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        """`(queries, keys)` bool for one event, True = may attend; keys defaults to queries (self-attention)."""
        n_k = queries if keys is None else keys
        self.check_event(queries, n_k, event)
        i = torch.arange(queries, device=device)[:, None]
        j = torch.arange(n_k, device=device)[None, :]
        return self.allowed(i, j, Place(queries, n_k, event)).expand(queries, n_k)

    def rows(self, some: slice, place: Place, device: torch.device | str) -> Tensor:
        """`(rows, keys)` bool of queries `start ... stop` of an event, for reading only; `place` holds integers."""
        i = torch.arange(some.start, some.stop, device=device)[:, None]
        j = torch.arange(int(place.keys), device=device)[None, :]
        return self.allowed(i, j, place).expand(len(i), j.shape[1])

    def draw(self, queries: int, keys: int | None = None, *, event: int = 0) -> str:
        """Rows of 1 (may attend) and 0, one row a query; `event`: which of a batch, where the mask holds its pairs."""
        pairs = self.dense(queries, keys, event=event).tolist()
        return "\n".join(" ".join(str(int(one)) for one in row) for row in pairs)

    def mask_mod(self, queries: Layout, keys: Layout) -> "MaskMod":
        """`mask_mod(b, h, q, k)` of FlexAttention over the packed tokens of these events (events never mix)."""
        return MaskMod(self, queries, keys)


class PackedPairs:
    """Pairs of packed tokens read as positions inside their events; works inside FlexAttention's kernels, too.

    What differs from event to event are int32 tables that the kernel reads (for a single event, scalars on the device),
    so other lengths need no new kernel, and the arithmetic in the kernel's inner loop stays in 32 bits. All but one are
    tables over keys: what a kernel reads by the query costs it several times as much (bench/RESULTS.md).

    No table has two names: dynamo binds a graph to tensors being different ones, and where they are not it can fail to
    tell why it needs another graph (it asks this call for the tensors of that graph's mask).
    """

    def __init__(self, queries: Layout, keys: Layout) -> None:
        self.single, self.same_layout = queries.batch == 1, keys is queries
        starts = queries.offsets.to(torch.int32)
        if self.single:  # clones: a view binds a graph to its base
            self.n_queries, self.n_keys = starts[1].clone(), keys.offsets.to(torch.int32)[1].clone()
            return
        # graphs of torch 2.11 without gradients can't lower FlexAttention with tables that they compute themselves
        opaque = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        find: Callable[[Tensor, Tensor], Tensor] = torch.ops.hepattn.event_table if opaque else _table
        events = torch.arange(queries.batch, dtype=torch.int32, device=queries.device)
        if not self.same_layout:
            self.query_event = find(events, queries.event)
            self.first_query, self.n_queries = find(starts, keys.event), find(starts.diff(), keys.event)
            starts = keys.offsets.to(torch.int32)
        self.key_event = find(events, keys.event)
        self.first_key, self.n_keys = find(starts, keys.event), find(starts.diff(), keys.event)

    def positions(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Place]:
        """Position of packed key k in its event, of packed query q in that same event (any number if it lies outside),
        and the event's sizes.
        """
        if self.single:
            return q, k, Place(self.n_queries, self.n_keys, 0)
        first_key, n_keys = self.first_key[k], self.n_keys[k]
        first_query, n_queries = (first_key, n_keys) if self.same_layout else (self.first_query[k], self.n_queries[k])
        return q - first_query, k - first_key, Place(n_queries, n_keys, self.key_event[k])

    def same(self, q: Tensor, k: Tensor) -> Tensor:
        """Bool: packed query q and packed key k lie in one event."""
        if self.single:
            return (q >= 0) & (k >= 0)
        return (self.key_event if self.same_layout else self.query_event)[q] == self.key_event[k]


def _table(values: Tensor, event: Tensor) -> Tensor:
    """`(T,)`: of `values`, one an event, that of each token's; `event` (T,) is the index of its event."""
    return values[event]


_opaque_table = torch.library.custom_op("hepattn::event_table", _table, mutates_args=())


@_opaque_table.register_fake
def _(values: Tensor, event: Tensor) -> Tensor:
    return torch.empty_like(event, dtype=values.dtype)


class MaskMod:
    """FlexAttention's `mask_mod` for packed events: same event, and allowed by the mask inside it."""

    def __init__(self, mask: Mask | None, queries: Layout, keys: Layout) -> None:
        self.mask = mask
        self.pairs = PackedPairs(queries, keys)

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG002  (flex's signature)
        """Bool: packed query q may attend to packed key k, in every batch entry b and head h."""
        if self.mask is None:
            return self.pairs.same(q, k)
        allowed = self.mask.allowed(*self.pairs.positions(q, k))
        return allowed if self.pairs.single else self.pairs.same(q, k) & allowed


def turns(device: torch.device) -> Tensor:
    """`(3, 1, 1)`: -1, 0 and 1, how often a ring is gone round before two runs are compared."""
    return torch.arange(-1, 2, device=device)[:, None, None]


def check_size(name: str, size: int) -> None:
    """Raises where a window's size is not a positive integer."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} takes a whole number of tokens, got {size!r} ({type(size).__name__})")
    if size < 1:
        raise ValueError(f"{name} takes a size of at least 1 token (1 = each token itself), got {size}")


def as_indices(name: str, indices: Sequence[int]) -> tuple[int, ...]:
    """Sorted, distinct, not negative."""
    values = tuple(sorted({int(i) for i in indices}))
    if not values:
        raise ValueError(f"{name} needs at least one position, got none")
    if values[0] < 0:
        raise ValueError(f"{name} takes positions counted from the start of an event, got {values[0]}")
    return values
