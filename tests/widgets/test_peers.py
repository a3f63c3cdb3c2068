"""The explorer of two finders by its state, against the metrics."""

import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hepattn.bench.peers import Side, Wanted, judge
from hepattn.data import Damage, Event, Selection, Tracks, damage_tracks, sample_event, true_tracks
from hepattn.widgets import PeerExplorer

PIXELS = Selection(1.0, 4.0, 3, (7, 8, 9))
COMMON = Wanted("common", Selection(1.0, 2.5, 7), prompt=True)
OWN = Wanted("own", PIXELS, prompt=False)


def finder(seed: int, volumes: tuple[int, ...] | None) -> Side:
    def find(event: Event) -> Tracks:
        true = true_tracks(event, Selection(0.6, 4.0, 3, volumes))
        return damage_tracks(event, true, Damage(split=0.2, drop=0.2, seed=seed))[0]

    return Side(f"finder {seed}", find, Selection(1.0, 4.0, 3, volumes))


SIDES = [finder(1, None), finder(2, None)]


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return [sample_event(index=1), sample_event(index=2)]


@pytest.fixture
def explorer(events) -> PeerExplorer:
    tracks = {side.name: [side.find(event) for event in events] for side in SIDES}
    seconds = {side.name: [1.25, 2.5] for side in SIDES}
    return PeerExplorer(events, SIDES, tracks, [COMMON, OWN], seconds)


def row(explorer: PeerExplorer, label: str) -> list[str]:
    (cells,) = re.findall(rf"<tr><td>{re.escape(label)}.*?</td>(.*?)</tr>", explorer.numbers.value)
    return re.findall(r"<td>(.*?)</td>", cells)


def test_numbers_are_those_of_the_comparison(explorer, events):
    explorer.draw()
    for index in (0, 1):
        for wanted in (COMMON, OWN):
            explorer.event, explorer.wanted = index, wanted.name
            judged = [judge(side, [events[index]], [side.find(events[index])], wanted) for side in SIDES]
            assert row(explorer, "efficiency, double majority") == [str(one.efficiency) for one in judged]
            assert row(explorer, "efficiency, perfect") == [str(one.efficiency_perfect) for one in judged]
            assert row(explorer, "fakes") == [str(one.fakes) for one in judged]
    assert row(explorer, "seconds") == ["2.5", "2.5"]
    assert str(OWN) in explorer.title.get_text()


def test_cuts_say_who_counts_and_where_bins_lie(explorer, events):
    explorer.pt_min, explorer.eta_max = 1.5, 2.0
    wanted = Wanted("common", Selection(1.5, 2.0, 7), prompt=True)
    assert explorer.counted() == wanted
    of = explorer.shown()
    assert np.array_equal(of.wanted, wanted.particles(events[0]))
    assert explorer.against_pt.ax.get_xlim()[0] == 1.5
    assert explorer.against_eta.ax.get_xlim() == (-2.0, 2.0)
    drawn = np.asarray(explorer.against_eta.values[1].get_ydata(), dtype=float)
    edges = np.linspace(-2, 2, 11)
    expected = [share.value for share in of.efficiency_against(1, "eta", edges)]
    assert np.array_equal(drawn, expected, equal_nan=True)
    explorer.eta_max = 4.0
    assert explorer.counted().selection.eta_max == 2.5  # what the particles were chosen by goes first
    explorer.pt_min = 0.5
    looser = Wanted("common", Selection(0.5, 2.5, 7), prompt=True)
    assert np.array_equal(explorer.shown().wanted, looser.particles(events[0]))


def test_lines_in_the_detector_are_the_particles_on_whom_they_do_not_agree(explorer, monkeypatch):
    explorer.draw()
    assert "In the detector" not in explorer.numbers.value
    neither, first, second = (np.isnan(line.get_xdata()).sum() for line in explorer.detector.lines)
    shares = list(explorer.shown().shares().values())
    assert (first, second, neither) == tuple(share.passed for share in shares[1:])
    monkeypatch.setattr("hepattn.widgets.peers.DRAWN", 1)
    explorer.draw()
    assert [np.isnan(line.get_xdata()).sum() for line in explorer.detector.lines] == [1, 1, 1]
    assert "of each group the 1 particles of highest pT" in explorer.numbers.value


def test_every_control_moves_the_picture_and_no_artist_is_made(explorer):
    explorer.draw()
    made = [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]
    seen = {bytes(explorer.picture.value)}
    moves: Sequence[tuple[str, Any]] = [
        ("pt_min", 0.8),
        ("eta_max", 1.5),
        ("wanted", "own"),
        ("kind", "perfect"),
        ("event", 1),
    ]
    for name, value in moves:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()] == made, name


def test_it_draws_at_once_and_matches_nothing_anew(explorer, monkeypatch):
    explorer.draw()
    monkeypatch.setattr("hepattn.widgets.peers.found_by", None)
    monkeypatch.setattr("hepattn.metrics.tracks.match_tracks", None)
    times = []
    for cut in (1.1, 1.2, 1.3, 1.4):
        begin = time.perf_counter()
        explorer.pt_min = cut
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.25


def test_a_picture_without_particles(events):
    tracks = {side.name: [side.find(event) for event in events] for side in SIDES}
    nobody = Wanted("nobody", Selection(1.0, 2.5, 1000), prompt=False)
    explorer = PeerExplorer(events, SIDES, tracks, [nobody])
    explorer.draw()
    assert "0 particles of event 0" in explorer.title.get_text()
    assert row(explorer, "efficiency, LHC") == ["- (0 of 0)"] * 2


def test_refusals(events):
    tracks = {side.name: [side.find(event) for event in events] for side in SIDES}
    with pytest.raises(ValueError, match="no event to explore"):
        PeerExplorer([], SIDES, {side.name: [] for side in SIDES}, [COMMON])
    with pytest.raises(ValueError, match="which particles count"):
        PeerExplorer(events, SIDES, tracks, [])
    with pytest.raises(ValueError, match="two finders, not 1"):
        PeerExplorer(events, SIDES[:1], tracks, [COMMON])
    explorer = PeerExplorer(events, SIDES, tracks, [COMMON])
    explorer.draw()
    assert "seconds" not in explorer.numbers.value
    with pytest.raises(ValueError, match="pt_min lies between"):
        explorer.pt_min = 9.0
