"""flash-attn-4 as operations that a traced graph can hold, with gradients through the log-sum-exp, too.

Its own functions generate kernels when they are called, which torch.compile can't trace.
"""

from typing import Any

from torch import Tensor

from hepattn.attention.backends.operations import Grads, Pair, Varlen, packed_operation
from hepattn.attention.backends.rings import OneEvent, one_ring_operation, ring_operation

__all__ = ["HEAD_DIMS", "one_ring", "rings", "windowed"]

HEAD_DIMS = (32, 64, 128)
"""Those at which it was compared with others: with 16 channels its gradients were wrong (4.0.0b36 on an H100)."""


def _kernels() -> Any:
    from flash_attn.cute import interface

    return interface


def _window(x: Varlen) -> dict[str, Any]:
    left, right = (None if side < 0 else side for side in x.window)
    return {"softmax_scale": x.scale, "window_size_left": left, "window_size_right": right}


def _events(x: Varlen) -> dict[str, Any]:
    return {
        "cu_seqlens_q": x.q_offsets,
        "cu_seqlens_k": x.k_offsets,
        "max_seqlen_q": x.max_q,
        "max_seqlen_k": x.max_k,
    }


def _forward(x: Varlen) -> Pair:
    if len(x.q_offsets) == 2:  # without offsets to look up a single event is faster, by 6 %
        out, lse, *_ = _kernels()._flash_attn_fwd(x.q[None], x.k[None], x.v[None], return_lse=True, **_window(x))  # noqa: SLF001
        return out[0], lse[0]
    out, lse, *_ = _kernels()._flash_attn_fwd(x.q, x.k, x.v, return_lse=True, **_window(x), **_events(x))  # noqa: SLF001
    return out, lse


def _backward(grad: Tensor, grad_lse: Tensor | None, x: Varlen, out: Tensor, lse: Tensor) -> Grads:
    given = (x.q, x.k, x.v, out, grad, lse)
    dq, dk, dv = _kernels()._flash_attn_bwd(*given, dlse=grad_lse, **_window(x), **_events(x))  # noqa: SLF001
    return dq, dk, dv


def _reach(x: OneEvent) -> dict[str, Any]:
    right = None if x.reach is None else 0
    return {"softmax_scale": x.scale, "window_size_left": x.reach, "window_size_right": right}


def _forward_into(x: OneEvent, into: Pair) -> None:
    out, lse = (t[None] for t in into)
    _kernels()._flash_attn_fwd(x.q[None], x.k[None], x.v[None], return_lse=True, out=out, lse=lse, **_reach(x))  # noqa: SLF001


def _backward_into(grad: Tensor, grad_lse: Tensor | None, x: OneEvent, out: Tensor, lse: Tensor, into: Grads) -> None:
    given = (t[None] for t in (x.q, x.k, x.v, out, grad, lse))
    dq, dk, dv = (t[None] for t in into)
    dlse = None if grad_lse is None else grad_lse[None]
    _kernels()._flash_attn_bwd(*given, dlse=dlse, dq=dq, dk=dk, dv=dv, **_reach(x))  # noqa: SLF001


windowed = packed_operation("fa4_windowed", _forward, _backward)
rings = ring_operation("fa4_rings", _forward, _backward)
one_ring = one_ring_operation("fa4_one_ring", _forward_into, _backward_into)
