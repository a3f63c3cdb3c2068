"""Held-out events of a training, ready to be judged, and what a filter made of them at one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepattn.data.dataset import HitBatch, collate, hit_batch
from hepattn.data.schema import Event, Selection
from hepattn.metrics import roc_auc

__all__ = ["BINS", "HeldOut", "Judgement"]

THRESHOLDS = np.linspace(0.0, 1.0, 101)
BINS = np.linspace(0.0, 1.0, 41)
PT_BINS = 7


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out events, ready to be judged. n hits of all events, the first `shown` of them in the drawn event."""

    batch: HitBatch
    target: NDArray[np.bool_]  # (n,) True = the hit lies on a reconstructable particle
    pt: NDArray[np.float64]  # (n,) GeV, of the hit's particle; NaN for noise
    x: NDArray[np.float32]  # (shown,) mm
    y: NDArray[np.float32]
    selection: Selection

    @classmethod
    def of(cls, events: Sequence[Event], features: Sequence[str], selection: Selection) -> "HeldOut":
        """The hits of some events, as a filter with these features and this selection sees them."""
        batches = [hit_batch(event, features, selection) for event in events]
        pt = [
            np.append(_pt(event), np.nan)[batch.particle.numpy()] for event, batch in zip(events, batches, strict=True)
        ]
        first = batches[0].row.numpy()
        batch = collate(batches)
        target = batch.target.numpy()
        return cls(batch, target, np.concatenate(pt), events[0].hits.x[first], events[0].hits.y[first], selection)

    @property
    def pt_edges(self) -> NDArray[np.float64]:
        """Bins of pT, GeV; they begin at the selection's cut."""
        low = max(self.selection.pt_min, 0.1)
        return np.geomspace(low, max(20.0, 4 * low), PT_BINS + 1)


def _pt(event: Event) -> NDArray[np.float64]:
    assert event.particles is not None
    return np.asarray(event.particles.pt, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the filter made of the held-out events after `step` steps; n hits."""

    step: int
    held_out: HeldOut
    scores: NDArray[np.float64]  # (n,)
    auc: float
    wanted: NDArray[np.float64]  # (40,) counts of hits in `BINS`
    others: NDArray[np.float64]
    efficiency: NDArray[np.float64]  # (101,) at `THRESHOLDS`
    purity: NDArray[np.float64]

    @classmethod
    def of(cls, step: int, scores: NDArray[np.float64], held_out: HeldOut) -> "Judgement":
        """Of scores (n,) of the held-out hits."""
        target = held_out.target
        kept = len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS)
        good = int(target.sum()) - np.searchsorted(np.sort(scores[target]), THRESHOLDS)
        gap = np.full(len(THRESHOLDS), np.nan)
        return cls(
            step,
            held_out,
            scores,
            roc_auc(scores, target),
            np.histogram(scores[target], BINS)[0].astype(np.float64),
            np.histogram(scores[~target], BINS)[0].astype(np.float64),
            np.divide(good, target.sum(), out=gap.copy(), where=target.any()),
            np.divide(good, kept, out=gap.copy(), where=kept > 0),
        )
