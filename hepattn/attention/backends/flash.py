"""`flash`: flash-attention over packed events, through whichever door is installed. CUDA, float16 and bfloat16.

Windows (also with global tokens) and no mask. A wrapped window is exact in
every call. flash-attn-4 has a kernel for rings. With the others, a first call has no wrap, which is right for all
queries but the first and the last h = size // 2 of an event. Those 2h, in the order of the ring, are then asked again
for the 4h tokens around the seam: under the kernel's bottom-right alignment the window (left=2h, right=0) of query a
ends at key a + 2h and reaches back to a, which on the ring are h keys to either side. An event of at most 2h tokens
sees all of itself, in a third call.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from hepattn.attention.backends import aten, fa4
from hepattn.attention.backends.base import Call, constant
from hepattn.attention.backends.merge import attend_with_globals, window_and_tokens
from hepattn.masks.blocks import block_mask
from hepattn.masks.window import Window
from hepattn.sequence import Layout

__all__ = ["Door", "door", "refusal", "run"]

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Varlen:
    """What a flash kernel is given: packed q, k, v, int32 offsets, longest lengths, an inclusive window (-1 = open)."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_offsets: Tensor
    k_offsets: Tensor
    max_q: int
    max_k: int
    window: tuple[int, int]
    scale: float


@dataclass(frozen=True)
class Door:
    """A flash kernel.

    Attributes:
        name: how it is called where it is shown.
        run: from `Varlen` to `(out (T, H, D), lse (T, H))`.
        ring: the same for a call in a wrapped window, where there is a kernel for it.
        lse_gradient: up to which head dimension gradients flow through its log-sum-exp; 0: they never do.
    """

    name: str
    run: Callable[[Varlen], tuple[Tensor, Tensor]]
    ring: Callable[[Call, Window], tuple[Tensor, Tensor]] | None = None
    lse_gradient: int = 0


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _fa4(x: Varlen) -> tuple[Tensor, Tensor]:
    out, lse = fa4.windowed(x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, *x.window, x.scale)
    return out, lse.transpose(0, 1)


def _fa4_ring(call: Call, window: Window) -> tuple[Tensor, Tensor]:
    layout = call.queries
    blocks = block_mask(window, layout, layout, fa4.TILE)
    tiles = [blocks.kv_num_blocks, blocks.kv_indices, blocks.full_kv_num_blocks, blocks.full_kv_indices]
    tiles_back = [blocks.q_num_blocks, blocks.q_indices, blocks.full_q_num_blocks, blocks.full_q_indices]
    first, length = layout.cached("ring of each token", lambda: _ring_of_each_token(layout))
    out, lse = fa4.ring(call.q, call.k, call.v, first, length, tiles, tiles_back, window.half, call.scale)
    return out, lse.transpose(0, 1)


def _ring_of_each_token(layout: Layout) -> tuple[Tensor, Tensor]:
    """First token and number of tokens of each token's event, int32; both empty for a single event."""
    if layout.batch == 1:
        first, length = (layout.offsets[:0] for _ in range(2))
    else:
        first, length = layout.offsets[:-1][layout.event], layout.offsets.diff()[layout.event]
    return first.to(torch.int32), length.to(torch.int32)


def _fa2(x: Varlen) -> tuple[Tensor, Tensor]:
    from flash_attn.flash_attn_interface import flash_attn_varlen_func

    out, lse, _ = flash_attn_varlen_func(
        x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, softmax_scale=x.scale, window_size=x.window,
        return_attn_probs=True,
    )  # fmt: skip
    return out, lse.transpose(0, 1)


def _fa3(x: Varlen) -> tuple[Tensor, Tensor]:
    from flash_attn_interface import flash_attn_varlen_func

    out, lse, *_ = flash_attn_varlen_func(
        x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, softmax_scale=x.scale, window_size=x.window,
        return_attn_probs=True,
    )  # fmt: skip
    return out, lse.transpose(0, 1)


def _torch_varlen(x: Varlen) -> tuple[Tensor, Tensor]:
    out, lse = aten.windowed(x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, *x.window, x.scale)
    return out, lse.transpose(0, 1)


DOORS = {  # fastest first: the module to look for
    "flash_attn.cute": Door("flash-attn-4", _fa4, _fa4_ring, lse_gradient=MAX_HEAD_DIM),
    "flash_attn_interface": Door("flash-attn-3", _fa3),
    "flash_attn.flash_attn_interface": Door("flash-attn-2", _fa2),
    "torch.nn.attention.varlen": Door("torch varlen", _torch_varlen, lse_gradient=MAX_HEAD_DIM - aten.BEYOND),
}


@cache
def _find(lse_gradient: bool) -> str | None:
    # flash-attn-4 has no kernel for GPUs before Hopper
    too_old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)
    suited = (module for module, kernel in DOORS.items() if kernel.lse_gradient or not lse_gradient)
    return next((module for module in suited if _has(module) and not (too_old and module == "flash_attn.cute")), None)


@constant
def _installed(lse_gradient: bool) -> str | None:
    return _find(lse_gradient)


def door(*, lse_gradient: bool = False) -> Door | None:
    """The fastest flash kernel that is installed (nothing is imported to find out).

    Args:
        lse_gradient: of those through whose log-sum-exp gradients flow.
    """
    module = _installed(lse_gradient)
    return None if module is None else DOORS[module]


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
    kernel = door(lse_gradient=lse_gradient)
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
    seams = isinstance(call.mask, Window) and call.mask.wrap and (kernel is None or kernel.ring is None)
    if torch.compiler.is_compiling() and seams and call.queries.batch > 1:
        return "in torch.compile a wrapped window over several events needs lengths that are values: use flex"
    return None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """`(Tq, H, D)` and, where asked for, the log-sum-exp `(Tq, H)`."""
    kernel = door(lse_gradient=_asks_lse_gradient(call))
    if kernel is None:
        raise RuntimeError("no flash kernel found")
    out, lse = attend_varlen(call, kernel)
    return out, lse.float() if call.return_lse else None


def attend_varlen(call: Call, kernel: Door) -> tuple[Tensor, Tensor]:
    """The call through one door; `(out, lse)`."""
    if parts := window_and_tokens(call.mask):
        return attend_with_globals(call, *parts, lambda part: attend_varlen(part, kernel))
    window = call.mask
    if not isinstance(window, Window):
        return _without_keys(call, *_through(kernel, call, (-1, -1)))
    layout, half = call.queries, window.half
    if not window.wrap or half == 0:
        return _through(kernel, call, (half, half))
    if kernel.ring is not None:
        return kernel.ring(call, window)
    rings = layout.cached(("rings", half), lambda: _rings(layout, half))
    if rings.seams is None:
        return _through(kernel, call, (-1, -1))
    out, lse = _through(kernel, call, (half, half))
    for part, sides in ((rings.seams, (2 * half, 0)), (rings.short, (-1, -1))):
        if part is not None:
            few, lse_few = _through(kernel, part.of(call), sides)
            place = Tensor.index_copy if call.needs_grad else Tensor.index_copy_  # autograd keeps the first `out`
            out, lse = place(out, 0, part.tokens, few), place(lse, 0, part.tokens, lse_few)
    return out, lse


def _without_keys(call: Call, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True, eq=False)
class _Part:
    """Some queries of a batch with some keys: their packed tokens, and how many each event has."""

    tokens: Tensor
    layout: Layout
    keys: Tensor
    keys_layout: Layout

    def of(self, call: Call) -> Call:
        """The call for these alone."""
        q, k, v = (call.q.index_select(0, self.tokens), *(x.index_select(0, self.keys) for x in (call.k, call.v)))
        return replace(call, q=q, k=k, v=v, queries=self.layout, keys=self.keys_layout)


@dataclass(frozen=True, eq=False)
class _Rings:
    """What a call without a wrap gets wrong: the seams of long events, and events that the window covers whole."""

    seams: _Part | None
    short: _Part | None


def _rings(layout: Layout, half: int) -> _Rings:
    if layout.batch == 1:  # decided by the total, which a traced graph knows too
        return _Rings(
            _seams(layout, torch.zeros(1, dtype=torch.int64), half) if layout.total > 2 * half else None, None
        )
    long = layout.lengths > 2 * half
    seams = _seams(layout, long.nonzero()[:, 0], half) if bool(long.any()) else None
    return _Rings(seams, _whole(layout, ~long) if bool((layout.lengths[~long] > 0).any()) else None)


def _seams(layout: Layout, events: Tensor, half: int) -> _Part:
    """The last h and the first h tokens of some events, with twice as many keys on either side of the seam."""
    device = layout.device
    starts, length = layout.offsets[:-1], layout.offsets.diff()
    if layout.batch > 1:
        starts, length = starts[events.to(device)], length[events.to(device)]

    def around(reach: int) -> tuple[Tensor, Layout]:
        place = torch.arange(-reach, reach, device=device)
        counts = torch.full((len(events),), 2 * reach)
        tokens = starts[:, None] + place % length[:, None]
        return tokens.flatten(), Layout.of(counts, device, total=2 * reach * len(events))

    return _Part(*around(half), *around(2 * half))


def _whole(layout: Layout, chosen: Tensor) -> _Part:
    """All tokens of some events."""
    tokens = chosen.to(layout.device)[layout.event].nonzero()[:, 0]
    part = Layout.of(layout.lengths[chosen], layout.device, total=len(tokens))
    return _Part(tokens, part, tokens, part)


def _through(kernel: Door, call: Call, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    queries, keys = call.queries, call.keys
    offsets = (_int32(queries), _int32(keys))
    return kernel.run(Varlen(call.q, call.k, call.v, *offsets, queries.max_length, keys.max_length, window, call.scale))


def _int32(layout: Layout) -> Tensor:
    return layout.cached("int32", lambda: layout.offsets.to(torch.int32))
