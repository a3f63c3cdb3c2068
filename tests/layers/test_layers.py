"""Layers against the formula written out in float64, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hepattn.layers import Dense, DropPath, LayerNorm, LayerScale, Residual, RMSNorm, make_norm
from hepattn.sequence import Layout


def slow_norm(norm: RMSNorm | LayerNorm, x: Tensor) -> Tensor:
    if isinstance(norm, RMSNorm):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * norm.weight.double() + norm.bias.double()


def perturb(module: nn.Module) -> None:
    """Weights that are not their trivial first values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def values_and_gradients(fast, slow, x: Tensor, tolerance: float = 1e-5) -> None:
    single, double = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = fast(single), slow(double)
    assert torch.allclose(out.double(), expected, atol=tolerance)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert single.grad is not None
    assert double.grad is not None
    assert torch.allclose(single.grad.double(), double.grad, atol=tolerance)


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_norm(name):
    norm = make_norm(name, 6)
    perturb(norm)
    values_and_gradients(norm, lambda x: slow_norm(norm, x), torch.randn(5, 6))


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_norm_computes_in_the_precision_of_its_weight_and_keeps_the_dtype(name):
    norm = make_norm(name, 6)
    x = torch.randn(4, 6).to(torch.bfloat16)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, norm(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "swiglu", "geglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_dense(activation, bias):
    dense = Dense(6, ratio=1.5, activation=activation, out_dim=3, bias=bias)
    act = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}
    act |= {"swiglu": act["silu"], "geglu": act["gelu"]}

    def slow(x: Tensor) -> Tensor:
        hidden = x @ dense.input.weight.double().T + (dense.input.bias.double() if bias else 0)
        if activation in {"swiglu", "geglu"}:
            hidden = act[activation](hidden[:, :9]) * hidden[:, 9:]
        else:
            hidden = act[activation](hidden)
        return hidden @ dense.output.weight.double().T + (dense.output.bias.double() if bias else 0)

    assert dense(torch.randn(2, 5, 6)).shape == (2, 5, 3)
    values_and_gradients(dense, slow, torch.randn(5, 6))


def test_layer_scale():
    scale = LayerScale(4, 1e-5)
    x = torch.randn(3, 4)
    assert torch.equal(scale(x), x * 1e-5)
    scale(x).sum().backward()
    assert scale.scale.grad is not None
    assert torch.allclose(scale.scale.grad, x.sum(0))


# -- DropPath ----------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.sampled_from([0.25, 0.5, 0.75]))
def test_drop_path_drops_whole_events(lengths, rate):
    layout = Layout.of(lengths, "cpu")
    out = DropPath(rate)(torch.ones(sum(lengths), 3), layout)
    for event in out.split(lengths):
        assert (event == 0).all() or torch.allclose(event, torch.full_like(event, 1 / (1 - rate)))


def test_drop_path_keeps_the_expectation_and_is_off_in_evaluation():
    torch.manual_seed(0)
    drop = DropPath(0.3)
    layout = Layout.of([1] * 20_000, "cpu")
    x = torch.ones(20_000, 1)
    out = drop(x, layout)
    assert abs(float(out.mean()) - 1) < 0.02
    assert abs(float((out == 0).float().mean()) - 0.3) < 0.02
    assert torch.equal(drop.eval()(x, layout), x)
    assert torch.equal(DropPath(0.0)(x, layout), x)


# -- the residual stream -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("placement", ["pre", "post", "none"])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_residual_formulas(placement, layer_scale):
    residual = Residual(6, placement=placement, layer_scale=layer_scale)
    perturb(residual)
    branch = nn.Linear(6, 6)
    layout = Layout.of([2, 3], "cpu")

    def slow(x: Tensor) -> Tensor:
        def f(given: Tensor) -> Tensor:
            out = given @ branch.weight.double().T + branch.bias.double()
            return out * residual.scale.scale.double() if isinstance(residual.scale, LayerScale) else out

        if placement == "none":
            return x + f(x)
        assert isinstance(residual.norm, RMSNorm)
        normed = slow_norm(residual.norm, x)
        return (x if placement == "pre" else normed) + f(normed)

    values_and_gradients(lambda x: residual(x, branch, layout), slow, torch.randn(5, 6))


def test_residual_drops_the_branch_and_never_the_stream():
    residual = Residual(4, drop_path=0.5, placement="pre")
    layout = Layout.of([2, 2, 2, 2], "cpu")
    x = torch.randn(8, 4)
    torch.manual_seed(0)
    change = residual(x, torch.ones_like, layout) - x
    assert all(torch.allclose(e, torch.zeros(1)) or torch.allclose(e, torch.tensor(2.0)) for e in change.split(2))
    assert len(change.abs().sum((1,)).round().unique()) == 2


def test_wrong_input_gets_one_sentence():
    with pytest.raises(ValueError, match="expected one of 'rms', 'layer'"):
        make_norm("batch", 4)
    with pytest.raises(ValueError, match="expected one of relu"):
        Dense(4, activation="tanh")
    with pytest.raises(ValueError, match="hidden width of 0"):
        Dense(4, ratio=0.01)
    with pytest.raises(ValueError, match=r"expected a probability in \[0, 1\)"):
        DropPath(1.0)
    with pytest.raises(ValueError, match="expected 'pre', 'post' or 'none'"):
        Residual(4, placement="sandwich")  # type: ignore[arg-type]
