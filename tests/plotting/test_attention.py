"""Patterns against slow float64 references, maps that add up, and figures that show what they were given."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hepattn.attention.module import Attention, record_attention
from hepattn.data.features import hit_features
from hepattn.encodings import Periodic
from hepattn.masks import Window
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting import attention_maps, attention_pattern, attention_rows, attention_seam
from hepattn.plotting.attention_numbers import Numbers, across, binned, compare, measure, preference, strongest
from hepattn.plotting.attention_pattern import CONTENT, Pattern, filter_patterns, layer_pattern, phi_encoding
from hepattn.plotting.attention_tokens import turn
from hepattn.sequence import Layout

NAMES = ("none", "sinusoidal", "hepformer", "periodic", "fourier", "periodic_fourier")


@pytest.fixture
def pattern(event) -> Pattern:
    return layer_pattern(event, "periodic", tied=True)


def dense(pattern: Pattern, head: int) -> np.ndarray:
    """All weights of a head, float64, pair by pair."""
    scores = pattern.q[:, head].double() @ pattern.k[:, head].double().T / math.sqrt(pattern.q.shape[-1])
    if pattern.mask is not None:
        scores = scores.masked_fill(~pattern.mask.dense(len(pattern.q), len(pattern.k)), -torch.inf)
    return scores.softmax(dim=-1).numpy()


def slow(pattern: Pattern, head: int) -> Numbers:
    """The numbers of a head, written out query by query."""
    found: list[list[float]] = []
    for i, row in enumerate(dense(pattern, head)):
        mine = (pattern.key_particle == pattern.query_particle[i]) & (np.arange(len(row)) != i)
        has = pattern.query_particle[i] >= 0 and mine.any()
        angle = np.abs(pattern.key_phi - pattern.query_phi[i])
        positive = row[row > 0]
        found.append(
            [
                row[mine].sum() if has else math.nan,
                row[i] if pattern.hits else math.nan,
                float((row * np.minimum(angle, 2 * np.pi - angle)).sum()),
                float(-(positive * np.log2(positive)).sum()),
            ]
        )
    columns = np.array(found).T
    return Numbers(*(math.nan if np.isnan(one).all() else float(np.nanmean(one)) for one in columns))


def as_list(numbers: Numbers) -> list[float]:
    return [numbers.own, numbers.itself, numbers.distance, numbers.entropy]


@pytest.mark.parametrize("encoding", NAMES)
@pytest.mark.parametrize("queries", [None, 7])
def test_rows_sum_to_one_and_agree_with_float64(event, encoding, queries):
    pattern = layer_pattern(event, encoding, queries=queries)
    for head in (0, 3):
        rows = pattern.rows(range(len(pattern.q)), head)
        assert torch.allclose(rows.sum(dim=1), torch.ones(len(rows)), atol=1e-5)
        assert np.allclose(rows.numpy(), dense(pattern, head), atol=1e-6)
    mean = np.mean([dense(pattern, head) for head in range(4)], axis=0)
    assert np.allclose(pattern.rows([5]).numpy()[0], mean[5], atol=1e-6)


@pytest.mark.parametrize("queries", [None, 7])
@pytest.mark.parametrize("mask", [None, Window(11, wrap=True)])
def test_numbers_agree_with_a_slow_reference(event, queries, mask):
    if queries is not None and mask is not None:
        pytest.skip("a window is a mask of self-attention")
    pattern = replace(layer_pattern(event, "periodic", tied=True, queries=queries), mask=mask)
    for head in (0, 2):
        assert as_list(measure(pattern, head)) == pytest.approx(as_list(slow(pattern, head)), abs=1e-5, nan_ok=True)


def test_queries_stand_at_given_angles_in_their_order(event):
    even = layer_pattern(event, "periodic", tied=True, queries=4)
    given = layer_pattern(event, "periodic", tied=True, queries=[np.pi / 2, 0.0, -np.pi / 2, np.pi])
    assert np.allclose(given.query_phi, even.query_phi)
    assert torch.equal(given.q, even.q)
    assert np.allclose(np.hypot(*given.query_xy.T), 1.06 * np.hypot(*given.key_xy.T).max())
    for wrong in (0, [], [np.nan], [[0.0]]):
        with pytest.raises(ValueError, match="queries must be at least 1, or φ"):
            layer_pattern(event, queries=wrong)


def test_an_encoding_of_queries_or_of_keys_alone(event):
    sides = {
        side: layer_pattern(event, "periodic", tied=True, queries=[0.1, 2.0], encoded=side)
        for side in ("both", "queries", "keys", "none")
    }
    without = layer_pattern(event, None, tied=True, queries=[0.1, 2.0])
    assert torch.equal(sides["queries"].q, sides["both"].q)
    assert torch.equal(sides["queries"].k, without.k)
    assert torch.equal(sides["keys"].k, sides["both"].k)
    assert torch.equal(sides["keys"].q, without.q)
    assert torch.equal(sides["none"].q, without.q)
    assert torch.equal(sides["none"].k, without.k)
    assert not torch.equal(sides["both"].q, without.q)
    with pytest.raises(ValueError, match="encoded is one of both, queries, keys, none, not 'values'"):
        layer_pattern(event, encoded="values")  # type: ignore[arg-type]


def test_a_map_has_a_row_a_query_with_its_angle(event):
    given = layer_pattern(event, "periodic", tied=True, queries=[0.1, 0.2, 2.5])
    (panel, *_) = attention_maps({"three": given}).axes
    assert [word.get_text() for word in panel.get_yticklabels()] == ["0.10", "0.20", "2.50"]
    assert panel.get_ylim() == (-0.5, 2.5)
    assert np.asarray(panel.images[0].get_array()).shape == (3, 64)


def test_numbers_do_not_depend_on_the_chunks(pattern, monkeypatch):
    whole, shares = measure(pattern), binned(pattern)
    monkeypatch.setattr(attention_pattern, "BLOCK", 1000)
    assert len(list(pattern.chunks())) > 10
    assert as_list(measure(pattern)) == pytest.approx(as_list(whole), abs=1e-6)
    assert np.allclose(binned(pattern), shares, atol=1e-6, equal_nan=True)


def test_uniform_attention_is_what_chance_gives(pattern):
    found = measure(pattern.uniform())
    sizes = np.bincount(pattern.key_particle[pattern.key_particle >= 0])
    chance = sum(size * (size - 1) for size in sizes) / sizes.sum() / len(pattern.k)
    assert found.own == pytest.approx(chance, abs=1e-6)
    assert found.entropy == pytest.approx(math.log2(len(pattern.k)), abs=1e-4)
    windowed = measure(replace(pattern, mask=Window(8, wrap=True)).uniform())
    assert windowed.entropy == pytest.approx(math.log2(9), abs=1e-4)


@pytest.mark.parametrize(("centre", "half"), [(0.0, math.pi), (0.3, 1.0), (3.1, 0.5)])
def test_the_binned_map_is_the_map_binned(pattern, centre, half):
    bins = 9
    edges = np.linspace(-half, half, bins + 1)
    place = np.searchsorted(edges, turn(pattern.key_phi - centre), side="right") - 1
    whole = dense(pattern, 1)
    expected = np.full((bins, bins), np.nan)
    for a, b in itertools.product(range(bins), range(bins)):
        rows = whole[place == a]
        if len(rows):
            expected[a, b] = rows[:, place == b].sum(axis=1).mean()
    found = binned(pattern, bins, 1, centre=centre, half=half)
    assert np.allclose(found, expected, atol=1e-6, equal_nan=True)
    if half == math.pi:
        assert np.allclose(np.nansum(found, axis=1)[~np.isnan(found[:, 0])], 1, atol=1e-5)


def test_no_preference_is_one(pattern):
    for mask in (None, Window(20, wrap=True)):
        found = preference(replace(pattern, mask=mask).uniform(), 12, 0)
        assert np.allclose(found[np.isfinite(found)], 1, atol=1e-5)


def test_the_strongest_keys(pattern):
    weights, keys = strongest(pattern, 4, 5, head=2)
    row = dense(pattern, 2)[4]
    assert set(keys.tolist()) == set(np.argsort(row)[-5:].tolist())
    assert np.allclose(weights.numpy(), np.sort(row)[::-1][:5], atol=1e-6)


def test_q_and_k_are_those_of_the_module(event):
    """The same weights in an `Attention`, recorded while it runs."""
    pattern = layer_pattern(event, None, seed=3)
    tied = layer_pattern(event, None, seed=3, tied=True)
    torch.manual_seed(3)
    layer = Attention(64, 4, qk_norm="rms")
    generator = torch.Generator().manual_seed(3)
    order = np.argsort(event.hits.phi, kind="stable")
    features = hit_features(event, CONTENT[:4])[order]
    features = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-6)
    x = features @ torch.randn(4, 64, generator=generator)
    x = x / x.square().mean().sqrt() * math.sqrt(0.5)
    with torch.no_grad(), record_attention(layer) as calls:
        layer.attend_values(x, Layout.of([len(x)], torch.device("cpu")))
    assert torch.allclose(calls[0].q, pattern.q, atol=1e-5)
    assert torch.allclose(calls[0].k, pattern.k, atol=1e-5)
    assert torch.equal(tied.q, tied.k)


def test_making_a_pattern_leaves_the_random_state_alone(event):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    layer_pattern(event, "fourier")
    assert torch.equal(torch.rand(3), expected)


def test_queries_stand_at_even_angles(event):
    pattern = layer_pattern(event, "periodic", queries=8)
    assert np.allclose(np.diff(pattern.query_phi), np.pi / 4)
    assert np.allclose(np.arctan2(*pattern.query_xy.T[::-1])[1:], pattern.query_phi[1:])
    assert not pattern.hits
    assert (pattern.query_particle == -1).all()
    assert pattern.nearest(-np.pi + 0.01) == pattern.nearest(np.pi - 0.01) == 0


def test_alpha_is_the_highest_frequency():
    for name in ("sinusoidal", "hepformer", "periodic"):
        encoding: Any = phi_encoding(name, 16, alpha=20.0, base=10.0)
        assert float(encoding.omega.max()) == pytest.approx(20.0)
    fourier: Any = phi_encoding("fourier", 4000, alpha=20.0)
    assert float(2 * np.pi * fourier.B.std()) == pytest.approx(20.0, rel=0.05)
    assert phi_encoding("none", 16) is None


def test_a_filter_without_its_encodings(event):
    names = ("x", "y", "z", "r")
    net = HitFilter(features=names, window=10, encoder=EncoderConfig(16, 2, 2)).train()
    encoded, without = (filter_patterns(net, event, encoded=one) for one in (True, False))
    assert net.training
    assert not net.encoding._forward_hooks
    assert [one.name for one in encoded] == ["hit filter, layer 1", "hit filter, layer 2"]
    assert encoded[0].mask == Window(10, wrap=True)
    assert not torch.allclose(encoded[0].q, without[0].q)
    again = filter_patterns(net, event)
    assert torch.equal(again[1].k, encoded[1].k)
    hits = net.inputs(event)
    net.eval()
    with torch.no_grad(), record_attention(net) as calls:
        net.logits(hits)
    assert torch.equal(calls[0].q, encoded[0].q)


def test_a_filter_without_its_encodings_turns_no_two_hits_against_each_other(event):
    net = HitFilter(features=("z",), window=10, encoder=EncoderConfig(16, 1, 2), rotary=True).eval()
    encoded, without = (filter_patterns(net, event, encoded=one)[0] for one in (True, False))
    assert net.rotary is not None
    assert not net.rotary._forward_hooks
    rows = torch.arange(0, len(event.hits), 7)

    def scores(pattern: Pattern) -> torch.Tensor:
        return torch.einsum("qhd,khd->hqk", pattern.q[rows], pattern.k)

    with torch.no_grad():
        _, coordinates = net.embed(net.inputs(event))
        same = coordinates[:1].expand_as(coordinates)  # as if all hits were at one place
        hook = net.encoding.register_forward_hook(lambda _, __, out: out.mean(0, keepdim=True).expand_as(out))
        embedded, _ = net.embed(net.inputs(event))
        hook.remove()
        with record_attention(net) as calls:
            net.encode(embedded, same)
    expected = torch.einsum("qhd,khd->hqk", calls[0].q[rows], calls[0].k)
    torch.testing.assert_close(scores(without), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores(encoded), expected, atol=1e-2)


def test_a_filter_that_reads_some_volumes(event):
    net = HitFilter(features=("x", "y"), window=4, encoder=EncoderConfig(8, 1, 1), volumes=(8,))
    (pattern,) = filter_patterns(net, event)
    assert len(pattern.k) == len(pattern.key_phi) == int((event.hits.volume_id == 8).sum())


def test_the_seam():
    """Hits evenly around the turn: one of whole frequencies does not see ±π, a plain one does."""
    n = 2000
    phi = -np.pi + 2 * np.pi * (np.arange(n) + 0.5) / n
    none = np.full(n, -1)
    xy = np.stack([np.cos(phi), np.sin(phi)], axis=1)
    ratio = {}
    for name in ("sinusoidal", "periodic_fourier"):
        encoding: Any = phi_encoding(name, 16, alpha=8.0)
        x = encoding(torch.from_numpy(phi).float())[:, None] * 3
        one = Pattern(name, x, x, phi, phi, xy, xy, none, none)
        ratio[name] = across(one)
    assert ratio["periodic_fourier"] == pytest.approx(1, abs=0.1)
    assert ratio["sinusoidal"] < 0.5


def test_compare_is_a_table_with_a_baseline(event):
    patterns = {name: layer_pattern(event, name, tied=True) for name in ("none", "periodic")}
    table = compare(patterns)
    assert list(table.index) == ["none", "periodic", "uniform"]
    assert (table["entropy [bit]"] <= 6.36).all()  # log2 82
    cross = compare({"none": layer_pattern(event, "none", queries=4)})
    assert "own particle [%]" not in cross.columns


def test_maps_show_the_numbers(event, pattern):
    patterns = {"before": layer_pattern(event, tied=True), "after": pattern}
    figure: Any = attention_maps(patterns, 0, bins=8, difference=True)
    before, after, change = (axes.images[0].get_array().filled(np.nan) for axes in figure.axes[:3])
    assert np.allclose(after, preference(pattern, 8, 0), equal_nan=True)
    assert np.allclose(change, np.log2(after / before), equal_nan=True)
    assert "[rad]" in figure.axes[0].get_xlabel()
    assert figure._repr_png_()


def test_rows_ring_the_hits_of_the_particle(event, pattern):
    row = int(np.flatnonzero(pattern.query_particle >= 0)[0])
    figure: Any = attention_rows({"after": pattern}, row)
    sizes = [len(one.get_offsets()) for one in figure.axes[0].collections if hasattr(one, "get_sizes")]
    assert sizes == [82, 6, 1]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("x [mm]", "y [mm]")
    assert figure._repr_png_()
    seam: Any = attention_seam({"after": pattern}, width=2.0)
    assert seam._repr_png_()


def test_what_cannot_be_drawn_is_refused(event, pattern):
    with pytest.raises(ValueError, match="not one of the 82"):
        attention_rows({"after": pattern}, 82)
    with pytest.raises(ValueError, match="difference of two"):
        attention_maps({"after": pattern}, difference=True)
    with pytest.raises(ValueError, match=r"0 \.\.\. 3"):
        pattern.rows([0], 4)
    with pytest.raises(ValueError, match="64 channels"):
        layer_pattern(event, Periodic(8))
