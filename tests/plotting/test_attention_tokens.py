"""Learned tokens in pictures of attention: recorded, named, kept off the detector, and every number by a slow loop."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hepattn.attention.bias import DistanceBias
from hepattn.attention.module import Attention, AttentionCall, record_attention
from hepattn.attention.weights import attention_weights
from hepattn.data.features import hit_features
from hepattn.layers import ExtraTokens, Role
from hepattn.masks import Window
from hepattn.models.decoder import Decoder
from hepattn.models.decoder_config import DecoderConfig
from hepattn.plotting import attention_maps, attention_rows, attention_seam
from hepattn.plotting.attention_numbers import (
    across,
    alike,
    binned,
    change,
    compare,
    measure,
    preference,
    shares,
    strongest,
    strongest_table,
)
from hepattn.plotting.attention_panels import share_words
from hepattn.plotting.attention_pattern import Pattern, call_pattern, layer_pattern
from hepattn.sequence import Layout, Packed

KINDS = (Role.REGISTER, Role.GLOBAL_REGISTER, Role.CLS)


def recorded(event, *, size: int | None = 24) -> AttentionCall:
    """One layer of attention over the hits in φ order, with tokens of each kind among them."""
    torch.manual_seed(4)
    layer, extra = Attention(16, 2, qk_norm="rms"), ExtraTokens(16, cls=1, global_registers=2, every=8)
    order = np.argsort(event.hits.phi.astype(np.float32), kind="stable")
    x = hit_features(event, ("x", "y", "z", "r"))[order] @ torch.randn(4, 16)
    inserted = extra.plan(Layout.of([len(x)], "cpu"))
    mask = None if size is None else extra.mask(Window(size, wrap=True))
    with torch.no_grad(), record_attention(layer) as calls:
        layer.attend_values(extra.insert(x, inserted), inserted.layout, mask)
    return calls[0]


@pytest.fixture(params=[24, None], ids=["window", "no mask"])
def pattern(event, request) -> Pattern:
    return call_pattern(recorded(event, size=request.param), event, "with tokens")


def weights_of(pattern: Pattern, head: int) -> np.ndarray:
    scores = pattern.q[:, head].double() @ pattern.k[:, head].double().T / math.sqrt(pattern.q.shape[-1])
    if pattern.mask is not None:
        scores = scores.masked_fill(~pattern.mask.dense(len(pattern.q)), -torch.inf)
    return scores.softmax(dim=-1).numpy()


def test_a_call_says_what_its_tokens_are(event):
    call = recorded(event)
    assert call.roles is not None
    assert call.roles is call.kv_roles
    assert call.roles[:3].tolist() == [Role.CLS, Role.GLOBAL_REGISTER, Role.GLOBAL_REGISTER]
    assert torch.bincount(call.roles).tolist() == [82, 11, 2, 1]
    layer = Attention(8, 2)
    with record_attention(layer) as calls:
        layer(Packed(torch.randn(5, 8), torch.tensor([5])))
    assert calls[0].roles is None


def test_names():
    assert [role.title for role in Role] == ["hit", "register", "global register", "CLS"]
    words = share_words({Role.REGISTER: 0.123, Role.GLOBAL_REGISTER: 0.004, Role.CLS: 0.031})
    assert words == "registers 12 %, global registers 0.40 %, CLS 3 %"
    assert share_words({}) == ""


def test_a_pattern_keeps_hits_at_their_places(event, pattern):
    assert pattern.kinds == KINDS
    assert pattern.is_hit.sum() == 82
    assert np.allclose(pattern.key_phi[pattern.is_hit], np.sort(event.hits.phi))
    for values in (pattern.key_phi, pattern.key_xy):
        assert np.isnan(values[~pattern.is_hit]).all()
    assert (pattern.key_particle[~pattern.is_hit] == -1).all()
    assert pattern.is_hit[pattern.nearest(0.3)]
    assert set(KINDS) <= {Role(int(one)) for one in pattern.roles[pattern.sampled(50)]}  # type: ignore[index]
    call = recorded(event)
    whole = attention_weights(call.q, call.k, mask=call.mask, lengths=call.layout, rows=[9]).mean(0)
    if pattern.mask is not None:
        assert torch.allclose(pattern.rows([9]), whole, atol=1e-6)


def test_a_map_has_a_row_and_a_column_for_each_kind(pattern):
    bins, whole = 6, weights_of(pattern, 1)
    place = np.floor((pattern.key_phi + np.pi) / (2 * np.pi) * bins)
    for index, kind in enumerate(KINDS):
        place[pattern.roles == kind] = bins + index
    expected = np.array([[whole[place == a][:, place == b].sum(1).mean() for b in range(9)] for a in range(9)])
    assert np.allclose(binned(pattern, bins, 1), expected, atol=1e-6)
    found = preference(pattern.uniform(), bins, 0)
    assert np.allclose(found[np.isfinite(found)], 1, atol=1e-5)
    assert np.isfinite(found[6:]).all()
    assert np.isfinite(found[:, 6:]).all()
    assert alike(pattern, bins).shape[1] == 9
    zoomed = binned(pattern, bins, 1, centre=3.1, half=0.5)
    assert np.allclose(zoomed[6:, 6:], expected[6:, 6:], atol=1e-6)


def test_numbers_are_those_of_hits(pattern):
    whole, hits = weights_of(pattern, 0), np.flatnonzero(pattern.is_hit)
    distance, own = [], []
    for i in hits:
        angle = np.abs(pattern.key_phi[hits] - pattern.query_phi[i])
        distance.append(np.average(np.minimum(angle, 2 * np.pi - angle), weights=whole[i, hits]))
        mine = (pattern.key_particle == pattern.query_particle[i]) & (np.arange(len(whole)) != i)
        if pattern.query_particle[i] >= 0:
            own.append(whole[i, mine].sum())
    found = measure(pattern, 0)
    assert found.distance == pytest.approx(np.mean(distance), abs=1e-5)
    assert found.own == pytest.approx(np.mean(own), abs=1e-5)
    assert found.itself == pytest.approx(whole[hits, hits].mean(), abs=1e-5)
    assert math.isfinite(across(pattern, width=1.0))


def test_shares_add_up(pattern):
    whole = (weights_of(pattern, 0) + weights_of(pattern, 1)) / 2
    found = shares(pattern, rows=[9, 30])
    assert found == {
        kind: pytest.approx(whole[[9, 30]][:, pattern.roles == kind].sum(1).mean(), abs=1e-6) for kind in KINDS
    }
    table = compare({"with tokens": pattern}, head=1)
    hits = weights_of(pattern, 1)[pattern.is_hit]
    for kind in KINDS:
        expected = 100 * hits[:, pattern.roles == kind].sum(1).mean()
        assert table.loc["with tokens", f"{kind.title} [%]"] == pytest.approx(expected, abs=0.006)


def test_the_strongest_keys_by_name(pattern):
    row = pattern.nearest(1.0)
    weights = weights_of(pattern, 0)[row]
    best = np.argsort(-weights)[:12]
    table = strongest_table(pattern, row, 12, head=0)
    assert pattern.roles is not None
    assert table["token"].tolist() == [Role(int(pattern.roles[key])).title for key in best]
    assert table["number"].tolist() == [int((pattern.roles[:key] == pattern.roles[key]).sum()) for key in best]
    assert np.allclose(table["weight [%]"], 100 * weights[best], atol=1e-3)
    assert (table["Δφ [rad]"].isna() == (table["token"] != "hit")).all()
    values, keys = strongest(pattern, row, 100, head=0, only_hits=True)
    assert sorted(keys.tolist()) == np.flatnonzero(pattern.is_hit).tolist()
    assert np.allclose(values.numpy(), np.sort(weights[pattern.is_hit])[::-1], atol=1e-6)


def test_maps_name_the_tokens_at_both_axes(pattern):
    figure: Any = attention_maps({"one": pattern, "two": pattern.uniform()}, 0, bins=8, difference=True, every=3)
    names = [kind.title for kind in KINDS]
    for axes in figure.axes[:3]:
        assert [word.get_text() for word in axes.get_xticklabels()][-3:] == names
        assert [word.get_rotation() for word in axes.get_xticklabels()] == [0] * 5 + [90] * 3
        ticks = axes.get_xticks()[-3:]
        assert (ticks > math.pi).all()
        assert (ticks < axes.get_xlim()[1]).all()
    assert [word.get_text() for word in figure.axes[0].get_yticklabels()][-3:] == names
    shown = figure.axes[0].images[0].get_array().filled(np.nan)
    values = preference(pattern, 8, 0, rows=pattern.sampled(3))
    assert shown.shape == (14, 14)  # 8 bins, and a gap and a strip for each of three kinds
    assert np.isnan(shown[8]).all()
    assert np.allclose(shown[:8, :8], values[:8, :8], equal_nan=True)
    assert np.allclose(shown[9::2][:, 9::2], values[8:, 8:], equal_nan=True)
    figure.draw_without_rendering()


def test_a_map_of_hits_alone_beside_one_with_tokens(event, pattern):
    plain = layer_pattern(event, "periodic")
    figure: Any = attention_maps({"hits": plain, "tokens": pattern}, 0, bins=8, difference=True)
    assert figure.axes[2].get_title(loc="left") == "difference, hits alone"
    shown = figure.axes[2].images[0].get_array().filled(np.nan)
    expected = change(preference(plain, 8, 0), preference(pattern, 8, 0)[:8, :8])
    assert np.allclose(shown, expected, equal_nan=True)
    assert "CLS" in [word.get_text() for word in figure.axes[1].get_yticklabels()]


def test_queries_of_cross_attention_see_named_keys(pattern):
    one = replace(
        pattern, q=pattern.q[:5], query_phi=np.linspace(-3, 2, 5), query_xy=np.ones((5, 2)), mask=None, hits=False
    )
    figure: Any = attention_maps({"queries": one}, 0, bins=8)
    assert figure.axes[0].images[0].get_array().shape == (5, 14)
    assert "CLS" in [word.get_text() for word in figure.axes[0].get_xticklabels()]
    assert "CLS" not in [word.get_text() for word in figure.axes[0].get_yticklabels()]


def test_lines_go_to_hits_and_the_tokens_are_written_in_the_corner(event, pattern):
    plain = layer_pattern(event, "periodic")
    row = pattern.nearest(1.0)
    figure: Any = attention_rows({"tokens": pattern, "hits": plain}, row, 0)
    with_tokens, without, _ = figure.axes
    assert with_tokens.texts[0].get_text() == share_words(shares(pattern, 0, rows=[row]))
    assert "registers" in with_tokens.texts[0].get_text()
    assert without.texts[0].get_text() == ""
    for axes, one, place in ((with_tokens, pattern, row), (without, plain, plain.nearest(1.0))):
        sizes = [len(one.get_offsets()) for one in axes.collections if hasattr(one, "get_sizes")]
        assert sizes[0] == 82
        (ends,) = (each.get_segments() for each in axes.collections if not hasattr(each, "get_sizes"))
        weights = weights_of(one, 0)[place] * one.is_hit
        best = {int(key) for key in np.argsort(-weights)[:40] if weights[key] > 0} - {place}
        drawn = np.array(sorted(tuple(end[1]) for end in ends))
        assert np.allclose(drawn, np.array(sorted(tuple(one.key_xy[key]) for key in best)), atol=1e-3)
        star = axes.collections[-1].get_offsets()[0]
        assert np.allclose(star, pattern.query_xy[row], atol=1e-3)
    assert "82 hits" in figure.get_suptitle()
    figure.draw_without_rendering()
    attention_seam({"tokens": pattern}, width=2.0).draw_without_rendering()


def test_what_cannot_be_drawn_is_refused(event, pattern):
    with pytest.raises(ValueError, match="query 0 of 'with tokens' is a learned token"):
        attention_rows({"tokens": pattern}, 0)
    call = recorded(event)
    with pytest.raises(ValueError, match="recorded with 82 hits, and the event has 10"):
        call_pattern(call, event.keep(np.arange(82) < 10))
    with pytest.raises(ValueError, match="a bias"):
        call_pattern(replace(call, bias=DistanceBias(torch.ones(2))), event)
    with pytest.raises(ValueError, match=r"another sequence.* query_phi says where"):
        call_pattern(replace(call, kv_layout=Layout.of([96], "cpu")), event)
    with pytest.raises(ValueError, match=r"query_phi belongs to cross-attention .* itself for its keys"):
        call_pattern(call, event, query_phi=np.zeros(len(call.q)))
    crossing = crossed(event)
    with pytest.raises(ValueError, match=r"has 5 queries: give φ of each, not an array of shape \(4,\)"):
        call_pattern(crossing, event, query_phi=np.zeros(4))
    with pytest.raises(ValueError, match="recorded with 82 hits, and the event has 10"):
        call_pattern(crossing, event.keep(np.arange(82) < 10), query_phi=np.zeros(5))


def crossed(event) -> AttentionCall:
    """Five queries look at the hits of an event, in φ order."""
    torch.manual_seed(0)
    layer = Attention(16, 2)
    n = len(event.hits)
    with record_attention(layer) as calls:
        layer(Packed(torch.randn(5, 16), torch.tensor([5])), Packed(torch.randn(n, 16), torch.tensor([n])))
    return calls[0]


def test_a_recorded_call_of_cross_attention(event):
    call = crossed(event)
    phi = np.array([0.5, -2.0, 3.0, 7.0, 0.0])
    pattern = call_pattern(call, event, query_phi=phi)
    assert (pattern.hits, pattern.heads, len(pattern.q), len(pattern.k)) == (False, 2, 5, 82)
    assert np.allclose(pattern.query_phi, [0.5, -2.0, 3.0, 7.0 - 2 * np.pi, 0.0])
    weights = torch.einsum("qhd,khd->hqk", call.q, call.k) / 8**0.5
    assert torch.allclose(pattern.rows(range(5), 1), weights.softmax(dim=-1)[1], atol=1e-6)
    assert np.all(np.diff(pattern.key_phi) >= 0)
    figure = attention_maps({"one": pattern, "same": pattern}, difference=True)
    words = [word.get_text() for word in figure.axes[0].get_yticklabels()]
    assert words == ["0.50", "-2.00", "3.00", "0.72", "0.00"]
    attention_rows({"one": pattern}, 3).draw_without_rendering()


def test_the_pattern_of_a_mask_decoder(event):
    """With `block=None` a decoder's call is one of all queries and hits, under the mask that it realised."""
    torch.manual_seed(0)
    order = np.argsort(event.hits.phi, kind="stable")
    n, place = len(order), torch.arange(0, len(order), 9)
    config = DecoderConfig(2, 2, block=None, window=None, zero_start=False, mask_bias=0.0, mask_threshold=0.5)
    decoder = Decoder(16, config).eval()
    layouts = Layout.of([len(place)], "cpu"), Layout.of([n], "cpu")
    with torch.no_grad(), record_attention(decoder) as calls:
        decoder(torch.randn(len(place), 16), layouts[0], torch.randn(n, 16), layouts[1], place)
    call = next(one for one in calls if one.name.endswith("cross.attention"))
    pattern = call_pattern(call, event, query_phi=event.hits.phi[order][place])
    assert np.array_equal(pattern.query_phi, pattern.key_phi[place])
    rows = pattern.rows(range(len(place)))
    assert torch.allclose(rows.sum(dim=1), torch.ones(len(place)), atol=1e-5)
    assert call.mask is not None
    allowed = call.mask.dense(len(place), n)
    assert (call.layout.batch, call.kv_layout.batch) == (1, 1)
    assert not allowed.all()
    assert not rows[~allowed].any()
