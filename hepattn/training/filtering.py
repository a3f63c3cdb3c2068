"""The hit filter as a LightningModule: loss, validation metrics, the table that `test` prints."""

from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import override

from hepattn.data.dataset import HitBatch
from hepattn.metrics import Estimate, FilterMetrics, ScoredEvent, at_efficiency, filter_metrics, roc_auc_events
from hepattn.models.hit_filter import HitFilter, HitFilterConfig
from hepattn.models.losses import PosWeight, RouterWeights, check_pos_weight, count_loss, hit_loss
from hepattn.sequence import Packed
from hepattn.training.base import TrainingModule, begin
from hepattn.training.optimise import OptimiserConfig

EFFICIENCIES = (0.98, 0.99, 0.995)
"""Hit efficiencies at which the table of `test` states purity."""


class HitFilterModule(TrainingModule):
    """Trains a `HitFilter`.

    Args:
        network: sizes, features and selection of the filter
        optimiser: AdamW and its schedule
        pos_weight: weight of a target hit in the loss, or "balance" (hits / target hits)
        router_weights: factors of the losses of the encoder's routers, where it has experts
        count_weight: factor of the loss of the number of particles, where the filter has `count`
        threshold: at which validation states efficiency and purity
        backend: attention kernel
        compile: compile the encoder (worth it on a GPU)
        weights: begin with these instead of random ones: a .safetensors file, whose configuration replaces `network`

    Raises:
        ValueError: an impossible setting
        FileNotFoundError: no such weights
    """

    MODEL = HitFilter
    NOUN = "filter"
    model: HitFilter

    def __init__(
        self,
        network: HitFilterConfig = HitFilterConfig(),  # noqa: B008  (frozen)
        optimiser: OptimiserConfig = OptimiserConfig(),  # noqa: B008
        pos_weight: PosWeight = "balance",
        router_weights: RouterWeights = RouterWeights(),  # noqa: B008
        count_weight: float = 0.1,
        threshold: float = 0.1,
        backend: str = "auto",
        compile: bool = False,  # noqa: A002
        weights: str | None = None,
    ) -> None:
        check_pos_weight(pos_weight)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is a probability in (0, 1), not {threshold}")
        if not 0 <= count_weight < float("inf"):
            raise ValueError(f"count_weight is a finite factor >= 0, not {count_weight}")
        super().__init__(begin(HitFilter, network, backend=backend, compile=compile, weights=weights), optimiser)
        self.pos_weight: PosWeight = pos_weight
        self.router_weights = router_weights
        self.count_weight = count_weight
        self.threshold = threshold
        self._scored: list[ScoredEvent] = []

    def forward(self, batch: HitBatch) -> Tensor:
        """Logits (T,) of a batch's hits."""
        return self.model.logits(batch.inputs)

    @override
    def training_step(self, batch: HitBatch, batch_idx: int = 0) -> Tensor:
        """The loss of one batch: of its hits, of routers and of the count, each where there is one."""
        judged = self.model.judge(batch.inputs)
        loss = hit_loss(judged.logits, batch.target, self.pos_weight) + self.router_weights.total(judged.losses)
        parts = {} if judged.losses is None else {f"router_{name}": x for name, x in judged.losses._asdict().items()}
        if judged.log_count is not None:
            parts["count_loss"] = count_loss(judged.log_count, batch.num_reconstructable)
            loss = loss + self.count_weight * parts["count_loss"]
        if self.logs_now():
            self.log_dict(parts, batch_size=len(batch.event_ids))
            self.log("loss", loss, prog_bar=True, batch_size=len(batch.event_ids))
        return loss

    @override
    def validation_step(self, batch: HitBatch, batch_idx: int = 0) -> None:
        """Scores of one batch, kept until the epoch ends."""
        judged = self.model.judge(batch.inputs)
        self._scored += scored_events(batch, judged.logits.sigmoid())
        if judged.log_count is not None:
            number = batch.num_reconstructable
            off = (judged.log_count.expm1() - number).abs() / number.clamp(min=1)
            self.log("count_error", off.mean(), on_epoch=True, batch_size=len(number))

    @override
    def on_validation_epoch_end(self) -> None:
        """Logs the area under the ROC curve, and efficiency, purity and retention at the threshold."""
        events, self._scored = self._scored, []
        auc, metrics = roc_auc_events(events, resamples=1), filter_metrics(events, self.threshold)
        self.log("val_auc", auc.value, prog_bar=True)
        for name in ("efficiency", "purity", "kept", "retention"):
            self.log(f"val_{name}", getattr(metrics, name).value)

    @override
    def test_step(self, batch: HitBatch, batch_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        """Prints the table with intervals, and writes it as test.json where the trainer writes."""
        events, self._scored = self._scored, []
        report = FilterReport(events, self.threshold)
        self.log("test_auc", report.auc.value)
        self.report(report.table(str(self.model.config.selection)), report.record())

    @override
    def predict_step(self, batch: HitBatch, batch_idx: int = 0) -> tuple[HitBatch, Tensor]:
        """The batch and its hits' probabilities (T,) float32, both on the CPU."""
        return batch.to("cpu"), self(batch).sigmoid().float().cpu()


class FilterReport:
    """All that `test` states, from scored events.

    Args:
        events: scored events
        threshold: at which efficiency, purity and retention are stated besides the fixed efficiencies
    """

    def __init__(self, events: list[ScoredEvent], threshold: float) -> None:
        self.events = events
        self.auc: Estimate = roc_auc_events(events)
        self.rows: list[tuple[str, FilterMetrics]] = [(f"threshold {threshold:g}", filter_metrics(events, threshold))]
        self.rows += [(f"efficiency {value:.1%}", at_efficiency(events, value)) for value in EFFICIENCIES]

    def table(self, selection: str) -> str:
        """The report as text, `selection` on top."""
        hits = sum(len(event.scores) for event in self.events)
        targets = sum(int(event.target.sum()) for event in self.events)
        lines = [f"target: hits of particles with {selection}"]
        lines += [
            f"{len(self.events)} events, {hits} hits, {targets} target hits; intervals cover 68.3 %",
            f"AUC  {self.auc}",
        ]
        for name, metrics in self.rows:
            lines += [f"-- at {name}", *(f"   {line}" for line in str(metrics).splitlines())]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The report as plain numbers for JSON; every fraction as [passed, total]."""
        names = ("efficiency", "purity", "kept", "retention")
        rows: dict[str, Any] = {}
        for row, metrics in self.rows:
            fractions = {name: [getattr(metrics, name).passed, getattr(metrics, name).total] for name in names}
            rows[row] = {"threshold": metrics.threshold, **fractions}
        return {"events": len(self.events), "auc": asdict(self.auc), "at": rows}


def scored_events(batch: HitBatch, scores: Tensor) -> list[ScoredEvent]:
    """Every event of a batch with its scores (T,), as the metrics want it."""
    lengths = batch.inputs.lengths
    parts = [Packed(x.detach().cpu(), lengths).split() for x in (scores.float(), batch.target, batch.particle)]
    reconstructable = [x.cpu().numpy() for x in batch.reconstructable.split()]
    return [
        ScoredEvent(np.asarray(s), np.asarray(t), np.asarray(p), r)
        for s, t, p, r in zip(*parts, reconstructable, strict=True)
    ]
