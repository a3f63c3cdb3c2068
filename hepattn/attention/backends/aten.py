"""torch's own flash kernel (FlashAttention-2), with gradients through the log-sum-exp, which torch's calls leave out.

The kernel's backward takes the gradients of the scores as `P (dO V^T - D)`, with `D = sum(dO O)` over the channels of a
query (FlashAttention-2, arXiv:2307.08691, section 2.3). A gradient g of the log-sum-exp adds `P g`: it is `D - g` that
the kernel has to be given. So g goes in as channels beyond the last, in which O is 1 and dO is -g: they add to D what
is wanted, and nothing to `dO V^T`, since V is 0 there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hepattn.attention.backends.operations import Grads, Pair, Varlen, packed_operation
from hepattn.attention.backends.rings import ring_operation

__all__ = ["BEYOND", "ring", "windowed"]

BEYOND = 8
"""Channels that are added for a gradient of the log-sum-exp: head dimensions are multiples of it."""


def _kernels() -> Any:
    return torch.ops.aten


def _forward(x: Varlen) -> Pair:
    left, right = x.window
    out, lse, *_ = _kernels()._flash_attention_forward(  # noqa: SLF001  (varlen_attn may take another kernel)
        x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, 0.0, False, False,
        scale=x.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return out, lse


def _backward(grad: Tensor, grad_lse: Tensor | None, x: Varlen, out: Tensor, lse: Tensor) -> Grads:
    channels, (left, right) = x.q.shape[-1], x.window
    q, k, v = x.q, x.k, x.v
    if grad_lse is not None:
        q, k, v = (pad(t, (0, BEYOND)) for t in (q, k, v))
        grad, out = _with_lse(grad, out, grad_lse.T[..., None])
    no_dropout = grad.new_zeros(2, dtype=torch.uint64), grad.new_empty(0)
    found: Grads = _kernels()._flash_attention_backward(  # noqa: SLF001
        grad, q, k, v, out, lse, x.q_offsets, x.k_offsets, x.max_q, x.max_k, 0.0, False, *no_dropout,
        scale=x.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    if grad_lse is None:
        return found
    dq, dk, dv = (t[..., :channels].contiguous() for t in found)
    return dq, dk, dv


def _with_lse(grad: Tensor, out: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Both with channels beyond the last, whose products sum to `-grad_lse` (T, H, 1), to twice a dtype's digits."""
    high = (-grad_lse).to(grad.dtype)
    low = (-grad_lse - high).to(grad.dtype)
    zeros, ones = (pad(high[..., :0], (0, width), value=value) for width, value in ((BEYOND - 2, 0.0), (2, 1.0)))
    return torch.cat([grad, high, low, zeros], -1), torch.cat([out, ones, zeros], -1)


windowed = packed_operation("flash_windowed", _forward, _backward)
ring = ring_operation("flash_ring", _forward, _backward)
