"""Padded and nested input give the packed numbers and gradients on every kernel, with masks, alone and across."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hepattn import Attention, Encoder, KernelRefusal, Packed
from hepattn.attention.backends.merge import window_and_tokens
from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window

LENGTHS, KEYS = [40, 1, 0, 23], [90, 4, 7, 60]


def drawn(keys: list[int]) -> Dense:
    """Of the size of the tokens that are there, whatever the padding."""
    generator = torch.Generator().manual_seed(3)
    return Dense([torch.rand(n, m, generator=generator) > 0.4 for n, m in zip(LENGTHS, keys, strict=True)])


SELF: list[Mask | None] = [
    None,
    Window(8),
    Window(9, wrap=True),
    Window(6, wrap=True) | GlobalTokens([0]),
    drawn(LENGTHS),
    Window(20, wrap=True) & drawn(LENGTHS),
]
ACROSS: list[Mask | None] = [None, Strided(11), Strided(16, wrap=True), drawn(KEYS), Strided(30) & drawn(KEYS)]
CALLS = [("self", mask) for mask in SELF] + [("across", mask) for mask in ACROSS]


def values(lengths: list[int], seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), 32, generator=generator).to(device).requires_grad_()


def through(door: str, x: Tensor, lengths: list[int]) -> tuple[Any, Tensor | None]:
    """x (T, 32) as it goes into a model, with `valid` where it is padded; padding holds what must not matter."""
    packed = Packed(x, torch.tensor(lengths))
    if door == "packed":
        return packed, None
    if door == "nested":
        return packed.to_nested(), None
    padded, valid = packed.to_padded(max(lengths) + 3)
    return padded + torch.where(valid[..., None], 0.0, 1e4), valid


def call(attention: Attention, door: str, kind: str, mask: Mask | None, device: str) -> tuple[Tensor, list[Tensor]]:
    """The output (T, 32), packed, and the gradients of x, of the context and of all weights."""
    x, context = values(LENGTHS, 1, device), values(KEYS, 2, device)
    given, valid = through(door, x, LENGTHS)
    other, other_valid = through(door, context, KEYS) if kind == "across" else (None, None)
    out = attention(given, other, mask=mask, valid=valid, context_valid=other_valid)
    if valid is not None:
        assert (out[~valid] == 0).all()
        out = out[valid]
    else:
        out = out.values() if door == "nested" else out.values
    leaves = [x, *attention.parameters(), *([context] if kind == "across" else [])]
    return out, list(torch.autograd.grad(out.float().square().sum(), leaves))


def make() -> Attention:
    torch.manual_seed(0)
    return Attention(32, 2, qk_norm="rms", gate=True)


@pytest.mark.parametrize("door", ["padded", "nested"])
@pytest.mark.parametrize(("kind", "mask"), CALLS, ids=str)
def test_on_a_cpu(door: str, kind: str, mask: Mask | None) -> None:
    expected, grads = call(make(), "packed", kind, mask, "cpu")
    found, mine = call(make(), door, kind, mask, "cpu")
    assert torch.allclose(found, expected, atol=1e-6)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(mine, grads, strict=True))


@pytest.mark.parametrize("model", [make(), Encoder(dim=32, num_layers=1, num_heads=2)], ids=["attention", "encoder"])
def test_what_leaves_nested_can_be_added_to_what_entered(model: Any) -> None:
    """Which torch does for nested tensors of the same offsets only, the object itself."""
    x = values(LENGTHS, 1, "cpu")
    packed, nested = Packed(x, torch.tensor(LENGTHS)), through("nested", x, LENGTHS)[0]
    expected, found = x + model(packed).values, (nested + model(nested)).values()
    assert torch.allclose(found, expected, atol=1e-6)
    mine, right = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected))
    assert torch.allclose(mine, right, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("backend", ["sdpa", "flex", "flash", "auto"])
@pytest.mark.parametrize("door", ["packed", "padded", "nested"])
@pytest.mark.parametrize(("kind", "mask"), CALLS, ids=str)
def test_on_a_gpu(backend: str, door: str, kind: str, mask: Mask | None) -> None:
    """In bfloat16, so that all kernels are asked; what flash refuses, it refuses through every door."""
    expected, grads = call(make(), "packed", kind, mask, "cpu")
    attention = make().to("cuda")
    attention.set_backend(backend)
    with torch.autocast("cuda", torch.bfloat16):
        local = isinstance(mask, Window) or window_and_tokens(mask) is not None
        if backend == "flash" and not (mask is None or (local and kind == "self")):
            with pytest.raises(KernelRefusal, match="flash:"):
                call(attention, door, kind, mask, "cuda")
            return
        found, mine = call(attention, door, kind, mask, "cuda")
    for one, other in zip([found.detach(), *mine], [expected.detach(), *grads], strict=True):
        assert float((one.float().cpu() - other).norm()) <= 0.05 * max(float(other.norm()), 1.0)
