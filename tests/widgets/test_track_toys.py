"""The explorer of damaged tracks by its state."""

import re
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from hepattn.data import Damage, Event, Selection, damage_tracks, sample_event, toy_event, true_tracks
from hepattn.metrics import FoundTracks, pt_weights, track_metrics, trackml_score
from hepattn.widgets import TrackToyExplorer


@pytest.fixture(scope="module")
def events() -> dict[str, Event]:
    return {"toy": toy_event(9, seed=3), "b": sample_event(index=2)}


def artists(explorer: TrackToyExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


def drawn(line: Any) -> int:
    return int(np.isfinite(np.asarray(line.get_xdata(), dtype=float)).sum())


@pytest.mark.parametrize("name", ["toy", "b"])
@pytest.mark.parametrize("sizes", ["all", "kept"])
def test_the_numbers_are_the_metrics(events, name, sizes):
    explorer = TrackToyExplorer(events)
    state = {"event": name, "split": 0.4, "merge": 0.3, "drop": 0.1, "lost": 0.2, "sizes": sizes, "min_hits": 4}
    for key, value in state.items():
        setattr(explorer, key, value)
    event = events[name]
    true = true_tracks(event) if name == "toy" else true_tracks(event, Selection(0.5, np.inf, 3))
    tracks, kept = damage_tracks(event, true, Damage(0.4, 0.3, 0.1, 0.2))
    found = FoundTracks.of(event, tracks, Selection(), kept)
    want = track_metrics([found], 4, sizes)  # type: ignore[arg-type]
    cells = re.findall(r"<td>([^<]*)</td>", explorer.numbers.value)
    assert cells[1:4] == [str(one) for one in (want.efficiency_perfect, want.efficiency, want.efficiency_lhc)]
    assert cells[6:8] == [str(want.fakes), str(want.fakes_lhc)]
    assert cells[10:12] == [str(want.duplicates), str(want.duplicates_lhc)]
    score = trackml_score(tracks, found.particle, pt_weights(event))
    assert f"<b>{score:.3f}</b>" in explorer.numbers.value
    missed, good, fakes = explorer.detector.lines
    matches = found.matches(sizes)  # type: ignore[arg-type]
    verdict = matches.verdict("double_majority", 4)
    assert drawn(good) == matches.size[verdict].sum()
    assert drawn(fakes) == matches.size[~verdict & (matches.size >= 4)].sum()
    lost = found.reconstructable & (matches.tracks_on("double_majority", 4) == 0)
    assert drawn(missed) == event.hits_per_particle[lost].sum()


def test_every_control_moves_the_picture_and_no_artist_is_made(events):
    explorer = TrackToyExplorer(events)
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves = [("split", 0.6), ("merge", 0.5), ("drop", 0.3), ("lost", 0.3), ("kind", "lhc"), ("event", "b")]
    for name, value in moves:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name
    for name, value in [("sizes", "kept"), ("min_hits", 6)]:
        before = explorer.numbers.value
        setattr(explorer, name, value)
        assert explorer.numbers.value != before


def test_rows_of_a_large_event_are_neighbours_in_phi(events):
    explorer = TrackToyExplorer(events)
    explorer.event = "b"
    rows = explorer._rows(events["b"], explorer.found())
    chosen = Selection().particles(events["b"])
    particles = events["b"].particles
    assert particles is not None
    assert len(rows) == 9
    assert chosen[rows].all()
    assert np.argmax(np.where(chosen, particles.pt, 0)) in rows
    phi = particles.phi[rows]
    between = chosen & (particles.phi >= phi[0]) & (particles.phi <= phi[-1])
    assert between.sum() == 9


def test_an_event_is_read_when_it_is_looked_at(events):
    read = Mock(return_value=events["b"])
    explorer = TrackToyExplorer({"toy": events["toy"], "b": read})
    explorer.draw()
    assert read.call_count == 0
    explorer.event = "b"
    explorer.split = 0.5
    assert read.call_count == 1


def test_refusals(events):
    with pytest.raises(ValueError, match="no event"):
        TrackToyExplorer({})
    with pytest.raises(ValueError, match=r"lost lies between 0.0 and 0.9"):
        TrackToyExplorer(events).lost = 1.0
