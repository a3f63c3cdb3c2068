"""Numbers and figures of heads: shares by distance against a slow reference, losses against what is lost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer

from hepattn.masks import Window
from hepattn.metrics.by_particle import JudgedEvents
from hepattn.metrics.filter import roc_auc
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.models.knock_out import heads_silenced, score_seeing
from hepattn.plotting import heads_against_chance, heads_against_loss, heads_on_hit
from hepattn.plotting.attention_numbers import measure
from hepattn.plotting.attention_pattern import Pattern, filter_patterns, layer_pattern
from hepattn.plotting.attention_tokens import turn
from hepattn.plotting.head_numbers import head_table, own_by_distance, own_of_hit, sight_table, silenced_table


@pytest.fixture(scope="module")
def net() -> HitFilter:
    torch.manual_seed(0)
    return HitFilter(features=("x", "y", "z"), window=16, encoder=EncoderConfig(16, 2, 2)).eval()


def slow_by_distance(pattern: Pattern, head: int, bins: int) -> float:
    """Pair by pair, all pairs at once, in float64."""
    n = len(pattern.q)
    allowed = np.ones((n, n), dtype=bool) if pattern.mask is None else pattern.mask.dense(n).numpy()
    scores = (pattern.q[:, head].double() @ pattern.k[:, head].double().T / math.sqrt(pattern.q.shape[-1])).numpy()
    weights = np.where(allowed, np.exp(scores), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    assert pattern.key_eta is not None
    apart = [turn(pattern.key_phi[None] - pattern.key_phi[:, None]), pattern.key_eta[None] - pattern.key_eta[:, None]]
    far = allowed & ~np.eye(n, dtype=bool)
    places = []
    for delta in apart:
        ends = np.quantile(np.abs(delta)[far], np.arange(1, bins) / bins)
        places.append(2 * np.searchsorted(ends, np.abs(delta)) + (delta > 0))
    place = np.where(np.eye(n, dtype=bool), -1, places[0] * 2 * bins + places[1])
    given = np.zeros((n, n))
    for one in np.unique(place):
        here = (place == one) & allowed
        given[here] = weights[here].mean() if here.any() else 0.0
    given /= given.sum(axis=1, keepdims=True)
    own = (pattern.key_particle[None] == pattern.query_particle[:, None]) & (pattern.query_particle[:, None] >= 0)
    own &= ~np.eye(n, dtype=bool)
    size = np.bincount(pattern.key_particle[pattern.key_particle >= 0])
    has = (pattern.query_particle >= 0) & (size[pattern.query_particle.clip(0)] > 1)
    return float((given * own).sum(axis=1)[has].mean())


@pytest.mark.parametrize("mask", [None, Window(20, wrap=True)], ids=str)
@pytest.mark.parametrize("head", [0, 3])
def test_by_distance_is_what_pairs_as_far_apart_get(event, mask, head):
    rng, n = np.random.default_rng(0), len(event.hits)  # hits of the event's particles have one φ and one η
    phi, eta = np.sort(rng.uniform(-np.pi, np.pi, n)), rng.normal(size=n)
    pattern = layer_pattern(event, "periodic", tied=True)
    pattern = replace(pattern, mask=mask, query_phi=phi, key_phi=phi, key_eta=eta)
    assert own_by_distance(pattern, bins=4)[head] == pytest.approx(slow_by_distance(pattern, head, 4), rel=1e-5)


def test_attention_to_all_alike_is_chance_at_any_distance(event):
    pattern = replace(layer_pattern(event), mask=Window(20, wrap=True)).uniform()
    assert own_by_distance(pattern)[0] == pytest.approx(measure(pattern, 0).own, rel=1e-6)


def test_a_head_that_knows_particles_beats_distance(event):
    pattern = layer_pattern(event)
    of = torch.nn.functional.one_hot(torch.from_numpy(pattern.key_particle) + 1, 16).float() * 20
    of[pattern.key_particle < 0] = 0.0
    knows = replace(pattern, q=of[:, None], k=of[:, None])
    assert own_by_distance(knows, bins=3)[0] < 0.75 * measure(knows, 0).own


def test_distances_are_those_of_hits_alone(event):
    with pytest.raises(ValueError, match="hits that look at hits alone"):
        own_by_distance(layer_pattern(event, queries=5))


def test_the_table_holds_each_head_and_the_mean_of_events(net, event):
    some = event.keep(np.arange(len(event.hits)) % 3 > 0)
    table, first, second = head_table(net, [event, some]), head_table(net, event), head_table(net, some)
    assert table.index.tolist() == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert np.allclose(table, (first + second) / 2)
    pattern = filter_patterns(net, event)[1]
    numbers = measure(pattern, 1)
    expected = [100 * numbers.own, 100 * own_by_distance(pattern)[1], 100 * measure(pattern.uniform(), 0).own]
    expected += [100 * numbers.itself, numbers.distance, numbers.entropy]
    assert first.to_numpy()[3].tolist() == pytest.approx(expected)


def test_no_event_no_table(net):
    for table in (head_table, silenced_table, sight_table):
        with pytest.raises(ValueError, match="there is no event"):
            table(net, [])


def test_shares_of_one_hit(net, event):
    patterns, row = filter_patterns(net, event), 20
    shares = own_of_hit(patterns, row)
    assert shares.shape == (2, 2)
    for layer, pattern in enumerate(patterns):
        for head in range(2):
            assert shares[layer, head] == pytest.approx(measure(pattern, head, rows=[row]).own, nan_ok=True)
    noise = int(np.flatnonzero(patterns[0].query_particle < 0)[0])
    assert np.isnan(own_of_hit(patterns, noise)).all()


def aucs(net, events, scores):
    judged = [JudgedEvents.of([one], [said], net.config.selection) for one, said in zip(events, scores, strict=True)]
    return np.array([roc_auc(one.scores, one.target) for one in judged])


@pytest.fixture
def some_events(event):
    return [event.keep(np.arange(len(event.hits)) != gone) for gone in (3, 30, 60)]


def test_what_is_lost_without_a_head_is_against_the_whole_filter(net, some_events):
    table = silenced_table(net, some_events)
    assert table.index.tolist() == [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    whole = aucs(net, some_events, [net.score(one) for one in some_events])
    with heads_silenced(net, [(1, 0)]):
        without = aucs(net, some_events, [net.score(one) for one in some_events])
    lost = whole - without
    row = table.iloc[3]
    assert row["AUC"] == pytest.approx(without.mean())
    assert row["AUC lost"] == pytest.approx(lost.mean())
    assert row["error"] == pytest.approx(lost.std(ddof=1) / math.sqrt(3))
    assert row["wrong order [%]"] == pytest.approx(100 * (1 - without.mean()))
    assert table["AUC lost"].iloc[0] == 0.0
    together = JudgedEvents.of(some_events, [net.score(one) for one in some_events], net.config.selection)
    purity = together.at(together.threshold_at(0.98)).purity
    assert table["purity [%]"].iloc[0] == pytest.approx(100 * purity.value)


def test_layers_are_silenced_whole(net, some_events):
    table = silenced_table(net, some_events, layers=True)
    with heads_silenced(net, [(0, 0), (0, 1)]):
        without = aucs(net, some_events, [net.score(one) for one in some_events])
    assert table.index.tolist() == [0, 1, 2]
    assert table.loc[1, "AUC"] == pytest.approx(without.mean())


def test_what_is_lost_unseen(net, some_events):
    table = sight_table(net, some_events[:1])
    assert table.index.tolist() == ["all", "own particle", "other particles", "fewer others", "itself"]
    seen = aucs(net, some_events[:1], [score_seeing(net, some_events[0], "other particles")])
    assert table.loc["other particles", "AUC"] == pytest.approx(seen[0])
    assert table["error"].isna().all()  # of one event nobody knows


def test_figures_draw_the_tables(net, some_events, event):
    table, silenced = head_table(net, event), silenced_table(net, some_events)
    (ax,) = heads_against_chance(table).axes
    for line, column in zip(ax.lines, ("chance [%]", "by distance [%]", "own particle [%]"), strict=True):
        assert np.array_equal(np.asarray(line.get_xdata()), table[column])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1.1", "1.2", "2.1", "2.2"]
    assert np.all(np.diff(ax.get_yticks()) < 0)  # the first layer on top
    (ax,) = heads_against_loss(table, silenced, named=0.0).axes
    assert sorted(text.get_text() for text in ax.texts) == ["1.1", "1.2", "2.1", "2.2"]
    drawn = np.concatenate([bars[0].get_xydata() for bars in ax.containers if isinstance(bars, ErrorbarContainer)])
    assert np.allclose(drawn, np.stack([table["own particle [%]"], silenced["wrong order [%]"].iloc[1:]], axis=1))
    assert np.asarray(ax.lines[-1].get_ydata())[0] == silenced["wrong order [%]"].iloc[0]


def test_a_hit_in_some_heads(net, event):
    patterns, row = filter_patterns(net, event), 20
    figure = heads_on_hit(patterns, row, [(2, 1), (1, 2)], count=5)
    shares = own_of_hit(patterns, row)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [
        f"2.1: {100 * shares[1, 0]:.0f} % on its particle",
        f"1.2: {100 * shares[0, 1]:.0f} % on its particle",
    ]
    for ax in figure.axes:
        (lines,) = (one for one in ax.collections if isinstance(one, LineCollection))
        assert 1 <= len(lines.get_segments()) <= 5
