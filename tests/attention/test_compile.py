"""How many graphs different lengths need, and that a compiled block gives the numbers of the eager one.

Graphs are counted and run by `aot_eager`, which traces forward and backward as inductor would but generates no code.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from hepattn import Attention, Encoder
from hepattn.attention import DistanceBias, attend
from hepattn.attention.backends import flex, registry, sdpa
from hepattn.attention.reference import attend_reference
from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window
from hepattn.sequence import Layout

T = TypeVar("T")
LENGTHS = [60 + 13 * step for step in range(50)]


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def cross_inputs(length: int, events: int) -> tuple[Tensor, Tensor, Layout, Layout]:
    """A third as many queries as keys, alone or beside two other events."""
    lengths = [[length // 3], [length]] if events == 1 else [[length // 3, 7, 40], [length, 20, 90]]
    x, context = (torch.randn(sum(n), 64) for n in lengths)
    queries, keys = (Layout.of(n, "cpu") for n in lengths)
    return x, context, queries, keys


def counted(work: Callable[..., T]) -> tuple[Callable[..., T], Any]:
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
                    weight = torch.randn_like(out)
                    (mine,) = torch.autograd.grad(out, x, weight)
                    (plain,) = torch.autograd.grad(encoder.run(x, layout).tokens, x, weight)
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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("events", [1, 3])
@pytest.mark.parametrize("mask", [None, Strided(64, wrap=True)], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "flex", "auto"])
def test_on_a_gpu_cross_attention_compiles_for_all_lengths(
    backend: str, mask: Mask | None, events: int, training: bool
) -> None:
    """By inductor, in few graphs; against the eager block on a CPU."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    attention = Attention(64, 2, qk_norm="rms", backend="sdpa")
    on_gpu = Attention(64, 2, qk_norm="rms", backend=backend).cuda()
    on_gpu.load_state_dict(attention.state_dict())

    def block(x: Tensor, context: Tensor, queries: Layout, keys: Layout) -> Tensor:
        inside = queries.entered(x.shape[0]), keys.entered(context.shape[0])
        return x + on_gpu.attend_values(x, inside[0], mask, None, context, inside[1])[0]

    before = counters["stats"]["unique_graphs"]
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for length in LENGTHS[::10]:
        x, context, queries, keys = cross_inputs(length, events)
        expected_in = x.requires_grad_(), context.requires_grad_()
        expected = x + attention.attend_values(x, queries, mask, None, context, keys)[0]
        given = tuple(t.detach().cuda().requires_grad_(training) for t in expected_in)
        layouts = tuple(Layout.of(layout.lengths, "cuda") for layout in (queries, keys))
        with torch.set_grad_enabled(training):
            out = compiled(given[0], given[1], layouts[0], layouts[1])
        assert torch.allclose(out.cpu(), expected, atol=1e-3)
        if training:
            mine, right = (
                torch.autograd.grad(one.square().sum(), leaves)
                for one, leaves in ((out, given), (expected, expected_in))
            )
            assert all(torch.allclose(one.cpu(), other, atol=1e-2) for one, other in zip(mine, right, strict=True))
    assert counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "events"), [(None, 1), (Strided(64, wrap=True), 3)], ids=str)
def test_cross_attention_on_flex_is_traced_for_all_lengths(
    mask: Mask | None, events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, as on a GPU; torch generates no right code for a CPU from it, but can run what it traced."""
    monkeypatch.setitem(registry.BACKENDS, "flex", replace(registry.BACKENDS["flex"], refusal=lambda _: None))
    attention, other = (Attention(64, 2, qk_norm="rms", backend=backend) for backend in ("flex", "sdpa"))
    other.load_state_dict(attention.state_dict())

    def block(x: Tensor, context: Tensor, queries: Layout, keys: Layout) -> Tensor:
        inside = queries.entered(len(x)), keys.entered(len(context))
        return x + attention.attend_values(x, inside[0], mask, None, context, inside[1])[0]

    before = counters["stats"]["unique_graphs"]
    compiled, _ = counted(block)
    with torch.no_grad():
        for length in LENGTHS[::10]:
            x, context, *layouts = cross_inputs(length, events)
            plain = x + other.attend_values(x, layouts[0], mask, None, context, layouts[1])[0]
            assert torch.allclose(compiled(x, context, *layouts), plain, atol=1e-5)
    assert counters["stats"]["unique_graphs"] - before == 1


# -- any mask, several events -----------------------------------------------------------------------------------------
ALONE: list[tuple[Mask | str | None, bool | None]] = [  # mask, and whether a bias is circular; None: there is none
    (None, None),
    (GlobalTokens([0, 40]), None),
    ("dense", None),
    (None, True),
    (Window(9, wrap=True), False),
]
ACROSS: list[tuple[Mask | str | None, bool | None]] = [
    (mask, None) for mask in (None, Strided(6, wrap=True), Strided(5).transpose, "dense")
]
BATCHES = ([9, 1, 0, 30], [30, 20], [25, 25])  # at first no size equals another, which would be taken for one


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor
    dense: Dense
    queries: Layout
    keys: Layout


def draw(lengths: list[int], cross: bool, grad: bool) -> Inputs:
    kv_lengths = [0 if n == 1 else 2 * n + 1 for n in lengths] if cross else lengths
    queries, keys = Layout.of(lengths, "cpu"), Layout.of(kv_lengths, "cpu")
    q, k, v = (torch.randn(n.total, 2, 8, dtype=torch.float64, requires_grad=grad) for n in (queries, keys, keys))
    slopes = torch.tensor([0.5, 0.03], dtype=torch.float64, requires_grad=grad)
    dense = Dense([torch.rand(n, m) > 0.8 for n, m in zip(lengths, kv_lengths, strict=True)])
    return Inputs(q, k, v, slopes, dense, queries, keys)


def all_calls(attention: Callable[..., Any], cross: bool, x: Inputs) -> list[Any]:
    """What every call gives."""
    queries = x.queries.entered(x.q.shape[0])
    keys = x.keys.entered(x.k.shape[0]) if cross else queries
    found = []
    for kind, wrap in ACROSS if cross else ALONE:
        mask = x.dense if kind == "dense" else kind
        bias = None if wrap is None else DistanceBias(x.slopes, wrap=wrap)
        found.append(attention(x.q, x.k, x.v, mask=mask, lengths=queries, kv_lengths=keys, bias=bias))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("training", [True, False])
def test_sdpa_compiles_every_mask_for_batches_of_events(training: bool, cross: bool) -> None:
    """All masks in one graph, against the reference in float64: values and gradients, or log-sum-exp."""
    torch.manual_seed(0)
    before = counters["stats"]["unique_graphs"]
    calls = partial(all_calls, partial(attend, backend="sdpa", return_lse=not training), cross)
    compiled = torch.compile(calls, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in BATCHES:
        x = draw(lengths, cross, training)
        found, right = compiled(x), all_calls(attend_reference, cross, x)
        exact = [out for out, _ in right]
        if training:
            upstream = [torch.randn_like(out) for out in exact]
            leaves = [x.q, x.k, x.v] if cross else [x.q, x.k, x.v, x.slopes]
            grads = [torch.autograd.grad(outs, leaves, upstream) for outs in (found, exact)]
            assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(*grads, strict=True))
        else:
            for (_, lse), (_, sums) in zip(found, right, strict=True):
                assert torch.allclose(lse.double(), sums, atol=1e-5)
            found = [out for out, _ in found]
        assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(found, exact, strict=True))
    assert counters["stats"]["unique_graphs"] - before == 1


@pytest.mark.slow
def test_an_encoder_without_a_window_trains_compiled_on_batches() -> None:
    torch.manual_seed(0)
    encoder = Encoder(dim=16, num_layers=1, num_heads=2, cls=1, distance_bias="circular")
    before = counters["stats"]["unique_graphs"]
    compiled = torch.compile(encoder.run, fullgraph=True, dynamic=True, backend="aot_eager")
    assert encoder.extra is not None
    for lengths in BATCHES:
        x, weight = torch.randn(sum(lengths), 16, requires_grad=True), torch.randn(sum(lengths), 16)
        layout = Layout.of(lengths, "cpu")
        results = []
        for run in (encoder.run, compiled):
            stream = run(x, layout, None, encoder.extra.plan(layout))
            loss = (stream.tokens * weight).sum() + stream.cls.sum()
            results.append((stream.tokens, stream.cls, *torch.autograd.grad(loss, [x, *encoder.parameters()])))
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert counters["stats"]["unique_graphs"] - before == 1


def test_what_a_graph_does_not_do_it_says_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of dynamo's words about values on the host."""
    q = torch.randn(50, 2, 8)
    layout, same = Layout.of([30, 20], "cpu"), Layout.of([30, 20], "cpu")
    one = Dense(torch.ones(50, 50, dtype=torch.bool))
    with pytest.raises(Unsupported, match="Dense has masks for 1 events, the batch has 2"):
        counted(lambda q: attend(q, q, q, mask=one, lengths=layout))[0](q)
    with pytest.raises(Unsupported, match="a Window takes one Layout for queries and keys"):
        counted(lambda q: attend(q, q, q, mask=Window(4), lengths=layout, kv_lengths=same))[0](q)
    monkeypatch.setattr(sdpa, "PAIRS_IN_A_GRAPH", 2000)
    with pytest.raises(Unsupported, match="takes a mask of all pairs of tokens"):
        counted(lambda q: attend(q, q, q, lengths=layout, backend="sdpa"))[0](q)
    wide = torch.randn(50, 1, 16)
    with pytest.raises(Unsupported, match=flex.missing("cpu") or "does not compile inside a graph on a CPU"):
        counted(lambda q: attend(q, q, q, lengths=layout, backend="flex"))[0](wide)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "dense", "across"])
def test_flex_needs_one_graph_for_fifty_lengths_and_for_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit an error is raised (see test_parity), so the limit is the count. One token alone is a second."""
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    monkeypatch.setattr(flex, "GRAPHS", 1)
    flex._compiled.cache_clear()
    torch.manual_seed(0)
    masks = {"tokens": Window(16, wrap=True) | GlobalTokens([0]), "across": Strided(16, wrap=True)}
    for lengths in [*([n] for n in LENGTHS), [150, 0, 7, 300], [40, 2], [310, 129, 128], [0, 0, 500]]:
        kv_lengths = [3 * n + 2 for n in lengths] if kind == "across" else lengths
        q, k = (torch.randn(sum(n), 1, 16) for n in (lengths, kv_lengths))
        mask = masks[kind] if kind in masks else Dense([torch.rand(n, n) > 0.5 for n in lengths])
        call = partial(attend, q, k, k, mask=mask, lengths=lengths, kv_lengths=kv_lengths if kind == "across" else None)
        assert torch.allclose(call(backend="flex"), call(backend="sdpa"), atol=1e-5)
    flex._compiled.cache_clear()
