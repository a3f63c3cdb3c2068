"""The tracker: hits -> encoder -> queries -> decoder -> one mask of hits a track (arXiv:2411.07149, 2606.17631).

Queries are *dynamic* by default: hits that are probably the innermost of their particle, in phi order, as many as there
are. Such a query carries its own target, the particle it lies on, and needs no matching. *Learned* queries stand evenly
spread in phi and are matched to particles by the loss (`hepattn.models.track_targets`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from hepattn.data.dataset import COORDINATES
from hepattn.data.schema import BoolArray, Event
from hepattn.data.tracks import TrackParameters, Tracks
from hepattn.encodings import rotary_of_hits
from hepattn.layers.experts import RouterLosses
from hepattn.models.decoder import Decoded, Decoder, Head
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.hit_encoder import CountHead, HitModel, HitModelConfig, Octaves
from hepattn.models.hit_filter import HitFilter
from hepattn.models.track_losses import PARAMETERS
from hepattn.sequence import Layout, Packed

__all__ = ["MaskFormer", "MaskFormerConfig", "Seen", "filter_in_front", "kept_hits"]


@dataclass(frozen=True)
class MaskFormerConfig(HitModelConfig):
    """Everything that a tracker is built from; saved with its weights."""

    pt_min: float = 1.0
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Sizes and switches of the decoder."""
    queries: Literal["dynamic", "learned"] = "dynamic"
    query_threshold: float = 0.1
    """A hit that is the innermost of its particle with at least this probability becomes a dynamic query."""
    max_queries: int = 2600
    """The most probable so many dynamic queries of an event are taken, so that a bad event does not exhaust memory."""
    learned_queries: int = 128
    """Queries of every event, where they are learned."""
    query_octaves: int = 8
    """Sines and cosines of k phi for k = 1, 2, 4 ... added to queries and keys in the decoder; 0 for none."""
    filter: str | None = None
    """Hit filter that `reconstruct` puts in front: a name that ships with the project, see `HitFilter.pretrained`, or a
    .safetensors file of one's own; None: all hits go in."""
    filter_threshold: float = 0.1
    """Hits with at least this score go in."""
    object_threshold: float = 0.5
    """A query with at least this probability is a track."""
    track_threshold: float = 0.0
    """Tracks with a lower score are left out: a track's score is its object probability times the mean mask probability
    of its hits, as MaskFormer (arXiv:2107.06278) ranks its segments."""
    count: bool = False
    """Also estimate how many particles of an event are reconstructable, from the decoder's CLS tokens (>= 1)."""
    title = "tracker"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries not in {"dynamic", "learned"}:
            raise ValueError(f"queries are 'dynamic' or 'learned', not {self.queries!r}")
        for name in ("query_threshold", "filter_threshold", "object_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability in (0, 1), not {getattr(self, name)}")
        if not 0 <= self.track_threshold < 1:
            raise ValueError(f"track_threshold is a score in [0, 1), not {self.track_threshold}")
        for name in ("max_queries", "learned_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.count and not self.decoder.cls:
            raise ValueError("count reads the decoder's CLS tokens: give decoder.cls=1")
        if self.decoder.rotary:
            rotary_of_hits(self.encoder.dim // self.decoder.num_heads)  # refuses small heads
        if self.query_octaves < 0:
            raise ValueError(f"query_octaves must be at least 0, not {self.query_octaves}")

    @classmethod
    @override
    def parts(cls, saved: dict[str, Any]) -> dict[str, Any]:
        return super().parts(saved) | {"decoder": DecoderConfig.of(saved["decoder"])}


@dataclass(frozen=True, eq=False)
class Seen:
    """What a tracker made of a batch; T hits in phi order, Q queries, B events."""

    hits: Packed
    """Values (T, dim) of the encoder, in phi order; `order` leads back."""
    coordinates: Tensor
    """(T, 4) float32, see `hepattn.data.dataset.COORDINATES`, in phi order."""
    first: Tensor
    """(T,) float32, logits "I am the innermost hit of a reconstructable particle"; in phi order."""
    query_lengths: Tensor
    """(B,) int64 on the CPU, queries of each event."""
    place: Tensor
    """(Q,) int64, row of the hits where each query stands; a dynamic query is that hit."""
    dropped: int
    """Dynamic queries above `max_queries`, which were left out."""
    decoded: Decoded
    losses: RouterLosses | None
    """Of the routers: the encoder's plus the decoder's, so that each weighs as it would alone; None without experts."""
    log_count: Tensor | None
    """(B,) float32, estimate of log(1 + number of reconstructable particles); None without `count`."""


class Chosen(NamedTuple):
    """Queries of a batch, see `Seen`."""

    lengths: Tensor
    place: Tensor
    dropped: int


class MaskFormer(HitModel):
    """Finds tracks among hits.

    Hits may come in any order: they are put into phi order inside (stable, float32).

    Args:
        config: sizes, features, selection, decoder; None takes the defaults
        backend: attention kernel, see `hepattn.attend`
        **changes: single fields of `MaskFormerConfig`, instead of a config

    Raises:
        ValueError: for an impossible configuration
    """

    KIND = "maskformer"
    CONFIG = MaskFormerConfig
    PRETRAINED = "mu200"
    config: MaskFormerConfig

    def __init__(self, config: MaskFormerConfig | None = None, *, backend: str = "auto", **changes: Any) -> None:
        if config is not None and changes:
            raise ValueError(f"give a config or single fields, not both ({', '.join(changes)})")
        c = MaskFormerConfig(**changes) if config is None else config
        super().__init__(c, backend=backend)
        dim = c.encoder.dim
        self.first = Head(dim, 1)
        self.query = nn.Linear(dim, dim)
        self.decoder = Decoder(dim, c.decoder, backend=backend)
        self.learned = nn.Parameter(0.02 * torch.randn(c.learned_queries, dim)) if c.queries == "learned" else None
        octaves = c.query_octaves
        self.where = Octaves((octaves, 0, 0, 0), (1.0, 1.0, 1.0, 1.0)) if octaves else None
        self.where_projection = nn.Linear(2 * octaves, dim, bias=False) if octaves else None
        self.count_head = CountHead(c.decoder.cls, dim) if c.count else None
        self._filter: list[HitFilter] = []  # in a list, so that it is no part of this model's weights

    def see(self, inputs: Packed, also: Tensor | None = None) -> Seen:
        """Encodes the hits, chooses queries, and decodes them.

        Args:
            inputs: values (T, F + 4), see `hepattn.data.dataset.hit_inputs`, in any order
            also: (T,) bool in the order of `inputs`: hits that become dynamic queries whatever their probability
                (in training, the true innermost ones)

        Raises:
            ValueError: the number of columns is not F + 4
        """
        tokens, coordinates = self.embed(inputs)
        encoded = self.encode(tokens, coordinates)
        x, layout = encoded.tokens.values, tokens.layout
        first = self.first(x).squeeze(-1).float()
        forced = None if also is None or tokens.order is None else also[tokens.order]
        chosen = self.choose(first.detach().sigmoid(), layout, forced)
        encoding, hit_encoding = self._places(coordinates, chosen, layout)
        dynamic = self.learned is None
        queries = self.query(x[chosen.place]) if self.learned is None else self._learned(chosen)
        decoded = self.decoder(
            queries,
            Layout.of(chosen.lengths, x.device, total=len(chosen.place)),
            x,
            layout,
            chosen.place,
            own=chosen.place if dynamic else None,
            encoding=encoding,
            hit_encoding=hit_encoding,
            anchor=self._anchor(coordinates, chosen),
            coordinates=coordinates[:, :2],
        )
        log_count = None if self.count_head is None else self.count_head(decoded.cls, layout.lengths)
        return Seen(
            hits=encoded.tokens,
            coordinates=coordinates,
            first=first,
            query_lengths=chosen.lengths,
            place=chosen.place,
            dropped=chosen.dropped,
            decoded=decoded,
            losses=_sum(encoded.losses, decoded.losses),
            log_count=log_count,
        )

    def choose(self, probability: Tensor, layout: Layout, also: Tensor | None = None) -> Chosen:
        """The queries of each event, in phi order.

        Args:
            probability: (T,) that a hit is the innermost of its particle, in phi order
            layout: of the hits' events
            also: (T,) bool, hits that become queries in any case
        """
        c = self.config
        if c.queries == "learned":
            number = torch.where(layout.lengths > 0, c.learned_queries, 0)
            rank = torch.arange(c.learned_queries, device=layout.device)
            each = [
                start + (2 * rank + 1) * length // (2 * c.learned_queries)
                for start, length in zip(layout.offsets[:-1], layout.host_lengths, strict=True)
                if length
            ]
            return Chosen(number, torch.cat(each) if each else rank[:0], 0)
        wanted = probability >= c.query_threshold
        if also is not None:
            wanted = wanted | also
            probability = torch.where(also, probability + 1.0, probability)
        number = torch.stack([part.sum() for part in wanted.split(layout.host_lengths)] or [wanted.sum()]).cpu()
        dropped = 0
        if bool((number > c.max_queries).any()):
            keep = torch.zeros_like(wanted)
            for start, length in zip(layout.offsets.tolist()[:-1], layout.host_lengths, strict=True):
                part = torch.where(wanted, probability, -1.0)[start : start + length]
                keep[start + part.topk(min(c.max_queries, length)).indices] = True
            wanted, before = wanted & keep, int(number.sum())
            number = number.clamp(max=c.max_queries)
            dropped = before - int(number.sum())
        return Chosen(number[: layout.batch], wanted.nonzero(as_tuple=True)[0], dropped)

    def _learned(self, chosen: Chosen) -> Tensor:
        assert self.learned is not None
        events = int((chosen.lengths > 0).sum())
        return self.learned.expand(events, -1, -1).flatten(0, 1)

    def _places(self, coordinates: Tensor, chosen: Chosen, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
        """What is added to queries and keys: encodings of the phi of queries (Q, dim) and of hits (T, dim)."""
        if self.where is None or self.where_projection is None:
            return None, None
        of_hits = self.where_projection(self.where(coordinates))
        if self.learned is None:
            return of_hits[chosen.place], of_hits
        phi = torch.pi * ((2 * torch.arange(len(self.learned), device=layout.device) + 1) / len(self.learned) - 1)
        spread = torch.zeros(len(phi), len(COORDINATES), device=phi.device)
        spread[:, COORDINATES.index("phi")] = phi
        events = int((chosen.lengths > 0).sum())
        return self.where_projection(self.where(spread)).repeat(events, 1), of_hits

    def _anchor(self, coordinates: Tensor, chosen: Chosen) -> Tensor | None:
        """(Q, 6): a dynamic query's own eta and phi, from which its track's differ little."""
        if self.learned is not None:
            return None
        anchor = coordinates.new_zeros(len(chosen.place), len(PARAMETERS))
        for name in ("eta", "phi"):
            anchor[:, PARAMETERS.index(name)] = coordinates[chosen.place, COORDINATES.index(name)]
        return anchor

    @override
    def set_backend(self, backend: str) -> None:
        """Another attention kernel; the same numbers."""
        super().set_backend(backend)
        self.decoder.set_backend(backend)

    def share_out(self, seen: Seen) -> Tensor:
        """The track of each hit: (T,) int64 in phi order, row of its query, or -1.

        A query is a track from `object_threshold` on. A hit goes to the track with the largest product of object and
        mask probability (of equal ones to the first) among those whose mask holds it with probability > 1/2.
        """
        return self._shared(seen)[0]

    def _shared(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """As `share_out`, and for each hit (T,) the product by which it went there; 0 where it is on no track."""
        last, blocks = seen.decoded.last, seen.decoded.blocks
        sure = last.objects.sigmoid()
        track = (sure >= self.config.object_threshold)[blocks.query][:, :, None] & blocks.pairs
        mask = last.masks.sigmoid()
        value = torch.where(track & (mask > 0.5), mask * sure[blocks.query][:, :, None], 0.0)
        total = len(seen.first)
        hit = blocks.hit[:, None].expand_as(value)
        best = value.new_zeros(total).scatter_reduce(0, hit.flatten(), value.flatten(), "amax")
        winner = (value > 0) & (value == best[hit])
        query = blocks.query[:, :, None].expand_as(value)
        none = blocks.queries
        rows = torch.full((total,), none, device=hit.device)
        rows = rows.scatter_reduce(0, hit[winner], query[winner], "amin")
        return torch.where(rows == none, -1, rows), best

    @torch.no_grad()
    def tracks(self, seen: Seen, min_hits: int | None = None) -> list[Tracks]:
        """The tracks of each event among the hits that went in, in those hits' own order; those below `track_threshold`
        are left out.

        Args:
            seen: what `see` gave
            min_hits: shorter tracks are left out; None: as the selection of the configuration has it
        """
        labels, products = (seen.hits.with_values(x).unsort().split() for x in self._shared(seen))
        least = self.config.min_hits if min_hits is None else min_hits
        last = seen.decoded.last.parameters
        parameters = None if last is None else as_parameters(last)
        out = []
        for label, product in zip(labels, products, strict=True):
            own, weight = label.cpu().numpy(), product.cpu().numpy()
            names, track = np.unique(own[own >= 0], return_inverse=True)
            score = np.bincount(track, weight[own >= 0]) / np.bincount(track)
            sure = score >= self.config.track_threshold
            names, score = names[sure], score[sure].astype(np.float32)
            own = np.where(np.isin(own, names), own, -1)
            found = Tracks.from_labels(own, score, None if parameters is None else parameters.take(names))
            out.append(found.at_least(least))
        return out

    @torch.no_grad()
    def reconstruct(self, event: Event, kept: BoolArray | None = None) -> Tracks:
        """The tracks of an event: the hit filter of the configuration first, then this tracker.

        In evaluation mode; the mode is left as it was.

        Args:
            event: with what the features of both need
            kept: (N,) bool, hits to look at, instead of those that the filter of the configuration keeps

        Returns:
            tracks as rows of the event's hits

        Raises:
            ValueError: the event lacks what a feature needs, or `kept` is not (N,) bool
        """
        kept = self.kept(event) if kept is None else kept
        if kept.shape != (len(event.hits),) or kept.dtype != np.bool_:
            raise ValueError(f"kept is ({len(event.hits)},) bool, not {kept.dtype} of shape {kept.shape}")
        kept = kept & self.config.selection.in_volumes(event.hits)
        training = self.training
        self.eval()
        try:
            (found,) = self.tracks(self.see(self.inputs(event.keep(kept))))
        finally:
            self.train(training)
        return found.in_event(kept)

    def kept(self, event: Event) -> BoolArray:
        """(N,) bool, True = the hit goes in: what the filter of the configuration keeps, in the selected volumes.

        Raises:
            ValueError: the event lacks what a feature of the filter needs
            FileNotFoundError: no such filter ships with the project, or there is no such file
        """
        if not self._filter and (front := filter_in_front(self.config)) is not None:
            self._filter.append(front)
        device = next(self.parameters()).device
        scores = [front.to(device).score(event) for front in self._filter]
        return kept_hits(event, self.config, scores[0] if scores else None)


def filter_in_front(config: MaskFormerConfig) -> HitFilter | None:
    """The hit filter that a tracker's configuration names, in evaluation mode, on the CPU; None where it names none.

    Raises:
        FileNotFoundError: no such filter ships with the project, or there is no such file
        ValueError: the file holds something else
    """
    if config.filter is None:
        return None
    if config.filter.endswith(".safetensors"):
        return HitFilter.load(config.filter)
    return HitFilter.pretrained(config.filter)


def kept_hits(event: Event, config: MaskFormerConfig, scores: Tensor | None) -> BoolArray:
    """(N,) bool, True = the hit goes into the tracker: it lies in its volumes, and the filter (if any) keeps it.

    Args:
        event: N hits
        config: of the tracker
        scores: (N,) what the filter in front gave, NaN where it doesn't judge; None without a filter
    """
    inside = config.selection.in_volumes(event.hits)
    return inside if scores is None else inside & (scores.numpy() >= config.filter_threshold)


def _sum(one: RouterLosses | None, other: RouterLosses | None) -> RouterLosses | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def as_parameters(predicted: Tensor) -> TrackParameters:
    """Track parameters from predictions (Q, 6), see `hepattn.models.track_losses.parameter_loss`."""
    log_pt, eta, phi, z0, d0, positive = predicted.detach().double().cpu().unbind(1)
    turned = torch.atan2(phi.sin(), phi.cos())
    charge = 2.0 * positive.sigmoid() - 1.0
    columns = (log_pt.clamp(max=20.0).exp(), eta, turned, d0, z0, charge)
    return TrackParameters(*(column.float().numpy() for column in columns))
