"""Matching against scipy and against all assignments; what is left over; costs that are no numbers; threads."""

import copy
import itertools
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from hepattn.models.matcher import LIMIT, Matched, Matcher, finite_costs

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.fixture(scope="module")
def matcher():
    one = Matcher(workers=2)
    yield one
    one.close()


def total(costs, matched):
    return costs.double()[matched.query, matched.target].sum().item()


def is_assignment(matched, queries, targets):
    """Every pair once, ascending queries, and each target either matched or left over."""
    assert len(matched.query) == len(matched.target) == min(queries, targets)
    assert (matched.query.diff() > 0).all()
    assert sorted([*matched.target.tolist(), *matched.surplus.tolist()]) == list(range(targets))
    return True


@settings(deadline=None)
@given(st.data())
def test_total_is_that_of_scipy_also_with_ties(matcher, data):
    few = st.integers(-2, 2).map(float)
    elements = data.draw(st.sampled_from([few, st.floats(-1e3, 1e3)]))
    costs = data.draw(hnp.arrays(np.float64, SHAPES, elements=elements))
    matched = matcher.match([torch.from_numpy(costs)])[0]
    rows, columns = linear_sum_assignment(costs)
    assert is_assignment(matched, *costs.shape)
    assert total(torch.from_numpy(costs), matched) == pytest.approx(costs[rows, columns].sum(), abs=1e-9)
    assert matched.changed == 0


@settings(deadline=None)
@given(st.data())
def test_no_bad_cost_is_taken_that_can_be_avoided(matcher, data):
    """Against all assignments: first the fewest costs that are not finite, among those the least total."""
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    number = st.one_of(st.integers(-5, 5).map(float), st.sampled_from([np.nan, np.inf, -np.inf]))
    costs = torch.from_numpy(data.draw(hnp.arrays(np.float64, shape, elements=number)))
    matched = matcher.match([costs])[0]
    assert is_assignment(matched, *shape)
    assert matched.changed == (~costs.isfinite()).sum()

    def rank(query, target):
        taken = costs[list(query), list(target)]
        return (~taken.isfinite()).sum().item(), taken[taken.isfinite()].sum().item()

    queries, targets = shape
    if queries <= targets:
        every = [rank(range(queries), target) for target in itertools.permutations(range(targets), queries)]
    else:
        every = [rank(query, range(targets)) for query in itertools.permutations(range(queries), targets)]
    assert rank(matched.query.tolist(), matched.target.tolist()) == pytest.approx(min(every))


def test_huge_costs_are_cut_and_counted():
    costs = np.array([[1e30, 0.25], [-3e38, 0.5]], dtype=np.float32)
    changed, number = finite_costs(costs)
    assert changed.tolist() == [[LIMIT, 0.25], [-LIMIT, 0.5]]
    assert changed.dtype == np.float64
    assert number == 2
    assert costs[0, 0] == np.float32(1e30), "the caller's costs are not written to"
    all_bad, number = finite_costs(np.full((2, 3), np.nan))
    assert np.isfinite(all_bad).all()
    assert number == 6


def test_ordinary_costs_are_told_apart_beside_huge_ones(matcher):
    costs = torch.tensor([[1e38, 0.10001, 0.1], [1e38, 0.1, 0.10001], [1e38, 1e38, 1e38]])
    matched = matcher.match([costs])[0]
    assert matched.target.tolist() == [2, 1, 0]
    assert matched.changed == 5


def test_more_targets_than_queries_leaves_the_dearest(matcher):
    costs = torch.tensor([[5.0, 1.0, 9.0, 2.0], [1.0, 5.0, 9.0, 9.0]])
    matched = matcher.match([costs])[0]
    assert matched.query.tolist() == [0, 1]
    assert matched.target.tolist() == [1, 0]
    assert matched.surplus.tolist() == [2, 3]


def test_more_queries_than_targets_leaves_the_dearest_queries(matcher):
    costs = torch.tensor([[5.0, 1.0], [9.0, 9.0], [1.0, 5.0]])
    matched = matcher.match([costs])[0]
    assert matched.query.tolist() == [0, 2]
    assert matched.target.tolist() == [1, 0]
    assert matched.surplus.tolist() == []


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (4, 0)])
def test_nothing_to_match(matcher, shape):
    matched = matcher.match([torch.zeros(shape)])[0]
    assert matched.query.dtype == matched.target.dtype == matched.surplus.dtype == torch.int64
    assert is_assignment(matched, *shape)


def test_events_and_layers_come_back_as_they_went(matcher):
    generator = torch.Generator().manual_seed(0)
    shapes = [[(3, 2), (0, 4), (5, 5)], [(2, 6), (1, 0), (4, 4)]]
    costs = [[torch.rand(shape, generator=generator) for shape in row] for row in shapes]
    nested = matcher.match(costs)
    assert [len(row) for row in nested] == [3, 3]
    for row, found in zip(costs, nested, strict=True):
        for one, matched in zip(row, found, strict=True):
            assert is_assignment(matched, *one.shape)
            alone = matcher.match([one])[0]
            assert torch.equal(alone.query, matched.query)
            assert torch.equal(alone.target, matched.target)
    assert matcher.match([]) == []
    assert matcher.match([[], []]) == [[], []]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_precision_with_gradients_or_strides(matcher, dtype):
    costs = torch.tensor([[3.0, 1.0], [1.0, 2.0], [0.0, 4.0]], dtype=dtype, requires_grad=True)
    assert matcher.match([costs])[0].target.tolist() == [1, 0]
    assert matcher.match([costs.mT])[0].query.tolist() == [0, 1]


def test_a_started_matching_keeps_its_own_costs():
    """The solver waits until the caller has overwritten the costs, and still sees what they were."""
    go = threading.Event()

    def slow(costs):
        assert go.wait(30)
        return linear_sum_assignment(costs)

    costs = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    pending = Matcher(slow, workers=1).start([costs])
    assert not pending.done()
    costs.copy_(costs.flip(0))
    go.set()
    assert pending.result()[0].target.tolist() == [0, 1]
    assert pending.done()


def test_several_threads_solve_at_once():
    together = threading.Barrier(3)

    def meets(costs):
        together.wait(30)  # breaks unless three solve at the same time
        return linear_sum_assignment(costs)

    assert len(Matcher(meets, workers=3).match([torch.zeros(2, 2)] * 3)) == 3


def test_a_failure_says_on_which_shape():
    def fails(costs):
        raise ValueError("cost matrix is infeasible")

    with pytest.raises(RuntimeError, match=r"fails failed on costs of shape \(3, 2\): cost matrix is infeasible"):
        Matcher(fails).match([torch.zeros(3, 2)])


@pytest.mark.parametrize(
    "answer", [([0], [0]), ([0, 0], [0, 1]), ([0, 1], [1, 1]), ([0, 1], [0, 5]), ([0, 1, 2], [0, 1])]
)
def test_an_answer_that_is_no_assignment_is_refused(answer):
    with pytest.raises(RuntimeError, match=r"no assignment of costs of shape \(3, 2\)"):
        Matcher(lambda _: answer).match([torch.zeros(3, 2)])


def test_copied_and_pickled_without_its_threads(matcher):
    matcher.match([torch.zeros(2, 2)])
    for other in (copy.deepcopy(matcher), pickle.loads(pickle.dumps(matcher))):
        assert other.match([torch.eye(2)])[0].target.tolist() == [1, 0]
        other.close()
        other.close()
        assert other.match([torch.eye(2)])[0].target.tolist() == [1, 0], "a closed one starts anew"


def test_refusals(matcher, monkeypatch):
    with pytest.raises(ValueError, match="solver is one of scipy, lapx, or a function, not 'moon'"):
        Matcher("moon")
    with pytest.raises(ValueError, match="workers=0"):
        Matcher(workers=0)
    for wrong in ([torch.zeros(3)], [torch.zeros(2, 2, dtype=torch.int64)], [[3.0]], [torch.zeros(1, 1), None]):
        with pytest.raises(ValueError, match="costs are floating"):
            matcher.match(wrong)  # type: ignore[call-overload]
    monkeypatch.setitem(sys.modules, "lap", None)
    with pytest.raises(ImportError, match="pip install"):
        Matcher("lapx")


@settings(deadline=None)
@given(costs=hnp.arrays(np.float64, SHAPES, elements=st.integers(-9, 9).map(float)))
def test_lapx_finds_the_same_total(costs):
    pytest.importorskip("lap")
    matched = Matcher("lapx", workers=1).match([torch.from_numpy(costs)])[0]
    rows, columns = linear_sum_assignment(costs)
    assert is_assignment(matched, *costs.shape)
    assert total(torch.from_numpy(costs), matched) == pytest.approx(costs[rows, columns].sum(), abs=1e-9)


def test_moves_to_a_device():
    moved = Matched(torch.arange(2), torch.arange(2), torch.arange(0), 5).to("meta")
    assert moved.query.is_meta
    assert moved.surplus.is_meta
    assert moved.changed == 5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_costs_are_copied_behind_the_kernels_that_make_them(matcher):
    """Costs are made late in a busy stream and overwritten right after the start: the matching sees what they were."""
    generator = torch.Generator().manual_seed(0)
    on_cpu = [torch.rand(300, 200, generator=generator), torch.rand(50, 90, generator=generator)]
    source = [one.cuda() for one in on_cpu]
    busy = torch.rand(4096, 4096, device="cuda")
    costs = [torch.zeros_like(one) for one in source]
    for _ in range(20):
        busy = busy @ busy / 2048
    for one, real in zip(costs, source, strict=True):
        one.copy_(real)
    pending = matcher.start(costs)
    for one in costs:
        one.zero_()
    for one, matched in zip(on_cpu, pending.result(), strict=True):
        rows, columns = linear_sum_assignment(one.double().numpy())
        assert total(one, matched) == pytest.approx(one.double().numpy()[rows, columns].sum(), abs=1e-9)
    assert len(matcher.match([costs[0], on_cpu[0]])) == 2, "devices may be mixed"
