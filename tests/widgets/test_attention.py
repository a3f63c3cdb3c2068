"""The explorer of attention by its state: what it draws, what it keeps, and the numbers below."""

import math
import re

import numpy as np
import pytest

from hepattn.data import sample_events
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting.attention_numbers import preference
from hepattn.plotting.attention_panels import MapPanel
from hepattn.plotting.attention_pattern import turn
from hepattn.widgets import AttentionExplorer
from hepattn.widgets import attention as widget


@pytest.fixture(scope="module")
def events():
    shipped = sample_events()
    return sorted((shipped[index] for index in range(5)), key=lambda event: len(event.hits))[:2]


@pytest.fixture(scope="module")
def net():
    return HitFilter(window=32, encoder=EncoderConfig(16, 2, 2))


def artists(explorer: AttentionExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


def shown(panel: MapPanel) -> np.ndarray:
    values = panel.image.get_array()
    assert values is not None
    return np.asarray(np.ma.filled(values, np.nan))


def numbers(explorer: AttentionExplorer) -> list[list[str]]:
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", explorer.numbers.value)
    return [row.split("</td><td>") for row in rows]


def test_every_control_changes_the_picture_and_no_artist_is_made(events, net):
    explorer = AttentionExplorer(events, net)
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves = [("hit", -2.0), ("encoding", "sinusoidal"), ("alpha", 16.0), ("base", 16.0), ("head", 2), ("zoom", 0.6)]
    moves += [("layer", "free"), ("event", 1), ("layer", "trained 1"), ("layer", "trained 2"), ("layer", "untrained 1")]
    for name, value in moves:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name
    assert explorer.drawings == len(moves) + 1


def test_the_numbers_are_those_of_a_dense_softmax(events):
    explorer = AttentionExplorer(events)
    explorer.encoding = "hepformer"
    _, after = explorer.patterns()
    owner = np.flatnonzero(np.bincount(after.key_particle[after.key_particle >= 0]) > 5)[0]
    explorer.hit = float(after.query_phi[np.flatnonzero(after.query_particle == owner)[2]])
    row = explorer.row()
    for pattern, cells in zip(explorer.patterns(), numbers(explorer), strict=False):
        q, k = pattern.q[row, 0].double(), pattern.k[:, 0].double()
        weights = (k @ q / math.sqrt(len(q))).softmax(dim=0).numpy()
        mine = pattern.key_particle == pattern.query_particle[row]
        mine[row] = False
        assert float(cells[1].removesuffix(" %")) == pytest.approx(100 * weights[mine].sum(), abs=0.006)
        assert float(cells[2].removesuffix(" %")) == pytest.approx(100 * weights[row], abs=0.006)
        assert float(cells[4]) == pytest.approx(-(weights * np.log2(weights)).sum(), abs=0.051)
    assert len(numbers(explorer)) == 3


def test_the_maps_are_those_of_the_figures(events):
    explorer = AttentionExplorer(events, bins=16)
    explorer.head = 3
    before, after = explorer.patterns()
    for panel, pattern in zip(explorer.maps, (before, after), strict=False):
        assert np.allclose(shown(panel), preference(pattern, 16, 2), equal_nan=True)


def test_no_encoding_changes_nothing(events):
    explorer = AttentionExplorer(events)
    explorer.encoding = "none"
    assert not np.nan_to_num(shown(explorer.maps[2])).any()


def test_the_hit_next_to_the_chosen_angle_is_taken_around_the_turn(events):
    explorer = AttentionExplorer(events)
    explorer.hit = 3.14
    _, after = explorer.patterns()
    assert explorer.row() == int(np.abs(turn(after.query_phi - 3.14)).argmin())
    explorer.zoom = 0.2
    low, high = explorer.maps[1].ax.get_xlim()
    assert high - low == pytest.approx(0.4)
    assert low < after.query_phi[explorer.row()] < high


def test_queries_in_place_of_hits(events, net):
    explorer = AttentionExplorer(events, net, queries=32)
    explorer.hit = 0.5
    assert shown(explorer.maps[0]).shape == (32, 64)
    assert numbers(explorer)[0][1] == "–"
    with pytest.raises(ValueError, match="layer is one of 'free', 'tied'"):
        explorer.layer = "trained 1"


def test_going_back_computes_nothing(events, monkeypatch):
    explorer = AttentionExplorer(events)
    explorer.hit = 0.3
    explorer.encoding = "fourier"
    monkeypatch.setattr(widget, "layer_pattern", None)
    monkeypatch.setattr(widget, "preference", None)
    explorer.encoding = "periodic"
    assert explorer.drawings == 3


def test_no_event_is_refused():
    with pytest.raises(ValueError, match="needs an event"):
        AttentionExplorer([])
