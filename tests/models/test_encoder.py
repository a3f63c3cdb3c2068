"""The encoder against its layers written out in float64, and the promises of its entrance and exit."""

import copy
import pickle
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hepattn.attention.backends import flex
from hepattn.attention.module import record_attention
from hepattn.attention.reference import attend_reference
from hepattn.attention.rotation import Rotation
from hepattn.encodings import Rotary, RotaryFields
from hepattn.layers import Dense, LayerScale
from hepattn.masks import Window
from hepattn.models.encoder import Encoder, EncoderLayer
from hepattn.sequence import Packed

WRAPPED = Window(4, wrap=True)


def pack(x: Tensor, lengths: list[int]) -> Packed:
    return Packed(x, torch.tensor(lengths))


def make(seed: int = 0, **options) -> Encoder:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"dim": 8, "num_layers": 3, "num_heads": 2, "mask": WRAPPED}
    encoder = Encoder(**arguments | options)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.double().T + layer.bias.double()


def norm(weight: Tensor, x: Tensor) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()


def slow_attention(layer: EncoderLayer, x: Tensor, lengths: list[int], first: Tensor | None, encoder: Encoder):
    a = layer.attention
    q, k, v = (part.unflatten(-1, (2, 4)) for part in linear(a.qkv, x).chunk(3, -1))
    weights = {name: p for name, p in a.named_parameters() if name.endswith("_norm.norm.weight")}
    q, k, v = (
        norm(weights[f"{name}_norm.norm.weight"], part) if f"{name}_norm.norm.weight" in weights else part
        for name, part in (("q", q), ("k", k), ("v", v))
    )
    value = v
    if a.mix is not None and first is not None:
        m = torch.sigmoid(linear(a.mix, x))[..., None]
        v = m * v + (1 - m) * first
    out = attend_reference(q, k, v, mask=encoder.mask, lengths=lengths)[0].flatten(1)
    if a.gate is not None:
        out = torch.sigmoid(linear(a.gate, x)) * out
    return linear(a.output, out), value


def slow_dense(dense: Dense, x: Tensor) -> Tensor:
    gate, up = linear(dense.input, x).chunk(2, -1)
    return linear(dense.output, gate * torch.sigmoid(gate) * up)


def slow_encoder(encoder: Encoder, x: Tensor, lengths: list[int], *, hybrid: bool, residual: bool) -> Tensor:
    weights = dict(encoder.named_parameters())
    first: Tensor | None = None
    for index in range(len(encoder.layers)):
        layer = encoder.layers[index]
        assert isinstance(layer, EncoderLayer)
        scales = [
            step.scale.scale.double() if isinstance(step.scale, LayerScale) else 1.0
            for step in (layer.attention_residual, layer.dense_residual)
        ]
        w_a, w_d = (weights.get(f"layers.{index}.{half}_residual.norm.weight") for half in ("attention", "dense"))
        assert w_d is not None
        if hybrid and index > 0:
            assert w_a is None
            update, value = slow_attention(layer, x, lengths, first, encoder)
            normed = norm(w_d, x + update * scales[0])
            x = normed + slow_dense(cast(Dense, layer.dense), normed) * scales[1]
        else:
            assert w_a is not None
            update, value = slow_attention(layer, norm(w_a, x), lengths, first, encoder)
            x = x + update * scales[0]
            x = x + slow_dense(cast(Dense, layer.dense), norm(w_d, x)) * scales[1]
        if index == 0 and residual:
            first = value
    return norm(weights["norm.weight"], x)


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("mask", [WRAPPED, Window(3), None], ids=str)
def test_layers_written_out(hybrid, residual, layer_scale, mask):
    encoder = make(hybrid_norm=hybrid, value_residual=residual, layer_scale=layer_scale, gate=True, mask=mask)
    lengths = [6, 1, 9]
    x = torch.randn(16, 8)
    single, double = x.clone().requires_grad_(), x.double().requires_grad_()
    out = encoder(pack(single, lengths)).values
    expected = slow_encoder(encoder, double, lengths, hybrid=hybrid, residual=residual)
    assert torch.allclose(out.double(), expected, atol=1e-4)
    weight = torch.randn(16, 8)
    (out * weight).sum().backward()
    fast = {name: p.grad for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    (expected * weight).sum().backward()
    assert single.grad is not None
    assert double.grad is not None
    assert torch.allclose(single.grad.double(), double.grad, atol=1e-3, rtol=1e-3)
    for name, parameter in encoder.named_parameters():
        found = fast[name]
        assert found is not None, f"{name} has no use"
        assert parameter.grad is not None
        assert torch.allclose(found, parameter.grad, atol=2e-3, rtol=1e-3), name


# -- what goes in comes out --------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), st.integers(0, 3), st.booleans())
def test_three_doors_give_the_same_numbers(lengths, extra, hybrid):
    encoder = make(hybrid_norm=hybrid, value_residual=True).eval()
    packed = pack(torch.randn(sum(lengths), 8), lengths)
    out = encoder(packed)
    assert isinstance(out, Packed)
    assert torch.equal(out.lengths, packed.lengths)
    padded, valid = packed.to_padded(max(lengths) + extra)
    assert torch.equal(encoder(padded, valid=valid), out.to_padded(max(lengths) + extra)[0])
    nested = encoder(packed.to_nested())
    assert nested.is_nested
    assert torch.equal(nested.values(), out.values)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.booleans())
def test_neither_padding_nor_neighbours_change_an_event(lengths, laser):
    encoder = make(hybrid_norm=True, value_residual=True, laser=laser).eval()
    packed = pack(torch.randn(sum(lengths), 8), lengths)
    padded, valid = packed.to_padded()
    filled = encoder(torch.where(valid[..., None], padded, torch.nan), valid=valid)
    assert (filled[~valid] == 0).all()
    for event, alone in zip(filled, packed.split(), strict=True):
        assert torch.allclose(event[: len(alone)], encoder(alone[None])[0], atol=2e-5)


def test_the_order_of_a_sorted_input_survives():
    encoder = make().eval()
    x = pack(torch.randn(9, 8), [4, 5])
    phi = torch.randn(9)
    by_phi = x.sort(phi)
    out = encoder(by_phi)
    assert out.order is not None
    assert torch.equal(out.unsort().values[out.order], out.values)


# -- kernels -----------------------------------------------------------------------------------------------------------
def test_set_backend_keeps_mask_weights_and_numbers():
    encoder = make(hybrid_norm=True, value_residual=True, gate=True).eval()
    x = pack(torch.randn(24, 8), [10, 14])
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    expected = encoder(x).values
    encoder.set_backend("sdpa")
    assert [m.backend for m in encoder.modules() if hasattr(m, "backend")] == ["sdpa"] * 3
    assert encoder.mask == WRAPPED
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(encoder(x).values, expected)
    with pytest.raises(ValueError, match="backend must be"):
        encoder.set_backend("magic")


def test_another_mask_is_that_of_an_encoder_made_with_it():
    x = pack(torch.randn(20, 8), [12, 8])
    encoder, made = make(registers=4), make(registers=4, mask=Window(7, wrap=True))
    encoder.set_mask(Window(7, wrap=True))
    assert torch.equal(encoder(x).values, made(x).values)
    assert not torch.equal(encoder(x).values, make(registers=4)(x).values)
    kept = encoder.mask, encoder.inner_mask
    with pytest.raises(TypeError, match="expected a Mask"):
        encoder.set_mask(torch.ones(3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="some hit sees no register"):
        encoder.set_mask(Window(1, wrap=True))
    with pytest.raises(AttributeError, match="mask"):
        encoder.mask = None  # type: ignore[misc]  # it would change nothing
    assert (encoder.mask, encoder.inner_mask) == kept


def test_record_attention_names_the_layers_and_keeps_the_mask():
    encoder = make()
    with record_attention(encoder) as calls:
        encoder(pack(torch.randn(6, 8), [2, 4]))
    assert [call.name for call in calls] == [f"layers.{i}.attention" for i in range(3)]
    assert all(call.mask is WRAPPED for call in calls)
    assert len({id(call.layout) for call in calls}) == 1  # the entrance makes the layout once


# -- rotation ----------------------------------------------------------------------------------------------------------
def test_a_rotation_turns_queries_and_keys_of_every_layer_and_nothing_else():
    encoder = make(value_residual=True, gate=True, hybrid_norm=True).eval()
    x, angles = pack(torch.randn(16, 8), [6, 1, 9]), torch.randn(16, 2)
    with record_attention(encoder) as calls:
        out = encoder(x, rotation=angles).values
    values, first = x.values, None
    for call, layer in zip(calls, encoder.layers, strict=True):
        assert isinstance(layer, EncoderLayer)
        given = layer.attention_residual.split(values)[1]
        q, k, _ = (part.unflatten(-1, (2, 4)) for part in layer.attention.qkv(given).chunk(3, -1))
        for found, wanted in ((call.q, layer.attention.q_norm(q)), (call.k, layer.attention.k_norm(k))):
            turned = torch.complex(*wanted.chunk(2, -1)) * torch.exp(1j * angles[:, None])
            assert torch.allclose(found, torch.cat([turned.real, turned.imag], -1), atol=1e-5)
        values, value, _ = layer(values, call.layout, call.mask, first, Rotation.of(angles))
        first = value if first is None else first
    assert torch.allclose(encoder.norm(values), out, atol=1e-5)
    itself = make(mask=Window(1), value_residual=True).eval()  # every token sees itself alone: no angle can matter
    assert torch.allclose(itself(x, rotation=angles).values, itself(x).values, atol=1e-6)
    assert torch.allclose(encoder(x, rotation=torch.zeros(16, 2)).values, encoder(x).values, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), st.integers(0, 3))
def test_a_rotation_comes_through_all_doors(lengths, extra):
    encoder = make().eval()
    x, phi = pack(torch.randn(sum(lengths), 8), lengths), pack(torch.randn(sum(lengths)), lengths)
    rotary = Rotary(4, periodic=True)
    out = encoder(x, rotation=phi.with_values(rotary(phi.values)))
    assert torch.equal(encoder(x, rotation=rotary(phi.values)).values, out.values)
    size = max(lengths) + extra
    padded, valid = x.to_padded(size)
    angles = rotary(phi.to_padded(size)[0])
    assert torch.equal(encoder(padded, valid=valid, rotation=angles), out.to_padded(size)[0])
    noise = torch.where(valid[..., None], angles, torch.nan)
    assert torch.equal(encoder(padded, valid=valid, rotation=noise), out.to_padded(size)[0])
    nested = encoder(x.to_nested(), rotation=rotary(phi.to_nested()))
    assert torch.equal(nested.values(), out.values)


def test_with_rotary_phi_an_event_may_be_turned_around_the_beam():
    """Without a window: hits of an event turned by any angle, in any order, encode to the same."""
    encoder = make(mask=None).eval()
    rotary = RotaryFields({"phi": lambda d: Rotary(d, periodic=True, alpha=4.0), "eta": Rotary}, 4)
    x, eta = pack(torch.randn(9, 8), [9]), torch.randn(9)
    phi = 2 * torch.pi * torch.rand(9) - torch.pi
    turned = torch.remainder(phi + 2.5 + torch.pi, 2 * torch.pi) - torch.pi
    assert (turned < phi).any()  # some crossed the seam
    out = [encoder(x, rotation=rotary({"phi": one, "eta": eta})).values for one in (phi, turned, phi * 0.5)]
    assert torch.allclose(out[0], out[1], atol=1e-4)
    assert not torch.allclose(out[0], out[2], atol=1e-2)


def test_gradients_through_a_rotation_in_every_layer():
    encoder = make(num_layers=2).double()

    def run(values: Tensor, angles: Tensor) -> Tensor:
        return encoder(pack(values, [2, 3]), rotation=angles).values

    leaves = [torch.randn(5, n, dtype=torch.float64, requires_grad=True) for n in (8, 2)]
    assert torch.autograd.gradcheck(run, leaves)


def test_a_rotation_under_autocast_keeps_float32_angles():
    encoder = make(num_layers=1, qk_norm="rms").eval()
    x, angles = pack(torch.randn(12, 8), [12]), 500 * torch.randn(12, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(x, rotation=angles).values
    assert torch.allclose(out, encoder(x, rotation=angles).values, atol=0.15)


@pytest.mark.slow
def test_a_rotation_compiles_as_one_graph_for_any_lengths():
    """One graph for all batches of two events and more (a single event, a size of 1, is a graph of its own).

    Sizes that are equal at first (two angles, two events) would be taken for one and make a second graph.
    """
    encoder = make(num_layers=2, num_heads=1, qk_norm="rms")
    before = counters["stats"]["unique_graphs"]
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([7, 5], [20, 3, 9], [11, 11, 2, 6]):
        x, angles, weight = torch.randn(sum(lengths), 8), torch.randn(sum(lengths), 4), torch.randn(sum(lengths), 8)
        results = []
        for model in (encoder, compiled):
            leaves = x.clone().requires_grad_(), angles.clone().requires_grad_()
            out = model(pack(leaves[0], lengths), rotation=pack(leaves[1], lengths))
            results.append((out.values, *torch.autograd.grad(out.values, leaves, weight)))
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert counters["stats"]["unique_graphs"] - before == 1


# -- training ----------------------------------------------------------------------------------------------------------
def test_drop_path_rises_with_depth_and_is_off_in_evaluation():
    encoder = make(drop_path=0.4)
    rates = [m.rate for m in encoder.modules() if hasattr(m, "rate")]
    assert rates == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])
    x = pack(torch.randn(20, 8), [5] * 4)
    torch.manual_seed(1)
    one, other = encoder(x).values, encoder(x).values
    assert not torch.equal(one, other)
    encoder.eval()
    assert torch.equal(encoder(x).values, encoder(x).values)


def test_autocast_keeps_the_residual_stream_in_float32():
    encoder = make(hybrid_norm=True, value_residual=True, gate=True).eval()
    x = pack(torch.randn(12, 8), [12])
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(x).values
    assert out.dtype == torch.float32
    assert torch.allclose(out, encoder(x).values, atol=0.15)


@pytest.mark.slow
def test_a_model_compiled_in_place_serves_all_doors_and_is_copied_uncompiled():
    encoder = make(num_layers=1).eval()
    x = pack(torch.randn(9, 8), [4, 5])
    expected = encoder(x).values
    encoder.compile(backend="eager", fullgraph=True, dynamic=True)
    padded, valid = x.to_padded()
    assert torch.allclose(encoder(x).values, expected, atol=1e-6)
    assert torch.allclose(encoder(padded, valid=valid)[valid], expected, atol=1e-6)
    assert torch.allclose(encoder(x.to_nested()).values(), expected, atol=1e-6)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert copied._compiled is None
        assert torch.allclose(copied(x).values, expected, atol=1e-6)


def test_flex_on_a_cpu_gives_the_same_numbers():
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    encoder = Encoder(dim=32, num_layers=2, num_heads=2, mask=Window(16, wrap=True), qk_norm="rms").eval()
    x = pack(torch.randn(90, 32), [30, 60])
    expected = encoder(x).values
    encoder.set_backend("flex")
    with torch.no_grad():
        assert torch.allclose(encoder(x).values, expected, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("backend", ["sdpa", "flex", "flash"])
def test_on_a_gpu_every_kernel_gives_the_numbers_of_the_cpu_eager_and_compiled(backend):
    torch.manual_seed(0)
    encoder = Encoder(
        dim=64, num_layers=2, num_heads=2, mask=Window(64, wrap=True), hybrid_norm=True, value_residual=True, gate=True
    ).eval()
    half = backend == "flash"  # flash has no float32, and compiled it closes the windows of one event only
    lengths = [1030] if half else [700, 30, 300]
    x = torch.randn(1030, 64)
    expected = encoder(pack(x, lengths)).values
    encoder.to("cuda").set_backend(backend)
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True)
    for model in (encoder, compiled):
        values = x.cuda().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            out = model(pack(values, lengths)).values
        out.square().sum().backward()
        assert values.grad is not None
        assert values.grad.isfinite().all()
        assert torch.allclose(out.float().cpu(), expected, atol=0.1 if half else 2e-2)  # matrix products in TF32
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=half):
            out = model(pack(x.cuda(), lengths)).values
        assert torch.allclose(out.float().cpu(), expected, atol=0.1 if half else 2e-2)


# -- refusals ----------------------------------------------------------------------------------------------------------
def test_wrong_input_gets_one_sentence():
    with pytest.raises(ValueError, match="give at least one"):
        Encoder(dim=8, num_layers=0, num_heads=2)
    with pytest.raises(TypeError, match="expected a Mask such as"):
        Encoder(dim=8, num_layers=1, num_heads=2, mask=torch.ones(3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected one of 'rms', 'layer'"):
        Encoder(dim=8, num_layers=1, num_heads=2, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Encoder got values of shape \(4, 9\), expected \(T, 8\)"):
        make()(pack(torch.randn(4, 9), [4]))
    with pytest.raises(ValueError, match=r"Encoder's rotation got values of shape \(4, 4\), expected \(T, 2\)"):
        make()(pack(torch.randn(4, 8), [4]), rotation=torch.zeros(4, 4))
