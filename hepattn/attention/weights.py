"""Attention weights of any call, recomputed exactly from q, k and the mask: whole, by rows, the largest, or in bins.

The largest and the bins never hold an N x N matrix: they go through the pairs that the mask may allow, tile by tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hepattn.attention.backends.base import Call
from hepattn.attention.backends.sparse import Tile, tile_scores, tiles
from hepattn.attention.bias import DistanceBias
from hepattn.attention.functional import make_call
from hepattn.attention.reference import allowed_pairs
from hepattn.masks.base import Mask
from hepattn.sequence import Lengths

__all__ = ["TopWeights", "attention_image", "attention_top", "attention_weights"]

LARGEST = 1 << 28  # weights held at one time (1 GiB of float32)
AT_ONCE = 1 << 22  # weights of a tile, more of which no longer fit into a CPU's cache
FEW_BINS = 32  # up to so many bins, as in keys ordered by their bin, a product with 0 and 1 is faster than adding up


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    bias: DistanceBias | None = None,
    rows: Sequence[int] | Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights that `attend` gives each key, whichever kernel runs: `(H, R, Tk)` float32.

    Args:
        q: `(Tq, H, D)`, as given to `attend`.
        k: `(Tk, H, D)`, as given to `attend`.
        mask: who may attend to whom inside an event.
        lengths: tokens of each event, summing to Tq.
        kv_lengths: the same for k.
        bias: as given to `attend`.
        rows: positions of R queries among all Tq; None = all. Keys of other events have weight 0.
        scale: factor on the scores, `D ** -0.5` by default.

    Returns:
        Rows sum to one, or to zero for a query that may attend to nothing. A NaN in q, or in a key that a query may
        attend to, is a NaN in its row.

    Raises:
        ValueError: more than 2^28 weights were asked for (choose rows), or a row does not exist.
    """
    call = make_call(q, k, k, mask, lengths, kv_lengths, scale, bias=bias)
    chosen = torch.arange(len(q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64).cpu().reshape(-1)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(q):
        raise ValueError(f"rows must lie in 0 ... {len(q) - 1}, got {int(chosen.min())} ... {int(chosen.max())}")
    size = q.shape[1] * len(chosen) * len(k)
    if size > LARGEST:
        raise ValueError(
            f"{q.shape[1]} heads x {len(chosen)} queries x {len(k)} keys are {size} weights: choose rows, "
            "or take attention_top or attention_image"
        )
    weights = torch.zeros(q.shape[1], len(chosen), len(k), dtype=torch.float32, device=q.device)
    chosen = chosen.to(q.device)
    events = call.queries.event[chosen]
    for event in events.unique().tolist():
        here = (events == event).nonzero()[:, 0]
        local = call.queries.position[chosen[here]]
        n_q, n_k = call.queries.host_lengths[event], call.keys.host_lengths[event]
        start = int(call.keys.offsets[event])
        pairs = allowed_pairs(call.mask, n_q, n_k, event, q.device, rows=local)
        keys = k[start : start + n_k].float()
        scores = torch.einsum("qhd,khd->hqk", q[chosen[here]].float(), keys) * call.scale
        if bias is not None:
            scores = scores + bias.added(local[:, None], torch.arange(n_k, device=q.device)[None, :], n_q)
        found = _softmax(scores.masked_fill(~pairs, -torch.inf), ~pairs.any(-1, keepdim=True))
        weights[:, here, start : start + n_k] = found.to(weights.dtype)
    return weights


@dataclass(frozen=True, eq=False)
class TopWeights:
    """The largest weights of each query, in falling order.

    Attributes:
        weights: `(H, Tq, count)` float32, 0 where a query may attend to fewer keys.
        keys: `(H, Tq, count)` int64, the packed keys; -1 where there is none.
    """

    weights: Tensor
    keys: Tensor


def attention_top(
    q: Tensor,
    k: Tensor,
    count: int,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    bias: DistanceBias | None = None,
    scale: float | None = None,
) -> TopWeights:
    """The `count` largest weights of every query and head; arguments as of `attention_weights`.

    Raises:
        ValueError: count is less than one.
    """
    if count < 1:
        raise ValueError(f"attention_top takes a count of at least 1, got {count}")
    call = make_call(q, k, k, mask, lengths, kv_lengths, scale, bias=bias)
    heads, total = q.shape[1], len(q)
    best = torch.zeros(total, heads, count, dtype=torch.float32, device=q.device)
    keys = torch.full((total, heads, count), -1, dtype=torch.int64, device=q.device)
    for tile, weights in _tile_weights(call):
        most = min(count, weights.shape[-1])
        values, place = weights.topk(most, dim=-1)  # (R, H, n, most)
        found = tile.keys[:, None, None, :].expand(weights.shape).gather(-1, place)
        found = found.masked_fill(values == 0, -1)
        real = tile.pairs.any(-1)
        rows = tile.queries[real]
        best[rows, :, :most] = values.transpose(1, 2)[real]
        keys[rows, :, :most] = found.transpose(1, 2)[real]
    return TopWeights(best.transpose(0, 1), keys.transpose(0, 1))


def attention_image(
    q: Tensor,
    k: Tensor,
    query_bin: Tensor,
    key_bin: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    bias: DistanceBias | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights summed into bins of queries and keys (of phi, of layers, of particles): `(H, Q, K)` float64.

    Entry (h, a, b) is the sum over the queries in bin a of the weight that head h gives to all keys in bin b: divided
    by the number of queries in bin a, the mean share of attention that goes there.

    Args:
        q: `(Tq, H, D)`, as given to `attend`.
        k: `(Tk, H, D)`, as given to `attend`.
        query_bin: `(Tq,)` integers from 0 on, the bin of each query; Q is the largest and one.
        key_bin: `(Tk,)` the same for keys.
        mask: as of `attention_weights`, and so are the others.
        lengths: tokens of each event, summing to Tq.
        kv_lengths: the same for k.
        bias: as given to `attend`.
        scale: factor on the scores, `D ** -0.5` by default.

    Raises:
        ValueError: bins are not integers from 0 on, one for each token.
    """
    call = make_call(q, k, k, mask, lengths, kv_lengths, scale, bias=bias)
    rows, columns = (_bins(b, len(x), name) for b, x, name in ((query_bin, q, "query_bin"), (key_bin, k, "key_bin")))
    n_rows, n_columns = (int(b.max()) + 1 if len(b) else 0 for b in (rows, columns))
    heads = q.shape[1]
    image = torch.zeros(n_rows * heads * n_columns, dtype=torch.float64, device=q.device)
    head = torch.arange(heads, device=q.device)[:, None, None]
    for tile, weights in _tile_weights(call):
        column = columns[tile.keys]
        first = column.amin(1, keepdim=True)
        count = int((column - first).max()) + 1  # bins that the keys of a row of blocks lie in
        first = first.clamp(max=n_columns - count)
        by_key = _by_bin(weights, column - first, count)
        row = (rows[tile.queries][:, None, :, None] * heads + head) * n_columns
        places = row + first[:, :, None, None] + torch.arange(count, device=q.device)
        image = image.index_add(0, places.flatten(), by_key.flatten().double())
    return image.view(n_rows, heads, n_columns).transpose(0, 1)


def _by_bin(weights: Tensor, bins: Tensor, count: int) -> Tensor:
    """Weights (R, H, n, m) summed over the keys in each of `count` bins (R, m): (R, H, n, count)."""
    if count > FEW_BINS:
        index = bins[:, None, None, :].expand(weights.shape)
        return weights.new_zeros(*weights.shape[:3], count).scatter_add(3, index, weights)
    hot = torch.nn.functional.one_hot(bins, count).to(weights.dtype)
    return (weights.flatten(1, 2) @ hot).unflatten(1, weights.shape[1:3])


def _bins(bins: Tensor, count: int, name: str) -> Tensor:
    if bins.shape != (count,) or bins.is_floating_point() or (count and int(bins.min()) < 0):
        raise ValueError(
            f"{name} takes one integer from 0 on for each of {count} tokens, got {bins.dtype} {tuple(bins.shape)}"
        )
    return bins.to(torch.int64)


def _tile_weights(call: Call) -> Iterator[tuple[Tile, Tensor]]:
    """Each tile with its weights (R, H, n, m) in float32; all keys of a query are in one tile, so rows sum to one."""
    for tile in tiles(call, pairs_at_once=AT_ONCE // call.q.shape[1]):
        empty = ~tile.pairs.any(-1, keepdim=True)[:, None]
        yield tile, _softmax(tile_scores(call, tile), empty).float()


def _softmax(scores: Tensor, empty: Tensor) -> Tensor:
    """Over the last dimension; zeros in rows that are empty. A NaN among the scores stays one: it is no empty row."""
    weights = scores.softmax(-1)
    return weights.masked_fill(empty, 0) if bool(empty.any()) else weights
