"""Figures of windows: the curves that they draw are the metrics', and what they refuse."""

import numpy as np
import pytest

from hepattn.data.ordering import hit_order, ordered_owner
from hepattn.data.schema import Selection
from hepattn.metrics.attention import pair_recall, whole_particles
from hepattn.plotting.windows import window_auc, window_cost, window_recall

SIZES = (2, 8, 32, 128)


@pytest.mark.parametrize(("whole", "count"), [(False, pair_recall), (True, whole_particles)])
def test_recall_curves_are_the_metrics(event, whole, count):
    cuts = [Selection(pt_min=0.1), Selection(pt_min=0.9)]
    figure = window_recall({"a": event, "b": event}, cuts, whole=whole, windows=SIZES)
    assert [ax.get_title("left") for ax in figure.axes] == ["a: 82 hits", "b: 82 hits"]
    lines = iter(figure.axes[1].lines)
    for cut in cuts:
        owner = ordered_owner(event, hit_order(event.hits), cut)
        for wrap in (True, False):
            drawn = np.asarray(next(lines).get_xydata())
            assert tuple(drawn[:, 0]) == SIZES
            assert list(drawn[:, 1]) == [one.value for one in count(owner, SIZES, wrap=wrap)]
    assert len(figure.axes[1].collections) == (2 if whole else 0)  # intervals, of particles only


def test_one_curve_an_order(event):
    figure = window_recall({"a": event}, Selection(), ("phi", "hilbert", "random"), wraps=[True], windows=SIZES)
    assert len({line.get_color() for line in figure.axes[0].lines}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["φ", "Hilbert (φ, η)", "random"]
    with pytest.raises(ValueError, match="not both"):
        window_recall({"a": event}, [Selection(), Selection(pt_min=2)], ("phi", "random"))


def test_auc_and_cost():
    figure = window_auc({"8": (0.7, 0.65, 0.75), "128": (0.9, 0.88, 0.93), "all": (0.8, 0.7, 0.85)}, "128", "2 events")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["8", "128", "all"]
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), [0.7, 0.9, 0.8])
    figure = window_cost({1024: {"all": 4.0, "window": 2.0}, 2048: {"all": 16.0, "window": 4.0}}, "title")
    assert [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines] == [[4.0, 16.0], [2.0, 4.0]]
