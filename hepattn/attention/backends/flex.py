"""`flex`: torch's FlexAttention, compiled once with dynamic shapes. Does every mask; on a CPU forward only.

The compiled callable is kept, and more graphs than torch allows are an error: dynamo would otherwise run
FlexAttention eagerly in silence, with an N x N matrix.
"""

import shutil
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad

from hepattn.attention.backends.base import Call, constant
from hepattn.attention.bias import ScoreMod
from hepattn.masks.blocks import block_mask

__all__ = ["refusal", "run"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_HEAD_DIM = 16
GRAPHS = 64
WIDER = 32
"""Channels to which heads of 16 are filled with zeros on a CPU, which changes no score: for such heads torch 2.13 reads
memory that nobody wrote, in sequences of 8, 24, 40 ... tokens."""


@cache
def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


@constant
def missing(device: str) -> str | None:
    """Why this device can't run the kernel at all, or None."""
    if device == "cpu" and _compiler() is None:
        return "needs a C++ compiler (g++ or clang++) on a CPU, and none was found"
    return None


def refusal(call: Call) -> str | None:
    """Why the call can't be done, in one sentence, or None."""
    device = call.q.device.type
    if reason := missing(device):
        return reason
    if device == "cpu" and (call.needs_grad or any(t.requires_grad for t in (call.q, call.k, call.v))):
        return "no backward on a CPU: detach q, k and v, or use sdpa"
    if device == "cpu" and call.return_lse:
        return "gives no log-sum-exp on a CPU: use sdpa"
    if call.q.dtype not in DTYPES:
        return f"takes float32, bfloat16 or float16, got {call.q.dtype}"
    if min(call.q.shape[-1], call.v.shape[-1]) < MIN_HEAD_DIM:
        return f"needs a head dimension of at least {MIN_HEAD_DIM}, got {call.q.shape[-1]}"
    if call.bias is not None and call.bias.slopes.requires_grad and not call.bias.slopes.is_leaf:
        return "gives slopes their gradient only where they are a parameter, not computed from others: use sdpa"
    return None


@cache
def _compiled(*, dynamic: bool = True) -> Any:
    return torch.compile(flex_attention, fullgraph=True, dynamic=dynamic)


def _run_compiled(call: Call, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
    """One kernel for all lengths. On a CPU torch 2.13 generates C++ that does not compile for some masks with dynamic
    shapes, and one that takes a bias's tables over several events for too short: those take one kernel a length.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit  # slow to import
    from torch._inductor.exc import InductorError

    on_cpu = call.q.device.type == "cpu"
    limits: dict[str, Any] = {"recompile_limit": GRAPHS, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):  # noqa: SLF001  (the documented switch lives there)
        try:
            dynamic = not (on_cpu and call.bias is not None and call.queries.batch > 1)
            return _compiled(dynamic=dynamic)(q, k, v, **options)
        except InductorError:
            if not on_cpu:
                raise
            return _compiled(dynamic=False)(q, k, v, **options)
        except FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"flex has compiled {GRAPHS} kernels in this process and would compile another for {call.mask!r} on "
                f"{call.q.dtype}: use fewer kinds of masks in one process, raise "
                "hepattn.attention.backends.flex.GRAPHS, or use sdpa (nothing runs uncompiled in silence)"
            ) from error


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """`(Tq, H, Dv)` and, where asked for, the log-sum-exp `(Tq, H)`."""
    blocks = block_mask(call.mask, call.queries, call.keys)
    widths, channels = (call.q.shape[-1], call.v.shape[-1]), call.v.shape[-1]
    q, k, v = (t.transpose(0, 1)[None] for t in (call.q, call.k, call.v))
    if call.q.device.type == "cpu" and MIN_HEAD_DIM in widths:
        q, k, v = (pad(t, (0, WIDER - t.shape[-1])) if t.shape[-1] < WIDER else t for t in (q, k, v))
    options: dict[str, Any] = {"block_mask": blocks, "scale": call.scale, "return_lse": call.return_lse}
    if call.bias is not None:
        options["score_mod"] = ScoreMod(call.bias, call.queries)
    if torch.compiler.is_compiling():  # a part of the caller's graph
        result: Any = flex_attention(q, k, v, **options)
    else:
        result = _run_compiled(call, q, k, v, options)
    if not call.return_lse:
        return result[0].transpose(0, 1)[..., :channels], None
    return result[0][0].transpose(0, 1)[..., :channels], result[1][0].transpose(0, 1).float()
