"""`flash`: flash-attention over packed events, through whichever door is installed. CUDA, float16 and bfloat16.

Windows (also with global tokens) and no mask. A wrapped window is exact in every call (see `rings`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from hepattn.attention.backends import aten, fa4
from hepattn.attention.backends.base import Call, constant
from hepattn.attention.backends.merge import attend_with_globals, window_and_tokens
from hepattn.attention.backends.operations import Forward, Pair, Varlen
from hepattn.masks.window import Window
from hepattn.sequence import Layout

__all__ = ["Door", "door", "refusal", "run"]

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Door:
    """A flash kernel.

    Attributes:
        name: how it is called where it is shown.
        run: from `Varlen` to `(out (T, H, D), lse (T, H))`.
        ring: the same for a call in a wrapped window, where there is an operation for it.
        lse_gradient: up to which head dimension gradients flow through the log-sum-exp of both; 0: they never do.
        any_head: whether it is used for all head dimensions, multiples of 8 up to 256, or for `HEAD_DIMS` of fa4 alone.
    """

    name: str
    run: Callable[[Varlen], Pair]
    ring: Callable[[Call, Window], Pair] | None = None
    lse_gradient: int = 0
    any_head: bool = True

    @property
    def does_all(self) -> bool:
        """Wrapped windows, and gradients through the log-sum-exp."""
        return self.ring is not None and self.lse_gradient > 0


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _by_token(found: Pair) -> Pair:
    out, lse = found
    return out, lse.transpose(0, 1)


def _packed(operation: Forward) -> Callable[[Varlen], Pair]:
    return lambda x: _by_token(operation(x))


def _ring(operation: Callable[..., Pair]) -> Callable[[Call, Window], Pair]:
    def run(call: Call, window: Window) -> Pair:
        layout = call.queries
        return _by_token(operation(call.q, call.k, call.v, layout.lengths, _int32(layout), window.half, call.scale))

    return run


_fa4_rings = _ring(fa4.rings)


def _fa4_ring(call: Call, window: Window) -> Pair:
    layout = call.queries
    if layout.batch != 1:
        return _fa4_rings(call, window)
    return _by_token(fa4.one_ring(call.q, call.k, call.v, window.half, call.scale))


def _fa2(x: Varlen) -> Pair:
    from flash_attn.flash_attn_interface import flash_attn_varlen_func

    out, lse, _ = flash_attn_varlen_func(
        x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, softmax_scale=x.scale, window_size=x.window,
        return_attn_probs=True,
    )  # fmt: skip
    return _by_token((out, lse))


def _fa3(x: Varlen) -> Pair:
    from flash_attn_interface import flash_attn_varlen_func

    out, lse, *_ = flash_attn_varlen_func(
        x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, softmax_scale=x.scale, window_size=x.window,
        return_attn_probs=True,
    )  # fmt: skip
    return _by_token((out, lse))


DOORS = {  # fastest first: the module to look for
    "flash_attn.cute": Door("flash-attn-4", _packed(fa4.windowed), _fa4_ring, MAX_HEAD_DIM, any_head=False),
    "flash_attn_interface": Door("flash-attn-3", _fa3),
    "flash_attn.flash_attn_interface": Door("flash-attn-2", _fa2),
    "torch.nn.attention.varlen": Door(
        "torch varlen", _packed(aten.windowed), _ring(aten.ring), MAX_HEAD_DIM - aten.BEYOND
    ),
}


@cache
def _find(does_all: bool, common_head: bool) -> str | None:
    # flash-attn-4 has no kernel for GPUs before Hopper
    too_old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)
    for module, kernel in DOORS.items():
        fits = (kernel.any_head or common_head) and (kernel.does_all or not does_all)
        if fits and _has(module) and not (too_old and module == "flash_attn.cute"):
            return module
    return None


@constant
def _installed(does_all: bool, common_head: bool) -> str | None:
    return _find(does_all, common_head)


def door(*, does_all: bool = False, common_head: bool = True) -> Door | None:
    """The fastest flash kernel that is installed (nothing is imported to find out).

    Args:
        does_all: of those with wrapped windows, and with gradients through the log-sum-exp.
        common_head: False: of those for heads of any multiple of 8 channels.
    """
    module = _installed(does_all, common_head)
    return None if module is None else DOORS[module]


def door_of(call: Call) -> Door | None:
    """The fastest of those that do this call."""
    parts = window_and_tokens(call.mask)
    window = call.mask if parts is None else parts[0]
    wraps = isinstance(window, Window) and window.wrap
    return door(does_all=_asks_lse_gradient(call) or wraps, common_head=_is_common(call.q.shape[-1]))


def _is_common(channels: int) -> bool:
    for one in fa4.HEAD_DIMS:  # noqa: SIM110  (a graph may not know the number, and learns it from each `if`)
        if channels == one:
            return True
    return False


def _asks_lse_gradient(call: Call) -> bool:
    return call.needs_grad and (call.return_lse or window_and_tokens(call.mask) is not None)


def missing(device: str) -> str | None:
    """Why this device can't run the kernel at all, or None."""
    if device != "cuda":
        return f"needs CUDA, this is {device}"
    if door() is None:
        return "no flash kernel found: install hepattn[flash], or torch >= 2.11"
    return None


def refusal(call: Call) -> str | None:
    """Why the call can't be done, in one sentence, or None."""
    if reason := missing(call.q.device.type):
        return reason
    return unsupported(call)


def unsupported(call: Call) -> str | None:
    """Why no flash kernel does this call on any device, or None."""
    if call.q.dtype not in DTYPES:
        return f"takes bfloat16 or float16, got {call.q.dtype}"
    if call.bias is not None:
        return "adds no bias to scores: use flex or sdpa"
    lse_gradient, parts = _asks_lse_gradient(call), window_and_tokens(call.mask)
    kernel = door_of(call)
    if parts is None and call.mask is not None and not isinstance(call.mask, Window):
        return f"takes windows, and windows with global tokens, not {call.mask!r}: use flex"
    if call.mask is not None and call.queries is not call.keys:
        return "takes a window in self-attention only; write Strided for cross-attention, on flex"
    channels, most = call.q.shape[-1], MAX_HEAD_DIM
    if lse_gradient and kernel is not None:
        most = kernel.lse_gradient
    if channels % 8 or channels > most or call.v.shape[-1] != channels:
        why = ", with a gradient through the log-sum-exp," if lse_gradient else ""
        return f"needs one head dimension{why} a multiple of 8 up to {most}, got {channels} and {call.v.shape[-1]}"
    return None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """`(Tq, H, D)` and, where asked for, the log-sum-exp `(Tq, H)`."""
    kernel = door_of(call)
    if kernel is None:
        raise RuntimeError("no flash kernel found")
    out, lse = attend_varlen(call, kernel)
    return out, lse.float() if call.return_lse else None


def attend_varlen(call: Call, kernel: Door) -> Pair:
    """The call through one door; `(out, lse)`."""
    if parts := window_and_tokens(call.mask):
        return attend_with_globals(call, *parts, lambda part: attend_varlen(part, kernel))
    window = call.mask
    if not isinstance(window, Window):
        return _without_keys(call, *_through(kernel, call, (-1, -1)))
    if window.wrap and window.half:
        assert kernel.ring is not None
        return kernel.ring(call, window)
    return _through(kernel, call, (window.half, window.half))


def _without_keys(call: Call, out: Tensor, lse: Tensor) -> Pair:
    """Zeros and an lse of -inf for the queries of events without keys, where kernels leave +inf, or what was there."""
    queries, keys = call.queries, call.keys
    if queries is keys:
        return out, lse
    if not torch.compiler.is_compiling() and not keys.cached("an event without keys", lambda: _any_empty(keys)):
        return out, lse
    empty = (keys.offsets.diff() == 0)[queries.event][:, None]
    return out.masked_fill(empty[..., None], 0), lse.masked_fill(empty, -torch.inf)


def _any_empty(layout: Layout) -> bool:
    return bool((layout.lengths == 0).any())


def _through(kernel: Door, call: Call, window: tuple[int, int]) -> Pair:
    queries, keys = call.queries, call.keys
    offsets = (_int32(queries), _int32(keys))
    return kernel.run(Varlen(call.q, call.k, call.v, *offsets, queries.max_length, keys.max_length, window, call.scale))


def _int32(layout: Layout) -> Tensor:
    return layout.cached("int32", lambda: layout.offsets.to(torch.int32))
