"""For whom a hit filter works: efficiency, purity and retention in bins of what hits and particles are.

All denominators are decided before the filter. What passes at a threshold is decided by one number each: a hit's own
score, and a particle's `hold`, the score of its third best hit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Selection
from hepattn.metrics.filter import FilterMetrics, ScoredEvent, threshold_at_efficiency
from hepattn.metrics.intervals import Fraction, binned_fraction

__all__ = ["QUANTITIES", "JudgedEvents", "Quantity", "particle_hold", "who_is_lost"]

Quantity = Literal["pt", "eta", "hits", "radius"]
"""Of a particle: pT [GeV]; pseudorapidity; hits in the selected volumes; distance of its vertex from the beam [mm]."""

QUANTITIES: tuple[Quantity, ...] = ("pt", "eta", "hits", "radius")

PT_ENDS, RADIUS_ENDS = (0.1, 20.0), (0.01, 1.0, 500.0)
"""GeV, outer edges of all bins; mm, edges of the first bin of radii (the beam's width lies in it) and of the last."""


def particle_hold(event: ScoredEvent, min_hits: int = 3) -> NDArray[np.float64]:
    """The highest threshold at which each particle keeps `min_hits` of its target hits; p particles.

    Returns:
        (p,) the score of its `min_hits`-th best target hit; -inf where it has fewer
    """
    if min_hits < 1:
        raise ValueError(f"min_hits is at least 1, not {min_hits}")
    owner = event.particle[event.target]
    scores = np.asarray(event.scores, dtype=np.float64)[event.target]
    order = np.lexsort((-scores, owner))
    owner, scores = owner[order], scores[order]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)  # 0 for the best hit of a particle
    found = np.full(len(event.reconstructable), -np.inf)
    found[owner[place == min_hits - 1]] = scores[place == min_hits - 1]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class JudgedEvents:
    """All hits that a filter judged, and all particles that it should keep; n hits, p reconstructable particles.

    Attributes:
        events: how many there were.
        selection: which particles are reconstructable, decided on whole events.
        scores: (n,) float64, of the hits in the selected volumes.
        target: (n,) bool, True = on a reconstructable particle.
        hits: quantity -> (n,) of the hit's particle, NaN for noise; "eta" is the hit's own, which noise has too.
        of_particle: quantity -> (n,) of the hit's particle, "eta" too; NaN for noise.
        hold: (p,) a particle is retained at every threshold up to this, see `particle_hold`.
        particles: quantity -> (p,).
    """

    events: int
    selection: Selection
    scores: NDArray[np.float64]
    target: NDArray[np.bool_]
    hits: Mapping[Quantity, NDArray[np.float64]]
    of_particle: Mapping[Quantity, NDArray[np.float64]]
    hold: NDArray[np.float64]
    particles: Mapping[Quantity, NDArray[np.float64]]

    @classmethod
    def of(cls, events: Sequence[Event], scores: Sequence[ArrayLike], selection: Selection) -> "JudgedEvents":
        """What a filter said of some events.

        Args:
            events: with truth.
            scores: one array (n_hits,) an event, as `HitFilter.score` gives it; of hits outside the selected volumes
                nothing is used.
            selection: the filter's.

        Raises:
            ValueError: no event, an event without truth, or not one score a judged hit
        """
        if not events:
            raise ValueError("there is no event to judge")
        parts = [_one(event, score, selection) for event, score in zip(events, scores, strict=True)]
        columns: list[Any] = [np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True)]
        tables = [{name: np.concatenate([part[i][name] for part in parts]) for name in QUANTITIES} for i in (4, 5)]
        judged, target, own_eta, hold = columns
        return cls(len(events), selection, judged, target, tables[0] | {"eta": own_eta}, tables[0], hold, tables[1])

    def threshold_at(self, efficiency: float) -> float:
        """The highest threshold that keeps at least this fraction of the target hits."""
        return threshold_at_efficiency(self.scores, self.target, efficiency)

    def at(self, threshold: float) -> FilterMetrics:
        """All of it at one threshold; the same numbers as `filter_metrics`."""
        kept = self.scores >= threshold
        good = int((kept & self.target).sum())
        return FilterMetrics(
            float(threshold),
            efficiency=Fraction(good, int(self.target.sum())),
            purity=Fraction(good, int(kept.sum())),
            kept=Fraction(int(kept.sum()), len(kept)),
            retention=Fraction(int((self.hold >= threshold).sum()), len(self.hold)),
        )

    def efficiency(self, by: Quantity, edges: NDArray[np.float64], threshold: float) -> list[Fraction]:
        """Target hits kept / target hits, by what their particle is. Values beyond the edges lie in the outer bins."""
        return _binned(self.of_particle[by][self.target], self.scores[self.target] >= threshold, edges)

    def purity(self, by: Quantity, edges: NDArray[np.float64], threshold: float) -> list[Fraction]:
        """Target hits kept / hits kept, by `hits`: "eta" is the hit's own. Other quantities leave out noise.

        What they leave out is counted by `noise_kept`.
        """
        kept = self.scores >= threshold
        return _binned(self.hits[by][kept], self.target[kept], edges)

    def retention(self, by: Quantity, edges: NDArray[np.float64], threshold: float) -> list[Fraction]:
        """Reconstructable particles that keep three target hits / reconstructable particles."""
        return _binned(self.particles[by], self.hold >= threshold, edges)

    def kept(self, by: Quantity, edges: NDArray[np.float64], threshold: float) -> list[Fraction]:
        """Hits kept / hits, of all particles, wanted or not; noise is left out."""
        return _binned(self.of_particle[by], self.scores >= threshold, edges)

    def noise_kept(self, threshold: float) -> Fraction:
        """Noise hits kept / noise hits."""
        noise = np.isnan(self.of_particle["pt"])
        return Fraction(int((self.scores[noise] >= threshold).sum()), int(noise.sum()))

    def edges(self, by: Quantity, bins: int = 12, *, everyone: bool = False) -> NDArray[np.float64]:
        """Edges of about so many bins over the reconstructable particles; the cut on pT is an edge.

        Args:
            by: the quantity. pT and radii are binned in equal ratios, hits in whole numbers.
            bins: how many; of hits there may be fewer.
            everyone: go on below the cuts, in steps as large, for hits on other particles.

        Raises:
            ValueError: fewer than two bins
        """
        if bins < 2:
            raise ValueError(f"give at least two bins, not {bins}")
        cut = self.selection
        if by == "pt":
            low = max(cut.pt_min, PT_ENDS[0])
            edges = np.geomspace(low, max(PT_ENDS[1], 2 * low), bins + 1)
            step = edges[1] / edges[0]
            below = int(np.ceil(np.log(low / PT_ENDS[0]) / np.log(step) - 1e-9)) if everyone else 0
            return np.concatenate([low * step ** np.arange(-below, 0.0), edges])
        if by == "eta":
            far = cut.eta_max if np.isfinite(cut.eta_max) else 4.0
            return np.linspace(-far, far, bins + 1)
        if by == "radius":
            return np.append(RADIUS_ENDS[0], np.geomspace(*RADIUS_ENDS[1:], bins))
        least = max(cut.min_hits, 1)
        numbers = int(np.max(self.particles["hits"], initial=least)) + 1 - least
        step = max(1, round(numbers / bins))
        counts = least + step * np.arange(-(-numbers // step) + 1)
        return np.concatenate([np.arange(1, least) if everyone else [], counts]) - 0.5


def who_is_lost(judged: JudgedEvents, threshold: float, cases: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """What the particles that a filter loses have in common, a row a case, for display; all particles come first.

    Args:
        judged: the events.
        threshold: a hit is kept when its score >= threshold.
        cases: words -> (p,) bool, True = it is so for the reconstructable particle, e.g. `judged.particles["pt"] < 1`.

    Returns:
        Columns: particles, retained (a `Fraction` as text), "of all" and "of the lost", shares in percent of all
        reconstructable particles and of those that were lost. Cases may overlap.

    Raises:
        ValueError: a case is not one bool a reconstructable particle
    """
    held = judged.hold >= threshold
    rows = {}
    for name, case in {"all": np.ones(len(held), dtype=bool), **cases}.items():
        chosen = np.asarray(case)
        if chosen.shape != held.shape or chosen.dtype != np.bool_:
            raise ValueError(
                f"the case {name!r} is one bool for each of the {len(held)} reconstructable particles, not "
                f"{chosen.dtype} of shape {chosen.shape}"
            )
        lost = Fraction(int((chosen & ~held).sum()), int((~held).sum()))
        rows[name] = {
            "retained": str(Fraction(int((chosen & held).sum()), int(chosen.sum()))),
            "of all": f"{Fraction(int(chosen.sum()), len(held)).value:.1%}",
            "of the lost": f"{lost.value:.0%} ({lost.passed} of {lost.total})" if lost.total else "-",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _one(event: Event, scores: ArrayLike, selection: Selection) -> tuple[Any, ...]:
    """Of one event: scores, target, own eta of its judged hits; hold; quantities of hits and of particles."""
    judged = np.asarray(scores, dtype=np.float64)
    if judged.shape != (len(event.hits),):
        raise ValueError(f"give one score for each of the event's {len(event.hits)} hits, not shape {judged.shape}")
    inside = selection.in_volumes(event.hits)
    target, good = selection.hits(event)[inside], selection.particles(event)
    if np.isnan(judged[inside]).any():
        raise ValueError(f"{int(np.isnan(judged[inside]).sum())} hits in the selected volumes have no score (NaN)")
    particles, owner = event.particles, event.hits.particle
    assert particles is not None
    assert owner is not None
    owner = owner[inside]
    values = {
        "pt": particles.pt,
        "eta": particles.eta,
        "hits": np.bincount(owner[owner >= 0], minlength=len(particles)),
        "radius": np.hypot(particles.vx, particles.vy),
    }
    # one more row, for noise (-1)
    of_hits = {name: np.append(value.astype(np.float64), np.nan)[owner] for name, value in values.items()}
    of_particles = {name: value.astype(np.float64)[good] for name, value in values.items()}
    hold = particle_hold(ScoredEvent(judged[inside], target, owner, good))[good]
    return judged[inside], target, event.hits.eta[inside].astype(np.float64), hold, of_hits, of_particles


def _binned(values: NDArray[np.float64], passed: NDArray[np.bool_], edges: NDArray[np.float64]) -> list[Fraction]:
    """As `binned_fraction`, with what lies beyond the edges in the outer bins; NaN lies in none."""
    return binned_fraction(np.clip(values, edges[0], edges[-1]), passed, edges)
