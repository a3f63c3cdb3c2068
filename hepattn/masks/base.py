"""`Mask`: who may look at whom, as data."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    What differs from event to event are int32 tables over queries that the kernel reads (for a single event, scalars on
    the device), so other lengths need no new kernel, and the arithmetic in the kernel's inner loop stays in 32 bits.
    There is no table over keys: a key is compared with the range of its query's event (torch 2.13's CPU kernel does not
    compile with a table over keys and dynamic shapes).
    """

    def __init__(self, queries: Layout, keys: Layout) -> None:
        self.single = queries.batch == 1
        starts = [layout.offsets.to(torch.int32) for layout in (queries, keys)]
        if self.single:
            self.n_queries, self.n_keys = (start[1].clone() for start in starts)  # a view binds a graph to its base
            return
        # graphs of torch 2.11 without gradients can't lower FlexAttention with tables that they compute themselves
        opaque = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        find = torch.ops.hepattn.event_tables if opaque else _tables
        tables: list[Tensor] = find(starts[0], starts[1], queries.event)
        self.event, self.first_query, self.first_key, self.n_queries, self.n_keys = tables

    def positions(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Place]:
        """Position of packed query q in its event, of packed key k in that same event (any number if it lies outside),
        and the event's sizes.
        """
        if self.single:
            return q, k, Place(self.n_queries, self.n_keys, 0)
        place = Place(self.n_queries[q], self.n_keys[q], self.event[q])
        return q - self.first_query[q], k - self.first_key[q], place

    def same(self, key: Tensor, place: Place) -> Tensor:
        """Bool: the key at that position lies in the query's event."""
        return (key >= 0) & (key < place.keys)


def _tables(queries: Tensor, keys: Tensor, event: Tensor) -> list[Tensor]:
    """Tables over queries, `(Tq,)` int32 each: event, first query and first key of the event, and how many it has.

    `queries` and `keys` (B + 1,) int32 are the first tokens of events, and the end; `event` (Tq,) is each query's.
    """
    firsts, numbers = zip(*((start[event], start.diff()[event]) for start in (queries, keys)), strict=True)
    return [event.to(torch.int32), *firsts, *numbers]


_opaque_tables = torch.library.custom_op("hepattn::event_tables", _tables, mutates_args=())


@_opaque_tables.register_fake
def _(queries: Tensor, keys: Tensor, event: Tensor) -> list[Tensor]:  # noqa: ARG001
    return [torch.empty_like(event, dtype=torch.int32) for _ in range(5)]


class MaskMod:
    """FlexAttention's `mask_mod` for packed events: same event, and allowed by the mask inside it."""

    def __init__(self, mask: Mask | None, queries: Layout, keys: Layout) -> None:
        self.mask = mask
        self.pairs = PackedPairs(queries, keys)

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG002  (flex's signature)
        """Bool: packed query q may attend to packed key k, in every batch entry b and head h."""
        i, j, place = self.pairs.positions(q, k)
        if self.pairs.single and self.mask is not None:
            return self.mask.allowed(i, j, place)
        same = (i >= 0) & self.pairs.same(j, place)
        return same if self.mask is None else same & self.mask.allowed(i, j, place)


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
