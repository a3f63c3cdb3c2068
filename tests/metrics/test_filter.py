import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.metrics import (
    Fraction,
    ScoredEvent,
    at_efficiency,
    at_purity,
    filter_metrics,
    roc_auc,
    roc_auc_delong,
    roc_auc_events,
    threshold_at_efficiency,
    threshold_at_purity,
)
from hepattn.metrics.filter import _weighted_auc


def toy() -> ScoredEvent:
    # kept at 0.5: three of particle 0's four target hits, two of particle 1's three;
    # particle 2 isn't reconstructable; the last two hits are noise
    return ScoredEvent(
        scores=np.array([0.9, 0.8, 0.5, 0.4, 0.9, 0.5, 0.1, 0.7, 0.2, 0.6, 0.3]),
        target=np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0], dtype=bool),
        particle=np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, -1, -1]),
        reconstructable=np.array([True, True, False]),
    )


def scored(rng: np.random.Generator, n: int, shift: float = 1.0) -> ScoredEvent:
    target = rng.random(n) < 0.4
    scores = np.round(rng.normal(size=n) + shift * target, 1)
    return ScoredEvent(scores, target, np.where(target, 0, -1), np.array([True]))


def test_toy_counts_by_hand():
    got = filter_metrics([toy()], threshold=0.5)
    assert got.efficiency == Fraction(5, 7)
    assert got.purity == Fraction(5, 7)
    assert got.kept == Fraction(7, 11)
    assert got.retention == Fraction(1, 2)
    assert "retention" in str(got)


def test_lost_particles_stay_in_the_denominator():
    got = filter_metrics([toy()], threshold=2.0)
    assert got.retention == Fraction(0, 2)
    assert got.purity.total == 0
    assert math.isnan(got.purity.value)
    assert filter_metrics([], 0.5).efficiency == Fraction(0, 0)


def test_noise_is_never_counted_as_the_last_particle():
    event = ScoredEvent(np.ones(4), np.zeros(4, dtype=bool), np.full(4, -1), np.array([True]))
    assert filter_metrics([event], 0.5).retention == Fraction(0, 1)


def test_events_are_summed():
    both = filter_metrics([toy(), toy()], 0.5)
    assert both.retention == Fraction(2, 4)
    assert both.kept == Fraction(14, 22)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_auc_against_all_pairs(hits):
    s, y = np.array([h[0] for h in hits], dtype=float), np.array([h[1] for h in hits])
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in s[y] for n in s[~y]]
    if pairs:
        assert roc_auc(s, y) == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert math.isnan(roc_auc(s, y))


def test_auc_by_hand():
    assert roc_auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == pytest.approx(0.75)
    assert roc_auc([1, 1, 1], [True, False, True]) == 0.5


def test_delong_against_the_definition():
    rng = np.random.default_rng(1)
    event = scored(rng, 60)
    p, n = event.scores[event.target], event.scores[~event.target]
    psi = (p[:, None] > n) + 0.5 * (p[:, None] == n)
    variance = psi.mean(1).var(ddof=1) / len(p) + psi.mean(0).var(ddof=1) / len(n)
    got = roc_auc_delong(event.scores, event.target, level=0.6826894921)
    assert got.high - got.low == pytest.approx(2 * math.sqrt(variance), rel=1e-6)
    assert math.isnan(roc_auc_delong([1.0, 2.0], [True, False]).low)


def test_weighted_auc_is_the_auc_of_repeated_hits():
    rng = np.random.default_rng(2)
    event = scored(rng, 80)
    times = rng.integers(0, 4, size=80)
    order = np.argsort(event.scores, kind="stable")
    ties = np.append(0, np.cumsum(np.diff(event.scores[order]) != 0))
    got = _weighted_auc(event.target[order], ties, times[order].astype(float))
    assert got == pytest.approx(roc_auc(np.repeat(event.scores, times), np.repeat(event.target, times)))


def test_event_bootstrap_is_wider_when_events_differ():
    rng = np.random.default_rng(3)
    same = [scored(rng, 300) for _ in range(12)]
    mixed = [scored(rng, 300, shift=0.2 + 0.2 * i) for i in range(12)]
    a, b = roc_auc_events(same), roc_auc_events(mixed)
    assert a.low < a.value < a.high
    assert b.high - b.low > 2 * (a.high - a.low)
    assert "12 events" in a.method
    assert "DeLong" in roc_auc_events(same[:2]).method
    assert roc_auc_events(same) == a


def test_thresholds_by_hand():
    s, y = [0.9, 0.8, 0.8, 0.3, 0.2], [True, True, False, True, False]
    assert threshold_at_efficiency(s, y, 0.5) == 0.8
    assert threshold_at_efficiency(s, y, 1 / 3) == 0.9
    assert threshold_at_efficiency(s, y, 1.0) == 0.3
    assert threshold_at_purity(s, y, 0.75) == 0.3
    assert threshold_at_purity(s, y, 1.0) == 0.9
    assert math.isnan(threshold_at_purity(s, [False] * 5, 0.1))
    assert math.isnan(threshold_at_efficiency(s, [False] * 5, 0.1))
    with pytest.raises(ValueError, match="efficiency"):
        threshold_at_efficiency(s, y, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.floats(0.05, 1.0))
def test_thresholds_against_trying_all(hits, wanted):
    s, y = np.array([h[0] for h in hits], dtype=float), np.array([h[1] for h in hits])
    tried = [(t, y[s >= t].sum() / max(y.sum(), 1), y[s >= t].mean()) for t in np.unique(s)]
    efficient = [t for t, eff, _ in tried if eff >= wanted - 1e-9]
    pure = [t for t, _, pur in tried if pur >= wanted - 1e-9]
    if y.any():
        assert threshold_at_efficiency(s, y, wanted) == max(efficient)
    got = threshold_at_purity(s, y, wanted)
    assert got == min(pure) if pure else math.isnan(got)


def test_operating_points():
    events = [toy(), toy()]
    assert at_efficiency(events, 0.7).efficiency.value >= 0.7
    assert at_purity(events, 0.8).purity.value >= 0.8
    assert at_purity(
        [ScoredEvent(np.ones(2), np.zeros(2, dtype=bool), np.full(2, -1), np.zeros(0, dtype=bool))], 0.5
    ).kept == Fraction(0, 2)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one entry a hit"):
        ScoredEvent(np.ones(3), np.ones(2, dtype=bool), np.zeros(3, dtype=int), np.ones(1, dtype=bool))
