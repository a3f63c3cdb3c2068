"""The attention module against its formulas, written out in float64 with one loop over events and one over heads."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hepattn.attention.module import Attention, HeadNorm, record_attention
from hepattn.attention.weights import attention_weights
from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window
from hepattn.sequence import Layout, Packed

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "rms": {"qk_norm": "rms"},
    "layer, v too": {"qk_norm": "layer", "v_norm": True},
    "v only": {"v_norm": True},
    "gate": {"gate": True},
    "residual": {"value_residual": True},
    "laser": {"laser": True},
    "all": {"qk_norm": "rms", "v_norm": True, "gate": True, "value_residual": True, "laser": True},
}


def pack(x: Tensor, lengths: list[int]) -> Packed:
    return Packed(x, torch.tensor(lengths))


def make(dim: int, heads: int, seed: int = 0, **options) -> Attention:
    torch.manual_seed(seed)
    attention = Attention(dim, heads, **options)
    with torch.no_grad():
        for parameter in attention.parameters():  # no gate and no norm at its trivial first value
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def slow_linear(layer: nn.Linear, x: Tensor, rows: slice = slice(None)) -> Tensor:
    out = x @ layer.weight[rows].double().T
    return out if layer.bias is None else out + layer.bias[rows].double()


def slow_norm(norm: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(norm, HeadNorm):
        return x
    inner = norm.norm
    assert isinstance(inner, nn.RMSNorm | nn.LayerNorm)
    assert inner.weight is not None
    if isinstance(inner, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
        return x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt() * inner.weight.double() + inner.bias.double()
    return x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt() * inner.weight.double()


def slow_event(a: Attention, x: Tensor, c: Tensor, allowed: Tensor, first: Tensor | None) -> Tensor:
    """One event, x (n, dim), c (m, dim), allowed (n, m), first (m, H, D), float64."""
    channels = a.dim // a.num_heads
    heads = []
    for h in range(a.num_heads):
        q, k, v = (
            slow_norm(norm, slow_linear(a.qkv, source, slice(start, start + channels)))
            for norm, source, start in (
                (a.q_norm, x, h * channels),
                (a.k_norm, c, a.dim + h * channels),
                (a.v_norm, c, 2 * a.dim + h * channels),
            )
        )
        if first is not None:
            assert a.mix is not None
            m = torch.sigmoid(slow_linear(a.mix, c, slice(h, h + 1)))
            v = m * v + (1 - m) * first[:, h]
        scores = (q @ k.T / math.sqrt(channels)).masked_fill(~allowed, -1e300)
        weights = scores.softmax(-1) * allowed
        if a.laser:
            out = (weights @ v.exp()).log().nan_to_num(neginf=0.0)
            heads.append(torch.where(allowed.any(1, keepdim=True), out, 0.0))
        else:
            heads.append(weights @ v)
    out = torch.cat(heads, -1)
    if a.gate is not None:
        out = torch.sigmoid(slow_linear(a.gate, x)) * out
    return slow_linear(a.output, out)


def slow(a: Attention, x: Tensor, lengths: list[int], mask: Mask | None, first: Tensor | None = None) -> Tensor:
    outs = []
    start = 0
    for event, n in enumerate(lengths):
        part = x[start : start + n]
        allowed = torch.ones(n, n, dtype=torch.bool) if mask is None else mask.dense(n, event=event)
        outs.append(slow_event(a, part, part, allowed, None if first is None else first[start : start + n]))
        start += n
    return torch.cat(outs)


def compare(a: Attention, x: Tensor, lengths: list[int], mask: Mask | None, first: Tensor | None) -> None:
    single, double = x.clone().requires_grad_(), x.double().requires_grad_()
    out = a.attend_values(single, Layout.of(lengths, "cpu"), mask, first)[0]
    expected = slow(a, double, lengths, mask, None if first is None else first.double())
    assert torch.allclose(out.double(), expected, atol=2e-4)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (out * weight).sum().backward()
    fast = {name: p.grad for name, p in a.named_parameters()}
    a.zero_grad()
    (expected * weight).sum().backward()
    assert single.grad is not None
    assert double.grad is not None
    assert torch.allclose(single.grad.double(), double.grad, rtol=1e-3, atol=1e-3)
    for name, parameter in a.named_parameters():
        found, wanted = fast[name], parameter.grad
        if wanted is None:
            assert found is None, name
        else:
            assert found is not None, name
            assert torch.allclose(found, wanted, rtol=1e-3, atol=2e-3), name


@pytest.mark.parametrize("mask", [None, Window(4), Window(3, wrap=True), Window(2) | GlobalTokens([0])], ids=str)
@pytest.mark.parametrize("options", list(OPTIONS))
def test_formula_and_gradients(options, mask):
    lengths = [5, 1, 9]
    a = make(8, 2, **OPTIONS[options])
    first = torch.randn(15, 2, 4) if a.mix is not None else None
    compare(a, torch.randn(15, 8), lengths, mask, first)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 9), st.booleans())
def test_formula_for_any_lengths(lengths, size, wrap):
    a = make(8, 2, seed=size, **OPTIONS["all"])
    first = torch.randn(sum(lengths), 2, 4)
    compare(a, torch.randn(sum(lengths), 8), lengths, Window(size, wrap=wrap), first)


@pytest.mark.parametrize("options", ["plain", "all", "no bias"])
def test_cross_attention(options):
    a = make(8, 2, **OPTIONS[options])
    x, context = torch.randn(7, 8), torch.randn(15, 8)
    lengths, kv_lengths = [4, 3], [9, 6]
    mask = Strided(4, wrap=True)
    first = torch.randn(15, 2, 4) if a.mix is not None else None
    out = a(pack(x, lengths), pack(context, kv_lengths), mask=mask, first_value=first).values
    double_first = [None, None] if first is None else list(first.double().split(kv_lengths))
    parts = zip(x.double().split(lengths), context.double().split(kv_lengths), double_first, strict=True)
    expected = [slow_event(a, q, c, mask.dense(len(q), len(c)), f) for q, c, f in parts]
    assert torch.allclose(out.double(), torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("laser", [False, True])
def test_a_row_that_may_look_at_nothing_gives_zero_and_no_nan(laser):
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[1] = False
    a = make(8, 2, laser=laser, bias=False)
    x = torch.randn(4, 8, requires_grad=True)
    out = a(pack(x, [4]), mask=Dense(allowed)).values
    assert torch.equal(out[1], torch.zeros(8))
    out[1].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(4, 8))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 2e-3)])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("mask", [Window(4), None], ids=["window", "all"])
def test_laser_of_large_values_is_its_definition(dtype, error, scale, mask):
    """Values and gradients against the formula in float64: log softmax exp, values floored 60 below the maximum."""
    lengths, layout = [40, 20], Layout.of([40, 20], "cpu")
    a = make(32, 2, laser=True).to(dtype)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(60, 2, 16, generator=generator).to(dtype) for _ in range(3))
    v = (scale * v).requires_grad_()
    out = a._attend(q, k, v, mask, layout, layout, None)
    assert out.dtype == dtype
    exact = v.detach().double().requires_grad_()
    events = zip(q.double().split(lengths), k.double().split(lengths), exact.split(lengths), strict=True)
    expected = torch.cat([slow_laser(*event, mask) for event in events])
    assert torch.allclose(out.double(), expected, rtol=error, atol=10 * error)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out.double() * weights).sum(), v)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), exact)
    assert gradient.isfinite().all()
    assert (gradient.double() - wanted).norm() < 10 * error * wanted.norm()


def slow_laser(q, k, v, mask):
    """One event in float64."""
    score = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        score = score.masked_fill(~mask.dense(len(q)), -torch.inf)
    peak = v.detach().amax(0)
    return torch.einsum("hij,jhd->ihd", score.softmax(-1), (v - peak).clamp(min=-60.0).exp()).log() + peak


def test_laser_under_autocast_to_float16_stays_finite():
    a, x = make(8, 2, laser=True), (300 * torch.randn(30, 8)).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        out = a(pack(x, [30]), mask=Window(4)).values
    (gradient,) = torch.autograd.grad(out.float().sum(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


# -- the parts that papers define ----------------------------------------------------------------------------------
def test_value_residual_is_sigmoid_of_a_linear_map_for_each_token_and_head():
    a = make(8, 2, value_residual=True)
    assert a.mix is not None
    x, first = torch.randn(5, 8), torch.randn(5, 2, 4)
    layout = Layout.of([5], "cpu")
    itself = Window(1)  # every token sees itself alone, so the output is its value
    m = torch.sigmoid(a.mix(x))
    assert m.shape == (5, 2)
    out, value = a.attend_values(x, layout, itself, first)
    mixed = m[..., None] * value + (1 - m[..., None]) * first
    assert torch.allclose(out, a.output(mixed.flatten(1)), atol=1e-6)
    alone, _ = a.attend_values(x, layout, itself)
    assert torch.allclose(alone, a.output(value.flatten(1)), atol=1e-6)


def test_a_new_gate_is_a_constant():
    a = Attention(8, 2, gate=True)
    assert a.gate is not None
    assert torch.equal(a.gate.weight, torch.zeros(8, 8))
    assert torch.equal(a.gate.bias, torch.ones(8))


# -- doors ---------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any), st.integers(0, 3))
def test_what_goes_in_comes_out(lengths, extra):
    a = make(8, 2)
    packed = pack(torch.randn(sum(lengths), 8), lengths)
    mask = Window(3, wrap=True)
    expected = a(packed, mask=mask)
    assert isinstance(expected, Packed)
    assert torch.equal(expected.lengths, packed.lengths)
    padded, valid = packed.to_padded(max(lengths) + extra)
    out = a(padded + torch.where(valid[..., None], 0.0, 99.0), valid=valid, mask=mask)
    assert torch.equal(out, expected.to_padded(max(lengths) + extra)[0])
    nested = a(packed.to_nested(), mask=mask)
    assert nested.is_nested
    assert torch.equal(nested.values(), expected.values)


def test_padded_context_of_another_length():
    a = make(8, 2)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    valid = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    out = a(x, context, context_valid=valid)
    assert torch.allclose(out[:1], a(x[:1], context[:1, [0, 1, 4]]), atol=1e-6)
    assert torch.allclose(out[1:], a(x[1:], context[1:]), atol=1e-6)


# -- kernels -------------------------------------------------------------------------------------------------------
def test_autocast_keeps_one_dtype_for_the_kernel():
    a = make(8, 2, **OPTIONS["all"])
    x, first = torch.randn(6, 8), torch.randn(6, 2, 4)
    layout = Layout.of([6], "cpu")
    expected, _ = a.attend_values(x, layout, Window(3), first)
    with torch.autocast("cpu", torch.bfloat16):
        out, value = a.attend_values(x, layout, Window(3), first.bfloat16())
    assert value.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=0.1)


def test_record_attention_sees_every_call():
    model = nn.ModuleDict({"one": make(8, 2), "two": make(8, 2, qk_norm="rms")})
    x = pack(torch.randn(9, 8), [4, 5])
    with record_attention(model) as calls:
        model["one"](x, mask=Window(3))
        model["two"](x)
    model["one"](x)
    assert [(call.name, call.mask) for call in calls] == [("one", Window(3)), ("two", None)]
    for call in calls:
        assert call.q.shape == call.k.shape == (9, 2, 4)
        assert not call.q.requires_grad
        weights = attention_weights(call.q, call.k, mask=call.mask, lengths=call.layout, kv_lengths=call.kv_layout)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 9))
    with pytest.raises(ValueError, match="nothing to record"), record_attention(nn.Linear(2, 2)):
        pass


def test_wrong_input_gets_one_sentence():
    a = Attention(8, 2)
    x = pack(torch.randn(4, 8), [4])
    with pytest.raises(ValueError, match="make dim a multiple"):
        Attention(8, 3)
    with pytest.raises(ValueError, match="expected 'rms', 'layer' or None"):
        Attention(8, 2, qk_norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend must be"):
        Attention(8, 2, backend="magic")
    with pytest.raises(ValueError, match="backend must be"):
        a.set_backend("magic")
    with pytest.raises(ValueError, match=r"expected \(T, 8\)"):
        a(pack(torch.randn(4, 9), [4]))
    with pytest.raises(ValueError, match=r"expected padded \(B, N, 8\)"):
        a(torch.randn(4, 8))
    with pytest.raises(TypeError, match="expected Packed"):
        a([1, 2])
    with pytest.raises(TypeError, match="leave valid= out"):
        a(x, valid=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="as many in both"):
        a(x, pack(torch.randn(4, 8), [2, 2]))
    with pytest.raises(ValueError, match="without value_residual"):
        a(x, first_value=torch.randn(4, 2, 4))
    with pytest.raises(ValueError, match=r"expected \(4, 2, 4\)"):
        Attention(8, 2, value_residual=True)(x, first_value=torch.randn(4, 4, 2))
