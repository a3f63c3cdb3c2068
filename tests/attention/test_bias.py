"""The distance bias: the sentence that defines it, its modules, and what it refuses. (Kernels: the parity matrix.)"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hepattn import Attention, Encoder, Packed, attend, attention_weights, record_attention
from hepattn.attention import DistanceBias, KernelRefusal, attention_top
from hepattn.masks import Window


@given(st.integers(1, 9), st.booleans())
def test_what_is_added(count: int, wrap: bool) -> None:
    slopes = torch.tensor([0.5, -2.0])
    position = torch.arange(count)
    added = DistanceBias(slopes, wrap=wrap).added(position[:, None], position[None, :], count)
    for head in range(2):
        for i in range(count):
            for j in range(count):
                far = min(abs(i - j), count - abs(i - j)) if wrap else abs(i - j)
                assert float(added[head, i, j]) == -float(slopes[head]) * far


def test_events_do_not_feel_each_other() -> None:
    lengths = [7, 1, 12]
    q, k, v = torch.randn(3, 20, 2, 8)
    bias = DistanceBias(torch.tensor([0.3, 0.7]), wrap=True)
    whole = attend(q, k, v, lengths=lengths, bias=bias)
    alone = [attend(*event, bias=bias) for event in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "circular"])
def test_the_slopes_of_a_module_learn_and_every_door_opens(kind) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    attention = Attention(16, 4, distance_bias=kind)
    assert attention.slopes is not None
    assert torch.allclose(attention.slopes.detach(), torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]))
    x = Packed(torch.randn(9, 16), [4, 5])  # type: ignore[arg-type]
    packed = attention(x, mask=Window(4)).values
    padded, valid = x.to_padded()
    assert torch.allclose(attention(padded, valid=valid, mask=Window(4))[valid], packed, atol=1e-6)
    assert torch.allclose(attention(x.to_nested(), mask=Window(4)).values(), packed, atol=1e-6)
    packed.square().sum().backward()
    assert attention.slopes.grad is not None
    assert (attention.slopes.grad != 0).all()


def test_recorded_calls_keep_the_bias() -> None:
    encoder = Encoder(dim=16, num_layers=2, num_heads=2, mask=Window(6, wrap=True), distance_bias="circular").eval()
    with record_attention(encoder) as calls:
        encoder(Packed(torch.randn(20, 16), [20]))  # type: ignore[arg-type]
    first = calls[0]
    assert first.bias is not None
    assert first.bias.wrap
    assert not first.bias.slopes.requires_grad
    plain = attention_weights(first.q, first.k, mask=first.mask, lengths=first.layout)
    weights = attention_weights(first.q, first.k, mask=first.mask, lengths=first.layout, bias=first.bias)
    assert not torch.allclose(weights, plain)
    assert torch.allclose(weights.sum(-1), torch.ones(()))
    top = attention_top(first.q, first.k, 3, mask=first.mask, lengths=first.layout, bias=first.bias)
    assert torch.allclose(top.weights, weights.topk(3).values, atol=1e-6)


def test_what_is_refused() -> None:
    q = torch.randn(6, 2, 8)
    bias = DistanceBias(torch.ones(2))
    with pytest.raises(ValueError, match="for self-attention"):
        attend(q, q[:3], q[:3], bias=bias)
    with pytest.raises(ValueError, match="has 3 slopes on cpu, q has 2 heads"):
        attend(q, q, q, bias=DistanceBias(torch.ones(3)))
    with pytest.raises(ValueError, match=r"one slope a head, a floating tensor \(H,\)"):
        DistanceBias(torch.ones(2, 2))
    with pytest.raises(KernelRefusal, match="needs CUDA"):
        attend(q, q, q, bias=bias, backend="flash")
    with pytest.raises(ValueError, match="expected 'linear', 'circular' or None"):
        Attention(8, 2, distance_bias="alibi")  # type: ignore[arg-type]
