"""What the event explorer draws and says, by setting its state, against slow counts."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from hepattn.data import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.widgets import EventExplorer
from hepattn.widgets.events import VOLUMES

ANY: dict[str, tuple[int, ...]] = {name: volumes or tuple(range(20)) for name, volumes in VOLUMES.items()}


@pytest.fixture(scope="module")
def event() -> Event:
    """With noise: every tenth hit loses its particle."""
    event = sample_event()
    assert event.hits.particle is not None
    owner = event.hits.particle.copy()
    owner[::10] = -1
    return replace(event, hits=replace(event.hits, particle=owner))


@pytest.fixture(scope="module")
def explorer(event) -> EventExplorer:
    made = EventExplorer({"a": event, "b": lambda: sample_event(index=1)})
    made.draw()
    return made


def numbers(explorer: EventExplorer) -> list[str]:
    """The right column of the table below the picture."""
    return [unescape(cell) for cell in re.findall(r"1em'>(.*?)</td>", explorer.numbers.value)]


def drawn(explorer: EventExplorer, view: str) -> list[int]:
    return [np.size(line.get_xdata()) for line in explorer.dots[view]]


def artists(explorer: EventExplorer) -> list[Any]:
    return [child for panel in explorer.panels.values() for child in panel.get_children()]


@pytest.mark.parametrize("volume", VOLUMES)
@pytest.mark.parametrize("pt", [0.0, 0.9, 2.5])
def test_numbers_and_dots_equal_a_slow_count(explorer, event, pt, volume):
    explorer.event, explorer.pt_min, explorer.volume = "a", pt, volume
    inside = [int(v) in ANY[volume] for v in event.hits.volume_id]
    owners = [int(o) for o, ok in zip(event.hits.particle, inside, strict=True) if ok]
    nhits = Counter(owners)
    able = [
        row
        for row in range(len(event.particles))
        if event.particles.pt[row] > pt and abs(event.particles.eta[row]) < 4 and nhits[row] >= 3
    ]
    on = sum(nhits[row] for row in able)
    noise = nhits.pop(-1)
    total, particles, count, fraction, noisy = numbers(explorer)
    assert total == f"{len(owners):,} of {len(event.hits):,}"
    assert (particles, count) == (f"{len(nhits):,}", f"{len(able):,}")
    assert f"({on} of {len(owners)})" in fraction
    assert f"({noise} of {len(owners)})" in noisy
    for view in explorer.dots:
        low, other, *lit = drawn(explorer, view)
        assert (low, low + other + sum(lit), sum(lit)) == (noise, len(owners), on)
    assert f"all {len(owners):,} hits" in explorer.title.get_text()


def test_every_change_moves_the_picture_and_keeps_the_artists(explorer):
    explorer.event, explorer.pt_min, explorer.volume = "a", 0.9, "all"
    before, seen = artists(explorer), {bytes(explorer.picture.value)}
    for name, value in (("pt_min", 2.0), ("volume", "pixels"), ("event", "b"), ("volume", "all")):
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value).startswith(b"\x89PNG")
        seen.add(bytes(explorer.picture.value))
    assert len(seen) == 5
    assert artists(explorer) == before


def test_dots_lie_where_the_hits_are(explorer, event):
    explorer.event, explorer.pt_min, explorer.volume = "a", 3.0, "long strips"
    wanted = np.isin(event.hits.volume_id, (16, 17, 18)) & (event.hits.particle < 0)
    x, y = explorer.dots["rz"][0].get_data()
    assert np.array_equal(x, event.hits.z[wanted])
    assert np.array_equal(y, event.hits.r[wanted])
    for view, panel in explorer.panels.items():
        for line in explorer.dots[view]:
            for values, (low, high) in zip(line.get_data(), (panel.get_xlim(), panel.get_ylim()), strict=True):
                assert ((values >= low) & (values <= high)).all()


def test_neighbours_in_phi_differ_in_colour(explorer, event):
    explorer.event, explorer.pt_min, explorer.volume = "a", 2.0, "all"
    colour = {}
    place = {(float(x), float(y)): i for i, (x, y) in enumerate(zip(event.hits.eta, event.hits.phi, strict=True))}
    for line in explorer.dots["etaphi"][2:]:
        for x, y in zip(*line.get_data(), strict=True):
            colour[int(event.hits.particle[place[float(x), float(y)]])] = line.get_color()
    around = sorted(colour, key=lambda row: event.particles.phi[row])
    assert len(around) == Selection(pt_min=2.0).particles(event).sum()
    assert all(colour[a] != colour[b] for a, b in itertools.pairwise(around))


def test_an_event_is_read_when_it_is_looked_at():
    read = Mock(return_value=sample_event(index=1))
    explorer = EventExplorer({"a": sample_event(), "b": read})
    explorer.draw()
    assert read.call_count == 0
    explorer.event = "b"
    explorer.event = "a"
    explorer.event = "b"
    assert read.call_count == 1


def test_an_event_without_truth_is_drawn_and_says_so(event):
    explorer = EventExplorer({"blind": replace(event, hits=replace(event.hits, particle=None))})
    explorer.draw()
    assert drawn(explorer, "xy")[:2] == [0, len(event.hits)]
    assert "no truth" in explorer.title.get_text()
    assert explorer.legend.get_texts()[1].get_text() == "truth not known"
    assert len(numbers(explorer)) == 1


def test_no_hit_in_a_volume_is_no_fault(event):
    explorer = EventExplorer({"pixels": event.keep(np.isin(event.hits.volume_id, (7, 8, 9)))})
    explorer.volume = "long strips"
    assert sum(drawn(explorer, "xy")) == 0
    assert numbers(explorer)[-1] == "- (0 of 0)"


def test_refusals(explorer):
    with pytest.raises(ValueError, match="no event"):
        EventExplorer({})
    with pytest.raises(ValueError, match="'all', 'pixels'"):
        explorer.volume = "muons"
    with pytest.raises(ValueError, match=r"between 0.0 and 3.0"):
        explorer.pt_min = 4.0


def test_left_out_the_events_are_those_of_the_project():
    assert list(EventExplorer().events) == ["mu = 0", "mu = 40", "mu = 200"]
