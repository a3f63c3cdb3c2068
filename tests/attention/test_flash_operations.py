"""What flash-attn-4 and torch's flash kernel are given, and what becomes of their gradients; both by dense kernels."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hepattn.attention.backends import aten, fa4, flash, merge
from hepattn.attention.backends.rings import find_rings
from hepattn.attention.functional import make_call
from hepattn.attention.reference import attend_reference
from hepattn.masks import GlobalTokens, Mask, Window
from hepattn.sequence import Layout
from tests.attention.cases import WINDOWS, Case
from tests.attention.dense_kernels import Dense4, DenseAten

MASKS: list[Mask | None] = [
    None,
    Window(7),
    Window(64, wrap=True),
    Window(9, wrap=True),
    Window(1, wrap=True),
    Window(20, wrap=True) | GlobalTokens([0, 3]),
    Window(33) | GlobalTokens([2, 150]),
]
LENGTHS = [[300], [1], [130, 0, 1, 5, 260]]


@pytest.fixture
def dense4(monkeypatch: pytest.MonkeyPatch) -> Dense4:
    kernels = Dense4()
    monkeypatch.setattr(fa4, "_kernels", lambda: kernels)
    return kernels


@pytest.fixture
def dense_aten(monkeypatch: pytest.MonkeyPatch) -> DenseAten:
    kernels = DenseAten()
    monkeypatch.setattr(aten, "_kernels", lambda: kernels)
    return kernels


FA4, ATEN = (flash.DOORS[module] for module in ("flash_attn.cute", "torch.nn.attention.varlen"))
DOORS = pytest.mark.parametrize("door", [FA4, ATEN], ids=lambda door: door.name)


@DOORS
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_values_lse_and_gradients_of_both(
    dense4: Dense4, dense_aten: DenseAten, mask: Mask | None, lengths: list[int], door: flash.Door
) -> None:
    generator = torch.Generator().manual_seed(1)
    total = sum(lengths)
    q, k, v = (torch.randn(total, 2, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    leaves = (q, k, v)
    weights = [torch.randn(total, 2, *shape, generator=generator, dtype=torch.float64) for shape in ((8,), ())]
    found = flash.attend_varlen(make_call(q, k, v, mask, lengths, None, None, return_lse=True), door)
    exact = attend_reference(q, k, v, mask=mask, lengths=lengths)
    assert all(torch.allclose(one.double(), other, atol=1e-6) for one, other in zip(found, exact, strict=True))
    # an lse alone, an output alone, and both
    for chosen in ([0], [1], [0, 1]):
        mine, right = (
            torch.autograd.grad(
                [pair[i] for i in chosen],
                leaves,
                [weights[i].to(pair[i].dtype) for i in chosen],
                retain_graph=True,
                materialize_grads=True,
            )
            for pair in (found, exact)
        )
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(mine, right, strict=True))
    ring = isinstance(mask, Window) and mask.wrap and mask.half
    single = door is FA4 and len(lengths) == 1
    calls = 1 if total == 1 else 2  # one for the seam
    assert dense4.called.count("into") == bool(ring or mask == MASKS[5]) * single * calls
    assert bool(dense4.called) == (door is FA4) != bool(dense_aten.called)


@DOORS
@given(WINDOWS, st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(Window(8, wrap=True), [8, 9, 10], False)  # n = 2h, and one and two tokens more
@example(Window(8, wrap=True), [8], False)
@example(Window(8, wrap=True), [9], False)
@example(Window(7, wrap=True), [13, 0, 11, 6], False)  # around its seam, a short ring names keys twice
@example(Window(7, wrap=True), [11], False)
@example(Window(50, wrap=True), [230], False)
def test_any_window_and_lengths(
    dense4: Dense4, dense_aten: DenseAten, door: flash.Door, window: Window, lengths: list[int], no_window: bool
) -> None:
    mask = None if no_window else window
    q, k, v, upstream = Case(lengths, 2, 8, mask, 1).tensors(torch.float64)
    for leaf in (q, k, v):
        leaf.requires_grad_()
    out, lse = flash.attend_varlen(make_call(q, k, v, mask, lengths, None, None), door)
    exact, exact_lse = attend_reference(q, k, v, mask=mask, lengths=lengths)
    assert torch.allclose(out, exact)
    assert torch.allclose(lse.double(), exact_lse, atol=1e-6)
    found, right = (torch.autograd.grad(one, (q, k, v), upstream) for one in (out, exact))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, right, strict=True))


@DOORS
@given(
    WINDOWS,
    st.sets(st.integers(0, 30), min_size=1, max_size=3),
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
    st.sampled_from([1, 3, 32]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_window_and_global_tokens_are_merged_exactly(
    dense4: Dense4,
    dense_aten: DenseAten,
    door: flash.Door,
    window: Window,
    tokens: set[int],
    lengths: list[int],
    chunks: int,
) -> None:
    """Keys in both sets are counted once; tokens beyond an event's end name none; sums by chunks are the same."""
    lengths = [*lengths, 5]
    for mask in (window | GlobalTokens(sorted(tokens)), GlobalTokens(sorted(tokens)) | window):
        q, k, v, upstream = Case(lengths, 2, 8, mask, 1).tensors(torch.float64)
        for leaf in (q, k, v):
            leaf.requires_grad_()
        call = make_call(q, k, v, mask, lengths, None, None, return_lse=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(merge.CHUNKS, "cpu", chunks)
            out, lse = flash.attend_varlen(call, door)
        exact, exact_lse = attend_reference(q, k, v, mask=mask, lengths=lengths)
        assert torch.allclose(out, exact, atol=1e-6)
        assert torch.allclose(lse, exact_lse, atol=1e-6)
        found, right = (torch.autograd.grad(one, (q, k, v), upstream) for one in (out, exact))
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, right, strict=True))


def test_what_a_wrap_asks_again() -> None:
    """Of an event 2h queries for 4h keys around its seam, of one that a window covers all."""
    cpu = torch.device("cpu")
    found = find_rings((20, 0, 4, 9), 4, cpu)
    seams, whole = found.parts
    assert (found.longest, found.plain) == (20, True)
    first = [16, 17, 18, 19, 0, 1, 2, 3]
    assert seams.queries.tolist() == [*first, 29, 30, 31, 32, 24, 25, 26, 27]
    assert seams.keys[:16].tolist() == [12, 13, 14, 15, *first, 4, 5, 6, 7]
    assert [x.tolist() for x in seams.numbers[:2]] == [[0, 8, 16], [0, 16, 32]]
    assert seams.numbers[2:] == (8, 16, 8, 0)
    assert whole.queries.tolist() == whole.keys.tolist() == [20, 21, 22, 23]
    assert whole.numbers[2:] == (4, 4, -1, -1)
    assert found.again.tolist() == [*seams.queries.tolist(), *whole.queries.tolist()]
    only_short, nothing = find_rings((4, 3), 4, cpu), find_rings((), 4, cpu)
    assert (len(only_short.parts), only_short.plain) == (1, False)
    assert (len(nothing.parts), nothing.plain, len(nothing.again)) == (0, False, 0)


def test_one_event_is_run_without_offsets_and_several_with_them(dense4: Dense4) -> None:
    for lengths, way in (([9], "one"), ([4, 5], "packed")):
        x = torch.randn(9, 1, 8, dtype=torch.float64)
        flash.attend_varlen(make_call(x, x, x, Window(4), lengths, None, None), FA4)
        assert dense4.called[-1] == way


def test_channels_for_the_log_sum_exp_are_added_only_where_its_gradient_is_asked(dense_aten: DenseAten) -> None:
    q = torch.randn(9, 1, 16, dtype=torch.float64, requires_grad=True)
    for chosen, channels in ((0, 16), (1, 24)):
        found = flash.attend_varlen(make_call(q, q, q, Window(4), None, None, None, return_lse=True), ATEN)
        found[chosen].sum().backward()
        assert dense_aten.called[-2:] == ["forward 16", f"backward {channels}"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_the_log_sum_exp_keeps_twice_the_digits(dtype: torch.dtype) -> None:
    grad, out = torch.zeros(2, 50, 2, 16, dtype=dtype)
    grad_lse = torch.randn(50, 2, 1)
    one, other = aten._with_lse(grad, out, grad_lse)
    assert one.shape == other.shape == (50, 2, 16 + aten.BEYOND)
    assert one.dtype == other.dtype == dtype
    error = (one.double() * other.double()).sum(-1, keepdim=True) + grad_lse
    info = torch.finfo(dtype)
    assert (error.abs() <= info.eps**2 * grad_lse.abs() + info.eps * info.tiny).all()  # the last: float16 underflows


GRAPHS = [
    (FA4, Window(8, wrap=True), False),
    (FA4, Window(8), True),
    (ATEN, Window(8, wrap=True) | GlobalTokens([0]), True),
]


@pytest.mark.parametrize(("door", "mask", "several"), GRAPHS, ids=lambda x: getattr(x, "name", str(x)))
def test_a_graph_holds_it_for_all_lengths(
    dense4: Dense4, dense_aten: DenseAten, door: flash.Door, mask: Mask, several: bool
) -> None:
    def work(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        return flash.attend_varlen(make_call(q, k, v, mask, layout.entered(len(q)), None, None), door)[0]

    graph = torch.compile(work, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([40, 200], [30, 71]) if several else ([240], [101]):
        q, k, v = (torch.randn(sum(lengths), 2, 8, dtype=torch.float64).requires_grad_() for _ in range(3))
        out, exact = graph(q, k, v, Layout.of(lengths, "cpu")), attend_reference(q, k, v, mask=mask, lengths=lengths)[0]
        assert torch.allclose(out, exact, atol=1e-6)
        mine, right = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, exact))
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(mine, right, strict=True))
    assert any(called.startswith("back") for called in dense4.called + dense_aten.called)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[set[str]], None]]:
    """Tells which flash kernels there are, by their names."""

    def tell(names: set[str]) -> None:
        monkeypatch.setattr(flash, "_has", lambda module: flash.DOORS[module].name in names)
        flash._find.cache_clear()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield tell
    flash._find.cache_clear()


def test_flash_attn_4_is_left_to_head_dimensions_at_which_it_was_right(
    installed: Callable[[set[str]], None],
) -> None:
    installed({"flash-attn-4", "torch varlen"})
    for channels, name in ((16, "torch varlen"), (32, "flash-attn-4"), (64, "flash-attn-4"), (72, "torch varlen")):
        q = torch.randn(8, 1, channels, dtype=torch.bfloat16)
        found = flash.door_of(make_call(q, q, q, Window(4), None, None, None))
        assert found is not None
        assert found.name == name


def test_a_graph_can_choose_a_door(installed: Callable[[set[str]], None]) -> None:
    """Also where it does not know the number of channels beforehand."""
    installed({"torch varlen"})

    def work(q: Tensor) -> Tensor:
        call = make_call(q, q, q, Window(4, wrap=True) | GlobalTokens([0]), None, None, None)
        found = flash.door_of(call)
        return 2 * q if found is ATEN and flash.unsupported(call) is None else q

    graph = torch.compile(work, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens, channels, grad in ((10, 64, False), (20, 64, True), (33, 40, False)):
        q = torch.randn(tokens, 2, channels, dtype=torch.bfloat16, requires_grad=grad)
        assert torch.equal(graph(q), 2 * q)


def test_what_other_packages_do_not_do_is_left_to_torch(installed: Callable[[set[str]], None]) -> None:
    """FlashAttention-2 and 3 have been found: they drop gradients of the log-sum-exp in silence."""
    installed({"flash-attn-3", "flash-attn-2", "torch varlen"})
    q = torch.randn(8, 1, 256, dtype=torch.bfloat16)
    merged = Window(4) | GlobalTokens([0])
    for mask, grad, lse, name, limited in (
        (Window(4), True, False, "flash-attn-3", False),
        (Window(4), False, True, "flash-attn-3", False),
        (Window(4), True, True, "torch varlen", True),
        (Window(4, wrap=True), True, False, "torch varlen", False),
        (merged, False, False, "flash-attn-3", False),
        (merged, True, False, "torch varlen", True),
        (Window(4, wrap=True) | GlobalTokens([0]), False, False, "torch varlen", False),
    ):
        x = q.requires_grad_(grad)
        call = make_call(x, x, x, mask, None, None, None, return_lse=lse)
        found = flash.door_of(call)
        assert found is not None
        assert found.name == name
        assert ("a multiple of 8 up to 248" in (flash.unsupported(call) or "")) == limited
