"""What a tracker makes of one event, spread out for figures: queries, masks, costs of matching, and masked attention.

Hits, queries and particles are in φ order; angles in rad, lengths in mm. Everything is (queries, hits) of one event,
which suits events of lesson size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepattn.attention.module import AttentionCall, record_attention
from hepattn.data.schema import BoolArray, Event, Selection
from hepattn.data.track_dataset import track_batch
from hepattn.data.tracks import Tracks
from hepattn.masks import Dense
from hepattn.metrics.intervals import Fraction
from hepattn.metrics.tracks import FoundTracks
from hepattn.models.blocks import Blocks
from hepattn.models.maskformer import MaskFormer
from hepattn.models.matcher import Matcher
from hepattn.models.track_losses import TrackWeights, pair_costs
from hepattn.models.track_targets import FAR, TrackTruth, own_targets
from hepattn.plotting.attention_numbers import measure
from hepattn.plotting.attention_pattern import Pattern

__all__ = [
    "AttentionShares",
    "Decoding",
    "Events",
    "agreement",
    "assigned",
    "attention_shares",
    "costs",
    "decode",
    "found",
    "innermost_chosen",
    "shared_out",
    "window_share",
    "with_target",
]


@dataclass(frozen=True, eq=False)
class Decoding:
    """One event in a tracker: N hits that went in, Q queries, L decoder layers, M particles to find."""

    event: Event
    """The whole event."""
    kept: BoolArray
    """(hits of the event,) True: the hit went in."""
    selection: Selection
    """Which particles are to be found; decided on the whole event."""
    rows: NDArray[np.int64]
    """(N,) which hit of the event each hit is, in φ order."""
    first: NDArray[np.float64]
    """(N,) probability "I am the innermost hit of a particle"."""
    innermost: BoolArray
    """(N,) True: it is; one for each of the M particles."""
    place: NDArray[np.int64]
    """(Q,) the hit that each query is."""
    block: NDArray[np.int64]
    """(Q,) number of the query's block, rising."""
    sees: BoolArray
    """(Q, N) True: the hit lies in the window of the query's block."""
    objects: Tensor
    """(L + 1, Q) logits "I am a track", before the first layer and after each."""
    masks: Tensor
    """(L + 1, Q, N) logits "this hit is mine"; very low where the query does not see the hit."""
    targets: NDArray[np.int64]
    """(M,) rows of the event's particles: those to find with a hit among the N, in the φ order of their innermost."""
    particle: NDArray[np.int64]
    """(N,) which of the M each hit lies on; -1: none."""
    own: NDArray[np.int64]
    """(Q,) which of the M is the query's own target; -1: it should be no track."""
    attention: tuple[Pattern, ...]
    """Cross-attention of each of the L layers, with the mask that masked attention realised."""

    @property
    def layers(self) -> int:
        """L."""
        return len(self.attention)

    @property
    def on(self) -> BoolArray:
        """(M, N) True: the hit lies on the particle."""
        return self.particle == np.arange(len(self.targets))[:, None]

    @property
    def truth(self) -> BoolArray:
        """(Q, N) True: the hit lies on the query's own target."""
        return (self.own[:, None] >= 0) & (self.own[:, None] == self.particle)

    def mask(self, layer: int) -> NDArray[np.float64]:
        """(Q, N) probabilities "this hit is mine" after a layer; 0: before the first, -1: after the last."""
        return np.asarray(self.masks[layer].double().sigmoid().numpy())

    def is_track(self, layer: int) -> NDArray[np.float64]:
        """(Q,) probabilities "I am a track" after a layer."""
        return np.asarray(self.objects[layer].double().sigmoid().numpy())


def decode(
    net: MaskFormer, event: Event, *, encoded: bool = True, shuffled: int | None = None, kept: BoolArray | None = None
) -> Decoding:
    """Runs a tracker on an event with truth, in evaluation mode; its mode is left as it was.

    Args:
        net: with dynamic queries
        event: the whole event
        encoded: False takes encodings, also rotary ones, off queries and keys in the decoder (the encoder's stay)
        shuffled: a seed: queries stand in random order, so that each block holds queries from all around; None: φ order
        kept: (hits of the event,) hits that go in; None: those that the tracker's filter keeps

    Raises:
        ValueError: queries are learned (these have no target of their own), there are no encodings to take off, or the
            event has no truth
    """
    if net.config.queries != "dynamic":
        raise ValueError("queries that are hits can be drawn, and this tracker has learned ones: queries='dynamic'")
    kept = net.kept(event) if kept is None else kept & net.config.selection.in_volumes(event.hits)
    batch = track_batch(event, net.config.features, net.config.selection, kept)
    training = net.training
    try:
        net.eval()
        with torch.no_grad(), _changed(net, encoded, shuffled) as orders, record_attention(net.decoder) as calls:
            seen = net.see(batch.hits.inputs)
    finally:
        net.train(training)
    if orders:
        seen = replace(seen, place=seen.place[orders[0]])
    order = seen.hits.order
    assert order is not None
    truth = TrackTruth.of(batch).ordered(order)
    wanted = truth.particle[truth.innermost]
    index = torch.full_like(truth.target, -1, dtype=torch.int64)
    index[wanted] = torch.arange(len(wanted))
    blocks, said = seen.decoded.blocks, seen.decoded.predictions
    hits = range(len(order))
    rows = np.flatnonzero(kept)[order.numpy()]
    width = blocks.shape[1]
    of = Decoding(
        event=event,
        kept=kept,
        selection=net.config.selection,
        rows=rows,
        first=seen.first.double().sigmoid().numpy(),
        innermost=truth.innermost.numpy(),
        place=seen.place.numpy(),
        block=np.arange(blocks.queries) // width,
        sees=blocks.dense(blocks.pairs, 0, hits, False).numpy(),
        objects=torch.stack([one.objects for one in said]),
        masks=torch.stack([blocks.dense(one.masks, 0, hits, FAR) for one in said]),
        targets=wanted.numpy(),
        particle=index[truth.particle].numpy(),
        own=index[own_targets(seen, truth)].numpy(),
        attention=(),
    )
    cross = [call for call in calls if call.name.endswith(".cross.attention")]
    return replace(of, attention=tuple(_pattern(i + 1, call, blocks, of) for i, call in enumerate(cross)))


@contextmanager
def _changed(net: MaskFormer, encoded: bool, shuffled: int | None) -> Iterator[list[Tensor]]:
    """The tracker without encodings in its decoder, or with queries in random order: (Q,) permutations that it took."""
    orders: list[Tensor] = []
    hooks: list[Any] = []
    if not encoded:
        encodings = [part for part in (net.where_projection, net.decoder.rotary) if part is not None]
        if not encodings:
            raise ValueError("this tracker has no encodings in its decoder (query_octaves=0, rotary=False)")
        hooks += [part.register_forward_hook(_nothing) for part in encodings]
    if shuffled is not None:
        generator = torch.Generator().manual_seed(shuffled)

        def shuffle(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            queries, layout, hits, hit_layout, place = args
            order = torch.randperm(len(queries), generator=generator)
            orders.append(order)
            moved = {
                name: None if named[name] is None else named[name][order] for name in ("own", "encoding", "anchor")
            }
            return (queries[order], layout, hits, hit_layout, place[order]), named | moved

        hooks.append(net.decoder.register_forward_pre_hook(shuffle, with_kwargs=True))
    try:
        yield orders
    finally:
        for hook in hooks:
            hook.remove()


def _nothing(_: torch.nn.Module, __: Any, encoded: Tensor) -> Tensor:
    return torch.zeros_like(encoded)


def _pattern(layer: int, call: AttentionCall, blocks: Blocks, of: Decoding) -> Pattern:
    """The recorded call, whose "events" are blocks, as one of all queries and hits of the event."""
    number, width, reach = blocks.shape
    q = blocks.packed(call.q.unflatten(0, (number, width))) if number else call.q
    k = call.k.new_zeros(len(of.rows), *call.k.shape[1:])
    # a hit is the same key in every block that sees it
    k[blocks.hit[blocks.hit_valid]] = call.k.unflatten(0, (number, reach))[blocks.hit_valid] if number else call.k
    assert call.mask is None or isinstance(call.mask, Dense)
    looks = torch.zeros(0, len(of.rows), dtype=torch.bool)
    if call.mask is not None:
        looks = blocks.dense(call.mask.stacked(), 0, range(len(of.rows)), False)
    hits = of.event.hits
    phi, xy = hits.phi[of.rows], np.stack([hits.x, hits.y], axis=1)[of.rows]
    return Pattern(
        f"layer {layer}",
        q.float(),
        k.float(),
        phi[of.place],
        phi,
        xy[of.place],
        xy,
        of.own,
        of.particle,
        mask=Dense(looks),
        hits=False,
    )


Events = Decoding | Sequence[Decoding]
"""One event in a tracker, or several, whose counts are added."""


def _each(of: Events) -> Sequence[Decoding]:
    return [of] if isinstance(of, Decoding) else of


def innermost_chosen(of: Events) -> Fraction:
    """Innermost hits of particles to find that became queries, of all innermost hits that went in."""
    each = _each(of)
    chosen = sum(int(one.innermost[one.place].sum()) for one in each)
    return Fraction(chosen, sum(int(one.innermost.sum()) for one in each))


def with_target(of: Events) -> Fraction:
    """Queries with a target of their own, of all queries."""
    each = _each(of)
    return Fraction(sum(int((one.own >= 0).sum()) for one in each), sum(len(one.place) for one in each))


def costs(of: Decoding, layer: int = -1, weights: TrackWeights | None = None) -> Tensor:
    """(Q, M) float32, what `pair_costs` says of each query and particle after a layer; lower fits better."""
    on = torch.from_numpy(of.on)
    return pair_costs(of.objects[layer], of.masks[layer], on, TrackWeights() if weights is None else weights)


def assigned(cost: Tensor) -> NDArray[np.int64]:
    """(Q,) the particle that the assignment of least total cost gives each query; -1: none."""
    matcher = Matcher(workers=1)
    (pairs,) = matcher.match([cost])
    matcher.close()
    out = np.full(len(cost), -1)
    out[pairs.query.numpy()] = pairs.target.numpy()
    return out


def agreement(of: Events, layer: int = -1, weights: TrackWeights | None = None) -> Fraction:
    """Queries with a target of their own to which the assignment gives the same, of all that have one."""
    same = 0
    for one in _each(of):
        same += int((assigned(costs(one, layer, weights)) == one.own)[one.own >= 0].sum())
    return Fraction(same, with_target(of).passed)


def shared_out(
    of: Decoding, layer: int = -1, mask_threshold: float = 0.5, object_threshold: float = 0.5
) -> NDArray[np.int64]:
    """(N,) the query whose track each hit is on, or -1: `MaskFormer.share_out` after any layer, with any thresholds.

    A query is a track from `object_threshold` on. A hit goes to the track with the largest product of both
    probabilities among those whose mask holds it with more than `mask_threshold`.
    """
    sure, mask = of.is_track(layer), of.mask(layer)
    value = np.where((sure[:, None] >= object_threshold) & (mask > mask_threshold) & of.sees, mask * sure[:, None], 0.0)
    if not len(sure):
        return np.full(len(of.rows), -1)
    return np.where(value.max(axis=0) > 0, value.argmax(axis=0), -1)


def found(of: Decoding, layer: int = -1, mask_threshold: float = 0.5, object_threshold: float = 0.5) -> FoundTracks:
    """The tracks after a layer with the truth to judge them by, as rows of the whole event."""
    label = np.full(len(of.event.hits), -1)
    label[of.rows] = shared_out(of, layer, mask_threshold, object_threshold)
    names = np.unique(label[label >= 0])
    tracks = Tracks.from_labels(label, of.is_track(layer)[names]).at_least(of.selection.min_hits)
    return FoundTracks.of(of.event, tracks, of.selection, of.kept)


def window_share(of: Events) -> Fraction:
    """Hits of queries' own targets inside the window of the query's block, of all such hits that went in."""
    each = _each(of)
    inside = sum(int((one.truth & one.sees).sum()) for one in each)
    return Fraction(inside, sum(int(one.truth.sum()) for one in each))


@dataclass(frozen=True)
class AttentionShares:
    """Where the attention of queries with a target goes after one layer: mean shares on the hits of that target.

    The query's own hit counts among them.
    """

    attention: float
    """As the layer attends."""
    in_mask: float
    """Were all hits alike that masked attention allows: what the mask alone does."""
    in_window: float
    """Were all hits alike that the block sees: the random baseline."""


def attention_shares(of: Events, layer: int) -> AttentionShares:
    """Shares of attention on own hits in a layer, 1 ... L, mean over queries with a target and then over events.

    Events without such a query are left out; without any that has one, all is NaN.
    """
    each = []
    for one in _each(of):
        if not (one.own >= 0).any():
            continue
        pattern = one.attention[layer - 1]
        alike = pattern.uniform()
        window = replace(alike, mask=Dense(torch.from_numpy(one.sees)))
        rows = torch.from_numpy(np.flatnonzero(one.own >= 0))
        each.append([measure(kind, rows=rows).own for kind in (pattern, alike, window)])
    return AttentionShares(*np.mean(each or [[np.nan] * 3], axis=0).tolist())
