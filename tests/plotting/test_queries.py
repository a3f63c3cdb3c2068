"""Queries of a tracker: what is drawn is what the tracker sees, and what its loss counts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import hepattn.plotting
from hepattn import attention_weights, record_attention
from hepattn.data import Event, sample_event
from hepattn.data.track_dataset import track_batch
from hepattn.metrics import FoundTracks, track_metrics
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.maskformer import MaskFormer, MaskFormerConfig
from hepattn.models.matcher import Matcher
from hepattn.models.track_losses import TrackWeights
from hepattn.models.track_targets import TrackTruth, own_targets, start_matching
from hepattn.plotting.query_numbers import (
    Decoding,
    agreement,
    assigned,
    attention_shares,
    costs,
    decode,
    found,
    innermost_chosen,
    shared_out,
    window_share,
)
from hepattn.plotting.query_panels import Part

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow


def tracker(**changes: Any) -> MaskFormer:
    """Untrained, with masks and attention that are neither empty nor full."""
    torch.manual_seed(0)
    decoder = DecoderConfig(num_layers=2, num_heads=2, block=8, window=90, mask_bias=0.0, zero_start=False)
    settings: dict[str, Any] = {"encoder": EncoderConfig(dim=16, num_layers=1, num_heads=1), "decoder": decoder}
    net = MaskFormer(MaskFormerConfig(**settings | {"window": 8, "max_queries": 60} | changes))
    with torch.no_grad():
        for head in (net.decoder.mask_query, net.decoder.mask_hit, net.decoder.objects):
            last = head[-1]
            assert isinstance(last, torch.nn.Linear)
            last.weight *= 12.0
        net.decoder.mask_bias.fill_(-1.0)
    return net.eval()


@pytest.fixture(scope="module")
def net() -> MaskFormer:
    return tracker()


@pytest.fixture(scope="module")
def event() -> Event:
    whole = sample_event("ttbar_mu0", 210)
    return whole.keep(np.abs(whole.hits.phi) < 0.6)


@pytest.fixture(scope="module")
def of(net: MaskFormer, event: Event) -> Decoding:
    return decode(net, event)


@pytest.fixture(scope="module")
def others(net: MaskFormer, event: Event) -> dict[str, Decoding]:
    return {"no encodings": decode(net, event, encoded=False), "shuffled": decode(net, event, shuffled=1)}


def test_a_decoding_is_what_the_tracker_sees(net, event, of):
    batch = track_batch(event, net.config.features, net.config.selection)
    with torch.no_grad():
        seen = net.see(batch.hits.inputs)
        (tracks,) = net.tracks(seen)
    truth = TrackTruth.of(batch).ordered(seen.hits.order)
    blocks = seen.decoded.blocks
    assert len(of.place) == 60
    assert (of.place == seen.place.numpy()).all()
    assert np.allclose(of.first, seen.first.sigmoid())
    assert (of.objects == torch.stack([one.objects for one in seen.decoded.predictions])).all()
    own = own_targets(seen, truth).numpy()
    assert (np.append(of.targets, len(truth.target) - 1)[of.own] == own).all()
    for group, row in blocks.query_valid.nonzero().tolist():
        query = int(blocks.query[group, row])
        hits = blocks.hit[group][blocks.hit_valid[group]]
        assert of.block[query] == group
        assert (np.flatnonzero(of.sees[query]) == np.sort(hits)).all()
        for layer, one in enumerate(seen.decoded.predictions):
            assert (of.masks[layer, query, hits] == one.masks[group, row][blocks.hit_valid[group]]).all()
    assert (shared_out(of) == net.share_out(seen).numpy()).all()
    mine = found(of)
    assert len(mine.tracks) == len(tracks) > 3
    assert (mine.tracks.hits == tracks.hits).all()
    want = FoundTracks.of(event, tracks, net.config.selection)
    assert track_metrics([mine]).efficiency == track_metrics([want]).efficiency


def test_innermost_hits_and_targets(of):
    hits = of.event.hits
    assert hits.particle is not None
    for target, particle in enumerate(of.targets):
        rows = of.rows[of.particle == target]
        assert sorted(rows) == sorted(np.flatnonzero(hits.particle == particle))
        (nearest,) = of.rows[of.innermost & (of.particle == target)]
        assert hits.r[nearest] == hits.r[rows].min()
    assert (np.diff(hits.phi[of.rows[of.innermost]]) >= 0).all()
    assert of.innermost.sum() == len(of.targets) == innermost_chosen(of).total
    assert innermost_chosen(of).passed == len(set(of.place) & set(np.flatnonzero(of.innermost)))
    inside = sum(int((of.sees[q] & (of.particle == of.own[q])).sum()) for q in np.flatnonzero(of.own >= 0))
    total = sum(int((of.particle == of.own[q]).sum()) for q in np.flatnonzero(of.own >= 0))
    assert (window_share(of).passed, window_share(of).total) == (inside, total)


def test_attention_is_that_of_the_recorded_blocks(net, event, of):
    with torch.no_grad(), record_attention(net.decoder) as calls:
        seen = net.see(track_batch(event, net.config.features, net.config.selection).hits.inputs)
    blocks = seen.decoded.blocks
    cross = [call for call in calls if ".cross." in call.name]
    assert len(cross) == of.layers == 2
    for call, pattern in zip(cross, of.attention, strict=True):
        whole = attention_weights(call.q, call.k, mask=call.mask, lengths=call.layout, kv_lengths=call.kv_layout)
        mine = pattern.rows(range(60))
        for query in (0, 17, 59):
            group, row = query // 8, query % 8
            block = whole[:, group * 8 + row, group * 90 : (group + 1) * 90].mean(dim=0)
            want = torch.zeros(len(of.rows)).index_add_(0, blocks.hit[group], block)
            assert torch.allclose(mine[query], want, atol=1e-6)
            assert torch.isclose(mine[query].sum(), torch.tensor(1.0), atol=1e-5)


def test_shares_of_attention_against_a_loop(of):
    weights = of.attention[1].rows(range(60)).numpy()
    looks = weights > 0
    each = []
    for query in np.flatnonzero(of.own >= 0):
        mine = of.particle == of.own[query]
        if mine.sum() < 2:
            continue
        alike = [(mine & seen).sum() / seen.sum() for seen in (looks[query], of.sees[query])]
        each.append([weights[query][mine].sum(), *alike])
    share = attention_shares(of, 2)
    assert np.allclose([share.attention, share.in_mask, share.in_window], np.mean(each, axis=0), atol=1e-5)


def test_other_decodings_leave_the_tracker_as_it_was(net, event, of, others):
    shuffled, plain = others["shuffled"], others["no encodings"]
    assert (decode(net, event).masks == of.masks).all()
    assert sorted(shuffled.place) == list(of.place)
    assert (shuffled.place != of.place).any()
    assert sorted(shuffled.own) == sorted(of.own)
    assert window_share(shuffled).value < window_share(of).value
    assert torch.allclose(plain.masks[0], of.masks[0])  # before the first layer nothing has attended
    assert not torch.allclose(plain.masks[1], of.masks[1])
    without = tracker(query_octaves=0)
    with pytest.raises(ValueError, match="no encodings"):
        decode(without, event, encoded=False)
    turned = tracker(query_octaves=0, decoder=replace(net.config.decoder, rotary=True))
    masks = decode(turned, event, encoded=False).masks
    assert torch.allclose(masks, decode(without, event).masks)
    assert not torch.allclose(masks[1], decode(turned, event).masks[1])
    with pytest.raises(ValueError, match="learned"):
        decode(tracker(queries="learned"), event)


def test_costs_and_assignment_are_those_of_the_loss(net, event, of):
    batch = track_batch(event, net.config.features, net.config.selection)
    weights = TrackWeights(object=3.0, dice=0.5)
    with torch.no_grad():
        seen = net.see(batch.hits.inputs)
    matched = start_matching(seen, TrackTruth.of(batch).ordered(seen.hits.order), weights, Matcher(workers=1)).result()
    for layer in range(3):
        cost = costs(of, layer, weights)
        given = assigned(cost)
        total = cost.double().numpy()[given >= 0, given[given >= 0]].sum()
        # the loss sorts particles by their number, figures by phi
        order = np.argsort(of.targets)
        pairs = matched[0][layer]
        want = cost.double().numpy()[pairs.query.numpy(), order[pairs.target.numpy()]].sum()
        assert np.isclose(total, want)
        same = sum(int(of.own[q] == given[q]) for q in range(60) if of.own[q] >= 0)
        assert agreement(of, layer, weights).passed == same
        assert agreement(of, layer, weights).total == (of.own >= 0).sum()


def test_a_part_holds_all_that_its_rows_see(of, others):
    for one in (of, others["shuffled"]):
        part = Part(one, 59, 20)
        assert list(part.rows) == list(range(40, 60))
        assert sorted(part.columns) == list(np.flatnonzero(one.sees[40:60].any(axis=0)))
        x, y = part.windows(one)
        assert np.nanmin(x) == -0.5
        assert np.nanmax(x) == len(part.columns) - 0.5
        assert np.nanmin(y) == -0.5
        assert np.nanmax(y) == 19.5
    # around the full turn the first columns are the last hits
    part = Part(of, 0, 8)
    assert (np.diff(part.columns) < 0).sum() <= 1


def test_the_figures_draw_it(of, others):
    hits = plotting.query_hits(of)
    chosen = innermost_chosen(of)
    assert f"{chosen.passed} of the {chosen.total} innermost hits" in hits.get_suptitle()
    assert len(hits.axes[0].collections[1].get_offsets()) == 60
    figure = plotting.query_costs(of)
    same = agreement(of)
    assert f"({same.passed} of {same.total}) are matched to it" in figure.get_suptitle()
    own, matched, _ = figure.axes[0].lines
    assert len(own.get_xdata()) == (of.own >= 0).sum()
    assert len(matched.get_xdata()) == min(60, len(of.targets))
    figure = plotting.query_masks(of, 30, 20)
    titles = [ax.get_title(loc="left") for ax in figure.axes[:4]]
    assert titles[:3] == ["before the first layer", "after layer 1", "after layer 2"]
    part = Part(of, 30, 20)
    assert np.allclose(figure.axes[2].images[0].get_array(), part.of(of.mask(2)))
    assert np.allclose(figure.axes[3].images[0].get_array(), part.of(of.truth))
    figure = plotting.query_attention({"ordered": of, **others}, 2)
    assert len([ax for ax in figure.axes if ax.images]) == 3
    with pytest.raises(ValueError, match=r"layer lies in 1 \.\.\. 2"):
        plotting.query_attention({"ordered": of}, 3)
    figure = plotting.attention_on_own({"ordered": [of, of], **others})
    assert f"{100 * window_share(of).value:.1f} %" in [text.get_text() for text in figure.axes[1].texts]
    metrics = track_metrics([found(of, 1, 0.4, 0.6)])
    figure = plotting.query_tracks(of, 1, 0.4, 0.6)
    assert f"({metrics.efficiency.passed} of {metrics.efficiency.total})" in figure.get_suptitle()
    assert "after layer 1" in figure.axes[1].get_title(loc="left")


def test_an_event_without_queries(event):
    of = decode(tracker(query_threshold=0.999), event)
    assert len(of.place) == 0
    assert len(found(of).tracks) == 0
    assert np.isnan(attention_shares(of, 1).attention)
    assert plotting.query_costs(of)._repr_png_()
    assert plotting.query_masks(of)
