"""flash-attn-4 as operations that a traced graph can hold, with gradients through the log-sum-exp, too.

Its own functions generate kernels when they are called, which torch.compile can't trace. A single ring is one kernel,
whose tiles come from the block mask that flex uses (block-sparse attention with a `mask_mod` of its own): with a
backward to come that was faster than asking the seam again, which is faster for several rings (bench/RESULTS.md).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from hepattn.attention.backends.operations import Grads, Pair, Varlen, differentiable, packed_operation
from hepattn.attention.backends.rings import ring_operation

__all__ = ["HEAD_DIMS", "TILE", "one_ring", "rings", "windowed"]

HEAD_DIMS = (32, 64, 128)
"""Those at which it was compared with others: with 16 channels its gradients were wrong (4.0.0b36 on an H100)."""
TILE = 128
"""Tokens of a tile of the block mask."""


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


def _one_ring(
    q: Tensor, k: Tensor, v: Tensor, numbers: Tensor, tiles: Tensor, full_numbers: Tensor, full_tiles: Tensor,
    numbers_back: Tensor, tiles_back: Tensor, full_numbers_back: Tensor, full_tiles_back: Tensor,  # noqa: ARG001
    half: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, lse, *_ = _kernels()._flash_attn_fwd(  # noqa: SLF001
        q[None], k[None], v[None], softmax_scale=scale, mask_mod=_mask_mod(half), return_lse=True,
        block_sparse_tensors=_sparse(numbers, tiles, full_numbers, full_tiles),
    )  # fmt: skip
    return out[0], lse[0]


def _one_ring_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    numbers: Tensor, tiles: Tensor, full_numbers: Tensor, full_tiles: Tensor,  # noqa: ARG001  (forward's)
    numbers_back: Tensor, tiles_back: Tensor, full_numbers_back: Tensor, full_tiles_back: Tensor,
    half: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _kernels()._flash_attn_bwd(  # noqa: SLF001
        q[None], k[None], v[None], out[None], grad[None], lse[None], softmax_scale=scale, mask_mod=_mask_mod(half),
        block_sparse_tensors=_sparse(numbers_back, tiles_back, full_numbers_back, full_tiles_back),
        dlse=None if grad_lse is None else grad_lse[None],
    )  # fmt: skip
    return dq[0], dk[0], dv[0]


def _sparse(*tiles: Tensor) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(*tiles, block_size=(TILE, TILE))


def near_on_ring(step: Any, length: Any, half: Any) -> Any:
    """`Window(..., wrap=True).allowed` by operators alone: for tensors, and for what kernels are traced with."""
    return (step <= half) & (step >= -half) | (step >= length - half) | (step <= half - length)


@cache
def _mask_mod(half: int) -> Callable[..., Any]:
    """flash-attn-4's `mask_mod` of a single ring: one for each window, since its kernels are kept by it."""
    from cutlass import Int32, cute
    from flash_attn.cute.utils import scalar_to_ssa

    @cute.jit
    def mask_mod(batch, head, query, key, info, tables):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        length = scalar_to_ssa(info.seqlen_q, Int32)
        return near_on_ring(query - key, length, scalar_to_ssa(Int32(half), Int32))

    return mask_mod


windowed = packed_operation("fa4_windowed", _forward, _backward)
rings = ring_operation("fa4_rings", _forward, _backward)
one_ring = differentiable("fa4_one_ring", _one_ring, _one_ring_backward, tensors=8)
"""Of q, k, v (T, H, D), and for each tile of queries numbers and indices of key tiles, partly and wholly allowed, as in
a `BlockMask`, the same for each tile of keys, half and scale."""
