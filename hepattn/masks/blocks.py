"""Block-sparse indices of any mask, from runs of positions: no pair of tokens is looked at.

The packed tokens are cut into blocks of `size`; a block that crosses from one event into the next counts as several
*segments*. A mask relates segments (`Mask.relate`); blocks inherit what their segments say.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hepattn.masks.base import Mask, MaskMod, Place, Span
from hepattn.sequence import Layout, run_of

__all__ = ["block_mask", "block_relation"]


class _Segments:
    """Runs of tokens that lie in one event and in one block; some are empty, so that their number is no value."""

    def __init__(self, layout: Layout, size: int) -> None:
        device = layout.device
        self.blocks = -(-layout.total // size)
        edges = torch.arange(0, layout.total, size, device=device)
        first = torch.cat([edges, layout.offsets[:-1]]).sort().values
        last = torch.cat([first[1:], layout.offsets[-1:]]) - 1
        self.filled = last >= first
        first = first.clamp(max=layout.total - 1)
        self.event = run_of(layout.offsets, first)
        start = layout.offsets[self.event]
        self.block = first // size
        self.span = Span(first - start, last - start)


def _any(relation: Tensor, q: _Segments, k: _Segments) -> Tensor:
    """`(query blocks, key blocks)`: whether a pair of filled segments is True."""
    counts = (relation & q.filled[:, None] & k.filled[None, :]).to(torch.int32)
    by_row = counts.new_zeros(q.blocks, counts.shape[1]).index_add(0, q.block, counts)
    return by_row.new_zeros(q.blocks, k.blocks).index_add(1, k.block, by_row) > 0


def block_relation(
    mask: Mask | None, queries: Layout, keys: Layout, size: int | tuple[int, int] = 128
) -> tuple[Tensor, Tensor]:
    """`(some, every)`, bool `(query blocks, key blocks)`, of the packed tokens of all events.

    `some` is True wherever a pair may attend (and at times where none does: kernels look at those pairs one by one);
    `every` is True only where all pairs of two whole blocks may.
    """
    q_size, k_size = (size, size) if isinstance(size, int) else size
    q = _Segments(queries, q_size)
    k = q if keys is queries and k_size == q_size else _Segments(keys, k_size)
    same = q.event[:, None] == k.event[None, :]
    if mask is None:
        some = every = same
    else:
        row = Span(q.span.first[:, None], q.span.last[:, None])
        column = Span(k.span.first[None, :], k.span.last[None, :])
        n_q, n_k = queries.offsets.diff()[q.event][:, None], keys.offsets.diff()[q.event][:, None]
        some, every = mask.relate(row, column, Place(n_q, n_k, q.event[:, None]))
        some, every = some & same, every & same
    rows, columns = (torch.arange(n, device=queries.device) for n in (q.blocks, k.blocks))
    whole = ((rows + 1) * q_size <= queries.total)[:, None] & ((columns + 1) * k_size <= keys.total)[None, :]
    return _any(some, q, k), ~_any(~every, q, k) & whole  # the last block may be cut short


def block_mask(mask: Mask | None, queries: Layout, keys: Layout, size: int = 128) -> BlockMask:
    """FlexAttention's BlockMask, built from runs of positions; kept on the layout of the queries.

    It takes the place of `create_block_mask`, which evaluates all N x N pairs at every call.
    """
    if keys is not queries and torch.compiler.is_compiling():  # a graph can't look up a layout
        return _build(mask, queries, keys, size)
    against = None if keys is queries else keys
    return queries.cached(("block mask", mask, against, size), lambda: _build(mask, queries, keys, size))


def _build(mask: Mask | None, queries: Layout, keys: Layout, size: int) -> BlockMask:
    some, every = block_relation(mask, queries, keys, size)
    blocks = torch.stack([some & ~every, every]).to(torch.int8)
    # the other way round, for gradients, is built here too: from_kv_blocks takes milliseconds to find it out
    (partial, full), (partial_back, full_back) = _ordered(blocks), _ordered(blocks.mT.contiguous())
    return BlockMask(
        seq_lengths=(queries.total, keys.total),
        kv_num_blocks=partial[0],
        kv_indices=partial[1],
        full_kv_num_blocks=full[0],
        full_kv_indices=full[1],
        q_num_blocks=partial_back[0],
        q_indices=partial_back[1],
        full_q_num_blocks=full_back[0],
        full_q_indices=full_back[1],
        BLOCK_SIZE=(size, size),
        mask_mod=MaskMod(mask, queries, keys),
    )


def _ordered(blocks: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each of the maps (maps, rows, columns) of 0 and 1: `(1, 1, rows)` number of ones, and `(1, 1, rows, columns)`
    the columns that have them first; int32.
    """
    numbers = blocks.sum(2, dtype=torch.int32)
    indices = blocks.argsort(dim=2, descending=True, stable=True).to(torch.int32)
    return [(n[None, None], i[None, None]) for n, i in zip(numbers, indices, strict=True)]
