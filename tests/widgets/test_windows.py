"""The explorer of windows by its state, against dense masks."""

import re
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from hepattn.data import Event, Selection, sample_event
from hepattn.data.ordering import ORDERS
from hepattn.masks import Window
from hepattn.widgets import WindowExplorer, windows


@pytest.fixture(scope="module")
def events() -> dict[str, Event]:
    return {"a": sample_event(index=1), "b": sample_event(index=2)}


def artists(explorer: WindowExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


def counts(explorer: WindowExplorer) -> list[tuple[int, int]]:
    """Every "k of n" below the picture."""
    found = re.findall(r"([\d,]+) of ([\d,]+)", explorer.numbers.value)
    return [(int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in found]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wrap", [True, False])
def test_numbers_and_marks_are_those_of_the_dense_mask(events, order, wrap):
    explorer = WindowExplorer(events)
    explorer.order, explorer.wrap, explorer.window, explorer.pt_min = order, wrap, 96, 0.6
    event, place = events["a"], explorer.place()
    assert event.hits.particle is not None
    target = Selection(pt_min=0.6).hits(event)[place]
    particle = event.hits.particle[place]
    same = (particle[:, None] == particle[None, :]) & target[:, None] & target[None, :]
    np.fill_diagonal(same, False)
    allowed = Window(96, wrap=wrap).dense(len(place)).numpy()
    whole = [
        not (same & ~allowed)[particle == row].any() for row in np.flatnonzero(Selection(pt_min=0.6).particles(event))
    ]
    query = explorer.looks()
    assert query is not None
    at = int(np.flatnonzero(place == query)[0])
    mine = same[at]
    wanted = [(same & allowed).sum(), same.sum()], [sum(whole), len(whole)], [(mine & allowed[at]).sum(), mine.sum()]
    assert counts(explorer) == [tuple(int(one) for one in pair) for pair in wanted]
    assert np.array_equal(np.flatnonzero(explorer.seen()), np.sort(place[allowed[at]]))
    drawn = [np.size(line.get_xdata()) for line in explorer.groups["xy"]]
    assert drawn[1:] == [int((mine & allowed[at]).sum()), int((mine & ~allowed[at]).sum()), 1]
    assert sum(drawn) == allowed[at].sum() + drawn[2]


def test_every_control_moves_the_picture_and_no_artist_is_made(events):
    explorer = WindowExplorer(events)
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves = [("window", 32), ("wrap", False), ("particle", "widest"), ("hit", 0.0), ("pt_min", 2.0), ("event", "b")]
    for name, value in [*moves, ("order", "random"), ("order", "hilbert"), ("particle", "softest")]:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name


def test_a_particle_across_the_seam_needs_the_wrap(events):
    explorer = WindowExplorer({"mu = 0": sample_event()})
    explorer.particle, explorer.window = "seam", 512
    assert counts(explorer)[2][0] == counts(explorer)[2][1]
    explorer.wrap = False
    assert counts(explorer)[2][0] < counts(explorer)[2][1]


def test_no_such_particle_is_said(events):
    event = events["a"]
    assert event.hits.particle is not None
    noise = replace(event, hits=replace(event.hits, particle=np.full(len(event.hits), -1)))
    explorer = WindowExplorer({"noise": noise})
    for kind in windows.SHOWN.values():
        explorer.particle = kind
        explorer.draw()
        assert "No such particle" in explorer.numbers.value
        assert not explorer.seen().any()


def test_going_back_counts_nothing(events, monkeypatch):
    explorer = WindowExplorer(events)
    explorer.pt_min = 1.5
    explorer.pt_min = 0.9
    monkeypatch.setattr(windows, "ordered_owner", None)
    explorer.pt_min = 1.5
    assert explorer.drawings == 3


def test_an_event_is_read_when_it_is_looked_at(events):
    read = Mock(return_value=events["b"])
    explorer = WindowExplorer({"a": events["a"], "b": read})
    explorer.draw()
    assert read.call_count == 0
    explorer.event = "b"
    explorer.window = 64
    assert read.call_count == 1


def test_refusals(events):
    with pytest.raises(ValueError, match="no event"):
        WindowExplorer({})
    explorer = WindowExplorer(events)
    with pytest.raises(ValueError, match="window is one of"):
        explorer.window = 100
    with pytest.raises(ValueError, match="order is one of 'phi', 'morton'"):
        explorer.order = "eta"
