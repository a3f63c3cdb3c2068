"""flash-attn-4 as operations that a traced graph can hold, with gradients through the log-sum-exp, too.

Its own functions generate kernels when they are called, which torch.compile can't trace. `windowed` is its call for
packed events; `ring` is a wrapped window in one kernel, whose tiles come from the block mask that flex uses
(block-sparse attention with a `mask_mod` of its own), so that no seam is asked a second time.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hepattn.attention.backends.operations import given_gradients, like_inputs, like_output, packed_operation

__all__ = ["ring", "windowed"]

TILE = 128
"""Tokens of a tile of the block mask."""


def _kernels() -> Any:
    from flash_attn.cute import interface

    return interface


def _open(side: int) -> int | None:
    return None if side < 0 else side


def _windowed_forward(
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


def _windowed_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int, left: int, right: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _kernels()._flash_attn_bwd(  # noqa: SLF001
        q, k, v, out, grad, lse, softmax_scale=scale, window_size_left=_open(left), window_size_right=_open(right),
        cu_seqlens_q=q_offsets, cu_seqlens_k=k_offsets, max_seqlen_q=max_q, max_seqlen_k=max_k, dlse=grad_lse,
    )  # fmt: skip
    return dq, dk, dv


@torch.library.custom_op("hepattn::fa4_ring", mutates_args=())
def ring(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, length: Tensor, tiles: list[Tensor],
    tiles_back: list[Tensor],  # noqa: ARG001  (the gradient's)
    half: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Packed q, k, v (T, H, D) of events that are rings: `half` tokens to either side, around the seam, too.

    Args:
        q: queries
        k: keys
        v: values
        first: (T,) int32, first token of each token's event; of a single event (0,), which it need not look up
        length: (T,) int32, tokens of each token's event; likewise
        tiles: for each tile of queries numbers and indices of key tiles, partly and wholly allowed, as in a `BlockMask`
        tiles_back: the same for each tile of keys
        half: tokens to either side
        scale: factor on the scores

    Returns:
        out (T, H, D), and lse (H, T) float32.
    """
    out, lse, *_ = _kernels()._flash_attn_fwd(  # noqa: SLF001
        q[None], k[None], v[None], softmax_scale=scale, block_sparse_tensors=_sparse(tiles), return_lse=True,
        **_ring(first, length, half),
    )  # fmt: skip
    return out[0], lse[0]


@torch.library.custom_op("hepattn::fa4_ring_backward", mutates_args=())
def _ring_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, first: Tensor,
    length: Tensor, tiles_back: list[Tensor], half: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _kernels()._flash_attn_bwd(  # noqa: SLF001
        q[None], k[None], v[None], out[None], grad[None], lse[None], softmax_scale=scale,
        block_sparse_tensors=_sparse(tiles_back), dlse=None if grad_lse is None else grad_lse[None],
        **_ring(first, length, half),
    )  # fmt: skip
    return dq[0], dk[0], dv[0]


def _sparse(tiles: list[Tensor]) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(*tiles, block_size=(TILE, TILE))


def near_on_ring(step: Any, length: Any, half: Any) -> Any:
    """`Window(..., wrap=True).allowed` by operators alone: for tensors, and for what kernels are traced with."""
    return (step <= half) & (step >= -half) | (step >= length - half) | (step <= half - length)


def _ring(first: Tensor, length: Tensor, half: int) -> dict[str, Any]:
    if not len(first):
        return {"mask_mod": _one_ring(half)}
    return {"mask_mod": _rings(half), "aux_tensors": [first, length]}


@cache
def _one_ring(half: int) -> Callable[..., Any]:
    """flash-attn-4's `mask_mod` of a single ring: one for each window, since its kernels are kept by it."""
    from cutlass import Int32, cute
    from flash_attn.cute.utils import scalar_to_ssa

    @cute.jit
    def mask_mod(batch, head, query, key, info, tables):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        length = scalar_to_ssa(info.seqlen_q, Int32)
        return near_on_ring(query - key, length, scalar_to_ssa(Int32(half), Int32))

    return mask_mod


@cache
def _rings(half: int) -> Callable[..., Any]:
    """The same of several rings one after another, whose sizes it looks up: 25 % slower, 40 % with gradients."""
    from cutlass import Int32, cute
    from flash_attn.cute.utils import scalar_to_ssa

    @cute.jit
    def mask_mod(batch, head, query, key, info, tables):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        place = key - scalar_to_ssa(tables[0][query[0]], Int32)
        length = scalar_to_ssa(tables[1][query[0]], Int32)
        inside = (place >= scalar_to_ssa(Int32(0), Int32)) & (place < length)
        return inside & near_on_ring(query - key, length, scalar_to_ssa(Int32(half), Int32))

    return mask_mod


def _save_ring(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, length, tiles, tiles_back, *ctx.numbers = inputs
    ctx.set_materialize_grads(False)
    ctx.tiles = len(tiles)
    ctx.save_for_backward(q, k, v, *output, first, length, *tiles_back)


def _ring_gradients(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    grad, grad_lse, saved = given_gradients(ctx, grad, grad_lse)
    back = saved[7:]
    found = _ring_backward(grad, grad_lse, *saved[:7], back, *ctx.numbers)
    return (*found, None, None, [None] * ctx.tiles, [None] * len(back), None, None)


windowed = packed_operation("fa4_windowed", _windowed_forward, _windowed_backward)
ring.register_fake(like_output)
_ring_backward.register_fake(like_inputs)
ring.register_autograd(_ring_gradients, setup_context=_save_ring)
