"""The explorer of queries by its state."""

import time
from typing import Any

import numpy as np
import pytest

from hepattn.data import Event, sample_event
from hepattn.metrics import track_metrics
from hepattn.models.maskformer import MaskFormer
from hepattn.models.track_losses import TrackWeights
from hepattn.plotting.query_numbers import agreement, assigned, costs, decode, found, window_share
from hepattn.widgets import QueryExplorer
from tests.plotting.test_queries import tracker


@pytest.fixture(scope="module")
def net() -> MaskFormer:
    return tracker()


@pytest.fixture(scope="module")
def events() -> list[Event]:
    each = [sample_event("ttbar_mu0", index) for index in (210, 211)]
    return [one.keep(np.abs(one.hits.phi) < 0.6) for one in each]


def artists(explorer: QueryExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


def points(line: Any) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)}


def test_the_picture_and_the_numbers_follow_the_state(net, events):
    explorer = QueryExplorer(net, events)
    state = {"layer": 1, "query": 20, "mask_threshold": 0.4, "object_threshold": 0.3, "focal": 5.0, "dice": 0.5}
    for name, value in state.items():
        setattr(explorer, name, value)
    of = decode(net, events[0])
    weights = TrackWeights(focal=5.0, dice=0.5)
    metrics = track_metrics([found(of, 1, 0.4, 0.3)])
    words = explorer.numbers.value
    for want in (agreement(of, 1, weights), metrics.efficiency, metrics.fakes, window_share(of)):
        assert str(want) in words
    given = assigned(costs(of, 1, weights))
    assert points(explorer.cost.matched) == {(float(t), float(q)) for q, t in enumerate(given) if t >= 0}
    mine = of.rows[of.mask(1)[20] > 0.4]
    hits = events[0].hits
    assert points(explorer.mask_hits) == {(float(hits.x[row]), float(hits.y[row])) for row in mine}
    star = of.rows[of.place[20]]
    assert points(explorer.star) == {(float(hits.x[star]), float(hits.y[star]))}
    explorer.shown = "cut"
    drawn = np.asarray(explorer.map.image.get_array())
    assert drawn.sum() == (of.mask(1)[20 - 12 : 20 + 12] > 0.4).sum()


def test_every_control_moves_the_picture_and_no_artist_is_made(net, events):
    explorer = QueryExplorer(net, events)
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves = [("layer", 1), ("query", 5), ("shown", "attention"), ("shown", "truth"), ("shown", "cut")]
    moves += [("mask_threshold", 0.8), ("object_threshold", 0.9), ("dice", 9.0), ("focal", 0.0)]
    moves += [("variant", "shuffled"), ("variant", "no encodings"), ("event", 1)]
    for name, value in moves:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name
    before = explorer.numbers.value
    explorer.object = 9.0
    explorer.layer, explorer.shown = 0, "attention"
    assert not np.asarray(explorer.map.image.get_array()).any()
    assert explorer.numbers.value != before
    begin = time.perf_counter()
    for query in range(10, 14):
        explorer.query = query
    assert (time.perf_counter() - begin) / 4 < 1.0  # a quarter of a second on idle cores


def test_the_slider_of_queries_ends_at_the_last(events):
    explorer = QueryExplorer(tracker(max_queries=1000, query_threshold=0.465), events)
    explorer.draw()
    most = [len(decode(explorer.net, one).place) for one in events]
    assert most[0] != most[1]
    assert explorer.controls["query"].max == most[0] - 1
    explorer.event = 1
    assert explorer.controls["query"].max == most[1] - 1
    explorer.query = most[1] - 1
    assert f"Query {most[1] - 1}:" in explorer.numbers.value


def test_an_event_without_queries_and_refusals(net, events):
    explorer = QueryExplorer(tracker(query_threshold=0.999), events[0])
    explorer.draw()
    explorer.layer = 0
    assert "0 are queries" in explorer.numbers.value
    with pytest.raises(ValueError, match="needs an event"):
        QueryExplorer(net, [])
    with pytest.raises(ValueError, match="learned"):
        QueryExplorer(tracker(queries="learned"), events)
