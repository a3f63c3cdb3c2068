"""The explorer of attention by its state: what it draws, what it keeps, and the numbers below."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from hepattn.data import sample_events
from hepattn.masks import Dense
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting.attention_numbers import preference
from hepattn.plotting.attention_panels import MapPanel
from hepattn.plotting.attention_pattern import Pattern, filter_patterns, layer_pattern
from hepattn.plotting.attention_tokens import turn
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


def test_queries_at_given_angles_and_encodings_on_either_side(events):
    explorer = AttentionExplorer(events, queries=[-2.0, 0.3, 0.4])
    explorer.hit = 0.37
    assert explorer.row() == 2
    assert shown(explorer.maps[0]).shape == (3, 64)
    assert np.asarray(explorer.maps[1].line.get_ydata()).tolist() == [2, 2]
    seen = {explorer.sides: shown(explorer.maps[1]).copy()}
    for sides in ("queries", "keys", "none"):
        explorer.sides = sides
        before, after = explorer.patterns()
        assert torch.equal(after.q, before.q) == (sides in {"keys", "none"})
        assert torch.equal(after.k, before.k) == (sides in {"queries", "none"})
        assert not any(np.array_equal(shown(explorer.maps[1]), old) for old in seen.values())
        seen[sides] = shown(explorer.maps[1]).copy()
    assert not np.nan_to_num(shown(explorer.maps[2])).any()


def ready(events, **options) -> tuple[Pattern, Pattern]:
    before, after = (layer_pattern(events[0], one, tied=True, heads=2, **options) for one in ("none", "periodic"))
    owner = np.arange(len(after.q))  # as of queries that are hits
    return before, replace(after, query_particle=owner, mask=Dense(torch.rand(len(after.q), len(after.k)) > 0.3))


def test_ready_patterns_are_read_like_the_explorers_own(events):
    pair = ready(events, queries=[0.1, 1.0, 2.0])
    explorer = AttentionExplorer(patterns={"decoder <1>": pair, "itself": ready(events)})
    assert sorted(explorer.controls) == ["head", "hit", "layer", "zoom"]
    explorer.hit = 1.1
    assert explorer.patterns() == pair
    for panel, pattern in zip(explorer.maps, pair, strict=False):
        assert np.allclose(shown(panel), preference(pattern, 64, 0), equal_nan=True)
    assert [cells[0] for cells in numbers(explorer)] == ["<b>before</b>", "<b>after</b>", "<b>all keys alike</b>"]
    assert numbers(explorer)[1][1] != "–"
    explorer.layer = "itself"
    assert shown(explorer.maps[0]).shape == (64, 64)
    with pytest.raises(ValueError, match="head lies between 1 and 2"):
        explorer.head = 3
    beside = AttentionExplorer(events, patterns={"decoder": pair})
    beside.layer = "free"
    assert numbers(beside)[0][0] == "<b>no encoding</b>"


def test_patterns_that_do_not_fit_are_refused(events):
    first, second = (layer_pattern(events[0], queries=[phi]) for phi in (0.1, 0.2))
    with pytest.raises(ValueError, match="before and after of 'one' have other queries, keys or heads"):
        AttentionExplorer(patterns={"one": (first, second)})


def test_the_encoding_chooses_among_trained_filters(events, net):
    torch.manual_seed(1)
    own = {name: HitFilter(window=32, encoder=EncoderConfig(16, 1, 2), encoding=name) for name in ("none", "periodic")}
    explorer = AttentionExplorer(events, net, filters=own)
    explorer.layer = "trained 2"
    for encoding in ("none", "periodic"):
        explorer.encoding = encoding
        assert torch.equal(explorer.patterns()[1].q, filter_patterns(own[encoding], events[0])[0].q)
        assert "It has 1 layers: this is the last" in explorer.numbers.value
    assert "the encoding: periodic, of φ" in explorer.numbers.value
    explorer.encoding = "fourier"
    assert torch.equal(explorer.patterns()[1].q, filter_patterns(net, events[0])[1].q)
    assert "its own (octaves), of φ, η and r" in explorer.numbers.value
    assert "there is none with the chosen encoding" in explorer.numbers.value
    explorer.encoding = "none"
    explorer.layer = "untrained 1"
    before, after = explorer.patterns()
    assert torch.equal(before.q, after.q)  # nothing to take away
    alone = AttentionExplorer(events, filters=own)
    alone.layer = "trained 1"
    with pytest.raises(ValueError, match="no filter was trained with this encoding; there is none, periodic"):
        alone.encoding = "hepformer"
    with pytest.raises(ValueError, match=r"filters are of the encodings none, .*, not octaves"):
        AttentionExplorer(events, filters={"octaves": net})


def test_it_begins_with_a_hit_whose_lines_can_be_seen(events):
    explorer = AttentionExplorer(events)
    explorer.draw()
    row, (_, after) = explorer.row(), explorer.patterns()
    mine = after.key_xy[after.mine(row)]
    assert len(mine) > 5
    assert np.hypot(*after.query_xy[row]) == pytest.approx(np.hypot(*mine.T).max())
    lines = explorer.detector.lines.get_segments()
    long = [np.hypot(*(end - start)) > 50 for start, end in lines]
    assert len(lines) >= 30
    assert np.mean(long) > 0.5


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
