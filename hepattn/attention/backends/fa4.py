"""flash-attn-4 as operations that a traced graph can hold, with gradients through the log-sum-exp, too.

Its own functions generate kernels when they are called, which torch.compile can't trace.
"""

from typing import Any

from torch import Tensor

from hepattn.attention.backends.operations import packed_operation
from hepattn.attention.backends.rings import ring_operation

__all__ = ["ring", "windowed"]


def _kernels() -> Any:
    from flash_attn.cute import interface

    return interface


def _open(side: int) -> int | None:
    return None if side < 0 else side


def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int, left: int,
    right: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    options = {"softmax_scale": scale, "window_size_left": _open(left), "window_size_right": _open(right)}
    if len(q_offsets) == 2:  # without offsets to look up a single event is faster, by 6 %
        out, lse, *_ = _kernels()._flash_attn_fwd(q[None], k[None], v[None], return_lse=True, **options)  # noqa: SLF001
        return out[0], lse[0]
    out, lse, *_ = _kernels()._flash_attn_fwd(  # noqa: SLF001
        q, k, v, cu_seqlens_q=q_offsets, cu_seqlens_k=k_offsets, max_seqlen_q=max_q, max_seqlen_k=max_k,
        return_lse=True, **options,
    )  # fmt: skip
    return out, lse


def _backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int, left: int, right: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _kernels()._flash_attn_bwd(  # noqa: SLF001
        q, k, v, out, grad, lse, softmax_scale=scale, window_size_left=_open(left), window_size_right=_open(right),
        cu_seqlens_q=q_offsets, cu_seqlens_k=k_offsets, max_seqlen_q=max_q, max_seqlen_k=max_k, dlse=grad_lse,
    )  # fmt: skip
    return dq, dk, dv


windowed = packed_operation("fa4_windowed", _forward, _backward)
ring = ring_operation("fa4_ring", _forward, _backward)
