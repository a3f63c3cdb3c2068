"""The tracker: queries, hits shared out against a loop, tracks of an event, weights that come back."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hepattn.data import sample_events
from hepattn.data.schema import Event
from hepattn.data.track_dataset import TrackBatch, collate_tracks, track_batch
from hepattn.metrics.tracks import FoundTracks, track_metrics
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.models.maskformer import MaskFormer, MaskFormerConfig, Seen, as_parameters
from hepattn.models.track_targets import TrackTruth, own_targets
from hepattn.sequence import Layout

SMALL = EncoderConfig(dim=16, num_layers=1, num_heads=1)
DECODER = DecoderConfig(num_layers=1, num_heads=1, block=4, window=64)


def tracker(seed: int = 0, **changes) -> MaskFormer:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"encoder": SMALL, "decoder": DECODER, "window": 8} | changes
    return MaskFormer(MaskFormerConfig(**settings)).eval()


@pytest.fixture(scope="module")
def event() -> Event:
    whole = sample_events("ttbar_mu0")[0]
    return whole.keep(np.abs(whole.hits.phi) < 1.0)


def perfect(made: MaskFormer, batch: TrackBatch) -> Seen:
    """What a tracker would see that knows the truth."""
    truth = TrackTruth.of(batch)
    seen = made.see(batch.hits.inputs, truth.innermost)
    truth = truth.ordered(seen.hits.order)
    target, blocks = own_targets(seen, truth), seen.decoded.blocks
    none = len(truth.target) - 1
    masks = torch.where(truth.particle[blocks.hit][:, None] == target[blocks.query][:, :, None], 9.0, -9.0)
    objects = torch.where(target < none, 9.0, -9.0)
    last = replace(seen.decoded.last, masks=masks, objects=objects)
    return replace(seen, decoded=replace(seen.decoded, predictions=(last,)))


def test_perfect_predictions_are_perfect_tracks(event):
    made = tracker(decoder=replace(DECODER, window=None, block=None))
    kept = np.random.default_rng(0).random(len(event.hits)) < 0.9
    batch = track_batch(event, made.config.features, made.config.selection, kept)
    (found,) = made.tracks(perfect(made, batch))
    judged = FoundTracks.of(event, found.in_event(kept), made.config.selection, kept)
    metrics = track_metrics([judged], sizes="kept")
    held = np.bincount(judged.particle[kept & (judged.particle >= 0)], minlength=len(judged.reconstructable))
    assert metrics.efficiency_perfect.passed == (judged.reconstructable & (held >= 3)).sum() > 5
    assert metrics.fakes.passed == 0


def test_hits_are_shared_out_and_tracks_scored_as_by_a_loop():
    """Object and mask probabilities at random: each hit goes to its best track, of equal ones to the first."""
    made = tracker(query_threshold=0.3)
    generator = torch.Generator().manual_seed(3)
    inputs = [sample_events("ttbar_mu0")[i] for i in (0, 1)]
    cut = [one.keep(np.arange(len(one.hits)) % 40 == 0) for one in inputs]
    batch = collate_tracks([track_batch(one, made.config.features, made.config.selection) for one in cut])
    also = torch.rand(len(batch.hits.target), generator=generator) < 0.3
    with torch.no_grad():
        seen = made.see(batch.hits.inputs, also)
    blocks = seen.decoded.blocks
    levels = torch.tensor([-2.0, 0.5, 1.0, 2.0])  # few, so that some are equal
    masks = levels[torch.randint(4, blocks.shape, generator=generator)]
    objects = levels[torch.randint(4, (blocks.queries,), generator=generator)]
    last = replace(seen.decoded.last, masks=masks, objects=objects)
    seen = replace(seen, decoded=replace(seen.decoded, predictions=(last,)))
    rows = made.share_out(seen)
    best: dict[int, tuple[float, int]] = {}
    for g, k in blocks.query_valid.nonzero().tolist():
        query = int(blocks.query[g, k])
        sure = objects[query].sigmoid()
        for w in blocks.hit_valid[g].nonzero()[:, 0].tolist():
            mask, hit = masks[g, k, w].sigmoid(), int(blocks.hit[g, w])
            value = float(mask * sure)
            if sure >= 0.5 and mask > 0.5 and (hit not in best or (value, -query) > (best[hit][0], -best[hit][1])):
                best[hit] = (value, query)
    assert rows.tolist() == [best[hit][1] if hit in best else -1 for hit in range(len(rows))]
    assert len(best) > 50
    values: dict[int, list[float]] = {}
    for value, query in best.values():
        values.setdefault(query, []).append(value)
    scores = sorted(sum(one) / len(one) for one in values.values())
    for least in (0.0, 0.77):
        made.config = replace(made.config, track_threshold=least)
        found = [track for tracks in made.tracks(seen, min_hits=1) for track in tracks]
        assert np.allclose(sorted(track.score for track in found), [one for one in scores if one >= least], atol=1e-6)
    assert 0 < len(found) < len(scores)


def test_reconstruct_gives_rows_of_the_whole_event(event):
    made = tracker(volumes=(8, 13), object_threshold=0.01, min_hits=1)
    made.decoder.mask_bias.data.fill_(5.0)
    found = made.train().reconstruct(event)
    assert made.training
    assert found.num_hits == len(event.hits)
    assert len(found)
    assert np.isin(event.hits.volume_id[found.hits], (8, 13)).all()
    few = np.zeros(len(event.hits), dtype=np.bool_)
    few[:40] = True
    assert made.reconstruct(event, few).hits.max(initial=0) < 40
    with pytest.raises(ValueError, match=r"kept is \(\d+,\) bool, not int64"):
        made.reconstruct(event, np.arange(3))  # type: ignore[arg-type]


def test_the_order_of_hits_does_not_matter(event):
    made = tracker(object_threshold=0.01, min_hits=1)
    made.decoder.mask_bias.data.fill_(4.0)
    order = np.random.default_rng(1).permutation(len(event.hits))
    straight, mixed = made.reconstruct(event), made.reconstruct(event.keep(order))
    as_sets = [{frozenset(track.hits.tolist()) for track in straight}]
    as_sets.append({frozenset(order[track.hits].tolist()) for track in mixed})
    assert as_sets[0] == as_sets[1]
    assert as_sets[0]


def test_the_filter_of_the_configuration_goes_first(event):
    made = tracker(filter="sample", filter_threshold=0.5)
    scores = HitFilter.pretrained("sample").score(event).numpy()
    assert np.array_equal(made.kept(event), scores >= 0.5)
    assert not any("filter" in name for name in made.state_dict())
    assert made.kept(event).sum() < len(event.hits) == tracker().kept(event).sum()


def test_dynamic_queries_are_the_most_probable_ones():
    made = tracker(max_queries=2)
    layout = Layout.of([4, 0, 3], "cpu", total=7)
    chosen = made.choose(torch.tensor([0.2, 0.05, 0.9, 0.5, 0.3, 0.01, 0.01]), layout)
    assert chosen.lengths.tolist() == [2, 0, 1]
    assert chosen.place.tolist() == [2, 3, 4]
    assert chosen.dropped == 1
    also = torch.tensor([False, True, False, False, False, False, False])
    chosen = made.choose(torch.tensor([0.2, 0.05, 0.9, 0.5, 0.3, 0.01, 0.01]), layout, also)
    assert chosen.place.tolist() == [1, 2, 4]  # asked for comes before probable


def test_learned_queries_stand_evenly_among_the_hits():
    made = tracker(queries="learned", learned_queries=4)
    chosen = made.choose(torch.zeros(12), Layout.of([8, 0, 4], "cpu", total=12))
    assert chosen.lengths.tolist() == [4, 0, 4]
    assert chosen.place.tolist() == [1, 3, 5, 7, 8, 9, 10, 11]


def test_learned_queries_are_told_their_phi(event):
    made = tracker(queries="learned", learned_queries=6)
    inputs = made.inputs(event)
    with torch.no_grad():
        before = made.see(inputs).decoded.last.objects
        assert made.where_projection is not None
        made.where_projection.weight.mul_(3.0)
        for part in made.decoder.modules():
            if isinstance(part, torch.nn.Linear):
                torch.nn.init.normal_(part.weight, std=0.3)
        after = made.see(inputs).decoded.last.objects
    assert before.shape == after.shape == (6,)
    assert len(after.unique()) == 6


def test_weights_come_back(tmp_path, event):
    made = tracker(decoder=replace(DECODER, cls=1, parameters=True), count=True)
    path = made.save(tmp_path / "maskformer_toy.safetensors")
    other = MaskFormer.load(path)
    assert other.config == made.config
    with torch.no_grad():
        one, two = (m.see(m.inputs(event)) for m in (made, other))
    assert torch.equal(one.decoded.last.masks, two.decoded.last.masks)
    assert one.log_count is not None
    assert one.log_count.shape == (1,)
    with pytest.raises(ValueError, match="holds no hit filter"):
        HitFilter.load(path)
    HitFilter(HitFilter.CONFIG(encoder=SMALL)).save(path)
    with pytest.raises(ValueError, match="holds no tracker"):
        MaskFormer.load(path)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_tracker_may_begin_with_the_encoder_of_a_filter(event, rotary):
    made, front = tracker(rotary=rotary), HitFilter(HitFilter.CONFIG(encoder=SMALL, window=8, rotary=rotary)).eval()
    made.take_encoder(front)
    inputs = made.inputs(event)
    with torch.no_grad():
        hits, coordinates = front.embed(inputs)
        tokens = front.encode(hits, coordinates).tokens.values
        assert torch.equal(made.see(inputs).hits.values, tokens)
        assert torch.equal(front.encoder(hits).values, tokens) != rotary
    other = HitFilter(HitFilter.CONFIG(encoder=replace(SMALL, gate=True), r_unit=10.0, rotary=not rotary))
    with pytest.raises(ValueError, match=r"the tracker can't begin .* hit filter: they differ in r_unit, rotary, enc"):
        made.take_encoder(other)


def test_shipped_weights_find_tracks_as_their_card_says():
    made = MaskFormer.pretrained("sample")
    events = sample_events("ttbar_mu0")[-6:]
    found = [FoundTracks.of(one, made.reconstruct(one), made.config.selection) for one in events]
    metrics = track_metrics(found)
    assert metrics.efficiency.value > 0.70  # 0.78 on all 40 test events, 0.757 on these
    assert metrics.fakes.value < 0.13  # 0.08, and 0.087


def test_an_event_without_hits(event):
    made = tracker()
    found = made.reconstruct(event.keep(np.zeros(len(event.hits), dtype=np.bool_)))
    assert len(found) == 0
    assert found.num_hits == 0


def test_parameters_of_predictions():
    out = as_parameters(torch.tensor([[0.0, 1.0, 4.0, 20.0, 0.1, 3.0], [1.0, -1.0, -0.5, -3.0, 0.0, -3.0]]))
    assert np.allclose(out.pt, [1.0, np.e])
    assert np.allclose(out.phi, [4.0 - 2 * np.pi, -0.5])
    assert np.allclose(out.z0, [20.0, -3.0])
    assert np.allclose(np.sign(out.charge), [1, -1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queries": "many"}, "'dynamic' or 'learned'"),
        ({"object_threshold": 0.0}, "object_threshold is a probability"),
        ({"track_threshold": 1.0}, "track_threshold is a score in"),
        ({"max_queries": 0}, "max_queries must be at least 1"),
        ({"count": True}, "give decoder.cls=1"),
        ({"query_octaves": -1}, "query_octaves must be at least 0"),
    ],
)
def test_impossible_configurations(changes, words):
    with pytest.raises(ValueError, match=words):
        tracker(**changes)
