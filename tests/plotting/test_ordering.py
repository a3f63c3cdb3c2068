"""Figures of orders: cells, eighths, maps and curves are those of the keys and metrics."""

import numpy as np
import pytest

from hepattn.data.ordering import ORDERS, hit_order, ordered_owner
from hepattn.data.schema import Selection
from hepattn.metrics.attention import block_pairs, pair_recall, window_blocks
from hepattn.metrics.intervals import Fraction
from hepattn.plotting.ordering import PARTS, best_blocks, block_maps, block_recall, curves, percent, places


def test_curves_visit_every_cell():
    figure = curves(2)
    for ax, name in zip(figure.axes, ("φ", "Morton (φ, η)", "Hilbert (φ, η)", "random"), strict=False):
        assert ax.get_title("left") == name
        assert len({tuple(cell) for cell in np.asarray(ax.lines[0].get_xydata())}) == 16
    cells = np.asarray(figure.axes[2].lines[0].get_xydata())
    assert (np.abs(np.diff(cells, axis=0)).sum(axis=1) == 1).all()
    with pytest.raises(ValueError, match="1 to 6 bits"):
        curves(9)


def test_eighths_hold_all_hits(event):
    figure = places(event, ("phi",))
    lines = figure.axes[0].lines
    assert len(lines) == PARTS
    eta = np.concatenate([np.asarray(line.get_xdata()) for line in lines])
    assert np.array_equal(eta, event.hits.eta[hit_order(event.hits)])


def test_maps_of_blocks(event):
    figure = block_maps(event, Selection(), size=8)
    for ax, order in zip(figure.axes, ORDERS, strict=False):
        found = block_pairs(ordered_owner(event, hit_order(event.hits, order), Selection()), 8)
        assert np.array_equal(np.asarray(ax.images[0].get_array()), found.image())
        assert percent(found.active) in ax.get_title("left")


def test_recall_against_blocks(event):
    figure = block_recall(event, Selection(), ("phi",), size=8, windows=(4, 16))
    owner = ordered_owner(event, hit_order(event.hits), Selection())
    best, local = figure.axes[0].lines
    assert np.allclose(np.transpose(best.get_xydata()), best_blocks(block_pairs(owner, 8)))
    assert np.asarray(best.get_ydata())[-1] == 1
    wanted = [[window_blocks(82, w, 8).value for w in (4, 16)], [one.value for one in pair_recall(owner, (4, 16))]]
    assert np.allclose(np.transpose(local.get_xydata()), wanted)


def test_percent():
    assert percent(Fraction(1, 200)) == "0.5 %"
    assert percent(Fraction(0, 0)) == "-"
