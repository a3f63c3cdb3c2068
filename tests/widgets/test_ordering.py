"""The explorer of orders by its state."""

import re
from unittest.mock import Mock

import numpy as np
import pytest

from hepattn.data import Event, Selection, hit_order, ordered_owner, sample_event
from hepattn.data.ordering import ORDERS
from hepattn.metrics import block_pairs
from hepattn.widgets import OrderingExplorer, ordering


@pytest.fixture(scope="module")
def events() -> dict[str, Event]:
    return {"a": sample_event(index=1), "b": sample_event(index=2)}


def artists(explorer: OrderingExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


@pytest.mark.parametrize("order", ORDERS)
def test_map_and_table_are_the_metrics(events, order):
    explorer = OrderingExplorer(events)
    explorer.order, explorer.size, explorer.pt_min = order, 64, 0.5
    owner = ordered_owner(events["a"], hit_order(events["a"].hits, order), Selection(pt_min=0.5))
    found = block_pairs(owner, 64)
    assert np.array_equal(np.asarray(explorer.blocks.image.get_array()), found.image())
    row = explorer.numbers.value.split("<tr>")[2 + ORDERS.index(order)]
    wanted = [found.needed(share).passed for share in (0.5, 0.9, 0.99, 1.0)]
    assert [int(one.replace(",", "")) for one in re.findall(r"<td>([\d,]+) \(", row)] == wanted
    assert row.startswith("<td><b>")
    thick = [name for name, (best, _) in explorer.lines.items() if best.get_linewidth() > 2]
    assert thick == [order]


def test_every_control_moves_the_picture_and_no_artist_is_made(events):
    explorer = OrderingExplorer(events)
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    for name, value in [("order", "hilbert"), ("size", 32), ("pt_min", 2.0), ("event", "b"), ("order", "random")]:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name


def test_the_dots_follow_the_order(events):
    explorer = OrderingExplorer(events)
    for order in ("phi", "morton"):
        explorer.order = order
        explorer.draw()
        eta = np.concatenate([np.asarray(line.get_xdata()) for line in explorer.places.dots])
        assert np.array_equal(eta, events["a"].hits.eta[hit_order(events["a"].hits, order)])


def test_going_back_counts_nothing(events, monkeypatch):
    explorer = OrderingExplorer(events)
    explorer.size = 64
    explorer.size = 128
    monkeypatch.setattr(ordering, "block_pairs", None)
    monkeypatch.setattr(ordering, "pair_recall", None)
    explorer.size = 64
    assert explorer.drawings == 3


def test_an_event_is_read_when_it_is_looked_at(events):
    read = Mock(return_value=events["b"])
    explorer = OrderingExplorer({"a": events["a"], "b": read})
    explorer.draw()
    assert read.call_count == 0
    explorer.event = "b"
    explorer.size = 64
    assert read.call_count == 1


def test_refusals(events):
    with pytest.raises(ValueError, match="no event"):
        OrderingExplorer({})
    with pytest.raises(ValueError, match="size is one of 32, 64"):
        OrderingExplorer(events).size = 100
