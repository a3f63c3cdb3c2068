"""Windowed attention by blocks: exact, linear in time and memory, differentiable, on any device.

Each event is laid out in blocks of `block` queries, between two margins of `margin >= size // 2` keys (the neighbours
over the seam when the window wraps). Block b of the queries then sees the keys `[b * block, b * block + width)` of that
extended sequence, `width = block + 2 margin`, as one strided view: one SDPA call over (blocks, heads, block, width)
with a mask that broadcasts over heads. Sizes depend on T and B only, never on values, so the graph compiles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hepattn.attention.backends.base import Call, zero_of
from hepattn.masks.window import Window
from hepattn.sequence import Layout, run_of

__all__ = ["BlockPlan", "block_size", "local_attention"]


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """Where every token goes when windows are cut into blocks.

    Attributes:
        keys: `(blocks * block + 2 margin,)` token of each place of the extended sequence (any where there is none).
        queries: `(blocks * block,)` token of each query place (likewise).
        back: `(T,)` the query place of each token.
        mask: `(1, 1, block, width)` bool, True = may attend: the band that all blocks share; or
            `(blocks, 1, block, width)`, one a block.
        block, margin: sizes.
        edges: the few blocks that are computed once more, with masks of their own.
    """

    keys: Tensor
    queries: Tensor
    back: Tensor
    mask: Tensor
    block: int
    margin: int
    edges: "_Edges | None" = None


@dataclass(frozen=True, eq=False)
class _Edges:
    """Blocks whose mask is not the band: at an event's ends, or in rings shorter than the window.

    Attributes:
        blocks: `(edges,)` which.
        keys: `(edges * width,)` token of each key place.
        queries: `(edges * block,)` token of each query place.
        mask: `(edges, 1, block, width)`.
    """

    blocks: Tensor
    keys: Tensor
    queries: Tensor
    mask: Tensor


def block_size(half: int) -> int:
    """Queries in a block: a power of two near half / 2, where the CPU was fastest, between 16 and 128."""
    for block in (16, 32, 64):
        if half <= 2 * block:
            return block
    return 128


def _plan(layout: Layout, window: Window, block: int) -> BlockPlan:
    half, device = window.half, layout.device
    ahead = -(-half // block)  # blocks in a margin
    margin = ahead * block
    lengths = layout.offsets.diff()
    # every event takes ceil(n / block) blocks and two margins; T // block + B blocks are always enough
    taken = (lengths + block - 1) // block + 2 * ahead
    start = torch.cat([taken.new_zeros(1), taken.cumsum(0)])
    count = layout.total // block + layout.batch * (1 + 2 * ahead) - 2 * ahead

    def locate(first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        event = run_of(start, first).clamp(max=layout.batch - 1)
        return (first - start[event]) * block, lengths[event], layout.offsets[event]

    inside = torch.arange(block, device=device)
    place, length, offset = locate(torch.arange(count + 2 * ahead, device=device))
    position = place[:, None] - margin + inside
    if window.wrap:
        position = position % length[:, None].clamp(min=1)
    keys = (offset[:, None] + position.clamp(min=0).minimum((length[:, None] - 1).clamp(min=0))).flatten()

    q_place, q_length, q_offset = locate(torch.arange(count, device=device))
    q_position = q_place[:, None] + inside
    queries = (q_offset[:, None] + q_position.minimum((q_length[:, None] - 1).clamp(min=0))).flatten()
    last = max(layout.total - 1, 0)
    back = start[layout.event] * block + layout.position
    band = _Band(window, block, margin, device)
    index = (keys.clamp(max=last), queries.clamp(max=last), back)
    # the number of edges is a value, so a traced graph takes every mask in full
    edges = None if torch.compiler.is_compiling() else band.edges(q_place, q_length)
    if edges is None or 3 * len(edges) > count:
        return BlockPlan(*index, band.exact(q_place, q_length), block, margin)
    near = band.near[None, None]
    if not len(edges):
        return BlockPlan(*index, near, block, margin)
    inside_keys = torch.arange(block + 2 * margin, device=device)
    chosen = _Edges(
        edges,
        index[0][(edges[:, None] * block + inside_keys).flatten()],
        index[1][(edges[:, None] * block + inside).flatten()],
        band.exact(q_place[edges], q_length[edges]),
    )
    return BlockPlan(*index, near, block, margin, chosen)


class _Band:
    """The masks of blocks: `near` is the window's band, the same in every block; `exact` minds the events' ends."""

    def __init__(self, window: Window, block: int, margin: int, device: torch.device) -> None:
        self.window, self.block, self.half, self.margin = window, block, window.half, margin
        row = torch.arange(block, device=device)[:, None]
        self.column = torch.arange(block + 2 * margin, device=device)[None, :]
        self.step = self.column - margin - row  # key position minus query position
        self.near = (self.step >= -self.half) & (self.step <= self.half)  # (block, width)

    def edges(self, place: Tensor, length: Tensor) -> Tensor:
        """Blocks with queries for which the band alone is wrong; `place` is the position of a block's first query."""
        if self.window.wrap:
            plain = length >= 2 * self.half + 1
        else:
            plain = (place >= self.half) & (place + self.block + self.half <= length)
        return (~plain & (place < length)).nonzero()[:, 0]

    def exact(self, place: Tensor, length: Tensor) -> Tensor:
        """`(blocks, 1, block, width)`; places without a token attend to themselves, so that no row is empty."""
        if self.window.wrap:  # in a ring shorter than the window, n consecutive steps reach each key once
            low, high = length // 2, length - 1 - length // 2
            allowed = self.near & (self.step >= -low[:, None, None]) & (self.step <= high[:, None, None])
        else:
            key = place[:, None, None] + self.column - self.margin
            allowed = self.near & (key >= 0) & (key < length[:, None, None])
        return (allowed | (self.step == 0))[:, None]


def local_attention(call: Call, *, block: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Self-attention in a `Window`, with a bias or without; `(T, H, Dv)` and, where asked for, the log-sum-exp `(T, H)`
    in float32.
    """
    window, layout = call.mask, call.queries
    if not isinstance(window, Window):
        raise TypeError(f"local attention takes a Window, got {window!r}")
    if window.half == 0 and call.bias is None:
        return _itself(call)
    size = block_size(window.half) if block is None else block
    plan = layout.cached(("blocks", window, size), lambda: _plan(layout, window, size))
    width = plan.block + 2 * plan.margin

    def fold(x: Tensor) -> Tensor:  # (places, H, D) -> (blocks, H, width, D), overlapping views
        return x.index_select(0, plan.keys).unfold(0, width, plan.block).transpose(-1, -2)

    def cut(x: Tensor, tokens: Tensor, size: int) -> Tensor:  # (T, H, D) -> (blocks, H, size, D)
        return x.index_select(0, tokens).unflatten(0, (-1, size)).transpose(1, 2)

    queries, keys = plan.queries.unflatten(0, (-1, plan.block)), plan.keys.unfold(0, width, plan.block)
    added = _added(call, queries, keys)
    out, lse = _blocks(call, cut(call.q, plan.queries, plan.block), fold(call.k), fold(call.v), plan.mask, added)
    if (edges := plan.edges) is not None:
        k, v = (cut(x, edges.keys, width) for x in (call.k, call.v))
        added = None if added is None else added[edges.blocks]
        at_edge = _blocks(call, cut(call.q, edges.queries, plan.block), k, v, edges.mask, added)
        # in place where no gradient looks back: else all blocks are copied
        put = out.index_copy if out.requires_grad else out.index_copy_
        out = put(0, edges.blocks, at_edge[0])
        lse = None if lse is None or at_edge[1] is None else lse.index_copy(0, edges.blocks, at_edge[1])

    def unfold(x: Tensor) -> Tensor:  # (blocks, H, block, ...) -> (T, H, ...)
        places = x.transpose(1, 2).flatten(0, 1)
        return places[: layout.total] if layout.batch == 1 else places.index_select(0, plan.back)  # of one event alike

    return unfold(out), None if lse is None else unfold(lse)


def _itself(call: Call) -> tuple[Tensor, Tensor | None]:
    """A window of one token. (From blocks of it v got a wrong gradient in bfloat16, from torch 2.11 on an H100.)"""
    out = call.v + zero_of(call.q, call.k)
    if not call.return_lse:
        return out, None
    wide = torch.promote_types(call.q.dtype, torch.float32)
    return out, ((call.q.to(wide) * call.k.to(wide)).sum(-1) * call.scale).float()


def _added(call: Call, queries: Tensor, keys: Tensor) -> Tensor | None:
    """`(blocks, H, block, width)` what the bias adds to the scores of the tokens in blocks; all lie in one event."""
    if call.bias is None:
        return None
    position, length = call.queries.position, call.queries.offsets.diff()[call.queries.event]
    return call.bias.added(position[queries][:, :, None], position[keys][:, None, :], length[queries][:, :, None])


def _blocks(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, added: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    open_pairs = mask if added is None else added.to(q.dtype).masked_fill(~mask, -torch.inf)
    out = scaled_dot_product_attention(q, k, v, attn_mask=open_pairs, scale=call.scale)
    if not call.return_lse:
        return out, None
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * call.scale
    scores = scores if added is None else scores + added
    return out, scores.masked_fill(~mask, -torch.inf).logsumexp(-1).float()
