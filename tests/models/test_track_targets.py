"""What queries should say, against loops; losses that are finite in every corner, and small for what is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hepattn.data import sample_events
from hepattn.data.schema import Selection
from hepattn.data.track_dataset import TrackBatch, collate_tracks, track_batch
from hepattn.models import track_targets
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.maskformer import MaskFormer
from hepattn.models.matcher import Matcher
from hepattn.models.track_losses import TrackWeights, mask_dice, mask_focal
from hepattn.models.track_targets import (
    FAR,
    TrackLossConfig,
    TrackTruth,
    matched_targets,
    own_targets,
    start_matching,
    track_loss,
)
from tests.models.test_maskformer import DECODER, tracker

SELECTION = Selection(1.0, 4.0, 3)


def some_events(part: float = 0.6, **changes) -> tuple[MaskFormer, TrackBatch]:
    made = tracker(**changes)
    batches = []
    for number in (0, 1):
        event = sample_events("ttbar_mu0")[number]
        event = event.keep(np.abs(event.hits.phi) < part)
        kept = np.random.default_rng(number).random(len(event.hits)) < 0.8
        batches.append(track_batch(event, made.config.features, made.config.selection, kept))
    return made, collate_tracks(batches)


def test_truth_of_a_batch_against_a_loop():
    _, batch = some_events()
    truth = TrackTruth.of(batch)
    hits, particles = batch.hits, batch.hits.reconstructable
    row, first = 0, 0
    none = len(particles.values)
    for event in range(2):
        nearest: dict[int, tuple[float, int]] = {}
        for _ in range(int(hits.inputs.lengths[event])):
            own = int(hits.particle[row])
            expected = none if own < 0 else own + first
            assert int(truth.particle[row]) == expected
            if own >= 0 and bool(truth.target[expected]):
                radius = float(hits.inputs.values[row, -2])
                nearest[expected] = min(nearest.get(expected, (np.inf, 0)), (radius, row))
            row += 1
        start = row - int(hits.inputs.lengths[event])
        assert truth.innermost[start:row].nonzero()[:, 0].add(start).tolist() == sorted(r for _, r in nearest.values())
        first += int(particles.lengths[event])
    assert not bool(truth.target[none])
    assert truth.size.tolist() == [int((truth.particle == p).sum()) for p in range(none + 1)]
    assert truth.parameters[none].isnan().all()
    assert not truth.parameters[:none].isnan().any()


def test_reconstructable_is_decided_before_the_filter():
    event = sample_events("ttbar_mu0")[0]
    lost = SELECTION.hits(event)
    batch = track_batch(event, ("x",), SELECTION, ~lost)
    assert not batch.hits.target.any()
    assert torch.equal(batch.hits.reconstructable.values, torch.from_numpy(SELECTION.particles(event)))
    assert batch.num_hits == (len(event.hits),)
    with pytest.raises(ValueError, match="kept is"):
        track_batch(event, ("x",), SELECTION, lost[:5])


def test_a_query_stands_for_its_particle_if_it_is_the_most_probable():
    made, batch = some_events()
    truth = TrackTruth.of(batch)
    also = torch.rand(len(truth.particle), generator=torch.Generator().manual_seed(0)) < 0.5
    seen = made.see(batch.hits.inputs, also)
    levels = torch.tensor([0.0, 1.0, 2.0])[torch.arange(len(seen.first)) % 3]  # many are equal
    seen, truth = replace(seen, first=levels), truth.ordered(seen.hits.order)
    best: dict[int, tuple[float, int]] = {}
    for query, hit in enumerate(seen.place.tolist()):
        particle = int(truth.particle[hit])
        if bool(truth.target[particle]):
            best[particle] = max(best.get(particle, (-1.0, 0)), (float(levels[hit]), -query))
    stands = {-query: particle for particle, (_, query) in best.items()}
    none = len(truth.target) - 1
    assert own_targets(seen, truth).tolist() == [stands.get(query, none) for query in range(len(seen.place))]
    assert len(stands) > 5


def test_the_loss_against_a_loop_over_queries_and_layers():
    made, batch = some_events(decoder=replace(DECODER, parameters=True, iou=True))
    truth = TrackTruth.of(batch)
    seen = made.see(batch.hits.inputs, truth.innermost)
    truth = truth.ordered(seen.hits.order)
    config = TrackLossConfig(TrackWeights(iou=0.5, parameters=0.3))
    found = track_loss(seen, truth, batch, config)
    target, blocks, none = own_targets(seen, truth), seen.decoded.blocks, len(truth.target) - 1
    focal, dice, objects = 0.0, 0.0, 0.0
    for said in seen.decoded.predictions:
        masks, logits_of_objects = said.masks.detach(), said.objects.detach()
        terms = []
        for g, k in blocks.query_valid.nonzero().tolist():
            particle = int(target[blocks.query[g, k]])
            if particle == none:
                continue
            valid = blocks.hit_valid[g]
            on = truth.particle[blocks.hit[g]] == particle
            size = (truth.particle == particle).sum()
            logits = masks[g, k]
            terms.append((mask_focal(logits, on, valid, size), mask_dice(logits, on, valid, size)))
        focal += 2.0 * float(torch.stack([one for one, _ in terms]).mean())
        dice += 2.0 * float(torch.stack([one for _, one in terms]).mean())
        objects += float(
            torch.nn.functional.binary_cross_entropy_with_logits(logits_of_objects, (target < none).float())
        )
    assert np.isclose(float(found.focal.detach()), focal, rtol=1e-5)
    assert np.isclose(float(found.dice.detach()), dice, rtol=1e-5)
    assert np.isclose(float(found.objects.detach()), objects, rtol=1e-5)
    parts = [getattr(found, name) for name in ("first_hit", "objects", "focal", "dice", "iou", "parameters")]
    assert np.isclose(float(found.total.detach()), sum(float(part.detach()) for part in parts), rtol=1e-5)
    seen_hits, all_hits = 0, 0
    for g, k in blocks.query_valid.nonzero().tolist():
        particle = int(target[blocks.query[g, k]])
        if particle < none:
            seen_hits += int((truth.particle[blocks.hit[g]] == particle)[blocks.hit_valid[g]].sum())
            all_hits += int((truth.particle == particle).sum())
    assert 0 < seen_hits < all_hits  # the window is too small for this event
    assert np.isclose(float(found.inside), seen_hits / all_hits)
    assert float(found.iou.detach()) > 0
    assert float(found.parameters.detach()) > 0


def test_learned_queries_are_matched_to_the_least_loss():
    """Every event and layer on its own; the assignment costs less than any other that was tried."""
    made, batch = some_events(queries="learned", learned_queries=5, decoder=replace(DECODER, window=None, block=None))
    truth = TrackTruth.of(batch)
    seen = made.see(batch.hits.inputs)
    truth = truth.ordered(seen.hits.order)
    matcher = Matcher(workers=1)
    targets, surplus = matched_targets(seen, truth, start_matching(seen, truth, TrackWeights(), matcher).result())
    none = len(truth.target) - 1
    assert len(targets) == len(seen.decoded.predictions)
    assert surplus == sum(max(0, n - 5) for n in _with_hits(truth, seen.hits.lengths.tolist()))
    found = track_loss(seen, truth, batch, matcher=matcher)
    assert found.surplus == surplus
    generator = torch.Generator().manual_seed(0)
    best = float(found.total.detach())
    for _ in range(10):
        shuffled = [
            target[torch.cat([torch.randperm(5, generator=generator) + 5 * e for e in (0, 1)])] for target in targets
        ]
        assert best <= _loss_with(seen, truth, batch, shuffled) + 1e-5
    assert all((target < none).sum() > 0 for target in targets)
    matcher.close()


def _with_hits(truth, lengths):
    parts = truth.particle.split(lengths)
    return [int(truth.target[part.unique()].sum()) for part in parts]


def _loss_with(seen, truth, batch, targets):
    """The loss if queries had these targets."""
    layers = zip(seen.decoded.predictions, targets, strict=True)
    parts = [
        track_targets._layer(said, truth, track_targets.Wanted.of(seen, truth, one), TrackWeights())
        for said, one in layers
    ]
    return float(sum(float(part.detach()) for layer in parts for part in layer)) + float(
        track_loss(seen, truth, batch).first_hit.detach()
    )


def test_a_hit_that_a_query_does_not_see_is_surely_not_its_own():
    assert torch.sigmoid(torch.tensor(FAR)) < 1e-12


@pytest.mark.parametrize("changes", [{}, {"queries": "learned", "learned_queries": 3}])
def test_losses_are_finite_in_every_corner(changes):
    """No target; no hit; no query."""
    made = tracker(decoder=replace(DECODER, parameters=True, iou=True, cls=1), count=True, **changes).train()
    matcher = Matcher(workers=1) if changes else None
    config = TrackLossConfig(TrackWeights(iou=1.0, parameters=1.0))
    whole = sample_events("ttbar_mu0")[0]
    noise = whole.keep(np.asarray(whole.hits.particle) < 0)
    soft = whole.keep(~SELECTION.hits(whole))
    nothing = whole.keep(np.zeros(len(whole.hits), dtype=np.bool_))
    for event in (noise, soft, nothing):
        batch = track_batch(event, made.config.features, made.config.selection)
        truth = TrackTruth.of(batch)
        seen = made.see(batch.hits.inputs, truth.innermost)
        loss = track_loss(seen, truth.ordered(seen.hits.order), batch, config, matcher)
        made.zero_grad()
        loss.total.backward()
        assert loss.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_experts_of_the_encoder_reach_the_loss():
    encoder = EncoderConfig(dim=16, num_layers=1, num_heads=1, experts=2)
    made, batch = some_events(encoder=encoder)
    truth = TrackTruth.of(batch)
    seen = made.see(batch.hits.inputs, truth.innermost)
    loss = track_loss(seen, truth.ordered(seen.hits.order), batch)
    assert float(loss.routers.detach()) > 0


def test_impossible_weights():
    with pytest.raises(ValueError, match="count_weight"):
        TrackLossConfig(count_weight=-1.0)
