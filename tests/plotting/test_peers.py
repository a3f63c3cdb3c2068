"""Figures of two finders: what is drawn is what is counted."""

from typing import Any

import numpy as np
import pytest

import hepattn.plotting
from hepattn.data import Damage, Selection, damage_tracks, sample_event, true_tracks
from hepattn.metrics import FoundTracks, Peers, peer_edges
from hepattn.metrics.tracks import Quantity
from hepattn.plotting.peers import EfficiencyPanel, GroupPanel, group_handles, groups_of_hits, words
from hepattn.plotting.track_panels import DetectorPanel

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow
CUT = Selection(1.0, 2.5, 3)


@pytest.fixture(scope="module")
def of() -> Peers:
    event = sample_event(index=1)
    found = {}
    for seed, name in enumerate(("one", "other")):
        tracks, _ = damage_tracks(event, true_tracks(event), Damage(split=0.3, drop=0.2, seed=seed))
        found[name] = [FoundTracks.of(event, tracks, CUT)]
    return Peers.of(found)


def test_points_intervals_and_gaps_are_the_fractions(of):
    figure = plotting.peers(of, 1.0, 2.5, wanted=str(CUT))
    left, middle, right = figure.axes
    assert left.get_xscale() == "log"
    assert left.get_xlabel().startswith("true pT [GeV]")
    drawn_in: list[tuple[Any, Quantity]] = [(left, "pt"), (middle, "eta")]
    for ax, quantity in drawn_in:
        edges = peer_edges(quantity, 1.0, 2.5)
        for side in (0, 1):
            bins, intervals, values = (ax.lines[3 * side + k] for k in range(3))
            shares = of.efficiency_against(side, quantity, edges)
            assert np.array_equal(values.get_ydata(), [share.value for share in shares], equal_nan=True)
            low, high = np.transpose([share.interval for share in shares])
            drawn = np.asarray(intervals.get_ydata()).reshape(-1, 3)
            assert np.array_equal(drawn[:, :2], np.stack([low, high], 1), equal_nan=True)
            assert np.isnan(drawn[:, 2]).all()
            assert np.array_equal(np.asarray(bins.get_xdata()).reshape(-1, 3)[:, 0], edges[:-1])
            x = np.asarray(values.get_xdata())
            assert ((edges[:-1] < x) & (x < edges[1:])).all()
            assert ax.get_ylim()[0] < np.nanmin(values.get_ydata())
    assert str(CUT) in figure.get_suptitle()
    assert f"{int(of.wanted.sum())} particles of 1 event\n" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"{name}: {words(of.efficiency(side))}" for side, name in enumerate(of.names)]
    texts = [text.get_text() for text in right.texts]
    assert texts == [words(share) for share in of.shares().values()]
    assert [label.get_text() for label in right.get_yticklabels()] == ["both", "only\none", "only\nother", "neither"]
    assert figure._repr_png_()


def test_finders_differ_in_colour_and_marker_and_stand_apart(of):
    left = plotting.peers(of, 1.0, 2.5).axes[0]
    first, second = left.lines[2], left.lines[5]
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()
    assert (np.asarray(first.get_xdata()) < np.asarray(second.get_xdata())).all()


def test_a_group_of_none_has_an_interval_and_no_point(of):
    _, (ax,) = plotting.style.canvas()
    nobody = of.among(of.groups()["both"])
    panel: Any = GroupPanel(ax, list(nobody.shares()))
    panel.show(nobody.shares())
    assert [len(point.get_xdata()) for point in panel.points] == [1, 0, 0, 0]
    assert panel.points[0].get_xdata()[0] == nobody.wanted.sum()
    high = nobody.shares()["neither"].interval[1] * nobody.wanted.sum()
    assert panel.intervals[3].get_xdata()[1] == high


def test_without_a_particle_all_is_empty(of):
    empty = of.among(np.zeros_like(of.wanted))
    figure = plotting.peers(empty, 1.0, 2.5)
    assert all(np.isnan(line.get_ydata()).all() for line in figure.axes[0].lines)
    assert figure.axes[2].texts[0].get_text() == "- (0 of 0)"
    assert figure._repr_png_()


def test_no_artist_is_made_when_a_panel_moves(of):
    _, (ax,) = plotting.style.canvas()
    panel = EfficiencyPanel(ax, "eta")
    made = [id(line) for line in ax.lines]
    for eta in (2.5, 1.0):
        panel.show(of, peer_edges("eta", 1.0, eta))
        assert ax.get_xlim() == (-eta, eta)
    assert [id(line) for line in ax.lines] == made


def test_hits_are_those_of_particles_that_one_alone_or_neither_found(of):
    event = sample_event(index=1)
    assert event.hits.particle is not None
    groups = of.groups()
    for hits, name in zip(groups_of_hits(event, of), ("neither", "only one", "only other"), strict=True):
        assert sorted({int(event.hits.particle[rows[0]]) for rows in hits}) == np.flatnonzero(groups[name]).tolist()
        for rows in hits:
            owner = event.hits.particle[rows[0]]
            assert sorted(rows.tolist()) == np.flatnonzero(event.hits.particle == owner).tolist()
            assert (np.diff(event.hits.s[rows]) >= 0).all()
    hardest = groups_of_hits(event, of, most=2)
    for few, name in zip(hardest, ("neither", "only one", "only other"), strict=True):
        rows = np.flatnonzero(groups[name])
        expected = rows[np.argsort(of.pt[rows])[-2:]]
        assert {int(event.hits.particle[hits[0]]) for hits in few} == set(expected.tolist())
    with pytest.raises(ValueError, match="doesn't have the"):
        groups_of_hits(sample_event(index=2), of)


def test_the_legend_tells_what_the_detector_panel_draws(of):
    _, (ax,) = plotting.style.canvas()
    neither, first, second = DetectorPanel(ax, "xy").lines
    handles = group_handles(of.names)
    for handle, line in zip(handles, (first, second, neither), strict=False):
        assert (handle.get_color(), handle.get_marker(), handle.get_linestyle()) == (
            line.get_color(),
            line.get_marker(),
            line.get_linestyle(),
        )
    assert [handle.get_label() for handle in handles[:3]] == [
        "found only by one",
        "found only by other",
        "found by neither",
    ]
