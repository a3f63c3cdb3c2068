"""The yardstick itself: what is allowed, what a wrong kernel gives, and that nothing is run to hear a refusal."""

import math

import pytest
import torch

from hepattn.attention import DistanceBias, attend
from hepattn.attention.agreement import Agreement, Deviation, deviation, expect, tolerance
from hepattn.attention.backends import registry
from hepattn.masks import Dense, GlobalTokens, Strided, Window

LENGTHS = [40, 1, 23]
MASKS = [None, Window(8), Window(9, wrap=True), Window(4) | GlobalTokens([0])]


def tensors(dtype: torch.dtype, count: int = 4, n: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 2, 16, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def test_allowed_is_twice_the_dtypes_own_error_and_a_few_roundings() -> None:
    exact = torch.tensor([4.0, -1.0], dtype=torch.float64)
    same = torch.tensor([4.0, -0.5], dtype=torch.float32)
    allowed = 2 * 0.5 + 32 * torch.finfo(torch.float32).eps * 4
    assert math.isclose(tolerance(torch.float32, exact, same), allowed)
    found = deviation(torch.tensor([3.0, -1.0]), exact, same, torch.float32)
    assert (found.error, found.own) == (1.0, 0.5)
    assert math.isclose(found.allowed, allowed)
    assert math.isclose(found.ratio, 1 / allowed)


def test_what_is_not_finite_must_be_so_in_both() -> None:
    exact = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    assert deviation(exact.float(), exact, exact, torch.float32).error == 0
    for wrong in ([1.0, 0.0], [math.nan, -math.inf]):
        assert deviation(torch.tensor(wrong), exact, exact, torch.float32).ratio == math.inf


def test_of_nothing() -> None:
    empty = torch.zeros(0, 2, dtype=torch.float64)
    assert deviation(empty, empty, empty, torch.float64).ratio == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_sdpa_agrees(dtype: torch.dtype, mask: Window | None) -> None:
    q, k, v, g = tensors(dtype)
    found = expect(q, k, v, mask=mask, lengths=LENGTHS, upstream=g).ask("sdpa", lse=True)
    assert found.agrees
    assert (found.kernel, found.dtype) == ("sdpa", str(dtype).removeprefix("torch."))
    for part in (found.value, found.lse, found.gradient):
        assert part is not None
        assert part.error > 0
        assert (part.own == 0) == (dtype == torch.float64 and part is not found.lse)


def test_cross_attention_and_a_bias() -> None:
    q, k, v, g = tensors(torch.float32)
    cross = expect(q[:10], k, v, mask=Strided(4), lengths=[5, 1, 4], kv_lengths=LENGTHS, upstream=g[:10], name="cross")
    assert cross.ask("sdpa").agrees
    assert cross.name == "cross"
    bias = DistanceBias(torch.tensor([0.1, 0.2]))
    asked = expect(q, k, v, lengths=LENGTHS, bias=bias, upstream=g)
    assert len(asked.exact.grads) == 4
    assert asked.ask("sdpa").agrees
    assert asked.name == "no mask"


@pytest.mark.parametrize("part", ["value", "gradient"])
def test_a_wrong_kernel_differs(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """A window one token wider on each side; or right in value, and wrong in one gradient."""
    q, k, v, g = tensors(torch.float32)
    asked = expect(q, k, v, mask=Window(8), lengths=LENGTHS, upstream=g)
    right = attend

    def wrong(q, k, v, *, mask, **given):
        if part == "value":
            return right(q, k, v, mask=Window(10), **given)
        out = right(q, k, v, mask=mask, **given)
        return out + 1e-3 * (v - v.detach())

    monkeypatch.setattr("hepattn.attention.agreement.attend", wrong)
    found = asked.ask("sdpa")
    assert not found.agrees
    assert found.value is not None
    assert found.gradient is not None
    assert (found.value.ratio > 1) == (part == "value")
    assert found.gradient.ratio > 1
    assert found.worst == max(found.value.ratio, found.gradient.ratio)


def test_rows_are_those_of_the_whole() -> None:
    q, k, v = tensors(torch.float32, 3)
    rows = torch.tensor([0, 7, 63])
    whole, part = (expect(q, k, v, mask=Window(9, wrap=True), rows=some) for some in (None, rows))
    assert torch.allclose(part.exact.out, whole.exact.out[rows], rtol=0, atol=1e-14)
    assert torch.allclose(part.exact.lse, whole.exact.lse[rows], rtol=0, atol=1e-14)
    assert part.ask("sdpa", lse=True).agrees
    for given in ({"lengths": LENGTHS}, {"upstream": q}, {"bias": DistanceBias(torch.ones(2))}):
        with pytest.raises(ValueError, match="single event"):
            expect(q, k, v, rows=rows, **given)


def test_a_refusal_is_the_kernels_own_sentence_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, g = tensors(torch.float32)
    asked = expect(q, k, v, upstream=g)
    for name in registry.BACKENDS:
        monkeypatch.setattr(registry.BACKENDS[name].run, "__code__", (lambda call: 1 / 0).__code__)  # noqa: ARG005
    assert asked.ask("flash") == Agreement("flash", "float32", "no mask", "flash: needs CUDA, this is cpu")
    assert asked.refusal("flex") == "flex: no backward on a CPU: detach q, k and v, or use sdpa"
    found = asked.ask("sdpa", run=False)
    assert (found.refusal, found.value, found.worst, found.agrees) == ("", None, 0.0, False)


def test_arguments_are_left_alone_and_checked() -> None:
    q, k, v, g = tensors(torch.float32)
    q.requires_grad_()
    expect(q, k, v, upstream=g).ask("sdpa")
    assert q.grad is None
    assert not k.requires_grad
    with pytest.raises(ValueError, match="Dense has"):
        expect(q, k, v, mask=Dense(torch.ones(3, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="backend must be"):
        expect(q, k, v).ask("magic")


def test_the_worst_counts_what_was_asked() -> None:
    value, lse = Deviation(1.0, 0.0, 2.0), Deviation(3.0, 0.0, 2.0)
    assert Agreement("sdpa", "float32", "no mask", value=value, lse=lse).worst == 1.5


def test_the_slopes_gradient_may_err_by_a_rounding_of_each_term() -> None:
    """Terms of the gradient, pair by pair, from scores that are leaves."""
    q, k, v, g = (torch.randn(9, 2, 4, dtype=torch.float64) for _ in range(4))
    slopes = torch.tensor([0.3, 0.1], dtype=torch.float64)
    found = expect(q, k, v, lengths=[6, 3], bias=DistanceBias(slopes), upstream=g).slope_terms
    total = torch.zeros(2, dtype=torch.float64)
    for event in (slice(0, 6), slice(6, 9)):
        n = event.stop - event.start
        apart = (torch.arange(n)[:, None] - torch.arange(n)).abs()
        scores = torch.einsum("ihd,jhd->hij", q[event], k[event]) / 2 - slopes[:, None, None] * apart
        scores.requires_grad_()
        out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[event])
        (grad,) = torch.autograd.grad(out, scores, g[event])
        total += (grad * apart).abs().sum((1, 2))
    assert math.isclose(found, float(total.max()))
    exact = torch.tensor([1.0], dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    assert math.isclose(tolerance(torch.float32, exact, exact.float(), terms=100.0), 132 * eps)
