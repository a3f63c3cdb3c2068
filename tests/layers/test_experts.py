"""Experts against each token's networks written out in float64, values and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hepattn.layers import Dense, Experts, RouterLosses, mean_losses

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "swiglu": nn.functional.silu,
    "geglu": nn.functional.gelu,
}


# -- the reference -----------------------------------------------------------------------------------------------------
def network(layer: Experts, x: Tensor, e: int) -> Tensor:
    """One token (dim,) through expert e."""
    hidden = x @ layer.input[e]
    if layer.input_bias is not None:
        hidden = hidden + layer.input_bias.view(layer.experts, -1)[e]
    act = ACTS[layer.activation]
    if layer.activation in {"swiglu", "geglu"}:
        half = len(hidden) // 2
        hidden = act(hidden[:half]) * hidden[half:]
    else:
        hidden = act(hidden)
    out = hidden @ layer.output[e]
    return out if layer.output_bias is None else out + layer.output_bias.view(layer.experts, -1)[e]


def slow(layer: Experts, x: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, RouterLosses]:
    """Token by token; `chosen` (T, k) replaces the router's choice, where precisions may choose differently."""
    rows: list[Tensor] = []
    choices: list[int] = []
    logits = x @ layer.router.weight.T
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    for t in range(len(x)):
        top = p[t].argsort(descending=True)[: layer.top_k] if chosen is None else chosen[t]
        g = p[t, top] / p[t, top].sum() if layer.top_k > 1 else p[t, top]
        rows.append(
            torch.stack([weight * network(layer, x[t], int(e)) for weight, e in zip(g, top, strict=True)]).sum(0)
        )
        choices += top.tolist()
    if not rows:
        return x.new_zeros(0, layer.dim), RouterLosses(x.new_zeros(()), x.new_zeros(()))
    f = torch.tensor([choices.count(e) / len(choices) for e in range(layer.experts)], dtype=x.dtype, device=x.device)
    z = torch.stack([row.exp().sum().log() ** 2 for row in logits]).mean()
    return torch.stack(rows), RouterLosses(layer.experts * (f * p.mean(0)).sum(), z)


def leaves(layer: Experts, x: Tensor) -> list[Tensor]:
    return [x, *layer.parameters()]


def total(out: Tensor, losses: RouterLosses) -> Tensor:
    """A scalar in which every output and both losses count differently."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.device)
    return (out.double() * weight).sum() + 0.7 * losses.balance.double() + 0.3 * losses.z.double()


def agree(layer: Experts, tokens: int, tolerance: float = 1e-9) -> None:
    x = torch.randn(tokens, layer.dim, dtype=layer.input.dtype, requires_grad=True)
    (out, losses), (right, right_losses) = layer(x), slow(layer, x)
    assert out.shape == x.shape
    assert torch.allclose(out, right, atol=tolerance, rtol=tolerance)
    assert torch.allclose(torch.stack(losses), torch.stack(right_losses), atol=tolerance, rtol=tolerance)
    if tokens:
        mine = torch.autograd.grad(total(out, losses), leaves(layer, x))
        for got, expected in zip(
            mine, torch.autograd.grad(total(right, right_losses), leaves(layer, x), allow_unused=True), strict=True
        ):
            assert torch.allclose(got, torch.zeros_like(got) if expected is None else expected, atol=tolerance)


# -- the layer ---------------------------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(
    tokens=st.sampled_from([0, 1, 2, 7, 30]),
    experts=st.integers(1, 6),
    data=st.data(),
    dim=st.sampled_from([1, 3, 8]),
    ratio=st.sampled_from([1.0, 1.5, 2.0]),
    activation=st.sampled_from(sorted(ACTS)),
    bias=st.booleans(),
    seed=st.integers(0, 5),
)
def test_values_and_gradients(tokens, experts, data, dim, ratio, activation, bias, seed):
    torch.manual_seed(seed)
    top_k = data.draw(st.integers(1, experts), label="top_k")
    layer = Experts(dim, experts=experts, top_k=top_k, ratio=ratio, activation=activation, bias=bias).double()
    agree(layer, tokens)


def test_in_float32():
    torch.manual_seed(0)
    layer = Experts(16, experts=4)
    x = torch.randn(50, 16)
    out, losses = layer(x)
    right, right_losses = slow(double(layer), x.double(), layer.route(x).chosen)
    assert out.dtype == losses.balance.dtype == losses.z.dtype == torch.float32
    assert losses.balance.shape == losses.z.shape == ()
    assert torch.allclose(out.double(), right, atol=1e-5)
    assert torch.allclose(torch.stack(losses).double(), torch.stack(right_losses), atol=1e-5)


def double(layer: Experts) -> Experts:
    """The same weights in float64."""
    first = next(layer.parameters())
    ratio = layer.output.shape[1] / layer.dim
    other = Experts(
        layer.dim,
        experts=layer.experts,
        top_k=layer.top_k,
        ratio=ratio,
        activation=layer.activation,
        bias=layer.input_bias is not None,
    )
    other.load_state_dict(layer.state_dict())
    return other.to(first.device).double()


def test_one_expert_is_a_dense_network():
    layer, dense = Experts(6, experts=1, top_k=1, ratio=1.5), Dense(6, ratio=1.5)
    assert layer.input_bias is not None
    assert layer.output_bias is not None
    with torch.no_grad():
        dense.input.weight.copy_(layer.input[0].T)
        dense.output.weight.copy_(layer.output[0].T)
        dense.input.bias.copy_(layer.input_bias)
        dense.output.bias.copy_(layer.output_bias)
    x = torch.randn(9, 6)
    assert torch.allclose(layer(x)[0], dense(x), atol=1e-6)


def test_all_tokens_on_one_expert():
    torch.manual_seed(0)
    layer = Experts(5, experts=4, top_k=1).double()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2, 0] = 40.0
    x = torch.rand(30, 5, dtype=torch.float64) + 1
    out, losses = layer(x)
    assert layer.load(x).tolist() == [0, 0, 30, 0]
    assert torch.allclose(out, torch.stack([network(layer, row, 2) for row in x]))
    assert float(losses.balance.detach()) == pytest.approx(4)
    (gradient,) = torch.autograd.grad(out.sum(), layer.input)
    assert (gradient[[0, 1, 3]] == 0).all()
    assert (gradient[2] != 0).any()


def test_all_experts_is_their_weighted_sum():
    torch.manual_seed(0)
    layer = Experts(5, experts=3, top_k=3).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    p = layer.router(x).softmax(-1)
    right = torch.stack([sum(p[t, e] * network(layer, x[t], e) for e in range(3)) for t in range(8)])
    assert torch.allclose(layer(x)[0], right)


def test_permuted_tokens_give_permuted_outputs():
    torch.manual_seed(0)
    layer = Experts(8, experts=5).double()
    x, order = torch.randn(40, 8, dtype=torch.float64), torch.randperm(40)
    assert torch.allclose(layer(x[order])[0], layer(x)[0][order], atol=1e-12)


@given(st.integers(0, 50), st.integers(1, 6), st.data())
def test_no_choice_is_dropped(tokens, experts, data):
    layer = Experts(4, experts=experts, top_k=data.draw(st.integers(1, experts)))
    load = layer.load(torch.randn(tokens, 4))
    assert load.shape == (experts,)
    assert int(load.sum()) == layer.top_k * tokens


def test_two_runs_are_equal_to_the_bit():
    torch.manual_seed(0)
    layer, x = Experts(8, experts=4, top_k=3), torch.randn(200, 8, requires_grad=True)
    first, second = (torch.autograd.grad(total(*layer(x)), leaves(layer, x)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_biases_have_one_dimension_so_that_no_weight_decay_reaches_them():
    shapes = {name: p.ndim for name, p in Experts(4, experts=2).named_parameters()}
    assert shapes == {"router.weight": 2, "input": 3, "output": 3, "input_bias": 1, "output_bias": 1}


# -- the router --------------------------------------------------------------------------------------------------------
def test_losses_of_an_even_router():
    layer = Experts(4, experts=6, top_k=2)
    nn.init.zeros_(layer.router.weight)
    losses = layer(torch.randn(12, 4))[1]
    assert losses.balance.item() == pytest.approx(1)
    assert losses.z.item() == pytest.approx(float(torch.tensor(6.0).log() ** 2))


def test_losses_by_hand():
    """Two experts, logits (log 3, 0) for two tokens of three and (0, log 3) for the last; one choice each."""
    layer = Experts(2, experts=2, top_k=1).double()
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(2))
    log3 = float(torch.tensor(3.0, dtype=torch.float64).log())
    x = torch.tensor([[log3, 0.0], [log3, 0.0], [0.0, log3]], dtype=torch.float64)
    losses = layer(x)[1]
    f, p = (2 / 3, 1 / 3), ((0.75 + 0.75 + 0.25) / 3, (0.25 + 0.25 + 0.75) / 3)
    assert losses.balance.item() == pytest.approx(2 * (f[0] * p[0] + f[1] * p[1]))
    assert losses.z.item() == pytest.approx(float(torch.tensor(4.0, dtype=torch.float64).log() ** 2))


def test_no_token():
    layer = Experts(4, experts=3)
    out, losses = layer(torch.empty(0, 4, requires_grad=True))
    assert out.shape == (0, 4)
    assert losses.balance.item() == losses.z.item() == 0
    (out.sum() + losses.balance + losses.z).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in layer.parameters())


def test_weights_of_the_chosen_sum_to_one_and_one_choice_keeps_its_probability():
    torch.manual_seed(0)
    layer, x = Experts(4, experts=5, top_k=3), torch.randn(20, 4)
    p = layer.router(x).softmax(-1)
    routing = layer.route(x)
    assert torch.allclose(routing.weights.sum(-1), torch.ones(20))
    kept = p.gather(1, routing.chosen)
    assert torch.allclose(routing.weights, kept / kept.sum(-1, keepdim=True))
    layer.top_k = 1
    assert torch.allclose(layer.route(x).weights[:, 0], p.max(-1).values)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_output_teaches_the_router(top_k):
    torch.manual_seed(0)
    layer = Experts(4, experts=3, top_k=top_k)
    (gradient,) = torch.autograd.grad(layer(torch.randn(20, 4))[0].square().sum(), layer.router.weight)
    assert gradient.abs().max() > 1e-3


def test_losses_add_and_average_term_by_term():
    a, b = RouterLosses(torch.tensor(1.0), torch.tensor(2.0)), RouterLosses(torch.tensor(3.0), torch.tensor(5.0))
    assert a + b == RouterLosses(torch.tensor(4.0), torch.tensor(7.0))
    assert mean_losses([a, b]) == RouterLosses(torch.tensor(2.0), torch.tensor(3.5))
    with pytest.raises(ValueError, match="no router losses"):
        mean_losses([])


def test_autocast_leaves_the_router_in_float32_and_takes_the_products_to_bfloat16():
    torch.manual_seed(0)
    layer, x = Experts(16, experts=4), torch.randn(60, 16, requires_grad=True)
    plain = layer.route(x)
    with torch.autocast("cpu", torch.bfloat16):
        routing, (out, losses) = layer.route(x), layer(x)
        rounded = layer(x.to(torch.bfloat16))[1]
    assert out.dtype == torch.bfloat16
    assert routing.weights.dtype == losses.balance.dtype == rounded.z.dtype == torch.float32
    assert torch.equal(routing.weights, plain.weights)
    assert torch.equal(routing.chosen, plain.chosen)
    compare_bfloat16(layer, x, out, losses)


def compare_bfloat16(layer: Experts, x: Tensor, out: Tensor, losses: RouterLosses) -> None:
    """Within a few roundings (2^-8) of float64, for the same choices."""
    other, exact = double(layer), x.detach().double().requires_grad_()
    right, right_losses = slow(other, exact, layer.route(x).chosen)
    assert torch.allclose(torch.stack(losses).double(), torch.stack(right_losses), atol=1e-5)
    assert (out.double() - right).norm() < 0.01 * right.norm()
    mine = torch.autograd.grad(total(out, losses), leaves(layer, x))
    expected = torch.autograd.grad(total(right, right_losses), leaves(other, exact), allow_unused=True)
    for a, b in zip(mine, expected, strict=True):
        b = torch.zeros_like(a).double() if b is None else b
        assert (a.double() - b).norm() <= 0.02 * b.norm()


# -- errors ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 0}, "experts=0, expected 1 or more"),
        ({"experts": 3, "top_k": 0}, "top_k=0, expected 1 to experts=3"),
        ({"experts": 3, "top_k": 4}, "top_k=4, expected 1 to experts=3"),
        ({"experts": 3, "activation": "moon"}, "activation='moon', expected one of relu"),
        ({"experts": 3, "ratio": 0.0}, "hidden width of 0"),
    ],
)
def test_what_it_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Experts(4, **options)


def test_refuses_other_shapes_and_dtypes():
    layer = Experts(4, experts=3)
    with pytest.raises(ValueError, match=r"x \(2, 5\), expected \(T, 4\)"):
        layer(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"x \(1, 2, 4\), expected \(T, 4\)"):
        layer(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"bfloat16.*float32.*convert"):
        layer(torch.zeros(2, 4, dtype=torch.bfloat16))


# -- compiled ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("autocast", [False, True])
def test_one_graph_serves_all_lengths(autocast):
    """0 and 1 tokens have graphs of their own, as everywhere in torch.compile."""
    torch.manual_seed(0)
    layer = Experts(16, experts=4)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for count, lengths in ((1, [60 + 13 * step for step in range(12)]), (3, [1, 0, 2])):
            for length in lengths:
                x = torch.randn(length, 16, requires_grad=True)
                mine, plain = (torch.autograd.grad(total(*f(x)), leaves(layer, x)) for f in (compiled, layer))
                assert torch.allclose(compiled(x)[0], layer(x)[0], atol=1e-6)
                assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, plain, strict=True))
            assert counter.frame_count == count


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh")
def test_compiled_by_inductor():
    torch.manual_seed(0)
    layer = Experts(16, experts=4)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for length in (50, 31, 70):
        x = torch.randn(length, 16, requires_grad=True)
        out, losses = compiled(x)
        assert torch.allclose(out, layer(x)[0], atol=1e-5)
        mine = torch.autograd.grad(total(out, losses), leaves(layer, x))
        plain = torch.autograd.grad(total(*layer(x)), leaves(layer, x))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, plain, strict=True))


# -- on a GPU ----------------------------------------------------------------------------------------------------------
@pytest.mark.cuda
@NO_GPU
@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_bfloat16_on_a_gpu(compile_it, top_k):
    torch.manual_seed(0)
    layer = Experts(32, experts=6, top_k=top_k).cuda()
    with torch.no_grad():
        layer.router.weight[5, 0] = -50.0  # x[:, 0] is 1 below, so nobody chooses the last expert
    run = torch.compile(layer, fullgraph=True, dynamic=True) if compile_it else layer
    for length in (200, 333):
        x = torch.randn(length, 32, device="cuda")
        x[:, 0] = 1
        x.requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            out, losses = run(x)
        assert layer.load(x)[5] == 0
        assert out.dtype == torch.bfloat16
        compare_bfloat16(layer, x, out, losses)


@pytest.mark.cuda
@NO_GPU
def test_no_token_on_a_gpu():
    layer = Experts(16, experts=3).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        out, losses = layer(torch.empty(0, 16, device="cuda"))
    (out.sum() + losses.balance + losses.z).backward()
    assert out.shape == (0, 16)
    assert all(p.grad is not None and (p.grad == 0).all() for p in layer.parameters())
