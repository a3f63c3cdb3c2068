"""`flex`: torch's FlexAttention, compiled once with dynamic shapes. Does every mask; on a CPU forward only.

Each kind of mask needs one graph for all lengths (one token alone is a graph of its own; on a GPU so are fewer than 128
queries, for which torch has another kernel). On a CPU the events of a batch are run one by one, by the same graph; a
mask of many numbers, such as a window with three global tokens, takes a kernel a length there.

The compiled callable is kept, and more graphs than torch allows are an error: dynamo would otherwise run
FlexAttention eagerly in silence, with an N x N matrix.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad

from hepattn.attention.backends.base import Call, constant
from hepattn.attention.backends.merge import attend_with_globals, window_and_tokens
from hepattn.attention.bias import ScoreMod
from hepattn.masks.base import Mask
from hepattn.masks.blocks import block_mask
from hepattn.masks.compose import Both, Either
from hepattn.masks.tokens import GlobalTokens
from hepattn.sequence import Layout

__all__ = ["refusal", "run"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_HEAD_DIM = 16
GRAPHS = 64
WIDER = 32
"""Channels to which heads of 16 are filled with zeros on a CPU, which changes no score: for such heads torch 2.13 reads
memory that nobody wrote, in sequences of 8, 24, 40 ... tokens."""
STATIC_KINDS: set[str] = set()
"""Kinds of masks found to need a kernel a length on a CPU. torch 2.13 replaces the names of two sizes in the C++ that
it generates, also where they begin another name (ks1 in ks10): with ten sizes, numbers of the mask among them, what it
generates for all lengths does not compile."""


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
    if device == "cpu" and torch.compiler.is_compiling():  # torch 2.13 generates C++ that lacks the block mask's names
        return "does not compile inside a graph on a CPU: use sdpa, or leave the model uncompiled"
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


def _kind(mask: Mask | None) -> str:
    if isinstance(mask, Both | Either):
        return f"{type(mask).__name__}({_kind(mask.left)}, {_kind(mask.right)})"
    return f"{type(mask).__name__}{len(mask.indices) if isinstance(mask, GlobalTokens) else ''}"


def _run_compiled(call: Call, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
    """One kernel for all lengths, or where that does not compile (`STATIC_KINDS`) one a length."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # slow to import
    from torch._inductor.exc import InductorError

    on_cpu, kind = call.q.device.type == "cpu", f"{_kind(call.mask)}, {call.bias is not None}"
    limits: dict[str, Any] = {"recompile_limit": GRAPHS, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):  # noqa: SLF001  (the documented switch lives there)
        try:
            return _compiled(dynamic=kind not in STATIC_KINDS)(q, k, v, **options)
        except InductorError:
            if not on_cpu or kind in STATIC_KINDS:
                raise
            STATIC_KINDS.add(kind)  # a compile that fails takes as long as one that does not
            return _compiled(dynamic=False)(q, k, v, **options)
        except FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"flex has compiled {GRAPHS} kernels in this process and would compile another for {call.mask!r} on "
                f"{call.q.dtype}: use fewer kinds of masks in one process, raise "
                "hepattn.attention.backends.flex.GRAPHS, or use sdpa (nothing runs uncompiled in silence)"
            ) from error


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """`(Tq, H, Dv)` and, where asked for, the log-sum-exp `(Tq, H)`."""
    if _merges(call) and (parts := window_and_tokens(call.mask)):
        out, lse = attend_with_globals(call, *parts, run)
        return out, lse if call.return_lse else None
    if call.q.device.type == "cpu" and call.queries.batch > 1 and not torch.compiler.is_compiling():
        return torch.cat([_alone(part) for part in _events(call)]), None
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
    lse = result[1][0].transpose(0, 1).float()
    if call.needs_grad:  # what an empty row gets there must not meet the kernel's backward
        lse = lse.masked_fill(lse.isneginf(), -torch.inf)
    return result[0][0].transpose(0, 1)[..., :channels], lse


def _merges(call: Call) -> bool:
    """Whether global tokens beside a window are left out of the kernel and merged in: on a GPU.

    A block of queries that see all keys, and one of keys that all queries see, would be the work of one multiprocessor,
    for which all others wait.
    """
    return call.q.device.type == "cuda" and call.bias is None


def _events(call: Call) -> Iterator[Call]:
    """The events of a batch, one by one: a graph then reads their lengths from scalars, and serves all batches.

    For tables over queries, which several events at once need, torch 2.13 generates C++ that does not compile with
    dynamic shapes.
    """
    queries, keys = call.queries, call.keys
    against = None if keys is queries else keys

    def parts() -> list[tuple[Layout, Layout, Mask | None]]:
        """Kept on the layout, so that all layers find the blocks of each event."""
        found = []
        for event, (n, m) in enumerate(zip(queries.host_lengths, keys.host_lengths, strict=True)):
            one = Layout.of([n], queries.device, total=n)
            other = one if against is None else Layout.of([m], keys.device, total=m)
            found.append((one, other, None if call.mask is None else call.mask.of_event(event)))
        return found

    sizes = [layout.host_lengths for layout in (queries, keys, keys)]
    tensors = zip(*(x.split(n) for x, n in zip((call.q, call.k, call.v), sizes, strict=True)), strict=True)
    for (q, k, v), (one, other, mask) in zip(
        tensors, queries.cached(("events", call.mask, against), parts), strict=True
    ):
        yield replace(call, q=q, k=k, v=v, mask=mask, queries=one, keys=other)


def _alone(call: Call) -> Tensor:
    """One event; nothing is compiled for one without queries or keys."""
    if not len(call.q) or not len(call.k):
        return call.q.new_zeros(*call.q.shape[:2], call.v.shape[-1])
    return run(call)[0]
