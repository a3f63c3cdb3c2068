"""How sparse a mask is: pair by pair, and in the blocks that kernels look at. Counted exactly at any size of event."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from hepattn.masks import Mask
from hepattn.masks.base import MaskMod
from hepattn.masks.blocks import block_relation
from hepattn.sequence import Layout, Lengths

__all__ = ["Sparsity", "allowed_pairs", "pairs", "sparsity", "sparsity_table"]

COUNTED = 128
"""Block size with which pairs are counted."""


@dataclass(frozen=True)
class Sparsity:
    """How sparse a mask is, pair by pair and in blocks.

    Attributes:
        pairs: All queries of the batch times all its keys.
        allowed: Pairs that may attend.
        blocks: Blocks of the batch; the last of a row or column may be cut short.
        active: Blocks that a kernel enters: all but those where surely no pair is allowed.
        full: Blocks among them in which every pair is allowed, so that no pair is looked at by itself.
        size: Tokens along the side of a block.
    """

    pairs: int
    allowed: int
    blocks: int
    active: int
    full: int
    size: int

    @property
    def computed(self) -> int:
        """Scores that a kernel computes: every pair of every active block."""
        return self.active * self.size**2

    @property
    def waste(self) -> float:
        """Scores computed over pairs allowed, 1 = none in vain; NaN where nothing is allowed."""
        return self.computed / self.allowed if self.allowed else math.nan


def sparsity(mask: Mask | None, lengths: Lengths, size: int = 128, kv_lengths: Lengths = None) -> Sparsity:
    """Counts pairs and blocks, exactly and at any size: single pairs are looked at only where a kernel would.

    Args:
        mask: None: everything inside an event.
        lengths: Queries of each event.
        size: Tokens along the side of a block.
        kv_lengths: Keys of each event; left out, the queries themselves.

    Raises:
        ValueError: The mask does not fit the events, or the lengths are not whole numbers of tokens.
    """
    queries, keys = layouts(lengths, kv_lengths)
    if mask is not None:
        mask.check(queries, keys)
    some, every = block_relation(mask, queries, keys, size)
    return Sparsity(
        pairs=queries.total * keys.total,
        allowed=allowed_pairs(mask, queries, keys),
        blocks=some.numel(),
        active=int(some.sum()),
        full=int(every.sum()),
        size=size,
    )


def sparsity_table(
    masks: Mapping[str, Mask | None], lengths: Lengths, size: int = 128, kv_lengths: Lengths = None
) -> pd.DataFrame:
    """`sparsity` of several masks by name, one a row; shares in percent."""
    rows = {}
    for name, mask in masks.items():
        found = sparsity(mask, lengths, size, kv_lengths)
        rows[name] = {
            "pairs allowed [%]": 100 * found.allowed / found.pairs,
            "active blocks [%]": 100 * found.active / found.blocks,
            "full blocks [%]": 100 * found.full / found.blocks,
            "computed / allowed": found.waste,
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def pairs(mask: Mask | None, queries: Layout, keys: Layout) -> Tensor:
    """`(all queries, all keys)` bool of the packed tokens of all events; mask None: everything inside an event."""
    q, k = torch.arange(queries.total), torch.arange(keys.total)
    zero = torch.zeros((), dtype=torch.int64)
    return MaskMod(mask, queries, keys)(zero, zero, q[:, None], k[None, :]).expand(len(q), len(k))


def allowed_pairs(mask: Mask | None, queries: Layout, keys: Layout) -> int:
    """How many pairs may attend: those of whole blocks by their number, of other active blocks one by one."""
    some, every = block_relation(mask, queries, keys, COUNTED)
    mod, zero = MaskMod(mask, queries, keys), torch.zeros((), dtype=torch.int64)
    run = torch.arange(COUNTED)
    found = int(every.sum()) * COUNTED**2
    for part in (some & ~every).nonzero().split(64):
        q, k = (start * COUNTED + run for start in part.T[..., None])
        inside = (q < queries.total)[:, :, None] & (k < keys.total)[:, None, :]
        q, k = q.clamp(max=queries.total - 1), k.clamp(max=keys.total - 1)
        found += int((mod(zero, zero, q[:, :, None], k[:, None, :]) & inside).sum())
    return found


def layouts(lengths: Lengths, kv_lengths: Lengths = None) -> tuple[Layout, Layout]:
    """Of queries and keys on the CPU; without `kv_lengths` the queries are the keys."""
    queries = Layout.of(lengths, "cpu")
    return queries, queries if kv_lengths is None else Layout.of(kv_lengths, "cpu")
