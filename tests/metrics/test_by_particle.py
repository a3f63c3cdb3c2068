"""Efficiency, purity and retention in bins against loops over hits and particles, and against the totals."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.data import Event, Selection, sample_event
from hepattn.metrics import Fraction, ScoredEvent, filter_metrics
from hepattn.metrics.by_particle import QUANTITIES, JudgedEvents, particle_hold, who_is_lost


def scores(event: Event, seed: int = 0) -> np.ndarray:
    """Of few different values, so that there are ties; the particles' hits score higher."""
    assert event.hits.particle is not None
    rng = np.random.default_rng(seed)
    return np.round(np.clip(rng.uniform(0, 0.7, len(event.hits)) + 0.3 * (event.hits.particle >= 0), 0, 1), 1)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    """Two events, the second with every fifth hit made noise."""
    one, two = sample_event(index=1), sample_event(index=2)
    assert two.hits.particle is not None
    noisy = np.where(np.arange(len(two.hits)) % 5 == 0, -1, two.hits.particle)
    return [one, replace(two, hits=replace(two.hits, particle=noisy))]


@pytest.fixture(scope="module", params=[Selection(), Selection(0.5, 2.5, 4, (7, 8, 9))], ids=str)
def judged(request: pytest.FixtureRequest, events: list[Event]) -> JudgedEvents:
    return JudgedEvents.of(events, [scores(one) for one in events], request.param)


def scored(events: list[Event], selection: Selection) -> list[ScoredEvent]:
    found = []
    for one in events:
        assert one.hits.particle is not None
        inside = selection.in_volumes(one.hits)
        target = selection.hits(one)[inside]
        found.append(ScoredEvent(scores(one)[inside], target, one.hits.particle[inside], selection.particles(one)))
    return found


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_hold_is_the_score_of_the_third_best_hit(data):
    n, p = data.draw(st.integers(0, 25)), 4
    owner = np.array(data.draw(st.lists(st.integers(-1, p - 1), min_size=n, max_size=n)), dtype=np.int64)
    target = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool) & (owner >= 0)
    values = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), dtype=np.float64)
    least = data.draw(st.integers(1, 4))
    got = particle_hold(ScoredEvent(values, target, owner, np.ones(p, dtype=bool)), least)
    for row in range(p):
        best = sorted(values[target & (owner == row)], reverse=True)
        assert got[row] == (best[least - 1] if len(best) >= least else -np.inf)


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 0.9, 1.5])
def test_totals_are_those_of_filter_metrics(events, judged, threshold):
    assert judged.at(threshold) == filter_metrics(scored(events, judged.selection), threshold)


@pytest.mark.parametrize("by", QUANTITIES)
@pytest.mark.parametrize("everyone", [False, True])
def test_bins_against_loops(events, judged, by, everyone):
    threshold, selection = 0.6, judged.selection
    edges = judged.edges(by, 7, everyone=everyone)
    assert (np.diff(edges) > 0).all()
    counts = np.zeros((4, 2, len(edges) - 1), dtype=int)  # efficiency, purity, retention, kept; passed, total

    def add(kind: int, value: float, passed: bool) -> None:
        place = min(max(int(np.searchsorted(edges, value, side="right")) - 1, 0), len(edges) - 2)
        counts[kind, 0, place] += int(passed)
        counts[kind, 1, place] += 1

    for one in events:
        hits, particles, judgement = one.hits, one.particles, scores(one)
        assert hits.particle is not None
        assert particles is not None
        good = selection.particles(one)
        inside = [selection.volumes is None or int(v) in selection.volumes for v in hits.volume_id]
        values = {
            "pt": np.hypot(particles.px, particles.py),
            "eta": np.arcsinh(particles.pz / np.hypot(particles.px, particles.py)),
            "hits": np.bincount(hits.particle[inside & (hits.particle >= 0)], minlength=len(particles)),
            "radius": np.hypot(particles.vx, particles.vy),
        }[by]
        left = np.zeros(len(particles), dtype=int)
        for i in np.flatnonzero(inside):
            row, kept = hits.particle[i], bool(judgement[i] >= threshold)
            target = bool(row >= 0 and good[row])
            left[row] += target and kept
            if target:
                add(0, values[row], kept)
            if kept and (by == "eta" or row >= 0):
                add(1, hits.eta[i] if by == "eta" else values[row], target)
            if row >= 0:
                add(3, values[row], kept)
        for row in np.flatnonzero(good):
            add(2, values[row], left[row] >= 3)
    found = (judged.efficiency, judged.purity, judged.retention, judged.kept)
    for kind, ask in enumerate(found):
        assert ask(by, edges, threshold) == [Fraction(int(k), int(n)) for k, n in counts[kind].T], ask.__name__


def test_no_hit_and_no_particle_leaves_the_bins(judged):
    for by in QUANTITIES:
        edges = judged.edges(by, 5)
        assert sum(one.total for one in judged.efficiency(by, edges, 0.5)) == judged.target.sum()
        assert sum(one.total for one in judged.retention(by, edges, 2.0)) == len(judged.hold)
        kept = sum(one.total for one in judged.purity(by, edges, 0.5))
        assert kept == judged.at(0.5).kept.passed - (by != "eta") * judged.noise_kept(0.5).passed
    noise = int((judged.of_particle["pt"] != judged.of_particle["pt"]).sum())
    assert judged.noise_kept(0.0) == Fraction(noise, noise)
    assert noise > 0


def test_the_cuts_are_edges(judged):
    cut = judged.selection
    for everyone in (False, True):
        assert np.isclose(judged.edges("pt", 9, everyone=everyone), cut.pt_min).any()
        assert (judged.edges("hits", 9, everyone=everyone) == cut.min_hits - 0.5).any()
    assert judged.edges("pt", 9)[0] == cut.pt_min
    assert judged.edges("pt", 9, everyone=True)[0] <= 0.1
    with pytest.raises(ValueError, match="at least two bins, not 1"):
        judged.edges("eta", 1)


def test_who_is_lost_counts_and_refuses(judged):
    threshold = 0.8
    soft = judged.particles["pt"] < 1.0
    table = who_is_lost(judged, threshold, {"soft": soft, "none": np.zeros(len(soft), dtype=bool)})
    held = judged.hold >= threshold
    assert f"({(held & soft).sum()} of {soft.sum()})" in table["retained"]["soft"]
    assert f"({(~held & soft).sum()} of {(~held).sum()})" in table["of the lost"]["soft"]
    assert table["retained"]["none"] == "- (0 of 0)"
    assert f"({held.sum()} of {len(held)})" in table["retained"]["all"]
    with pytest.raises(ValueError, match="'short' is one bool for each"):
        who_is_lost(judged, threshold, {"short": soft[:-1]})


def test_refusals(events):
    with pytest.raises(ValueError, match="no event"):
        JudgedEvents.of([], [], Selection())
    with pytest.raises(ValueError, match="one score for each"):
        JudgedEvents.of(events[:1], [[0.5]], Selection())
    missing = scores(events[0])
    missing[3] = np.nan
    with pytest.raises(ValueError, match="1 hits in the selected volumes have no score"):
        JudgedEvents.of(events[:1], [missing], Selection())
    with pytest.raises(ValueError, match="min_hits is at least 1"):
        particle_hold(ScoredEvent(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=int), np.ones(1, bool)), 0)
