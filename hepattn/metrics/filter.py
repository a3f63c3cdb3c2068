"""How good a hit filter is: efficiency, purity, retention at a threshold, and the area under its ROC curve.

A hit is kept when `score >= threshold`. All denominators are counted before the filter, so that nothing that a filter
loses leaves them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from hepattn.metrics.intervals import ONE_SIGMA, Estimate, Fraction


@dataclass(frozen=True, slots=True, eq=False)
class ScoredEvent:
    """One event's hits with their scores and truth; n hits, p particles.

    Attributes:
        scores: (n,) float, higher = more likely a target
        target: (n,) bool, True = the hit lies on a reconstructable particle (and in the selected volumes)
        particle: (n,) int, index into the event's particles; -1 = noise
        reconstructable: (p,) bool, decided before the filter
    """

    scores: NDArray[np.floating[Any]]
    target: NDArray[np.bool_]
    particle: NDArray[np.integer[Any]]
    reconstructable: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.target) == len(self.particle):
            received = f"{len(self.scores)}, {len(self.target)}, {len(self.particle)}"
            raise ValueError(f"scores, target and particle have one entry a hit, not {received}")


@dataclass(frozen=True, slots=True)
class FilterMetrics:
    """What a filter does at one threshold, as counts with intervals.

    Attributes:
        threshold: a hit is kept when its score >= threshold
        efficiency: target hits kept / target hits (recall)
        purity: target hits kept / hits kept (precision)
        kept: hits kept / hits
        retention: reconstructable particles with at least 3 of their target hits kept / reconstructable particles
    """

    threshold: float
    efficiency: Fraction
    purity: Fraction
    kept: Fraction
    retention: Fraction

    def __str__(self) -> str:
        rows = [f"threshold   {self.threshold:.4g}"]
        rows += [f"{name:<11} {getattr(self, name)}" for name in ("efficiency", "purity", "kept", "retention")]
        return "\n".join(rows)


def filter_metrics(events: Sequence[ScoredEvent], threshold: float = 0.1, min_hits: int = 3) -> FilterMetrics:
    """Efficiency, purity, hits kept and retention over `events` at one threshold.

    Args:
        events: scored events; counts are summed over them
        threshold: a hit is kept when its score >= threshold
        min_hits: hits that a particle must keep to be retained
    """
    zero = Fraction(0, 0)
    efficiency, purity, kept_hits, retention = zero, zero, zero, zero
    for event in events:
        kept = event.scores >= threshold
        good = kept & event.target
        hits_left = np.bincount(event.particle[good], minlength=len(event.reconstructable))
        retained = (hits_left >= min_hits) & event.reconstructable
        efficiency += Fraction(int(good.sum()), int(event.target.sum()))
        purity += Fraction(int(good.sum()), int(kept.sum()))
        kept_hits += Fraction(int(kept.sum()), len(kept))
        retention += Fraction(int(retained.sum()), int(event.reconstructable.sum()))
    return FilterMetrics(float(threshold), efficiency, purity, kept_hits, retention)


def threshold_at_efficiency(scores: ArrayLike, target: ArrayLike, efficiency: float) -> float:
    """The highest threshold that keeps at least this fraction of the target hits; NaN without target hits.

    Args:
        scores: (n,) float
        target: (n,) bool
        efficiency: wanted, in (0, 1]
    """
    if not 0.0 < efficiency <= 1.0:
        raise ValueError(f"efficiency lies in (0, 1], not {efficiency}")
    positive = np.sort(np.asarray(scores)[np.asarray(target, dtype=bool)])[::-1]
    if not len(positive):
        return float("nan")
    needed = int(np.ceil(efficiency * len(positive) - 1e-9))
    return float(positive[max(needed, 1) - 1])


def threshold_at_purity(scores: ArrayLike, target: ArrayLike, purity: float) -> float:
    """The lowest threshold (so the highest efficiency) at which kept hits are at least this pure; NaN where none is.

    Hits of equal score are kept or dropped together.

    Args:
        scores: (n,) float
        target: (n,) bool
        purity: wanted, in [0, 1]
    """
    s, y = np.asarray(scores), np.asarray(target, dtype=bool)
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    last_of_tie = np.append(s[1:] != s[:-1], True) if len(s) else np.zeros(0, dtype=bool)
    pure = np.cumsum(y) >= purity * np.arange(1, len(s) + 1) - 1e-9
    usable = np.flatnonzero(last_of_tie & pure)
    return float(s[usable[-1]]) if len(usable) else float("nan")


def at_efficiency(events: Sequence[ScoredEvent], efficiency: float) -> FilterMetrics:
    """Metrics at the threshold that reaches this hit efficiency on these events (purity at fixed efficiency)."""
    return filter_metrics(events, threshold_at_efficiency(*_pool(events), efficiency))


def at_purity(events: Sequence[ScoredEvent], purity: float) -> FilterMetrics:
    """Metrics at the loosest threshold that reaches this purity on these events (efficiency at fixed purity).

    Where no threshold does, the threshold is NaN and nothing is kept.
    """
    return filter_metrics(events, threshold_at_purity(*_pool(events), purity))


def roc_auc(scores: ArrayLike, target: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a target hit scores above another hit, ties counted half.

    Mann and Whitney's statistic, Ann. Math. Statist. 18 (1947) 50. NaN where either class is empty.

    Args:
        scores: (n,) float
        target: (n,) bool
    """
    s, y = np.asarray(scores), np.asarray(target, dtype=bool)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(s)
    return float((ranks[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def roc_auc_delong(scores: ArrayLike, target: ArrayLike, level: float = ONE_SIGMA) -> Estimate:
    """AUC with the interval of DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837.

    It takes hits as independent, which those of one particle aren't: too narrow. Prefer `roc_auc_events` where there
    are several events.

    Args:
        scores: (n,) float
        target: (n,) bool
        level: coverage
    """
    s, y = np.asarray(scores), np.asarray(target, dtype=bool)
    value = roc_auc(s, y)
    positives, negatives = int(y.sum()), int((~y).sum())
    if min(positives, negatives) < 2:
        return Estimate(value, float("nan"), float("nan"), "fewer than two hits of a class")
    ranks = rankdata(s)
    above = (ranks[y] - rankdata(s[y])) / negatives
    below = 1.0 - (ranks[~y] - rankdata(s[~y])) / positives
    sigma = float(np.sqrt(above.var(ddof=1) / positives + below.var(ddof=1) / negatives))
    reach = float(norm.ppf(0.5 + level / 2)) * sigma
    return Estimate(
        value, max(0.0, value - reach), min(1.0, value + reach), f"{level:.1%} DeLong, hits taken as independent"
    )


def roc_auc_events(
    events: Sequence[ScoredEvent], level: float = ONE_SIGMA, resamples: int = 400, seed: int = 0
) -> Estimate:
    """AUC over the hits of all events, with an interval from resampling whole events (they, not hits, are independent).

    With fewer than five events that says little, and DeLong's interval is given instead (`method` says which).

    Args:
        events: scored events
        level: coverage of the percentile interval
        resamples: bootstrap samples
        seed: of the bootstrap
    """
    scores, target = _pool(events)
    value = roc_auc(scores, target)
    if len(events) < 5 or np.isnan(value):
        return roc_auc_delong(scores, target, level)
    owner = np.repeat(np.arange(len(events)), [len(event.scores) for event in events])
    order = np.argsort(scores, kind="stable")
    target, owner = target[order], owner[order]
    ties = np.append(0, np.cumsum(np.diff(scores[order]) != 0))
    rng = np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(len(events), size=len(events)), minlength=len(events)) for _ in range(resamples)]
    samples = np.array([_weighted_auc(target, ties, times[owner].astype(np.float64)) for times in draws])
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), f"{level:.1%} bootstrap over {len(events)} events")


def _weighted_auc(target: NDArray[np.bool_], ties: NDArray[np.integer[Any]], weight: NDArray[np.float64]) -> float:
    """AUC of hits in rising order of score, each counted `weight` times; `ties` numbers the groups of equal scores."""
    groups = int(ties[-1]) + 1
    positive = np.bincount(ties, weights=weight * target, minlength=groups)
    negative = np.bincount(ties, weights=weight * ~target, minlength=groups)
    beaten = np.cumsum(negative) - negative / 2
    pairs = float(positive.sum() * negative.sum())
    return float(positive @ beaten) / pairs if pairs else float("nan")


def _pool(events: Sequence[ScoredEvent]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and targets of all events, one after the other."""
    if not events:
        return np.zeros(0), np.zeros(0, dtype=bool)
    scores = np.concatenate([np.asarray(event.scores, dtype=np.float64) for event in events])
    return scores, np.concatenate([event.target for event in events])
