"""How many graphs different lengths need, and that a compiled block gives the numbers of the eager one.

Graphs are counted and run by `aot_eager`, which traces forward and backward as inductor would but generates no code.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hepattn import Attention, Encoder
from hepattn.attention import attend
from hepattn.attention.backends import flex
from hepattn.masks import GlobalTokens, Mask, Strided, Window
from hepattn.sequence import Layout

LENGTHS = [60 + 13 * step for step in range(50)]


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counted(work: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], Any]:
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(work, fullgraph=True, dynamic=True, backend=counter), counter


@pytest.mark.slow
@pytest.mark.parametrize(("events", "training"), [(1, True), (3, True), (3, False)])
def test_an_encoder_needs_at_most_two_graphs_for_all_lengths(events: int, training: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        dim=16, num_layers=2, num_heads=2, mask=Window(16, wrap=True), qk_norm="rms", value_residual=True, gate=True
    )
    compiled, counter = counted(lambda x, layout: encoder.run(x, layout).tokens)
    with torch.set_grad_enabled(training):
        for length in LENGTHS[::5]:
            lengths = [length] if events == 1 else [length, 7, length // 2]
            x = torch.randn(sum(lengths), 16, requires_grad=training)
            layout = Layout.of(lengths, "cpu")
            out = compiled(x, layout)
            if length in LENGTHS[::25]:  # two are compared, all are counted
                assert torch.allclose(out, encoder.run(x, layout).tokens, atol=1e-5)
                if training:
                    (mine,) = torch.autograd.grad(out.square().sum(), x)
                    (plain,) = torch.autograd.grad(encoder.run(x, layout).tokens.square().sum(), x)
                    assert torch.allclose(mine, plain, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, Strided(16, wrap=True)], ids=str)
def test_cross_attention_needs_at_most_two_graphs(mask: Mask | None) -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2, qk_norm="rms")

    def block(x: Tensor, context: Tensor, queries: Layout, keys: Layout) -> Tensor:
        queries = Layout(queries.lengths, queries.offsets, x.shape[0])
        keys = Layout(keys.lengths, keys.offsets, context.shape[0])
        return x + attention.attend_values(x, queries, mask, None, context, keys)[0]

    compiled, counter = counted(block)
    for length in LENGTHS[::5]:
        x, context = torch.randn(length // 3, 16, requires_grad=True), torch.randn(length, 16, requires_grad=True)
        layouts = Layout.of([length // 3], "cpu"), Layout.of([length], "cpu")
        out, plain = compiled(x, context, *layouts), block(x, context, *layouts)
        assert torch.allclose(out, plain, atol=1e-5)
        for mine, right in zip(
            torch.autograd.grad(out.square().sum(), (x, context)),
            torch.autograd.grad(plain.square().sum(), (x, context)),
            strict=True,
        ):
            assert torch.allclose(mine, right, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_flex_needs_at_most_two_graphs_for_fifty_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit an error is raised (see test_parity), so the limit is the count."""
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    monkeypatch.setattr(flex, "GRAPHS", 2)
    flex._compiled.cache_clear()
    mask = Window(16, wrap=True) | GlobalTokens([0])
    for length in LENGTHS:
        q = torch.randn(length, 1, 16)
        attend(q, q, q, mask=mask, backend="flex")
    flex._compiled.cache_clear()
