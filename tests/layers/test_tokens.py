"""Learned tokens among hits, against events written out one token after another."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hepattn.attention import attend
from hepattn.attention.reference import attend_reference
from hepattn.layers import ExtraTokens, Role, spread
from hepattn.masks import Window
from hepattn.sequence import Layout

LENGTHS = st.lists(st.integers(0, 12), min_size=0, max_size=5)
EVERY = st.one_of(st.none(), st.integers(1, 6))
KINDS = st.tuples(st.integers(0, 2), st.integers(0, 2), EVERY).filter(lambda kinds: kinds != (0, 0, None))


def make(kinds: tuple[int, int, int | None], dim: int = 3) -> ExtraTokens:
    cls, global_registers, every = kinds
    return ExtraTokens(dim, cls=cls, global_registers=global_registers, every=every)


def written_out(lengths: list[int], cls: int, global_registers: int, every: int | None) -> list[list[tuple[Role, int]]]:
    """Each event as (role, which): which hit of the batch, or which of the learned vectors."""
    events, hit = [], 0
    for n in lengths:
        event = [(Role.CLS, i) for i in range(cls)] + [(Role.GLOBAL_REGISTER, i) for i in range(global_registers)]
        since = 0
        for _ in range(n):
            event.append((Role.HIT, hit))
            hit, since = hit + 1, since + 1
            if since == every:
                event.append((Role.REGISTER, 0))
                since = 0
        if since and every is not None:
            event.append((Role.REGISTER, 0))
        events.append(event)
    return events


def slow_insert(extra: ExtraTokens, x: Tensor, lengths: list[int]) -> Tensor:
    table: dict[Role, Any] = {
        Role.HIT: x,
        Role.REGISTER: extra.register_token,
        Role.GLOBAL_REGISTER: extra.global_tokens,
        Role.CLS: extra.cls_tokens,
    }
    events = written_out(lengths, extra.num_cls, extra.num_global_registers, extra.every)
    rows = [table[role][which] for event in events for role, which in event]
    return torch.stack(rows) if rows else x.new_zeros(0, extra.dim)


# -- where tokens stand ------------------------------------------------------------------------------------------------
def test_the_example_of_the_docstring():
    inserted = ExtraTokens(4, cls=1, global_registers=1, every=2).plan(Layout.of([5], "cpu"))
    letters = {Role.HIT: "h", Role.REGISTER: "R", Role.GLOBAL_REGISTER: "G", Role.CLS: "C"}
    assert " ".join(letters[Role(one)] for one in inserted.role.tolist()) == "C G h h R h h R h R"
    assert inserted.before.tolist() == [1, 3, 4]


@given(LENGTHS, KINDS)
@settings(max_examples=200)
def test_roles_and_layout_are_those_of_a_slow_loop(lengths, kinds):
    extra = make(kinds)
    inserted = extra.plan(Layout.of(lengths, "cpu"))
    events = written_out(lengths, *kinds)
    assert inserted.layout.lengths.tolist() == [len(event) for event in events]
    assert inserted.layout.offsets.diff().tolist() == [len(event) for event in events]
    assert inserted.layout.total == sum(map(len, events))
    flat = [token for event in events for token in event]
    assert inserted.role.tolist() == [int(role) for role, _ in flat]
    assert inserted.layout.roles is inserted.role
    assert inserted.hits.tolist() == [place for place, (role, _) in enumerate(flat) if role == Role.HIT]
    assert inserted.registers.tolist() == [place for place, (role, _) in enumerate(flat) if role == Role.REGISTER]
    for place, hit in zip(inserted.registers.tolist(), inserted.before.tolist(), strict=True):
        assert flat[place - 1] == (Role.HIT, hit)
    for event, start in enumerate(inserted.layout.offsets[:-1].tolist()):
        assert inserted.cls[event].tolist() == [start + i for i in range(kinds[0])]
        assert inserted.global_registers[event].tolist() == [start + kinds[0] + i for i in range(kinds[1])]


@given(LENGTHS, KINDS)
@settings(max_examples=200)
def test_insert_is_the_slow_loop_and_remove_brings_the_hits_back(lengths, kinds):
    extra = make(kinds)
    x = torch.randn(sum(lengths), 3)
    inserted = extra.plan(Layout.of(lengths, "cpu"))
    y = extra.insert(x, inserted)
    assert torch.equal(y, slow_insert(extra, x, lengths))
    assert torch.equal(extra.remove(y, inserted), x)
    expected = [] if extra.cls_tokens is None else extra.cls_tokens.tolist()
    assert extra.cls(y, inserted).shape == (len(lengths), kinds[0], 3)
    assert extra.cls(y, inserted).tolist() == [expected] * len(lengths)


@given(LENGTHS, KINDS)
def test_the_order_of_hits_and_the_borders_of_events_are_kept(lengths, kinds):
    layout = Layout.of(lengths, "cpu")
    inserted = make(kinds).plan(layout)
    assert (inserted.hits.diff() > 0).all()
    assert torch.equal(inserted.layout.event[inserted.hits], layout.event)
    if lengths:
        assert torch.equal(inserted.layout.event[inserted.registers], layout.event[inserted.before])


def test_a_plan_is_made_once_for_a_layout_and_a_choice_of_tokens():
    layout = Layout.of([3, 4], "cpu")
    first, same, other = ExtraTokens(2, every=2), ExtraTokens(5, every=2), ExtraTokens(2, every=3)
    assert first.plan(layout) is first.plan(layout) is same.plan(layout)
    assert other.plan(layout) is not first.plan(layout)


def test_layouts_without_tokens_have_no_roles():
    assert Layout.of([3], "cpu").roles is None


# -- gradients ---------------------------------------------------------------------------------------------------------
@given(LENGTHS, KINDS)
def test_gradients_are_those_of_the_slow_loop(lengths, kinds):
    extra = make(kinds).double()
    inputs = [torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True), *extra.parameters()]
    inserted = extra.plan(Layout.of(lengths, "cpu"))
    weight = torch.randn(inserted.layout.total, 3, dtype=torch.float64)
    found = torch.autograd.grad((extra.insert(inputs[0], inserted) * weight).sum(), inputs)
    slow = (slow_insert(extra, inputs[0], lengths) * weight).sum() + 0 * sum(one.sum() for one in inputs)
    for mine, right in zip(found, torch.autograd.grad(slow, inputs), strict=True):
        assert torch.allclose(mine, right, atol=1e-12)


def test_every_learned_vector_and_every_hit_gets_a_gradient():
    torch.manual_seed(0)
    extra = ExtraTokens(8, cls=2, global_registers=3, every=4)
    x = torch.randn(14, 8, requires_grad=True)
    inserted = extra.plan(Layout.of([9, 0, 5], "cpu"))
    y = extra.insert(x, inserted).unflatten(1, (2, 4))
    out = attend(y, y, y, mask=extra.mask(Window(4, wrap=True)), lengths=inserted.layout).flatten(1)
    extra.remove(out, inserted).square().sum().backward()
    rows = [x.grad, *(one.grad for one in extra.parameters())]
    assert [len(one) for one in rows if one is not None] == [14, 2, 3, 1]
    assert all((one.abs().sum(1) > 0).all() for one in rows if one is not None)


def test_learned_vectors_begin_small_and_keep_the_dtype_of_the_hits():
    torch.manual_seed(0)
    extra = ExtraTokens(4000, cls=1, global_registers=1, every=2)
    for parameter in extra.parameters():
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1)
    x = torch.randn(3, 4000, dtype=torch.bfloat16)
    assert extra.insert(x, extra.plan(Layout.of([3], "cpu"))).dtype == torch.bfloat16


# -- masks -------------------------------------------------------------------------------------------------------------
def test_the_mask_of_the_docstring():
    extra = ExtraTokens(4, cls=1, every=2)
    mask = extra.mask(Window(2))
    assert mask is not None
    drawn = """
        1 1 1 1 1 1
        1 1 1 0 0 0
        1 1 1 1 0 0
        1 0 1 1 1 0
        1 0 0 1 1 1
        1 0 0 0 1 1
    """
    assert mask.draw(6).split() == drawn.split()
    assert extra.mask(None) is None
    assert ExtraTokens(4, every=2).mask(Window(2)) == Window(2)


def sees_a_register(extra: ExtraTokens, n: int, window: Window) -> bool:
    role = extra.plan(Layout.of([n], "cpu")).role
    mask = extra.mask(window)
    assert mask is not None
    return bool(mask.dense(len(role))[:, role == Role.REGISTER].any(1).all())


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("every", range(1, 9))
@pytest.mark.parametrize(("cls", "global_registers"), [(0, 0), (1, 0), (1, 2), (4, 5)])
def test_every_window_sees_a_register_from_the_smallest_window_on(cls, global_registers, every, wrap):
    extra = ExtraTokens(1, cls=cls, global_registers=global_registers, every=every)
    smallest = extra.smallest_window(wrap=wrap)
    assert smallest is not None
    assert smallest <= 2 * every
    for n in range(1, 4 * every + 2):
        for size in (smallest, smallest + 1, smallest + 5):
            assert sees_a_register(extra, n, Window(size, wrap))
    assert not sees_a_register(extra, 4 * every, Window(smallest - 1, wrap))


def test_without_registers_between_hits_no_window_sees_one():
    assert ExtraTokens(1, cls=1).smallest_window() is None


@given(LENGTHS.filter(lambda lengths: sum(lengths) > 0), KINDS, st.integers(1, 9), st.booleans(), st.booleans())
def test_attention_under_the_mask_is_the_dense_reference(lengths, kinds, size, wrap, everyone):
    extra = make(kinds, 8)
    inserted = extra.plan(Layout.of(lengths, "cpu"))
    mask = extra.mask(None if everyone else Window(size, wrap))
    y = extra.insert(torch.randn(sum(lengths), 8), inserted).unflatten(1, (2, 4)).detach()
    out = attend(y, 2 * y, y + 1, mask=mask, lengths=inserted.layout)
    wide = y.double()
    expected, _ = attend_reference(wide, 2 * wide, wide + 1, mask=mask, lengths=inserted.layout.lengths)
    assert torch.allclose(out.double(), expected, atol=1e-5)


# -- what goes along with hits -----------------------------------------------------------------------------------------
@given(LENGTHS, KINDS, st.booleans())
def test_spread_gives_registers_the_row_of_the_hit_before_them(lengths, kinds, between):
    inserted = make(kinds).plan(Layout.of(lengths, "cpu"))
    beside = torch.randn(sum(lengths), 2, requires_grad=True)
    rows, last = [], torch.zeros(2)
    for role, which in (token for event in written_out(lengths, *kinds) for token in event):
        last = beside[which] if role == Role.HIT else last
        rows.append(last if role == Role.HIT or (between and role == Role.REGISTER) else torch.zeros(2))
    found = spread(beside, inserted, between=between)
    assert torch.equal(found, torch.stack(rows) if rows else beside)
    if sum(lengths):
        (gradient,) = torch.autograd.grad(found.sum(), beside)
        (right,) = torch.autograd.grad(torch.stack(rows).sum(), beside)
        assert torch.equal(gradient, right)


def test_spread_keeps_angles_in_order():
    inserted = ExtraTokens(2, cls=1, every=3).plan(Layout.of([8], "cpu"))
    phi = torch.linspace(-3, 3, 8)[:, None]
    assert (spread(phi, inserted, between=True)[1:].diff(dim=0) >= 0).all()


# -- graphs ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def block(extra: ExtraTokens, x: Tensor, inserted: Any) -> tuple[Tensor, Tensor]:
    y = extra.insert(x, inserted)
    layout = inserted.layout.entered(y.shape[0])
    angles = spread(x[:, :2], inserted, between=True)
    y = y + angles.sum(1, keepdim=True) + layout.event[:, None] + layout.position[:, None]
    return extra.remove(y.sin(), inserted), extra.cls(y.sin(), inserted)


@pytest.mark.parametrize("kinds", [(1, 2, 4), (0, 0, 3), (2, 0, None)])
def test_one_graph_takes_many_lengths(kinds, fresh):
    from torch._dynamo.testing import CompileCounterWithBackend

    extra = make(kinds)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ([20, 7, 31], [5, 40, 3], [9, 0, 1], [11, 12, 13, 14, 50], [200, 3]):
        x = torch.randn(sum(lengths), 3, requires_grad=True)
        inserted = extra.plan(Layout.of(lengths, "cpu"))
        inputs = [x, *extra.parameters()]
        found, expected = compiled(extra, x, inserted), block(extra, x, inserted)
        for mine, right in zip(found, expected, strict=True):
            assert torch.allclose(mine, right, atol=1e-6)
        grads = [
            torch.autograd.grad(torch.cat([one.flatten() for one in out]).square().sum(), inputs)
            for out in (found, expected)
        ]
        for mine, right in zip(*grads, strict=True):
            assert torch.allclose(mine, right, atol=1e-5)
    assert counter.frame_count <= 2


def test_one_event_is_planned_inside_a_graph_and_several_are_not(fresh):
    extra, without = ExtraTokens(3, cls=1, every=4), ExtraTokens(3, cls=1)

    def whole(one: ExtraTokens, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        return block(one, x, one.plan(layout.entered(x.shape[0])))

    compiled = torch.compile(whole, fullgraph=True, dynamic=True, backend="aot_eager")
    for one, lengths in ((extra, [9]), (extra, [30]), (without, [9, 4]), (without, [3, 8, 1])):
        x, layout = torch.randn(sum(lengths), 3), Layout.of(lengths, "cpu")
        for mine, right in zip(compiled(one, x, layout), whole(one, x, layout), strict=True):
            assert torch.allclose(mine, right, atol=1e-6)
    with pytest.raises(Exception, match="call plan outside of the graph"):
        compiled(extra, torch.randn(9, 3), Layout.of([5, 4], "cpu"))


# -- refusals ----------------------------------------------------------------------------------------------------------
def test_wrong_input_gets_one_sentence():
    for wrong in ({"cls": -1}, {"every": 0}, {"global_registers": -2, "cls": 1}):
        with pytest.raises(ValueError, match="give dim and every of at least 1"):
            ExtraTokens(4, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no token to insert"):
        ExtraTokens(4)
    extra = ExtraTokens(4, cls=1, every=2)
    layout = Layout.of([3, 2], "cpu")
    inserted = extra.plan(layout)
    with pytest.raises(ValueError, match="learned tokens stand already"):
        extra.plan(inserted.layout)
    with pytest.raises(ValueError, match=r"got hits \(4, 4\), expected \(5, 4\)"):
        extra.insert(torch.randn(4, 4), inserted)
    with pytest.raises(ValueError, match="got 5 tokens, expected 10"):
        extra.remove(torch.randn(5, 4), inserted)
    with pytest.raises(ValueError, match="plan of 1 CLS tokens and 0 global registers"):
        ExtraTokens(4, cls=2, every=2).insert(torch.randn(5, 4), inserted)
    with pytest.raises(ValueError, match="expected 5 rows"):
        spread(torch.randn(4, 2), inserted, between=True)
    with pytest.raises(ValueError, match="describes 5 tokens"):
        layout.entered(6)
