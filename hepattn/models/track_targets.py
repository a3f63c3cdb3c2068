"""What each query of a tracker should say, and the loss of what it says.

A dynamic query is a hit, and its target is the particle that this hit lies on: of several queries on one particle the
most probable stands for it, the others are "no track". Learned queries are matched to particles after every layer, by
the least loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hepattn.data.track_dataset import TrackBatch
from hepattn.models.decoder import Prediction
from hepattn.models.losses import RouterWeights, count_loss, hit_loss
from hepattn.models.maskformer import Seen
from hepattn.models.matcher import Matched, Matcher, Pending
from hepattn.models.track_losses import (
    TrackWeights,
    iou_loss,
    mask_dice,
    mask_focal,
    object_loss,
    pair_costs,
    parameter_loss,
)

__all__ = [
    "TrackLoss",
    "TrackLossConfig",
    "TrackTruth",
    "matched_targets",
    "own_targets",
    "start_matching",
    "track_loss",
]

FAR = -30.0
"""Logit of a hit that a query does not see, where queries are compared over all hits."""


@dataclass(frozen=True, eq=False)
class TrackTruth:
    """Truth of a batch in the order of its hits; T hits, P particles of all events.

    Particles are rows of the packed particles; P itself stands for "none" (noise), and is never a target.
    """

    particle: Tensor
    """(T,) int64."""
    target: Tensor
    """(P + 1,) bool, True = reconstructable, decided before any filter."""
    size: Tensor
    """(P + 1,) int64, hits of each that the tracker was given."""
    innermost: Tensor
    """(T,) bool, True = of a target particle's given hits the nearest to the beam; of equally near ones the first."""
    parameters: Tensor
    """(P + 1, 6) float32, see `TrackBatch`; NaN for the last."""

    @classmethod
    def of(cls, batch: TrackBatch) -> "TrackTruth":
        """The truth in the order of `batch.hits`."""
        hits = batch.hits
        device = hits.particle.device
        particles = hits.reconstructable
        none = len(particles.values)
        offset = particles.offsets[:-1].repeat_interleave(hits.inputs.lengths).to(device)
        particle = torch.where(hits.particle < 0, none, hits.particle + offset)
        target = torch.cat([particles.values, particles.values.new_zeros(1)])
        size = torch.bincount(particle, minlength=none + 1)
        # the last four columns of the inputs are coordinates: phi, eta, r, z
        radius, row = hits.inputs.values[:, -2].float(), torch.arange(len(particle), device=device)
        nearest = radius.new_full((none + 1,), torch.inf).scatter_reduce(0, particle, radius, "amin")
        at = radius == nearest[particle]
        first = torch.full((none + 1,), len(row), device=device)
        first = first.scatter_reduce(0, particle[at], row[at], "amin")
        unknown = batch.parameters.new_full((1, batch.parameters.shape[1]), torch.nan)
        innermost = target[particle] & (row == first[particle])
        return cls(particle, target, size, innermost, torch.cat([batch.parameters, unknown]))

    def ordered(self, order: Tensor | None) -> "TrackTruth":
        """The same for hits in another order: `order` (T,) as `Packed.sort` leaves it."""
        if order is None:
            return self
        return TrackTruth(self.particle[order], self.target, self.size, self.innermost[order], self.parameters)


@dataclass(frozen=True, eq=False)
class TrackLoss:
    """The loss of a tracker and its parts, each a () float32 with its weight in it; decoder layers are summed."""

    total: Tensor
    first_hit: Tensor
    objects: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    parameters: Tensor
    routers: Tensor
    count: Tensor
    surplus: int
    """Particles that got no query in the last layer, as there were too few."""
    inside: Tensor
    """() float32, share of the hits of queries' targets that lie in the windows of their queries: the others can't be
    found. Without a target 1."""


@dataclass(frozen=True)
class TrackLossConfig:
    """All factors of the loss of a tracker."""

    weights: TrackWeights = field(default_factory=TrackWeights)
    router_weights: RouterWeights = field(default_factory=RouterWeights)
    count_weight: float = 0.1
    """Of the loss of the number of particles, where the tracker has `count`."""

    def __post_init__(self) -> None:
        if not 0 <= self.count_weight < float("inf"):
            raise ValueError(f"count_weight is a finite factor >= 0, not {self.count_weight}")


def own_targets(seen: Seen, truth: TrackTruth) -> Tensor:
    """Target of each dynamic query: (Q,) int64 row of the particles, P where it is no track.

    Args:
        seen: what the tracker made of the batch
        truth: in phi order
    """
    none = len(truth.target) - 1
    particle = truth.particle[seen.place]
    particle = torch.where(truth.target[particle], particle, none)
    probability = seen.first.detach()[seen.place]
    row = torch.arange(len(particle), device=particle.device)
    best = probability.new_full((none + 1,), -torch.inf).scatter_reduce(0, particle, probability, "amax")
    at = probability == best[particle]
    stands = torch.full((none + 1,), len(row), device=row.device).scatter_reduce(0, particle[at], row[at], "amin")
    return torch.where(row == stands[particle], particle, none)


def start_matching(
    seen: Seen, truth: TrackTruth, weights: TrackWeights, matcher: Matcher
) -> Pending[list[list[Matched]]]:
    """Begins to match learned queries to particles, in every event and after every layer; does not wait."""
    blocks, layers = seen.decoded.blocks, seen.decoded.predictions
    masks = torch.stack([layer.masks.detach() for layer in layers])
    objects = torch.stack([layer.objects.detach() for layer in layers])
    offsets = seen.hits.offsets.tolist()
    first = 0
    costs: list[list[Tensor]] = []
    for event, number in enumerate(seen.query_lengths.tolist()):
        hits = range(offsets[event], offsets[event + 1])
        wanted = _wanted(truth, hits)
        on = truth.particle[hits.start : hits.stop] == wanted[:, None]
        dense = blocks.dense(masks, event, hits, FAR) if number else masks.new_zeros(len(layers), 0, len(hits))
        cost = pair_costs(objects[:, first : first + number], dense, on, weights)
        costs.append(list(cost))
        first += number
    return matcher.start(costs)


def _wanted(truth: TrackTruth, hits: range) -> Tensor:
    """Target particles with a hit among these, rising."""
    there = truth.particle[hits.start : hits.stop].unique()
    return there[truth.target[there]]


def matched_targets(seen: Seen, truth: TrackTruth, matched: Sequence[Sequence[Matched]]) -> tuple[list[Tensor], int]:
    """Of each layer the target of each learned query, (Q,) as `own_targets` has it; and the surplus of the last."""
    none, layers = len(truth.target) - 1, len(seen.decoded.predictions)
    targets = [torch.full((len(seen.place),), none, device=seen.place.device) for _ in range(layers)]
    offsets, first, surplus = seen.hits.offsets.tolist(), 0, 0
    for event, number in enumerate(seen.query_lengths.tolist()):
        wanted = _wanted(truth, range(offsets[event], offsets[event + 1]))
        for layer in range(layers):
            pairs = matched[event][layer].to(wanted.device)
            targets[layer][first + pairs.query] = wanted[pairs.target]
        surplus += len(matched[event][-1].surplus)
        first += number
    return targets, surplus


def track_loss(
    seen: Seen,
    truth: TrackTruth,
    batch: TrackBatch,
    config: TrackLossConfig | None = None,
    matcher: Matcher | None = None,
) -> TrackLoss:
    """The loss of what a tracker made of a batch.

    Masks and parameters are averaged over the queries with a target, objects over all queries, of the whole batch.

    Args:
        seen: what it made of it
        truth: in phi order
        batch: for the number of particles
        config: factors
        matcher: for learned queries; None: the queries carry their own targets
    """
    config = TrackLossConfig() if config is None else config
    w = config.weights
    pending = None if matcher is None else start_matching(seen, truth, w, matcher)
    first = w.first_hit * hit_loss(seen.first, truth.innermost, w.first_hit_pos_weight)
    zero = 0.0 * first
    routers = zero + config.router_weights.total(seen.losses)
    count = zero
    if seen.log_count is not None:
        count = config.count_weight * count_loss(seen.log_count, batch.hits.num_reconstructable)
    surplus = 0
    if pending is None:
        wanted = [Wanted.of(seen, truth, own_targets(seen, truth))] * len(seen.decoded.predictions)
    else:
        targets, surplus = matched_targets(seen, truth, pending.result())
        wanted = [Wanted.of(seen, truth, target) for target in targets]
    parts = [zero] * 5
    for said, of_layer in zip(seen.decoded.predictions, wanted, strict=True):
        parts = [one + more for one, more in zip(parts, _layer(said, truth, of_layer, w), strict=True)]
    objects, focal, dice, iou, parameters = parts
    total = torch.stack([first, *parts, routers, count]).sum()
    last = wanted[-1]
    inside = last.on.sum() / last.size.sum() if len(last.size) else torch.ones_like(zero)
    return TrackLoss(total, first, objects, focal, dice, iou, parameters, routers, count, surplus, inside)


class Wanted(NamedTuple):
    """Masks that the queries with a target should have; Q queries, M of them with a target."""

    has_target: Tensor
    """(Q,) bool."""
    query: Tensor
    """(M,) int64, rows of the packed queries."""
    particle: Tensor
    """(M,) int64, their targets."""
    slot: Tensor
    """(M,) int64, see `Blocks.slot`."""
    on: Tensor
    """(M, W) bool, True = a hit of the target."""
    valid: Tensor
    """(M, W) bool, True = a hit, False = filling."""
    size: Tensor
    """(M,) int64, hits of the target that the tracker was given."""

    @classmethod
    def of(cls, seen: Seen, truth: TrackTruth, target: Tensor) -> "Wanted":
        """From the target (Q,) of each query, as `own_targets` has it."""
        blocks = seen.decoded.blocks
        has_target = target < len(truth.target) - 1
        query = has_target.nonzero(as_tuple=True)[0]
        particle, slot = target[query], blocks.slot[query]
        rectangle = slot.div(blocks.shape[1], rounding_mode="floor")
        valid = blocks.hit_valid[rectangle]
        on = (truth.particle[blocks.hit][rectangle] == particle[:, None]) & valid
        return cls(has_target, query, particle, slot, on, valid, truth.size[particle])


def _layer(said: Prediction, truth: TrackTruth, wanted: Wanted, w: TrackWeights) -> list[Tensor]:
    """Losses after one layer: objects, focal, dice, IoU, parameters."""
    positive, on, valid, size = wanted.query, wanted.on, wanted.valid, wanted.size
    logits = said.masks.flatten(0, 1)[wanted.slot]
    number = max(1, len(positive))
    losses = [
        w.object * object_loss(said.objects, wanted.has_target, w.null_weight),
        w.focal * mask_focal(logits, on, valid, size, w.gamma).sum() / number,
        w.dice * mask_dice(logits, on, valid, size).sum() / number,
    ]
    nothing = 0.0 * logits.sum()
    losses.append(nothing)
    if said.iou is not None and w.iou:
        losses[-1] = w.iou * iou_loss(said.iou[positive], logits, on, valid, size).sum() / number
    losses.append(nothing)
    if said.parameters is not None and w.parameters:
        losses[-1] = w.parameters * parameter_loss(said.parameters[positive], truth.parameters[wanted.particle]).total
    return losses
