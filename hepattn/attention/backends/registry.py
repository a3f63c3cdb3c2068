"""Which kernels there are, which can run where, and which one `auto` takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hepattn.attention.backends import flash, flex, sdpa
from hepattn.attention.backends.base import Call, KernelRefusal
from hepattn.attention.backends.merge import window_and_tokens
from hepattn.masks.window import Window

__all__ = ["BACKENDS", "available_backends", "check_backend", "choose"]


@dataclass(frozen=True)
class Backend:
    """One kernel: why it refuses a call (None = it takes it), how to run it, and why a device lacks it."""

    refusal: Callable[[Call], str | None]
    run: Callable[[Call], tuple[Tensor, Tensor | None]]
    missing: Callable[[str], str | None]


BACKENDS = {
    "sdpa": Backend(sdpa.refusal, sdpa.run, lambda _: None),
    "flex": Backend(flex.refusal, flex.run, flex.missing),
    "flash": Backend(flash.refusal, flash.run, flash.missing),
}


def check_backend(name: str) -> str:
    """`name`, if it is `auto` or a kernel.

    Raises:
        ValueError: it is neither.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def available_backends(device: torch.device | str = "cpu") -> dict[str, bool | str]:
    """Each kernel on a device: True, or one sentence that says what it lacks."""
    kind = torch.device(device).type
    found: dict[str, bool | str] = {name: backend.missing(kind) or True for name, backend in BACKENDS.items()}
    if kind == "cpu" and found["flex"] is True:
        found["flex"] = "no backward on CPU (forward works; auto takes sdpa)"
    return found


def choose(call: Call, name: str = "auto") -> Backend:
    """The kernel `name`, or for `auto` the fastest that takes the call.

    Raises:
        KernelRefusal: the kernel can't do the call, and why.
        ValueError: there is no such kernel.
    """
    check_backend(name)
    if name != "auto":
        if reason := BACKENDS[name].refusal(call):
            raise KernelRefusal(f"{name}: {reason}")
        return BACKENDS[name]
    refusals = []
    for candidate in _order(call):
        reason = BACKENDS[candidate].refusal(call)
        if reason is None:
            return BACKENDS[candidate]
        refusals.append(f"{candidate}: {reason}")
    raise KernelRefusal("no kernel takes this call; " + "; ".join(refusals))


def _order(call: Call) -> tuple[str, ...]:
    """Fastest first, as `python -m hepattn.bench attention` measures it (bench/RESULTS.md).

    On a CPU blocked sdpa. On a GPU flash without a mask; for windows, also with global tokens, flash-attn-4. Where that
    is missing, windows of several events take flash (flex needs a tenth to a fifth more), those of one take flex
    forward, and with a backward to come flash (but flex for a ring with heads of more than 32 channels). Other masks
    take flex. Windows in float32, which flash does not take, go to blocked sdpa: flex was 17 times slower (the hit
    filter of full size on an H100: 805 against 47 ms an event). The same for a bias whose slopes learn: flex adds up
    their gradient pair by pair, into one number a head, and a small filter trained more than twenty times slower.
    In a traced graph sdpa takes a mask of all pairs for several events, or a bias: there it comes last.
    """
    if call.q.device.type != "cuda":
        return ("sdpa", "flex")
    if call.mask is None:
        if torch.compiler.is_compiling() and (call.queries.batch > 1 or call.bias is not None):
            return ("flash", "flex", "sdpa")
        return ("flash", "sdpa", "flex") if call.queries.batch > 1 or call.q.dtype in flash.DTYPES else ("sdpa", "flex")
    window = call.mask if isinstance(call.mask, Window) else None
    slopes_learn = call.bias is not None and call.bias.slopes.requires_grad and torch.is_grad_enabled()
    if window and (slopes_learn or call.q.dtype not in flash.DTYPES):
        return ("sdpa", "flex")
    kernel = flash.door_of(call)
    if kernel is not None and kernel.name == "flash-attn-4" and (window or window_and_tokens(call.mask)):
        return ("flash", "flex", "sdpa")
    if kernel is None or window is None:
        return ("flex", "flash", "sdpa")
    trains_faster = call.needs_grad and not (window.wrap and call.q.shape[-1] > 32)
    return ("flash", "flex", "sdpa") if call.queries.batch > 1 or trains_faster else ("flex", "flash", "sdpa")
