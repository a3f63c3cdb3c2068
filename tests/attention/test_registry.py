"""Which kernel `auto` takes: on a GPU, which is only pretended here, the one that was measured to be the fastest."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hepattn.attention import DistanceBias
from hepattn.attention.backends import flash
from hepattn.attention.backends.base import Call
from hepattn.attention.backends.registry import BACKENDS, choose
from hepattn.attention.functional import make_call
from hepattn.masks import GlobalTokens, Mask, Strided, Window

RING, TOKENS = Window(64, wrap=True), GlobalTokens([0, 3])
FA4, TORCH = flash.DOORS["flash_attn.cute"], flash.DOORS["torch.nn.attention.varlen"]
CHOICES = [  # kernel for one event without and with a backward to come, and for several; with flash-attn-4, and without
    (None, 64, FA4, "flash flash flash flash"),
    (None, 64, TORCH, "flash flash flash flash"),
    (Window(64), 64, FA4, "flash flash flash flash"),
    (Window(64), 64, TORCH, "flex flash flash flash"),
    (RING, 64, FA4, "flash flash flash flash"),
    (RING, 64, TORCH, "flex flex flash flash"),
    (RING, 32, TORCH, "flex flash flash flash"),
    (RING | TOKENS, 64, FA4, "flash flash flash flash"),
    (RING | TOKENS, 64, TORCH, "flex flex flex flex"),
    (TOKENS, 64, FA4, "flex flex flex flex"),
    (Strided(9), 64, FA4, "flex flex flex flex"),
]


def on_gpu(lengths: list[int], channels: int, mask: Mask | None, dtype: torch.dtype, grad: bool) -> Call:
    """A call whose q, k and v look as if they were on a GPU."""
    x = torch.randn(sum(lengths), 2, channels, dtype=dtype)
    with FakeTensorMode():
        q, k, v = (torch.empty(x.shape, dtype=dtype, device="cuda", requires_grad=grad) for _ in range(3))
    return replace(make_call(x, x, x, mask, lengths, None, None), q=q, k=k, v=v)


@pytest.mark.parametrize(("mask", "channels", "door", "kernels"), CHOICES, ids=lambda x: getattr(x, "name", str(x)))
def test_auto_takes_the_fastest(
    monkeypatch: pytest.MonkeyPatch, mask: Mask | None, channels: int, door: flash.Door, kernels: str
) -> None:
    monkeypatch.setattr(flash, "door", lambda **_: door)
    asked = [(lengths, grad) for lengths in ([40], [20, 20]) for grad in (False, True)]
    for (lengths, grad), name in zip(asked, kernels.split(), strict=True):
        call = on_gpu(lengths, channels, mask, torch.bfloat16, grad)
        assert choose(call) is BACKENDS[name], (lengths, grad)
        single = on_gpu(lengths, channels, mask, torch.float32, grad)  # not for flash
        fastest = "flex" if mask is not None and not isinstance(mask, Window) else "sdpa"
        assert choose(single) is BACKENDS[fastest], (lengths, grad)


def test_learned_slopes_keep_windows_off_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "door", lambda **_: FA4)
    for learns, name in ((True, "sdpa"), (False, "flex")):
        slopes = torch.ones(2).requires_grad_(learns)
        call = replace(on_gpu([40], 64, RING, torch.bfloat16, True), bias=DistanceBias(slopes))
        assert choose(call) is BACKENDS[name]
