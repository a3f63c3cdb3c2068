"""What flash kernels mean, by dense matrices: stand-ins on a CPU for flash-attn-4 and for torch's own kernel.

Inside an operation there is no autograd, so their gradients are written out (FlashAttention-2, arXiv:2307.08691,
section 2.3; the log-sum-exp's adds to those of the scores).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def scores_of(q: Tensor, k: Tensor, pairs: Tensor, scale: float) -> Tensor:
    """`(H, Tq, Tk)`, -inf where a pair is not seen."""
    return (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~pairs, -torch.inf)


def forward(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`(out (Tq, H, D), lse (H, Tq) float32)`."""
    scores = scores_of(q, k, pairs, scale)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1).nan_to_num(0), v), scores.logsumexp(-1).float()


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, lse: Tensor, dlse: Tensor | None, pairs: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of q, k and v: what a kernel makes of the output and the log-sum-exp that it is given, its own or not."""
    weights = (scores_of(q, k, pairs, scale) - lse[..., None]).exp().nan_to_num(0)
    change = torch.einsum("qhd,khd->hqk", grad, v) - (grad * out).sum(-1).T[..., None]
    if dlse is not None:
        change = change + dlse[..., None]
    change = weights * change * scale
    to_q, to_k = torch.einsum("hqk,khd->qhd", change, k), torch.einsum("hqk,qhd->khd", change, q)
    return to_q, to_k, torch.einsum("hqk,qhd->khd", weights, grad)


class DenseAten:
    """`torch.ops.aten`'s two operations of flash attention; notes in which way they were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def _flash_attention_forward(
        self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, dropout: float,
        causal: bool, debug: bool, *, scale: float, window_size_left: int, window_size_right: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        assert (dropout, causal, debug) == (0.0, False, False)
        self.called.append(f"forward {q.shape[-1]}")
        pairs = self._pairs(cu_q, cu_k, max_q, max_k, window_size_left, window_size_right)
        return *forward(q, k, v, pairs, scale), torch.empty(0), torch.empty(0), torch.empty(0)

    def _flash_attention_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
        max_q: int, max_k: int, dropout: float, causal: bool, rng: Tensor, unused: Tensor, *, scale: float,
        window_size_left: int, window_size_right: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert (dropout, causal, rng.dtype, len(unused)) == (0.0, False, torch.uint64, 0)
        assert {x.shape[-1] for x in (grad, q, k, v, out)} == {q.shape[-1]}
        assert not q.shape[-1] % 8
        self.called.append(f"backward {q.shape[-1]}")
        pairs = self._pairs(cu_q, cu_k, max_q, max_k, window_size_left, window_size_right)
        return backward(q, k, v, out, grad, lse, None, pairs, scale)

    def _pairs(self, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, left: int, right: int) -> Tensor:
        return pairs_of(
            int(cu_q[-1]), int(cu_k[-1]), cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k,
            window_size_left=None if left < 0 else left, window_size_right=None if right < 0 else right,
        )  # fmt: skip


class Dense4:
    """`flash_attn.cute.interface`; notes in which way it was called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def _flash_attn_fwd(
        self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, softmax_scale: float, **options: Any
    ) -> Any:
        assert return_lse
        into = options.pop("out", None), options.pop("lse", None)
        self.called.append("packed" if q.ndim == 3 else "one" if into[0] is None else "into")
        if q.ndim == 4:
            found = forward(q[0], k[0], v[0], pairs_of(q.shape[1], k.shape[1], **options), softmax_scale)
            return *write((x[None] for x in found), into), None, None, None
        return *forward(q, k, v, pairs_of(len(q), len(k), **options), softmax_scale), None, None, None

    def _flash_attn_bwd(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, lse: Tensor, *, dlse: Tensor | None,
        softmax_scale: float, **options: Any,
    ) -> Any:  # fmt: skip
        into = [options.pop(name, None) for name in ("dq", "dk", "dv")]
        self.called.append("back" if into[0] is None else "back into")
        if q.ndim == 4:
            pairs = pairs_of(q.shape[1], k.shape[1], **options)
            q, k, v, out, grad, lse = (x[0] for x in (q, k, v, out, grad, lse))
            dlse = None if dlse is None else dlse[0]
            return write((x[None] for x in backward(q, k, v, out, grad, lse, dlse, pairs, softmax_scale)), into)
        return backward(q, k, v, out, grad, lse, dlse, pairs_of(len(q), len(k), **options), softmax_scale)


def write(found: Iterable[Tensor], into: Iterable[Tensor | None]) -> list[Tensor]:
    """What was found, where it was asked to be written."""
    return [x if place is None else place.copy_(x) for x, place in zip(found, into, strict=True)]


def pairs_of(
    queries: int, keys: int, *, window_size_left: int | None = None, window_size_right: int | None = None,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
) -> Tensor:  # fmt: skip
    """(queries, keys) bool, True = seen; windows are aligned at the last query and key of an event."""
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    starts = [torch.tensor([0, n]) if x is None else x for x, n in ((cu_seqlens_q, queries), (cu_seqlens_k, keys))]
    for start, most in zip(starts, (max_seqlen_q, max_seqlen_k), strict=True):
        assert most is None or start.diff().max() <= most
    pairs = torch.zeros(queries, keys, dtype=torch.bool)
    left, right = (10**9 if side is None else side for side in (window_size_left, window_size_right))
    for event in range(len(starts[0]) - 1):
        (first_i, end_i), (first_j, end_j) = ((int(x[event]), int(x[event + 1])) for x in starts)
        step = (j - end_j) - (i - end_i)
        inside = (i >= first_i) & (i < end_i) & (j >= first_j) & (j < end_j)
        pairs |= inside & (step >= -left) & (step <= right)
    return pairs
