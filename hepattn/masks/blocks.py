"""Block-sparse indices of any mask, from runs of positions: no pair of tokens is looked at.

The packed tokens are cut into blocks of `size`; a block that crosses from one event into the next counts as several
*segments*. A mask relates segments (`Mask.relate`); blocks inherit what their segments say.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hepattn.masks.base import Mask, MaskMod, Place, Span
from hepattn.sequence import Layout, run_of

__all__ = ["block_mask", "block_relation"]

WORTH_FUSING = 8192
"""Tokens from which on a GPU the indices of a kind of mask are worth the seconds that compiling them takes."""


class _Segments:
    """Runs of tokens that lie in one event and in one block; some are empty, so that their number is no value."""

    def __init__(self, layout: Layout, size: int) -> None:
        # rounded up in this way for graphs: torch guards on a quotient of two -(-n // size) and fails to check it, and
        # divides n * n by n only where n is a sum
        self.blocks = (layout.total - 1) // size + 2
        """One more than the tokens fill, so that it is never 1, a size that gets a graph of its own."""
        edges = torch.arange(0, self.blocks * size, size, device=layout.device)
        # what is sorted is no arithmetic on places, of which torch 2.11 generates no minimum for a GPU
        first = torch.cat([edges, layout.offsets[:-1]]).sort().values.clamp(max=layout.total)
        last = torch.cat([first[1:], layout.offsets[-1:]]) - 1
        self.filled = last >= first
        first = first.clamp(max=layout.total - 1)
        self.event = run_of(layout.offsets, first)
        start = layout.offsets[self.event]
        self.span = Span(first - start, last - start)
        self.block = torch.where(self.filled, first // size, self.blocks - 1)
        """Which block; for an empty segment the last, which is empty too."""
        self.whole = (edges + size) <= layout.total
        """`(blocks,)`: False where a block is cut short."""


def block_relation(
    mask: Mask | None, queries: Layout, keys: Layout, size: int | tuple[int, int] = 128
) -> tuple[Tensor, Tensor]:
    """`(some, every)`, bool `(query blocks, key blocks)`, of the packed tokens of all events.

    `some` is True wherever a pair may attend (and at times where none does: kernels look at those pairs one by one);
    `every` is True only where all pairs of two whole blocks may.
    """
    some, every = _relation(mask, queries, keys, *((size, size) if isinstance(size, int) else size))
    return some[:-1, :-1], every[:-1, :-1]


def _relation(mask: Mask | None, queries: Layout, keys: Layout, q_size: int, k_size: int) -> tuple[Tensor, Tensor]:
    """`block_relation` with one block more of queries and of keys, empty ones, at the end."""
    q = _Segments(queries, q_size)
    k = q if keys is queries and k_size == q_size else _Segments(keys, k_size)
    some = every = q.event[:, None] == k.event[None, :]
    if mask is not None:
        row = Span(q.span.first[:, None], q.span.last[:, None])
        column = Span(k.span.first[None, :], k.span.last[None, :])
        n_q = queries.offsets.diff()[q.event][:, None]
        n_k = n_q if keys is queries else keys.offsets.diff()[q.event][:, None]
        in_some, in_every = mask.relate(row, column, Place(n_q, n_k, q.event[:, None]))
        some, every = some & in_some, every & in_every
    # a block may do something where one of its segments may, and not everything where one of them may not
    some = some & (q.filled[:, None] & k.filled[None, :])
    by_segment = torch.stack([some, ~every]).to(torch.int32)
    by_row = by_segment.new_zeros(2, q.blocks, by_segment.shape[2]).index_add(1, q.block, by_segment)
    by_block = by_row.new_zeros(2, q.blocks, k.blocks).index_add(2, k.block, by_row)
    may, lacks = (by_block > 0).unbind()
    return may, ~lacks & (q.whole[:, None] & k.whole[None, :])


def block_mask(mask: Mask | None, queries: Layout, keys: Layout, size: int = 128) -> BlockMask:
    """FlexAttention's BlockMask, built from runs of positions; kept on the layout of the queries.

    It takes the place of `create_block_mask`, which evaluates all N x N pairs at every call.
    """
    if torch.compiler.is_compiling() and (keys is not queries or (mask is not None and mask.realised)):
        return _build(mask, queries, keys, size)  # a graph can't look up a layout, nor tensors
    against = None if keys is queries else keys
    return queries.cached(("block mask", mask, against, size), lambda: _build(mask, queries, keys, size))


def _build(mask: Mask | None, queries: Layout, keys: Layout, size: int) -> BlockMask:
    # dozens of small operations: a millisecond one by one on a GPU, a third of it when fused
    fuse = queries.device.type == "cuda" and queries.total >= WORTH_FUSING and not torch.compiler.is_compiling()
    find = _fused_indices() if fuse else _indices
    partial, full, partial_back, full_back = find(mask, queries, keys, size)
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


def _indices(mask: Mask | None, queries: Layout, keys: Layout, size: int) -> list[tuple[Tensor, Tensor]]:
    """Numbers and indices of blocks: partly and wholly allowed, then the same two seen from the keys."""
    some, every = _relation(mask, queries, keys, size, size)
    blocks = torch.stack([some & ~every, every]).to(torch.int8)
    # the other way round, for gradients, is built here too: from_kv_blocks takes milliseconds to find it out
    if keys is queries:
        return _ordered(torch.cat([blocks, blocks.mT]))
    return [*_ordered(blocks), *_ordered(blocks.mT)]


@cache
def _fused_indices() -> Callable[[Mask | None, Layout, Layout, int], list[tuple[Tensor, Tensor]]]:
    return torch.compile(_indices, dynamic=True)


def _ordered(blocks: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each of the maps (maps, rows, columns) of 0 and 1: `(1, 1, rows)` number of ones, and `(1, 1, rows, columns)`
    the columns that have them first; int32.
    """
    numbers = blocks.sum(2, dtype=torch.int32)
    indices = blocks.argsort(dim=2, descending=True, stable=True).to(torch.int32)
    return [(_own(n), _own(i)) for n, i in zip(numbers, indices, strict=True)]


def _own(x: Tensor) -> Tensor:
    """`(1, 1, ...)`, no view, to whose place a graph would be bound, and in order: the indices of a transposed map keep
    its strides, but kernels take it for granted that the columns of a row stand side by side.
    """
    return x[None, None].clone(memory_format=torch.contiguous_format)
