"""Figures of tracks: what is drawn is what the metrics count."""

from typing import Any

import numpy as np
import pytest

import hepattn.plotting
from hepattn.data import Damage, Event, Selection, Tracks, damage_tracks, sample_event, toy_event, true_tracks
from hepattn.metrics import FoundTracks, efficiency_against, match_tracks, track_metrics
from hepattn.metrics.track_matching import KINDS
from hepattn.plotting.track_panels import LETTERS, RowsPanel

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow
CUT = Selection()


def damaged(event: Event, **damage: float) -> FoundTracks:
    tracks, kept = damage_tracks(event, true_tracks(event), Damage(**damage))  # type: ignore[arg-type]
    return FoundTracks.of(event, tracks, CUT, kept)


def points(line: Any) -> set[tuple[float, float]]:
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    return {(float(a), float(b)) for a, b in zip(x, y, strict=True) if np.isfinite(a)}


def words(handles: Any) -> list[str]:
    return [text.get_text() for text in handles.get_texts()]


@pytest.fixture(scope="module")
def events() -> list[FoundTracks]:
    return [damaged(sample_event("ttbar_mu0", i), split=0.2, drop=0.1, lost=0.05) for i in range(3)]


def test_efficiency_is_drawn_with_its_intervals_and_gaps(events):
    edges = [0.9, 1.5, 3.0, 1e3, 1e4]
    figure = plotting.track_efficiency(events, "pt", edges, selection=CUT)
    (panel,) = figure.axes
    assert panel.get_xscale() == "log"
    for container, kind in zip(panel.containers, KINDS, strict=True):
        shares = efficiency_against(events, "pt", edges, kind)
        line, _, (across, up) = container
        assert np.allclose(line.get_ydata(), [share.value for share in shares], equal_nan=True)
        assert np.isnan(line.get_ydata()[-1])
        for share, segment, bar in list(zip(shares, up.get_segments(), across.get_segments(), strict=True))[:3]:
            assert np.allclose(np.sort(segment[:, 1]), share.interval)
            assert np.isclose(bar[0, 0], edges).any()
    assert str(CUT) in panel.get_title(loc="left")
    total = track_metrics(events).efficiency
    assert f"double majority ({total.passed} of {total.total})" in words(figure.legends[0])
    assert figure._repr_png_()


def test_efficiency_refuses(events):
    with pytest.raises(ValueError, match="at least one of perfect"):
        plotting.track_efficiency(events, "pt", [1, 2], kinds=())
    with pytest.raises(ValueError, match="kind is one of"):
        plotting.track_efficiency(events, "eta", [-1, 1], kinds=("half",))


def test_a_toy_shows_every_hit_once_and_every_verdict():
    event = toy_event(6, noise=0, seed=4)
    found = damaged(event, split=0.5, merge=0.4, lost=0.2)
    assert found.kept is not None
    figure = plotting.toy_matching(found, along=event.hits.s)
    left, right = figure.axes
    squares = [line for line in left.lines if line.get_marker() == "s"]
    assert sum(len(points(line)) for line in squares) == len(event.hits)
    hollow = [line for line in squares if line.get_markerfacecolor() == "white"]
    assert sum(len(points(line)) for line in hollow) == (~found.kept).sum()
    squares = [line for line in right.lines if line.get_marker() == "s"]
    shown = sum(len(points(line)) for line in squares)
    over = sum(int(text.get_text().partition("+")[2].rstrip(")") or 0) for text in right.texts)
    assert shown + over == len(found.tracks.hits)
    good, bad = (line for line in right.lines if line.get_marker() in {"o", "x"})
    matches = match_tracks(found.tracks, found.particle, 6)
    assert len(points(good)) == sum(int(matches.verdict(kind, 3).sum()) for kind in KINDS)
    assert len(points(good)) + len(points(bad)) == 3 * len(found.tracks)
    assert words(figure.legends[0]) == ["on a particle", "lost by the filter", "matched", "not matched"]
    assert "A (not to find)" in [text.get_text() for text in left.texts]
    assert figure._repr_png_()


def test_verdicts_stand_beside_their_tracks():
    particle = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1])
    tracks = Tracks.from_hits([[4, 5, 6, 7], [0, 1, 2, 8]], 9)
    figure = plotting.toy_matching(FoundTracks(tracks, particle, np.array([True, True])))
    right = figure.axes[1]
    good, bad = (line for line in right.lines if line.get_marker() in {"o", "x"})
    # the rows follow the particles: first the track of A, three of four hits; LHC asks for more
    assert sorted(row for _, row in points(good)) == [0, 1, 1, 1]
    assert sorted(row for _, row in points(bad)) == [0, 0]
    assert "noise" in words(figure.legends[0])


def test_some_particles_of_a_large_event(events):
    rows = np.flatnonzero(events[0].reconstructable)[:5]
    figure = plotting.toy_matching(events[0], rows)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert [name for name in names if name] == list(LETTERS[:5])
    assert "on another particle" in words(figure.legends[0])
    with pytest.raises(ValueError, match="at most 16"):
        plotting.toy_matching(events[0], np.arange(17))


def test_rows_without_room_say_so():
    figure, (panel,) = hepattn.plotting.style.canvas()
    rows = RowsPanel(panel, 1)
    rows.show(["1"], [[(0, True)] * 20])
    assert rows.words[0].get_text() == "1 (+5)"
    assert figure.axes == [panel]


@pytest.mark.parametrize("kind", KINDS)
def test_the_display_draws_matched_fake_and_missed(kind):
    event = sample_event("ttbar_mu0", 1)
    found = damaged(event, split=0.3, merge=0.2, drop=0.2)
    figure = plotting.found_tracks(event, found, kind, selection=CUT)
    assert len(figure.axes) == 2
    dots, missed, good, fakes = figure.axes[0].lines
    assert len(points(dots)) == len(set(zip(event.hits.x.tolist(), event.hits.y.tolist(), strict=True)))
    matches = found.matches()
    verdict = matches.verdict(kind, 3)
    on = matches.tracks_on(kind, 3)
    want = {
        id(good): np.concatenate([track.hits for track, one in zip(found.tracks, verdict, strict=True) if one]),
        id(fakes): np.concatenate(
            [track.hits for track, one in zip(found.tracks, verdict, strict=True) if not one and len(track) >= 3]
        ),
        id(missed): np.flatnonzero(np.append(found.reconstructable & (on == 0), False)[found.particle]),
    }
    for line in (good, fakes, missed):
        rows = want[id(line)]
        assert points(line) == {(float(event.hits.x[row]), float(event.hits.y[row])) for row in rows}
    number = int((found.reconstructable & (on == 0)).sum())
    assert f"particles missed ({number})" in words(figure.legends[0])
    total = int(found.reconstructable.sum())
    assert f"({total - number} of {total})" in figure.get_suptitle()
    # of each track from the inside out, with a gap between tracks
    x, y = (np.asarray(values, dtype=float) for values in good.get_data())
    assert np.isnan(x).sum() == verdict.sum()
    first = next(track for track, one in zip(found.tracks, verdict, strict=True) if one)
    order = first.hits[np.argsort(event.hits.s[first.hits])]
    assert np.allclose(y[: len(first)], event.hits.y[order])


def test_the_display_of_nothing_and_of_another_event():
    event = toy_event(3)
    none = FoundTracks.of(event, Tracks.from_hits([], len(event.hits)), CUT)
    assert "(0 of 2)" in plotting.found_tracks(event, none, views=("rz",)).get_suptitle()
    with pytest.raises(ValueError, match="its tracks know"):
        plotting.found_tracks(toy_event(4), none)
