"""Which hits a query of a decoder sees: blocks of queries in phi order, each with one window of hits around it.

Four queries that stand on hits 1, 2, 5 and 7 of 8, in blocks of two with windows of four hits::

    1 1 1 0 0 0 0 1     (1 + 2) // 2 = 1 is the middle of the first block: hits 7, 0, 1, 2
    1 1 1 0 0 0 0 1
    0 0 0 0 1 1 1 1     (5 + 7) // 2 = 6: hits 4, 5, 6, 7
    0 0 0 0 1 1 1 1

The window closes around the full turn. Mask logits, masked attention, losses and targets of a block-local decoder live
on these (queries, hits) rectangles alone. With one block for all queries and a window of all hits it is the dense
decoder of the field (arXiv:2112.01527): the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Blocks"]


@dataclass(frozen=True, eq=False)
class Blocks:
    """G rectangles of K queries and W hits; Q queries and T hits of B events, packed, both in phi order.

    The last block of an event may hold fewer than K queries, and an event may have fewer than W hits: what fills the
    rest repeats a real one and is not valid. Every valid query stands in exactly one block, and no hit twice in one.
    """

    query: Tensor
    """(G, K) int64, rows of the packed queries."""
    query_valid: Tensor
    """(G, K) bool, True = a query, False = filling."""
    hit: Tensor
    """(G, W) int64, rows of the packed hits."""
    hit_valid: Tensor
    """(G, W) bool, True = a hit, False = filling."""
    event: Tensor
    """(G,) int64 on the CPU, the event of each block, rising."""
    queries: int
    """Q, of all events."""

    @classmethod
    def of(
        cls,
        place: Tensor,
        queries: Sequence[int],
        hits: Sequence[int],
        block: int | None = None,
        window: int | None = None,
    ) -> "Blocks":
        """Blocks of queries around their places among the hits.

        Args:
            place: (Q,) int64, row of the packed hits where each query stands; rising inside each event
            queries: of each event, B whole numbers that sum to Q
            hits: of each event, B whole numbers
            block: K, queries in a block; None: all of an event
            window: W, hits that a block sees, around the middle between its first and its last query; None: all of
                an event. An event with no more hits than that is seen whole, so that each hit counts once

        Raises:
            ValueError: sizes below 1, lengths that don't fit, or queries in an event without hits
        """
        if (block is not None and block < 1) or (window is not None and window < 1):
            raise ValueError(f"got block={block}, window={window}: both are at least 1, or None for all of an event")
        if len(queries) != len(hits) or sum(queries) != len(place):
            raise ValueError(
                f"got {len(place)} places for {sum(queries)} queries in {len(queries)} events, and hits of {len(hits)}"
            )
        for number, (some, present) in enumerate(zip(queries, hits, strict=True)):
            if some and not present:
                raise ValueError(f"event {number} has {some} queries and no hit that they could stand at")
        device = place.device
        most_queries, most_hits = max([*queries, 1]), max([*hits, 1])
        width = most_queries if block is None else min(block, most_queries)
        reach = most_hits if window is None else min(window, most_hits)
        many, there = (torch.tensor(list(one), dtype=torch.int64) for one in (queries, hits))
        blocks = (many + width - 1) // width
        event = torch.repeat_interleave(torch.arange(len(queries)), blocks)
        first_block, first_query, first_hit = (torch.cumsum(one, 0) - one for one in (blocks, many, there))
        begin = (torch.arange(len(event)) - first_block[event]) * width
        inside = begin[:, None] + torch.arange(width)
        query_valid = inside < many[event, None]
        query = (first_query[event, None] + inside.minimum(many[event, None] - 1)).to(device)

        slot = torch.arange(reach, device=device)
        length, start = there[event, None].to(device), first_hit[event, None].to(device)
        middle = (place[query[:, :1]] + place[query[:, -1:]]).div(2, rounding_mode="floor") - start
        around = (middle - reach // 2 + slot).remainder(length)
        whole = length <= reach  # then slots count from the first hit, and those beyond the last are filling
        hit = start + torch.where(whole, slot.minimum(length - 1), around)
        return cls(query, query_valid.to(device), hit, ~whole | (slot < length), event, sum(queries))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, K, W)."""
        return (*self.query.shape, self.hit.shape[1])

    @property
    def pairs(self) -> Tensor:
        """(G, K, W) bool, True = a query and a hit."""
        return self.query_valid[:, :, None] & self.hit_valid[:, None]

    @cached_property
    def slot(self) -> Tensor:
        """(Q,) int64, where each query stands in (G, K) counted row by row: `x.flatten(0, 1)[slot]` is packed again."""
        flat = self.query_valid.flatten()
        return flat.nonzero(as_tuple=True)[0]

    def packed(self, values: Tensor) -> Tensor:
        """(G, K, ...) of blocks -> (Q, ...) of packed queries."""
        return values.flatten(0, 1)[self.slot]

    def dense(self, values: Tensor, event: int, hits: range, fill: float) -> Tensor:
        """One event's rectangles (G, K, W) put together: (Q_b, N_b), `fill` where a query does not see a hit.

        Args:
            values: (..., G, K, W), leading dimensions are decoder layers
            event: which
            hits: rows of the packed hits that are the event's
            fill: what stands elsewhere
        """
        mine = (self.event == event).nonzero(as_tuple=True)[0].to(values.device)
        rows = values[..., mine, :, :]
        hit, valid = self.hit[mine] - hits.start, self.hit_valid[mine]
        # filling goes to one more column, which is cut off
        column = hit.masked_fill(~valid, len(hits))[:, None].expand(rows.shape[-3:])
        out = rows.new_full((*rows.shape[:-1], len(hits) + 1), fill)
        out = out.scatter(-1, column.expand(rows.shape), rows)
        return out[..., :-1].flatten(-3, -2)[..., self.query_valid[mine].flatten(), :]
