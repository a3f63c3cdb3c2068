"""How much the sums of one call add up: what rounding, in whichever order, may leave behind in a right answer.

A sum of terms whose absolute values add up to A is missed by about a rounding of A, however small the sum itself is: in
the gradient of q of a token that sees itself alone, large terms cancel to zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hepattn.attention.bias import DistanceBias
from hepattn.attention.reference import allowed_pairs, event_weights
from hepattn.masks.base import Mask
from hepattn.sequence import Layout, Lengths

__all__ = ["Terms", "largest_terms"]


@dataclass(frozen=True)
class Terms:
    """The largest sums of absolute terms of one call, over all entries of each result; P are the weights.

    Attributes:
        score: scale `|q| . |k|`, and the bias. A rounding of a score is one of its weight, so in all that follows each
            term counts `1 + score` times.
        out: `P |v|`.
        q, k, v: of the gradients for an upstream g, and e of the log-sum-exp. With
            `B = P (|g| |v|^T + |g| . |out| + |e|)`: scale `B |k|`, scale `B^T |q|` and `P^T |g|`.
        slopes: of the gradient of a bias's slopes, one number a head summed over all pairs: derivatives by the scores
            times distances, absolute. (These are counted once.)
    """

    score: float = 0.0
    out: float = 0.0
    q: float = 0.0
    k: float = 0.0
    v: float = 0.0
    slopes: float = 0.0


def largest_terms(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    bias: DistanceBias | None = None,
    upstream: Tensor | None = None,
    upstream_lse: Tensor | None = None,
) -> Terms:
    """Of the call with these arguments, as of `attend`, and of its gradients, in float64.

    These are for `upstream` (Tq, H, Dv) of the output and `upstream_lse` (Tq, H) of the log-sum-exp.
    """
    queries = Layout.of(lengths, q.device, total=len(q))
    keys = queries if kv_lengths is None else Layout.of(kv_lengths, k.device, total=len(k))
    given = torch.zeros(len(q), q.shape[1], v.shape[-1]) if upstream is None else upstream
    given_lse = torch.zeros(len(q), q.shape[1]) if upstream_lse is None else upstream_lse
    of_queries = [(x.to(q.device), queries) for x in (q, given, given_lse)]
    packed = [*of_queries, (k, keys), (v, keys)]
    events = zip(*(x.detach().double().split(layout.host_lengths) for x, layout in packed), strict=True)
    largest = torch.zeros(5, dtype=torch.float64)
    slopes = torch.zeros(q.shape[1], dtype=torch.float64)
    for event, (one_q, one_g, one_e, one_k, one_v) in enumerate(events):
        pairs = allowed_pairs(mask, len(one_q), len(one_k), event, q.device)
        if pairs.any():
            found, of_slopes = _of_event(one_q, one_g, one_e, one_k, one_v, pairs, bias)
            largest = torch.maximum(largest, found.cpu())
            slopes = slopes + of_slopes.cpu()
    score = float(largest[0])
    of_out, of_q, of_k, of_v = ((1 + score) * largest[1:]).tolist()
    return Terms(score, of_out, of_q, of_k, of_v, float(slopes.max()) if len(slopes) else 0.0)


def _of_event(
    q: Tensor, g: Tensor, e: Tensor, k: Tensor, v: Tensor, pairs: Tensor, bias: DistanceBias | None
) -> tuple[Tensor, Tensor]:
    """`(5,)` the largest of score, out, q, k and v, and `(H,)` of the slopes."""
    scale = q.shape[-1] ** -0.5
    weights = event_weights(q, k, pairs, scale, bias)[1].detach().transpose(0, 1)
    added = scale * torch.einsum("qhd,khd->hqk", q.abs(), k.abs())
    apart = torch.zeros_like(added[0])
    if bias is not None:
        i = torch.arange(len(q), device=q.device)
        added = added + bias.added(i[:, None], i[None, :], len(q)).detach().double().abs()
        apart = bias.distance(i[:, None], i[None, :], len(q)).double()
    out = torch.einsum("hqk,khd->qhd", weights, v)
    both = torch.einsum("qhd,khd->hqk", g.abs(), v.abs()) + ((g * out).abs().sum(-1) + e.abs()).T[..., None]
    derivative = torch.einsum("qhd,khd->hqk", g, v) + (e - (g * out).sum(-1)).T[..., None]
    sums = (
        added.masked_fill(~pairs, 0),
        torch.einsum("hqk,khd->qhd", weights, v.abs()),
        scale * torch.einsum("hqk,khd->qhd", weights * both, k.abs()),
        scale * torch.einsum("hqk,qhd->khd", weights * both, q.abs()),
        torch.einsum("hqk,qhd->khd", weights, g.abs()),
    )
    return torch.stack([one.max() for one in sums]), (weights * derivative * apart).abs().sum((-1, -2))
