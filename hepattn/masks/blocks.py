"""Block-sparse indices of any mask, from runs of positions: no pair of tokens is looked at.

The packed tokens are cut into blocks of `size`; a block that crosses from one event into the next counts as several
*segments*. A mask relates segments (`Mask.relate`); blocks inherit what their segments say.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hepattn.masks.base import Mask, MaskMod, Place, Span
from hepattn.sequence import Layout

__all__ = ["block_mask", "block_relation"]


class _Segments:
    """Runs of tokens that lie in one event and in one block."""

    def __init__(self, layout: Layout, size: int) -> None:
        device = layout.device
        ends = layout.offsets[1:]
        self.blocks = -(-layout.total // size)
        edges = torch.arange(0, layout.total, size, device=device)
        first = torch.cat([edges, layout.offsets[:-1]]).unique()  # sorted; also the start of each event
        first = first[first < layout.total]
        last = torch.cat([first[1:], first.new_tensor([layout.total])]) - 1
        self.event = torch.searchsorted(ends.contiguous(), first, right=True)
        start = layout.offsets[self.event]
        self.block = first // size
        self.span = Span(first - start, last - start)
        self.covered = torch.zeros(self.blocks, dtype=torch.int64, device=device).index_add_(
            0, self.block, last - first + 1
        )


def _gather(relation: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """How many segment pairs of each block pair are True."""
    counts = relation.to(torch.int32)
    by_row = counts.new_zeros(shape[0], relation.shape[1]).index_add_(0, rows, counts)
    return counts.new_zeros(shape).index_add_(1, columns, by_row)


def block_relation(
    mask: Mask | None, queries: Layout, keys: Layout, size: int | tuple[int, int] = 128
) -> tuple[Tensor, Tensor]:
    """`(some, every)`, bool `(query blocks, key blocks)`, of the packed tokens of all events.

    `some` is True wherever a pair may attend (and at times where none does: kernels look at those pairs one by one);
    `every` is True only where all pairs of two whole blocks may.
    """
    q_size, k_size = (size, size) if isinstance(size, int) else size
    q, k = _Segments(queries, q_size), _Segments(keys, k_size)
    same = q.event[:, None] == k.event[None, :]
    if mask is None:
        some = every = same
    else:
        row = Span(q.span.first[:, None], q.span.last[:, None])
        column = Span(k.span.first[None, :], k.span.last[None, :])
        n_q, n_k = queries.offsets.diff()[q.event][:, None], keys.offsets.diff()[q.event][:, None]
        some, every = mask.relate(row, column, Place(n_q, n_k, q.event[:, None]))
        some, every = some & same, every & same
    shape = (q.blocks, k.blocks)
    whole = _gather(torch.ones_like(same), q.block, k.block, shape) == _gather(every, q.block, k.block, shape)
    full = (q.covered == q_size)[:, None] & (k.covered == k_size)[None, :]  # the last block may be cut short
    return _gather(some, q.block, k.block, shape) > 0, whole & full


def block_mask(mask: Mask | None, queries: Layout, keys: Layout, size: int = 128) -> BlockMask:
    """FlexAttention's BlockMask, built from runs of positions; kept on the layout of the queries.

    It takes the place of `create_block_mask`, which evaluates all N x N pairs at every call.
    """
    return queries.cached(("block mask", mask, keys, size), lambda: _build(mask, queries, keys, size))


def _build(mask: Mask | None, queries: Layout, keys: Layout, size: int) -> BlockMask:
    some, every = block_relation(mask, queries, keys, size)
    partial = some & ~every
    number, indices = _ordered(partial)
    full_number, full_indices = _ordered(every)
    return BlockMask.from_kv_blocks(
        number,
        indices,
        full_number,
        full_indices,
        BLOCK_SIZE=(size, size),
        mask_mod=MaskMod(mask, queries, keys),
        seq_lengths=(queries.total, keys.total),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """`(1, 1, rows)` count of True and `(1, 1, rows, columns)` their columns first, both int32."""
    number = blocks.sum(1, dtype=torch.int32)
    indices = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return number[None, None], indices[None, None]
