"""Attention by blocks for any mask: exact, differentiable, on any device, in memory that follows the allowed pairs.

The packed queries and keys are cut into blocks. `block_relation` says, without looking at pairs, which blocks of keys
each block of queries may need; those are gathered, and the pairs inside them looked at one by one. Blocks of queries
that need about as many blocks of keys share one call of SDPA, so that a global token, which needs all, costs only its
own block. Events in a batch need no loop: blocks of other events are not needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hepattn.attention.backends.base import Call, zero_of
from hepattn.masks.base import MaskMod
from hepattn.masks.blocks import block_relation
from hepattn.sequence import Layout

__all__ = ["Tile", "pair_share", "sparse_attention", "tiles"]

PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Tile:
    """Some blocks of queries, each with the keys that it may need.

    Attributes:
        queries: `(R, n)` packed queries; the last one again where a block is cut short.
        keys: `(R, m)` packed keys, likewise.
        pairs: `(R, n, m)` bool, True = may attend.
        places: `(R,)` which blocks of queries.
    """

    queries: Tensor
    keys: Tensor
    pairs: Tensor
    places: Tensor


def block_of(tokens: int) -> int:
    """Tokens in a block, a power of two: 16 blocks where that gives 16 to 128 tokens, and at most some 2,048 blocks."""
    wanted = max(min(tokens // 16, 128), tokens // 2048, 16)
    return 1 << (wanted.bit_length() - 1)


def _sizes(call: Call) -> tuple[int, int]:
    return block_of(call.queries.total), block_of(call.keys.total)


def _needed(call: Call, sizes: tuple[int, int]) -> Tensor:
    against = None if call.keys is call.queries else call.keys
    return call.queries.cached(
        ("needed", call.mask, against, sizes),
        lambda: block_relation(call.mask, call.queries, call.keys, sizes)[0],
    )


def pair_share(call: Call) -> float:
    """Pairs that a call looks at block by block, as a share of all pairs inside its events; above 1 in short events."""
    sizes = _sizes(call)
    looked_at = int(_needed(call, sizes).sum()) * sizes[0] * sizes[1]
    return looked_at / max(call.event_pairs, 1)


def _groups(needed: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of queries with about as many keys: `(which (R,), blocks of keys (R, m), filled (R, m))` of each group."""
    counts = needed.sum(1)
    order = needed.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    kinds = torch.ceil(torch.log2(counts.clamp(min=1).double()) * 2).long()  # within a factor of sqrt 2
    found = []
    for kind in kinds[counts > 0].unique().tolist():
        which = ((kinds == kind) & (counts > 0)).nonzero()[:, 0]
        most = int(counts[which].max())
        filled = torch.arange(most, device=needed.device) < counts[which, None]
        found.append((which, order[which, :most], filled))
    return found


def tiles(call: Call, sizes: tuple[int, int] | None = None, pairs_at_once: int = PAIRS_AT_ONCE) -> Iterator[Tile]:
    """Everything that a call may look at, in tiles of bounded size; a query that may attend to none may be in none."""
    sizes = _sizes(call) if sizes is None else sizes
    n, m = sizes
    needed = _needed(call, sizes)
    against = None if call.keys is call.queries else call.keys
    groups = call.queries.cached(("tiles", call.mask, against, sizes), lambda: _groups(needed))
    mod = MaskMod(call.mask, call.queries, call.keys)
    zero = torch.zeros((), dtype=torch.int64, device=call.q.device)
    for which, blocks, filled in groups:
        step = max(1, pairs_at_once // (n * m * blocks.shape[1]))
        for first in range(0, len(which), step):
            part = slice(first, first + step)
            q, q_real = _tokens(which[part, None], n, call.queries)
            k, k_real = _tokens(blocks[part], m, call.keys)
            real = k_real & filled[part].repeat_interleave(m, dim=1)
            pairs = mod(zero, zero, q[:, :, None], k[:, None, :]) & real[:, None, :] & q_real[:, :, None]
            yield Tile(q, k, pairs, which[part])


def _tokens(blocks: Tensor, size: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """`(R, B * size)` the tokens of blocks (R, B), and whether they exist."""
    token = (blocks[:, :, None] * size + torch.arange(size, device=blocks.device)).flatten(1)
    return token.clamp(max=layout.total - 1), token < layout.total


def sparse_attention(call: Call, sizes: tuple[int, int] | None = None) -> tuple[Tensor, Tensor | None]:
    """Any mask and bias; `(Tq, H, Dv)` and, where asked for, the log-sum-exp `(Tq, H)` in float32."""
    sizes = _sizes(call) if sizes is None else sizes
    outs, lses, places = [], [], []
    heads = call.q.shape[1] if call.bias is not None else 1
    for tile in tiles(call, sizes, PAIRS_AT_ONCE // heads):
        out, lse = _attend(call, tile)
        outs.append(out)
        lses.append(lse)
        places.append(tile.places)
    count = -(-call.queries.total // sizes[0])
    whole = call.q.new_zeros(count, sizes[0], call.q.shape[1], call.v.shape[-1])
    lse_whole = call.q.new_full(whole.shape[:3], -torch.inf, dtype=torch.float32) if call.return_lse else None
    if places:
        place = torch.cat(places)
        whole = whole.index_copy(0, place, torch.cat(outs))
        if lse_whole is not None:
            lse_whole = lse_whole.index_copy(0, place, torch.cat([lse for lse in lses if lse is not None]))
    else:  # nothing may attend to anything: zeros, and gradients of zero
        whole = whole + zero_of(*call.leaves)
    total = call.queries.total
    return whole.flatten(0, 1)[:total], None if lse_whole is None else lse_whole.flatten(0, 1)[:total]


def _attend(call: Call, tile: Tile) -> tuple[Tensor, Tensor | None]:
    """`(R, n, H, Dv)` and the log-sum-exp `(R, n, H)` of one tile."""

    def take(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)

    q, k, v = take(call.q, tile.queries), take(call.k, tile.keys), take(call.v, tile.keys)
    pairs = tile.pairs[:, None]
    empty = ~pairs.any(-1, keepdim=True)
    added = score_bias(call, tile)
    open_pairs = pairs | empty  # an empty row must not meet the softmax
    mask = open_pairs if added is None else added.to(q.dtype).masked_fill(~open_pairs, -torch.inf)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale).masked_fill(empty, 0)
    if not call.return_lse:
        return out.transpose(1, 2), None
    scores = tile_scores(call, tile)
    lse = scores.masked_fill(empty, 0).logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)
    return out.transpose(1, 2), lse.transpose(1, 2).float()


def score_bias(call: Call, tile: Tile) -> Tensor | None:
    """`(R, H, n, m)` what the call's bias adds to the scores of a tile."""
    if call.bias is None:
        return None
    event = call.queries.event[tile.queries]
    i, j = call.queries.position[tile.queries][:, :, None], call.queries.position[tile.keys][:, None, :]
    return call.bias.added(i, j, call.queries.offsets.diff()[event][:, :, None])


def tile_scores(call: Call, tile: Tile) -> Tensor:
    """`(R, H, n, m)` scaled scores with the bias, in float32 or better, -inf where a pair may not attend."""
    wide = torch.promote_types(call.q.dtype, torch.float32)
    q, k = call.q.to(wide)[tile.queries] * call.scale, call.k.to(wide)[tile.keys]
    scores = torch.einsum("rqhd,rkhd->rhqk", q, k)
    added = score_bias(call, tile)
    scores = scores if added is None else scores + added
    return scores.masked_fill_(~tile.pairs[:, None], -torch.inf)
