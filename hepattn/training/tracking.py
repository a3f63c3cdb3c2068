"""The tracker as a LightningModule: loss, validation metrics, the table that `test` prints."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from torch import Tensor
from typing_extensions import override

from hepattn.data.schema import Event, Selection
from hepattn.data.track_dataset import TrackBatch
from hepattn.data.tracks import Tracks
from hepattn.metrics import FilterMetrics, Fraction, ScoredEvent, filter_metrics
from hepattn.metrics.track_matching import Kind
from hepattn.metrics.trackml_score import trackml_score, trackml_weights
from hepattn.metrics.tracks import FoundTracks, Quantity, Sizes, TrackMetrics, efficiency_against, track_metrics
from hepattn.models.maskformer import MaskFormer, MaskFormerConfig, Seen, filter_in_front
from hepattn.models.matcher import SOLVERS, Matcher
from hepattn.models.track_targets import TrackLossConfig, TrackTruth, track_loss
from hepattn.training.base import TrainingModule, begin
from hepattn.training.optimise import OptimiserConfig
from hepattn.training.track_data import EventBatch, judge_kept

__all__ = ["Predicted", "TrackReport", "TrackerModule"]

SIZES: tuple[Sizes, ...] = ("all", "kept")
"""With which hits of a particle its tracks are compared, see `hepattn.metrics.tracks`."""

FRACTIONS = (
    "efficiency",
    "efficiency_perfect",
    "efficiency_lhc",
    "fakes",
    "fakes_lhc",
    "duplicates",
    "duplicates_lhc",
    "short",
)
"""Fields of `TrackMetrics` that test.json holds."""

LOGGED = {
    "efficiency": "efficiency",
    "perfect": "efficiency_perfect",
    "fakes": "fakes",
    "duplicates": "duplicates",
}
"""Name in the logs -> field of `TrackMetrics`."""

PT_EDGES = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 1000.0)
"""GeV; those above the cut on pT, and the cut itself, are the edges of the bins of `test`."""

ETA_STEP = 0.5


class TrackerModule(TrainingModule):
    """Trains a `MaskFormer`.

    Args:
        network: sizes, features, selection and the hit filter in front of the tracker
        optimiser: AdamW and its schedule
        loss: factors of the loss
        matcher: what solves the matching of learned queries to particles: a name in `hepattn.models.matcher.SOLVERS`
        backend: attention kernel
        compile: compile the encoder (worth it on a GPU)
        weights: begin with these instead of random ones: a .safetensors file, whose configuration replaces `network`
        begin_with_filter: begin with the encoder of the hit filter in front, which has learnt which hits belong
            together; it must read and encode hits in the same way
        judged: particles that validation and test count; None: those that the tracker is trained on. Just above its cut
            on pT a tracker can't tell on which side a particle is; it may be trained on lower pT than it is judged by

    Raises:
        ValueError: an impossible setting
        FileNotFoundError: no such weights
        ImportError: the matcher's package is not installed
    """

    MODEL = MaskFormer
    NOUN = "tracker"
    OF_USE = frozenset(
        {"filter", "filter_threshold", "query_threshold", "max_queries", "object_threshold", "track_threshold"}
    )
    model: MaskFormer

    def __init__(
        self,
        network: MaskFormerConfig = MaskFormerConfig(),  # noqa: B008  (frozen)
        optimiser: OptimiserConfig = OptimiserConfig(),  # noqa: B008
        loss: TrackLossConfig = TrackLossConfig(),  # noqa: B008
        matcher: str = "scipy",
        backend: str = "auto",
        compile: bool = False,  # noqa: A002
        weights: str | None = None,
        begin_with_filter: bool = False,
        judged: Selection | None = None,
    ) -> None:
        if matcher not in SOLVERS:
            raise ValueError(f"matcher is one of {', '.join(SOLVERS)}, not {matcher!r}")
        super().__init__(begin(MaskFormer, network, backend=backend, compile=compile, weights=weights), optimiser)
        if begin_with_filter and weights is None:
            front = filter_in_front(network)
            if front is None:
                raise ValueError(
                    "begin_with_filter needs a hit filter in front of the tracker: name it as network.filter"
                )
            self.model.take_encoder(front)
        self.loss_config = loss
        self.matcher = Matcher(matcher) if self.model.config.queries == "learned" else None
        own = self.model.config.selection
        if judged is not None and judged.volumes != own.volumes:
            raise ValueError(
                f"the tracker reads hits of volumes {own.volumes}: it can't be judged by those of {judged.volumes}"
            )
        self.selection = own if judged is None else judged
        self._judged: list[JudgedEvent] = []

    def forward(self, batch: TrackBatch) -> Seen:
        """What the tracker makes of a batch's hits."""
        return self.model.see(batch.hits.inputs)

    @override
    def training_step(self, batch: TrackBatch, batch_idx: int = 0) -> Tensor:
        """The loss of one batch; its parts are logged, each with its factor in it."""
        truth = TrackTruth.of(batch)
        seen = self.model.see(batch.hits.inputs, truth.innermost)
        loss = track_loss(seen, truth.ordered(seen.hits.order), batch, self.loss_config, self.matcher)
        if not self.logs_now():  # a dozen numbers cost ten milliseconds
            return loss.total
        events = len(batch.num_hits)
        parts = {f"loss_{name}": getattr(loss, name) for name in self._parts(seen)}
        self.log_dict(parts, batch_size=events)
        numbers = {"queries": len(seen.place) / events, "dropped": seen.dropped, "surplus": loss.surplus}
        self.log_dict({name: float(number) for name, number in numbers.items()}, batch_size=events)
        self.log("inside", loss.inside, batch_size=events)
        self.log("loss", loss.total, prog_bar=True, batch_size=events)
        return loss.total

    def _parts(self, seen: Seen) -> list[str]:
        """The parts of the loss that this tracker has."""
        there = {
            "iou": seen.decoded.last.iou is not None,
            "parameters": seen.decoded.last.parameters is not None,
            "routers": seen.losses is not None,
            "count": seen.log_count is not None,
        }
        return ["first_hit", "objects", "focal", "dice", *(name for name, is_there in there.items() if is_there)]

    @override
    def validation_step(self, batch: EventBatch, batch_idx: int = 0) -> None:
        """Tracks of one batch, kept until the epoch ends."""
        seen = self(batch.given)
        events = len(batch.events)
        for event, kept, tracks in zip(batch.events, batch.kept, self.model.tracks(seen, min_hits=1), strict=True):
            self._judged.append(JudgedEvent.of(event, tracks.in_event(kept), self.selection, kept))
        self.log("queries_per_event", len(seen.place) / events, on_epoch=True, batch_size=events)
        if seen.log_count is not None:
            number = batch.given.hits.num_reconstructable
            off = (seen.log_count.expm1() - number).abs() / number.clamp(min=1)
            self.log("count_error", off.mean(), on_epoch=True, batch_size=events)

    @override
    def on_validation_epoch_end(self) -> None:
        """Logs efficiency (double majority), perfect, fakes and duplicates, by all hits and by those that were kept."""
        judged, self._judged = self._judged, []
        for sizes in SIZES:
            metrics = track_metrics([one.found for one in judged], self.selection.min_hits, sizes)
            ending = "" if sizes == "all" else f"_{sizes}"
            for name, field in LOGGED.items():
                self.log(f"val_{name}{ending}", getattr(metrics, field).value, prog_bar=name + ending == "efficiency")

    @override
    def test_step(self, batch: EventBatch, batch_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        """Prints the table with intervals, and writes it as test.json where the trainer writes."""
        judged, self._judged = self._judged, []
        report = TrackReport(judged, self.model.config, self.selection)
        self.log("test_efficiency", report.metrics["all"].efficiency.value)
        self.report(report.table(), report.record())

    @override
    def predict_step(self, batch: EventBatch, batch_idx: int = 0) -> "Predicted":
        """The tracks of each event of the batch."""
        found = self.model.tracks(self(batch.given))
        return Predicted([tracks.in_event(kept) for tracks, kept in zip(found, batch.kept, strict=True)])


class Predicted:
    """The tracks of each event of a batch, as rows of the events' hits.

    The trainer collects them and wants to move them, for which it would take dataclasses apart; they stay as they are.
    """

    def __init__(self, tracks: list[Tracks]) -> None:
        self.tracks = tracks

    def to(self, *_: Any, **__: Any) -> Self:
        """Itself: tracks live on the CPU."""
        return self


class JudgedEvent(NamedTuple):
    """One event's tracks, with all that `TrackReport` says of them."""

    found: FoundTracks
    front: ScoredEvent
    """What the filter in front kept."""
    score: tuple[float, float] | None
    """TrackML score and the largest that can be had, of the hits in the selected volumes; None without weights."""

    @classmethod
    def of(cls, event: Event, tracks: Tracks, selection: Selection, kept: np.ndarray[Any, Any]) -> "JudgedEvent":
        """An event's tracks (rows of the event), found among the hits (N,) bool that were kept."""
        found = FoundTracks.of(event, tracks, selection, kept)
        score = None
        if event.truth is not None:
            weight = np.where(selection.in_volumes(event.hits), trackml_weights(event), 0.0)
            if weight.sum() > 0:
                best = float(weight[selection.hits(event)].sum() / weight.sum())
                score = trackml_score(tracks.at_least(selection.min_hits), found.particle, weight), best
        return cls(found, judge_kept(event, kept, selection), score)


class TrackReport:
    """All that `test` states, from judged events.

    Args:
        judged: events with their tracks
        config: of the tracker, for the filter
        selection: of the particles that count
    """

    def __init__(self, judged: Sequence[JudgedEvent], config: MaskFormerConfig, selection: Selection) -> None:
        self.config, self.selection = config, selection
        self.found = [one.found for one in judged]
        self.metrics: dict[Sizes, TrackMetrics] = {
            sizes: track_metrics(self.found, selection.min_hits, sizes) for sizes in SIZES
        }
        self.front: FilterMetrics = filter_metrics([one.front for one in judged], 0.5, selection.min_hits)
        self.scores = [one.score for one in judged if one.score is not None]

    def edges(self, quantity: Quantity) -> list[float]:
        """Edges of the bins of pT (GeV) or eta."""
        selection = self.selection
        if quantity == "pt":
            return [selection.pt_min, *(edge for edge in PT_EDGES if edge > selection.pt_min)]
        reach = selection.eta_max if np.isfinite(selection.eta_max) else 4.0
        return [float(edge) for edge in np.linspace(-reach, reach, max(1, round(2 * reach / ETA_STEP)) + 1)]

    def against(self, quantity: Quantity, kind: Kind) -> list[Fraction]:
        """Efficiency in those bins, by all hits of a particle."""
        return efficiency_against(self.found, quantity, self.edges(quantity), kind, min_hits=self.selection.min_hits)

    def table(self) -> str:
        """The report as text."""
        c = self.config
        targets = self.metrics["all"].efficiency.total
        lines = [
            f"target: particles with {self.selection}",
            f"{len(self.found)} events, {targets} target particles; intervals cover 68.3 %",
        ]
        if c.filter is None:
            lines.append("no hit filter in front")
        else:
            lines.append(f"-- the hit filter {c.filter} in front, at threshold {c.filter_threshold:g}")
            lines += [f"   {name:<28} {fraction}" for name, fraction in self._front().items()]
        for sizes, metrics in self.metrics.items():
            what = "all hits of a particle" if sizes == "all" else "the hits of a particle that were kept"
            lines += [f"-- tracks against {what}", *(f"   {line}" for line in str(metrics).splitlines())]
        if self.scores:
            score, best = self._score()
            lines.append(
                f"-- TrackML score in the selected volumes, {len(self.scores)} events with weights: {score:.4f} "
                f"(all target particles alone would give {best:.4f})"
            )
        return "\n".join(lines)

    def _front(self) -> dict[str, Fraction]:
        front = self.front
        return {
            "hits kept": front.kept,
            "target hits kept": front.efficiency,
            "kept hits that are target": front.purity,
            f"particles with >= {self.selection.min_hits} kept": front.retention,
        }

    def _score(self) -> tuple[float, float]:
        score, best = np.mean(np.array(self.scores), axis=0)
        return float(score), float(best)

    def record(self) -> dict[str, Any]:
        """The report as plain numbers for JSON; every fraction as [passed, total]."""
        c, front = self.config, self.front
        kinds: tuple[Kind, ...] = ("double_majority", "perfect")
        quantities: tuple[Quantity, ...] = ("pt", "eta")
        return {
            "selection": str(self.selection),
            "events": len(self.found),
            "min_hits": self.selection.min_hits,
            "filter": {
                "name": c.filter,
                "threshold": c.filter_threshold,
                **{name: pair(getattr(front, name)) for name in ("efficiency", "purity", "kept", "retention")},
            },
            **{sizes: {name: pair(getattr(of, name)) for name in FRACTIONS} for sizes, of in self.metrics.items()},
            "against": {
                quantity: {
                    "edges": self.edges(quantity),
                    **{kind: [pair(fraction) for fraction in self.against(quantity, kind)] for kind in kinds},
                }
                for quantity in quantities
            },
            "trackml_score": None
            if not self.scores
            else dict(zip(("value", "best"), self._score(), strict=True)) | {"events": len(self.scores)},
        }


def pair(fraction: Fraction) -> list[int]:
    """A fraction as JSON has it."""
    return [fraction.passed, fraction.total]
