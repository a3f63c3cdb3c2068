"""The slow, obvious attention that every kernel is compared with: dense, one event at a time."""

import torch
from torch import Tensor

from hepattn.attention.bias import DistanceBias
from hepattn.masks.base import Mask, Place
from hepattn.sequence import Layout, Lengths

__all__ = ["allowed_pairs", "attend_reference"]


def allowed_pairs(
    mask: Mask | None, queries: int, keys: int, event: int, device: torch.device | str, *, rows: Tensor | None = None
) -> Tensor:
    """`(rows, keys)` bool of one event of a batch, True = may attend; all its queries where `rows` is None."""
    i = torch.arange(queries, device=device) if rows is None else rows
    j = torch.arange(keys, device=device)
    if mask is None:
        return torch.ones(len(i), keys, dtype=torch.bool, device=device)
    return mask.allowed(i[:, None], j[None, :], Place(queries, keys, event)).expand(len(i), keys)


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    scale: float | None = None,
    bias: DistanceBias | None = None,
) -> tuple[Tensor, Tensor]:
    """`(out (Tq, H, Dv), lse (Tq, H))` written out term by term; give float64 for a reference.

    A query that may attend to nothing gets zeros, an lse of -inf and zero gradients.
    """
    queries = Layout.of(lengths, q.device, total=q.shape[0])
    keys = queries if kv_lengths is None else Layout.of(kv_lengths, k.device, total=k.shape[0])
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    outs, lses = [], []
    k_parts, v_parts = k.split(keys.host_lengths), v.split(keys.host_lengths)
    for event, q_part in enumerate(q.split(queries.host_lengths)):
        k_part, v_part = k_parts[event], v_parts[event]
        pairs = allowed_pairs(mask, len(q_part), len(k_part), event, q.device)
        scores, weights = event_weights(q_part, k_part, pairs, factor, bias)
        outs.append(torch.einsum("qhk,khd->qhd", weights, v_part))
        lse = scores.logsumexp(-1) if len(k_part) else scores.new_full(scores.shape[:2], -torch.inf)
        lses.append(lse.masked_fill(~pairs.any(-1, keepdim=True), -torch.inf))
    return torch.cat(outs), torch.cat(lses)


def event_weights(
    q: Tensor, k: Tensor, pairs: Tensor, factor: float, bias: DistanceBias | None
) -> tuple[Tensor, Tensor]:
    """`(n, H, m)` scores of one event, -inf where `pairs` (n, m) is False, and their softmax over the keys.

    A query that may attend to nothing keeps its scores, and has weights of zero.
    """
    empty = ~pairs.any(-1, keepdim=True)[:, None]
    scores = torch.einsum("qhd,khd->qhk", q, k) * factor
    if bias is not None:
        i = torch.arange(len(q), device=q.device)
        scores = scores + bias.added(i[:, None], i[None, :], len(q)).transpose(0, 1).to(scores.dtype)
    scores = scores.masked_fill(~pairs[:, None] & ~empty, -torch.inf)
    return scores, scores.softmax(-1).masked_fill(empty, 0) if len(k) else scores
