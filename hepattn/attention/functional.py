"""`attend`: attention as a function of packed tensors, a mask and the events' lengths."""

from typing import Literal, overload

import torch
from torch import Tensor

from hepattn.attention.backends.base import Call, zero_of
from hepattn.attention.backends.registry import check_backend, choose
from hepattn.attention.bias import DistanceBias
from hepattn.masks.base import Mask
from hepattn.masks.window import Window
from hepattn.sequence import Layout, Lengths

__all__ = ["attend"]


@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask | None = ..., lengths: Lengths = ..., kv_lengths: Lengths = ...,
    bias: DistanceBias | None = ..., backend: str = ..., scale: float | None = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask | None = ..., lengths: Lengths = ..., kv_lengths: Lengths = ...,
    bias: DistanceBias | None = ..., backend: str = ..., scale: float | None = ..., return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    bias: DistanceBias | None = None,
    backend: str = "auto",
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`softmax(scale * q k^T + bias) v` over the pairs that `mask` allows inside each event; exact on every kernel.

    Args:
        q: `(Tq, H, D)`, the queries of all events one after another.
        k: `(Tk, H, D)`, the keys.
        v: `(Tk, H, Dv)`, the values.
        mask: who may attend to whom inside an event (True = may attend); None = everyone.
        lengths: tokens of each event, summing to Tq: a list, a tensor (B,), or a `Layout` (which keeps what depends on
            the lengths alone, so that all layers compute it once); None = one event.
        kv_lengths: the same for k and v in cross-attention; None = self-attention, or one event.
        bias: added to the scaled scores in self-attention (`DistanceBias`), with gradients for its slopes.
        backend: "auto" (the fastest kernel that takes the call), "sdpa", "flex" or "flash".
        scale: factor on the scores, `D ** -0.5` by default.
        return_lse: also return the natural logarithm of the sum of exponentials of the allowed scores, through which
            gradients flow as through the output.

    Returns:
        `(Tq, H, Dv)` in the dtype of q, and with `return_lse` also `(Tq, H)` float32. A query that may attend to none
        gives zeros, zero gradients and an lse of -inf.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit, or the mask does not fit the events.
        KernelRefusal: the kernel asked for can't do this call; the message says why.
    """
    call = make_call(q, k, v, mask, lengths, kv_lengths, scale, return_lse=return_lse, bias=bias)
    out, lse = choose(call, backend).run(call) if len(q) and len(k) else _nothing(call, backend)
    if return_lse:
        assert lse is not None
        return out, lse
    return out


def _nothing(call: Call, backend: str) -> tuple[Tensor, Tensor]:
    """Without a query or without a key every kernel would give zeros; gradients are zero too."""
    check_backend(backend)
    out = call.q.new_zeros(*call.q.shape[:2], call.v.shape[-1]) + zero_of(*call.leaves)
    return out, torch.full(call.q.shape[:2], -torch.inf, device=call.q.device)


def make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None,
    lengths: Lengths,
    kv_lengths: Lengths,
    scale: float | None,
    *,
    return_lse: bool = False,
    bias: DistanceBias | None = None,
) -> Call:
    """Checks the arguments of `attend` and gathers them."""
    _check_tensors(q, k, v)
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(
            f"mask must be a hepattn mask (for a bool tensor write Dense(tensor)), got {type(mask).__name__}"
        )
    queries = Layout.of(lengths, q.device, total=q.shape[0])
    if kv_lengths is not None:
        keys = queries if kv_lengths is lengths else Layout.of(kv_lengths, k.device, total=k.shape[0])
    elif k.shape[0] == q.shape[0]:
        keys = queries
    elif queries.batch == 1:
        keys = Layout.of(None, k.device, total=k.shape[0])
    else:
        raise ValueError(f"{q.shape[0]} queries of {queries.batch} events against {k.shape[0]} keys need kv_lengths")
    if queries.batch != keys.batch:
        raise ValueError(
            f"queries come from {queries.batch} events and keys from {keys.batch}: one length an event each"
        )
    if mask is not None:
        if isinstance(mask, Window) and queries is not keys:
            if torch.compiler.is_compiling():
                raise ValueError("in torch.compile a Window takes one Layout for queries and keys: give it as lengths")
            if not torch.equal(queries.lengths, keys.lengths):
                raise ValueError("a Window is for self-attention; queries and keys of different lengths take Strided")
        mask.check(queries, keys)
        mask = mask.to(q.device)
    if bias is not None:
        if queries is not keys:
            raise ValueError("a DistanceBias is for self-attention: queries and keys must be the same tokens")
        if bias.slopes.shape[0] != q.shape[1] or bias.slopes.device != q.device:
            raise ValueError(
                f"the bias has {bias.slopes.shape[0]} slopes on {bias.slopes.device}, "
                f"q has {q.shape[1]} heads on {q.device}"
            )
    return Call(q, k, v, mask, queries, keys, q.shape[-1] ** -0.5 if scale is None else scale, return_lse, bias)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3:
        raise ValueError(f"attend takes packed tensors (tokens, heads, head_dim); got {shapes}")
    if k.shape[0] != v.shape[0] or not q.shape[1] == k.shape[1] == v.shape[1] or q.shape[2] != k.shape[2]:
        raise ValueError(f"q (Tq, H, D), k (Tk, H, D) and v (Tk, H, Dv) do not fit: {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k and v must share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
