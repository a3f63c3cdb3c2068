"""`sdpa`: torch's scaled_dot_product_attention. Does every mask on every device, block by block where that saves."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from hepattn.attention.backends.base import Call, zero_of
from hepattn.attention.backends.local import local_attention
from hepattn.attention.backends.merge import attend_with_globals, window_and_tokens
from hepattn.attention.backends.sparse import pair_share, sparse_attention
from hepattn.masks.base import MaskMod, Place
from hepattn.masks.dense import Dense
from hepattn.masks.window import Window

__all__ = ["refusal", "run"]

PAIRS_AT_ONCE = 1 << 25  # bool pairs of a mask, or scores for a log-sum-exp, that are held at one time
PAIRS_IN_A_GRAPH = 1 << 28  # the same in a traced graph, which can't go by runs of queries: more are refused
DENSE_FROM = 0.5  # from this share of its events' pairs on, gathering blocks costs more than it saves


def refusal(call: Call) -> str | None:
    """`sdpa` does everything; a traced graph, for which lengths are values, does what has no blocks as one mask."""
    # no sizes in the sentence: a graph that goes on to the next kernel would be bound to them
    if torch.compiler.is_compiling() and _takes_all_pairs(call) and _pairs_in_a_graph(call) > PAIRS_IN_A_GRAPH:
        return (
            "in torch.compile this call takes a mask of all pairs of tokens (with a bias one a head), more than 2^28 "
            "numbers: use a Window, alone, with GlobalTokens or with a bias, or leave the model uncompiled"
        )
    return None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """`(Tq, H, Dv)` and, where asked for, the log-sum-exp `(Tq, H)`."""
    if torch.compiler.is_compiling():
        return _traced(call)
    if call.bias is None and _is_local(call):
        return local_attention(call)
    if call.bias is None and not call.return_lse and (alike := _alike(call)):
        return _batch(call, *alike), None
    if call.bias is not None or (call.mask is not None and pair_share(call) < DENSE_FROM):
        return sparse_attention(call)
    total = call.event_pairs
    if call.queries.batch == 1:
        return _event(call, call.q, call.k, call.v, 0, total)
    outs, lses = [], []
    k_parts = call.k.split(call.keys.host_lengths)
    v_parts = call.v.split(call.keys.host_lengths)
    for event, q in enumerate(call.q.split(call.queries.host_lengths)):
        out, lse = _event(call, q, k_parts[event], v_parts[event], event, total)
        outs.append(out)
        lses.append(lse)
    whole = [lse for lse in lses if lse is not None]
    return torch.cat(outs), torch.cat(whole) if call.return_lse else None


def _is_local(call: Call) -> bool:
    return isinstance(call.mask, Window) and call.queries is call.keys


def _traced(call: Call) -> tuple[Tensor, Tensor | None]:
    """By sizes alone: lengths are values, and a graph that asked for them would be bound to them."""
    if _is_local(call):
        return local_attention(call)
    if call.bias is None and (parts := window_and_tokens(call.mask)):
        merged, sums = attend_with_globals(call, *parts, local_attention)
        return merged, sums.float() if call.return_lse else None
    if not _takes_all_pairs(call):
        return _rows(call, call.q, call.k, call.v, None)
    added = None
    if call.bias is not None:
        place = call.queries.position
        length = call.queries.offsets.diff()[call.queries.event]
        added = call.bias.added(place[:, None], place[None, :], length[:, None])
    return _rows(call, call.q, call.k, call.v, _all_pairs(call), added)


def _takes_all_pairs(call: Call) -> bool:
    """Whether a traced graph needs a mask of all pairs of packed tokens, those of different events too."""
    if _is_local(call) or (call.bias is None and window_and_tokens(call.mask) is not None):
        return False
    return call.mask is not None or call.bias is not None or call.queries.batch > 1


def _pairs_in_a_graph(call: Call) -> int:
    return len(call.q) * len(call.k) * (1 if call.bias is None else call.q.shape[1])


def _all_pairs(call: Call) -> Tensor:
    """`(Tq, Tk)` bool: of one event, and allowed in it; layers of one graph share it."""
    queries, keys = call.queries, call.keys

    def build() -> Tensor:
        i, j = (torch.arange(layout.total, device=layout.device) for layout in (queries, keys))
        zero = torch.zeros((), dtype=torch.int64, device=queries.device)
        return MaskMod(call.mask, queries, keys)(zero, zero, i[:, None], j[None, :]).expand(len(i), len(j))

    if keys is not queries or (call.mask is not None and call.mask.realised):
        return build()  # a graph can't look up a layout, nor tensors
    return queries.cached(("all pairs", call.mask), build)


def _alike(call: Call) -> tuple[int, int] | None:
    """Queries and keys of each event, where all events have as many and may go side by side; None otherwise.

    Masks that are not realised are left to kernels that know where they are sparse.
    """
    queries, keys = call.queries.host_lengths, call.keys.host_lengths
    if len(queries) < 2 or len(set(queries)) > 1 or len(set(keys)) > 1 or not queries[0] or not keys[0]:
        return None
    realised = isinstance(call.mask, Dense) and len(queries) * queries[0] * keys[0] <= PAIRS_AT_ONCE
    return (queries[0], keys[0]) if call.mask is None or realised else None


def _batch(call: Call, queries: int, keys: int) -> Tensor:
    """All events in one call: (B, H, n, D) against (B, H, m, D), with masks (B, 1, n, m)."""
    q, k, v = (x.unflatten(0, (-1, n)).transpose(1, 2) for x, n in ((call.q, queries), (call.k, keys), (call.v, keys)))
    if call.mask is None:
        out = scaled_dot_product_attention(q, k, v, scale=call.scale)
    else:
        assert isinstance(call.mask, Dense)
        pairs = call.mask.to(call.q.device).stacked()[:, None]
        empty = ~pairs.any(-1, keepdim=True)
        out = scaled_dot_product_attention(q, k, v, attn_mask=pairs | empty, scale=call.scale)
        out = out.masked_fill(empty, 0)
    return out.transpose(1, 2).flatten(0, 1)


def _event(call: Call, q: Tensor, k: Tensor, v: Tensor, event: int, total: int) -> tuple[Tensor, Tensor | None]:
    """One event, in runs of queries whose mask and, for a log-sum-exp, scores are of bounded size.

    `total`: pairs of all events of the batch. Where they are too many to be kept for a gradient, each run is computed
    once more for it.
    """
    if not len(q) or not len(k):
        return _rows(call, q, k, v, None)
    place, heads = Place(len(q), len(k), event), q.shape[1]

    def pairs(rows: slice) -> Tensor | None:
        return None if call.mask is None else call.mask.rows(rows, place, q.device)

    def values(rows: slice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _values(call, q, k, v, pairs(rows))

    def sums(rows: slice, q: Tensor, k: Tensor) -> Tensor:
        return _sums(call, q, k, pairs(rows))

    out = _by_runs(values, q, (k, v), len(k) * (call.mask is not None), again=call.needs_grad and total > PAIRS_AT_ONCE)
    if not call.return_lse:
        return out, None
    again = call.needs_grad and heads * total > PAIRS_AT_ONCE
    return out, _by_runs(sums, q, (k,), heads * len(k), again=again)


def _by_runs(work: Callable[..., Tensor], q: Tensor, others: tuple[Tensor, ...], width: int, *, again: bool) -> Tensor:
    """`work(rows, q[rows], *others)` of runs of queries, one below the other; `width`: numbers that each query takes.

    `again`: it is done once more for a gradient, until when nothing is kept of it but its arguments.
    """
    step = max(1, PAIRS_AT_ONCE // width) if width else len(q)
    parts = []
    for first in range(0, len(q), step):
        rows = slice(first, min(first + step, len(q)))
        if again and width:
            part = checkpoint(work, rows, q[rows], *others, use_reentrant=False, preserve_rng_state=False)
        else:
            part = work(rows, q[rows], *others)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(
    call: Call, q: Tensor, k: Tensor, v: Tensor, pairs: Tensor | None, added: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Queries (n, H, D) against keys (m, H, D); `pairs` (n, m) bool; `added` (H, n, m) to the scores, beside pairs.

    A row without True gives zeros and no gradient.
    """
    if not len(k) or not len(q):
        zeros = q.new_zeros(len(q), q.shape[1], v.shape[-1]) + zero_of(q, k, v)
        return zeros, torch.full(q.shape[:2], -torch.inf, device=q.device) if call.return_lse else None
    return _values(call, q, k, v, pairs, added), _sums(call, q, k, pairs, added) if call.return_lse else None


def _values(call: Call, q: Tensor, k: Tensor, v: Tensor, pairs: Tensor | None, added: Tensor | None = None) -> Tensor:
    heads = (q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None])
    if pairs is None:
        return scaled_dot_product_attention(*heads, scale=call.scale)[0].transpose(0, 1)
    empty = ~pairs.any(1, keepdim=True)
    mask = (pairs | empty)[None, None]  # an empty row must not meet the softmax
    if added is not None:
        mask = added[None].to(q.dtype).masked_fill(~mask, -torch.inf)
    out = scaled_dot_product_attention(*heads, attn_mask=mask, scale=call.scale)
    return out.masked_fill(empty, 0)[0].transpose(0, 1)


def _sums(call: Call, q: Tensor, k: Tensor, pairs: Tensor | None, added: Tensor | None = None) -> Tensor:
    """The log-sum-exp `(n, H)`, float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("qhd,khd->qhk", q.to(wide), k.to(wide)) * call.scale
    if added is not None:
        scores = scores + added.transpose(0, 1)
    if pairs is not None:
        scores = scores.masked_fill(~pairs[:, None], -torch.inf)
    return _logsumexp(scores).float()


def _logsumexp(scores: Tensor) -> Tensor:
    """Over the last dimension; -inf with a zero gradient where every score is -inf."""
    empty = (scores == -torch.inf).all(-1)
    return scores.masked_fill(empty[..., None], 0).logsumexp(-1).masked_fill(empty, -torch.inf)
