from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import hepattn.plotting
from hepattn.data.schema import Selection
from hepattn.metrics.intervals import clopper_pearson

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_kernels_are_listed_with_their_reasons():
    figure = plotting.kernels({"sdpa": True, "flash": "needs CUDA " * 20}, device="cpu")
    (table,) = figure.axes[0].tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    assert [cells[0, column] for column in range(3)] == ["kernel", "every call", "what it can't do here"]
    assert [cells[1, column] for column in range(3)] == ["sdpa", "yes", ""]
    assert (cells[2, 0], cells[2, 1]) == ("flash", "no")
    assert cells[2, 2].split() == ["needs", "CUDA"] * 20
    with pytest.raises(ValueError, match="no kernel"):
        plotting.kernels({})


def test_the_table_does_not_run_over_its_edge():
    figure = plotting.kernels({"flex": "a reason that is told at such length that it needs several lines " * 3})
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (table,) = figure.axes[0].tables
    for cell in table.get_celld().values():
        assert cell.get_text().get_window_extent(renderer).x1 <= figure.bbox.x1
        assert cell.get_text().get_window_extent(renderer).height <= cell.get_window_extent(renderer).height


def test_scores_are_counted_apart():
    scores = torch.tensor([0.05, 0.15, 0.95, 0.96, 1.0])
    target = np.array([False, False, True, True, True])
    figure = plotting.scores(scores, target, noise=[True, False, False, False, False], threshold=0.1, bins=10)
    panel = figure.axes[0]
    assert legend(panel) == [
        "on a reconstructable particle (3)",
        "on another particle (1)",
        "noise (1)",
        "threshold 0.1",
    ]
    wanted = panel.patches[0].get_data().values
    assert wanted.tolist() == [0] * 9 + [3]
    assert panel.get_xlabel() == "score"
    assert figure._repr_png_()


def test_logits_are_refused():
    with pytest.raises(ValueError, match="were logits given"):
        plotting.scores([-3.0, 2.0], [True, False])
    with pytest.raises(ValueError, match="were logits given"):
        plotting.efficiency([0.1, 1.5], [True, False])
    with pytest.raises(ValueError, match="one value a hit each"):
        plotting.scores([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="noise is one bool a hit"):
        plotting.scores([0.1, 0.2], [True, False], noise=[True])


def test_efficiency_by_hand_with_intervals():
    scores = [0.1, 0.2, 0.6, 0.7, 0.9]
    target = [False, True, False, True, True]
    figure = plotting.efficiency(scores, target, thresholds=[0.0, 0.2, 0.5, 0.95])
    panel = figure.axes[0]
    efficiency, purity = (line.get_ydata() for line in panel.lines)
    assert np.allclose(efficiency, [1, 1, 2 / 3, 0])
    assert np.allclose(purity[:3], [3 / 5, 3 / 4, 2 / 3])
    assert np.isnan(purity[3])  # nothing is kept: a gap, not a zero
    band = panel.collections[0].get_paths()[0].vertices
    low, high = clopper_pearson([3, 3, 2, 0], [3, 3, 3, 3])
    for x, edges in zip([0.0, 0.2, 0.5, 0.95], zip(low, high, strict=True), strict=True):
        drawn = band[np.isclose(band[:, 0], x), 1]
        assert np.allclose([drawn.min(), drawn.max()], edges)
    assert low[0] < 1.0  # no interval of zero width at one
    assert figure._repr_png_()


def test_hits_that_are_not_judged_are_never_kept():
    figure = plotting.efficiency([0.5, np.nan, 0.5, np.nan], [True, True, False, False], thresholds=[0.0, 0.4])
    efficiency, purity = (line.get_ydata() for line in figure.axes[0].lines)
    assert np.allclose(efficiency, 1 / 2)  # a target hit that is not judged stays in the denominator
    assert np.allclose(purity, 1 / 2)
    drawn = plotting.scores([0.5, np.nan], [True, True], bins=2).axes[0].patches[0].get_data().values
    assert drawn.tolist() == [0, 1]


def test_efficiency_of_nothing_is_a_gap():
    figure = plotting.efficiency([0.1, 0.4], [False, False])
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).all()
    assert figure._repr_png_()


def test_kept_and_lost_hits(event):
    selection = Selection(pt_min=0.9)
    scores = np.where(selection.hits(event), 0.8, 0.05)
    scores[0], scores[40] = 0.01, 0.9  # one lost, one kept that is not wanted
    figure = plotting.kept(event, scores, 0.1, selection)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "dropped, rightly (45)",
        "kept, not wanted (1)",
        "kept, wanted (35)",
        "lost (1)",
    ]
    title = figure.get_suptitle()
    assert "threshold 0.1" in title
    assert "efficiency 0.9722 [" in title
    assert "(35 of 36)" in title
    assert str(selection) in title
    lost = figure.axes[0].collections[-1]
    assert np.allclose(lost.get_offsets(), [[event.hits.x[0], event.hits.y[0]]])
    assert figure._repr_png_()


def test_hits_outside_the_volumes_are_counted_not_drawn_unless_kept(event):
    selection = Selection(pt_min=0.9, volumes=(8,))
    scores = np.where(event.hits.volume_id == 8, 0.9, 0.0)
    scores[4] = 0.9  # outside, and kept all the same
    figure = plotting.kept(event, scores, 0.5, selection)
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) == 48 + 1
    assert "33 hits outside these volumes, dropped, are not drawn" in figure.get_suptitle()
    assert "(24 of 49)" in figure.get_suptitle()


def test_lost_hits_are_large_enough_to_see_in_a_dense_event(event):
    dense = event.keep(np.tile(np.arange(82), 300))
    figure = plotting.kept(dense, np.zeros(len(dense.hits)), 0.5, Selection(pt_min=0.9))
    dropped, lost = figure.axes[0].collections
    assert dropped.get_sizes()[0] >= 1.3
    assert lost.get_sizes()[0] >= 9.0
