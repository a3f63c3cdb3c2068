"""The explorer of a filter's performance by its state, against the metrics."""

import re

import numpy as np
import pytest

from hepattn.data import Selection, sample_event
from hepattn.metrics.by_particle import QUANTITIES, JudgedEvents
from hepattn.widgets import PerformanceExplorer


@pytest.fixture(scope="module")
def judged() -> dict[str, JudgedEvents]:
    events = [sample_event(index=1), sample_event(index=2)]
    found = {}
    for name, pull in (("good", 0.5), ("bad", 0.1)):
        rng, selection = np.random.default_rng(0), Selection()
        scores = [(1 - pull) * rng.uniform(size=len(one.hits)) + pull * selection.hits(one) for one in events]
        found[name] = JudgedEvents.of(events, scores, selection)
    return found


def counts(explorer: PerformanceExplorer) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in re.findall(r"\((\d+) of (\d+)\)", explorer.numbers.value)]


@pytest.mark.parametrize("by", QUANTITIES)
@pytest.mark.parametrize("name", ["good", "bad"])
def test_picture_and_numbers_are_the_metrics(judged, name, by):
    explorer = PerformanceExplorer(judged)
    explorer.filter, explorer.quantity, explorer.bins, explorer.threshold = name, by, 8, 0.5
    explorer.draw()
    of = judged[name]
    drawn = np.asarray(explorer.panels.panels[0].values.get_ydata(), dtype=float)
    expected = [one.value for one in of.efficiency(by, of.edges(by, 8), 0.5)]
    assert np.array_equal(drawn, expected, equal_nan=True)
    whole = of.at(0.5)
    fractions = (whole.efficiency, whole.purity, whole.kept, whole.retention, of.noise_kept(0.5))
    assert counts(explorer) == [(one.passed, one.total) for one in fractions]


def test_the_cut_is_a_threshold_or_a_wanted_efficiency(judged):
    explorer = PerformanceExplorer(judged)
    explorer.threshold = 0.25
    assert explorer.cut() == 0.25
    explorer.by, explorer.target = "target", 0.9
    assert explorer.cut() == judged["good"].threshold_at(0.9)
    passed, total = counts(explorer)[0]
    assert passed == int(np.ceil(0.9 * total))
    explorer.by = "threshold"
    assert explorer.cut() == 0.25


def test_every_control_moves_the_picture_and_no_artist_is_made(judged):
    explorer = PerformanceExplorer(judged)
    explorer.draw()
    made = [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]
    seen = {bytes(explorer.picture.value)}
    moves = [("threshold", 0.5), ("quantity", "eta"), ("bins", 20), ("filter", "bad"), ("by", "target")]
    for name, value in [*moves, ("target", 0.85), ("quantity", "hits"), ("quantity", "radius"), ("quantity", "pt")]:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()] == made, name


def test_scores_are_judged_once(judged, monkeypatch):
    explorer = PerformanceExplorer(judged)
    monkeypatch.setattr(JudgedEvents, "of", None)
    explorer.threshold = 1.0
    assert explorer.drawings == 1


def test_refusals(judged):
    with pytest.raises(ValueError, match="no filter to explore"):
        PerformanceExplorer({})
    explorer = PerformanceExplorer(judged)
    with pytest.raises(ValueError, match="quantity is one of 'pt', 'eta'"):
        explorer.quantity = "phi"
    with pytest.raises(ValueError, match="threshold lies between"):
        explorer.threshold = 2.0
