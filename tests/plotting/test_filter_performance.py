"""What is drawn of fractions in bins is what the metrics count; an empty bin is a gap."""

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from hepattn.data.schema import Selection
from hepattn.metrics.by_particle import QUANTITIES, JudgedEvents
from hepattn.plotting import performance_by, turn_on


@pytest.fixture
def judged(event) -> JudgedEvents:
    scores = np.random.default_rng(0).uniform(size=len(event.hits))
    return JudgedEvents.of([event], [scores], Selection(pt_min=0.2))


@pytest.mark.parametrize("by", QUANTITIES)
def test_panels_draw_the_fractions_their_intervals_and_counts(judged, by):
    figure = performance_by(judged, by, threshold=0.4, bins=5, name="some filter")
    tops, bottoms = figure.axes[:3], figure.axes[3:]
    edges, everyone = judged.edges(by, 5), judged.edges(by, 5, everyone=True)
    expected = [judged.efficiency(by, edges, 0.4), judged.purity(by, everyone, 0.4), judged.retention(by, edges, 0.4)]
    for top, bottom, fractions in zip(tops, bottoms, expected, strict=True):
        across, up, points = (np.asarray(line.get_ydata(), dtype=float) for line in top.lines)
        assert np.array_equal(points, [one.value for one in fractions], equal_nan=True)
        assert np.array_equal(across[::3], points, equal_nan=True)
        assert np.array_equal(np.stack([up[::3], up[1::3]], 1), [one.interval for one in fractions], equal_nan=True)
        assert np.isnan(up[2::3]).all()  # nothing is drawn from bin to bin
        passed, total = (one.get_data()[0] for one in bottom.patches if isinstance(one, StepPatch))
        assert np.array_equal(total, np.maximum([one.total for one in fractions], 0.5))
        assert np.array_equal(passed, np.maximum([one.passed for one in fractions], 0.5))
    title = figure.get_suptitle()
    assert "some filter, 1 event: hits kept with score ≥ 0.4" in title
    assert str(judged.selection) in title


def test_nothing_kept_is_a_gap(judged):
    figure = performance_by(judged, threshold=1.5)
    efficiency, purity, _ = (np.asarray(top.lines[2].get_ydata(), dtype=float) for top in figure.axes[:3])
    assert np.isnan(purity).all()
    assert set(efficiency[~np.isnan(efficiency)]) == {0.0}


def test_turn_on_draws_both_sides_of_the_cut(judged):
    figure = turn_on({"a": judged, "b": judged}, {"a": 0.4, "b": 0.6}, bins=6)
    edges = judged.edges("pt", 6, everyone=True)
    for line, threshold in zip(figure.axes[0].lines, (0.4, 0.6), strict=False):
        drawn = np.asarray(line.get_ydata(), dtype=float)
        assert np.array_equal(drawn, [one.value for one in judged.kept("pt", edges, threshold)], equal_nan=True)
    assert edges[0] < judged.selection.pt_min < edges[-1]
    assert np.asarray(figure.axes[0].lines[2].get_xdata())[0] == judged.selection.pt_min
    with pytest.raises(ValueError, match="no judged events"):
        turn_on({}, {})
