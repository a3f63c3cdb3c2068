"""How good tracks are: efficiencies, fakes and duplicates as counts with intervals.

Which particles should be found is decided before any filter, so that what a filter loses stays in the denominator.
Papers differ in the size of a particle that its track is compared with, and so does `sizes`:

- `"all"` (here the default): all hits of the particle in the event. Hits that a filter lost make a track incomplete.
- `"kept"`: only the hits that were given to the tracker. It judges the tracker alone: a particle that lost 4 of 10 hits
  can still be found perfectly, and the filter's loss is seen only where no hits are left to find.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hepattn.data.schema import Event, Selection
from hepattn.data.tracks import Tracks
from hepattn.metrics.intervals import Fraction, binned_fraction
from hepattn.metrics.track_matching import KINDS, Kind, Matches, match_tracks

Sizes = Literal["all", "kept"]
Quantity = Literal["pt", "eta"]


@dataclass(frozen=True, slots=True, eq=False)
class FoundTracks:
    """One event's tracks and the truth to judge them by; N hits, p particles.

    Attributes:
        tracks: rows of the whole event (see `Tracks.in_event`)
        particle: (N,) int, row of particles for all hits before any filter; -1 = noise
        reconstructable: (p,) bool, decided before the filter
        kept: (N,) bool, True = the hit was given to the tracker; None where nothing was filtered or it isn't known
        pt: (p,) GeV; None where it isn't needed
        eta: (p,); None where it isn't needed
    """

    tracks: Tracks
    particle: npt.NDArray[np.integer[Any]]
    reconstructable: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_] | None = None
    pt: npt.NDArray[np.floating[Any]] | None = None
    eta: npt.NDArray[np.floating[Any]] | None = None

    def __post_init__(self) -> None:
        hits = self.tracks.num_hits
        for name, of_hits in (("particle", self.particle), ("kept", self.kept)):
            if of_hits is not None and of_hits.shape != (hits,):
                raise ValueError(f"FoundTracks.{name} has one entry for each of the {hits} hits, not {of_hits.shape}")
        for name, of_particles in (("pt", self.pt), ("eta", self.eta)):
            if of_particles is not None and of_particles.shape != self.reconstructable.shape:
                received = f"{of_particles.shape} where reconstructable has {self.reconstructable.shape}"
                raise ValueError(f"FoundTracks.{name} has one entry a particle, not {received}")

    @classmethod
    def of(
        cls, event: Event, tracks: Tracks, selection: Selection, kept: npt.NDArray[np.bool_] | None = None
    ) -> "FoundTracks":
        """Tracks of an event with truth.

        Where the selection names volumes, hits elsewhere are on no particle: they count in no particle's size, and no
        track may hold one.

        Args:
            event: the whole event, before any filter
            tracks: rows of it
            selection: which particles should be found
            kept: (N,) bool, True = the hit was given to the tracker; None = all were

        Raises:
            ValueError: the event has no truth, or a track holds a hit outside the selected volumes.
        """
        reconstructable = selection.particles(event)
        assert event.particles is not None
        assert event.hits.particle is not None
        inside = selection.in_volumes(event.hits)
        if len(inside) == tracks.num_hits and not inside[tracks.hits].all():
            raise ValueError(f"a track holds a hit outside the selected volumes ({selection})")
        particle = np.where(inside, event.hits.particle, -1)
        return cls(tracks, particle, reconstructable, kept, event.particles.pt, event.particles.eta)

    def matches(self, sizes: Sizes = "all") -> Matches:
        """The tracks matched to particles; `sizes` as in the head of this module.

        Raises:
            ValueError: `sizes` is "kept" and `kept` isn't known.
        """
        if sizes not in {"all", "kept"}:
            raise ValueError(f"sizes is all or kept, not {sizes!r}")
        if sizes == "kept" and self.kept is None:
            raise ValueError('sizes="kept" needs FoundTracks.kept: which hits were given to the tracker')
        counted = self.kept if sizes == "kept" else None
        return match_tracks(self.tracks, self.particle, len(self.reconstructable), counted)


@dataclass(frozen=True, slots=True)
class TrackMetrics:
    """What a tracker does, summed over events. Only tracks with at least `min_hits` hits are judged.

    By double majority a particle has two tracks only where they share hits: where each hit lies on one track, the
    smaller pieces of a split particle are fakes. By LHC pure pieces are duplicates.

    Attributes:
        efficiency: reconstructable particles with a double-majority track / reconstructable particles
        efficiency_perfect: the same with a perfect track
        efficiency_lhc: the same with an LHC track
        fakes: tracks matched to no particle, reconstructable or not, by double majority / tracks
        fakes_lhc: the same by LHC
        duplicates: tracks on a particle, any, beyond its first, by double majority / tracks
        duplicates_lhc: the same by LHC
        short: tracks with fewer hits, which nothing above counts / all tracks
        events: number of events
        min_hits: hits that a track needs
        sizes: which hits of a particle its tracks are compared with
    """

    efficiency: Fraction
    efficiency_perfect: Fraction
    efficiency_lhc: Fraction
    fakes: Fraction
    fakes_lhc: Fraction
    duplicates: Fraction
    duplicates_lhc: Fraction
    short: Fraction
    events: int
    min_hits: int
    sizes: Sizes

    def __str__(self) -> str:
        names = {
            "efficiency, double majority": self.efficiency,
            "efficiency, perfect": self.efficiency_perfect,
            "efficiency, LHC": self.efficiency_lhc,
            "fakes, double majority": self.fakes,
            "fakes, LHC": self.fakes_lhc,
            "duplicates, double majority": self.duplicates,
            "duplicates, LHC": self.duplicates_lhc,
            f"tracks below {self.min_hits} hits": self.short,
        }
        hits = "all hits" if self.sizes == "all" else "hits that the tracker was given"
        rows = [f"{name:<28} {value}" for name, value in names.items()]
        return "\n".join([*rows, f"{self.events} events; a particle's size is {hits}"])


def track_metrics(events: Sequence[FoundTracks], min_hits: int = 3, sizes: Sizes = "all") -> TrackMetrics:
    """Efficiencies, fakes and duplicates over `events`.

    Args:
        events: found tracks with truth; counts are summed over them
        min_hits: hits that a track needs to be judged; shorter ones are counted in `short` only
        sizes: which hits of a particle its tracks are compared with, "all" or "kept"

    Raises:
        ValueError: `sizes` is "kept" and an event doesn't know what was kept.
    """
    found: dict[Kind, Fraction] = {kind: Fraction(0, 0) for kind in KINDS}
    fakes, duplicates = dict(found), dict(found)
    short = Fraction(0, 0)
    for event in events:
        matches = event.matches(sizes)
        judged = int((matches.size >= min_hits).sum())
        short += Fraction(len(matches) - judged, len(matches))
        for kind in KINDS:
            on = matches.tracks_on(kind, min_hits)
            good = int(on.sum())
            wanted = event.reconstructable
            found[kind] += Fraction(int((on[wanted] > 0).sum()), int(wanted.sum()))
            fakes[kind] += Fraction(judged - good, judged)
            duplicates[kind] += Fraction(good - int((on > 0).sum()), judged)
    return TrackMetrics(
        efficiency=found["double_majority"],
        efficiency_perfect=found["perfect"],
        efficiency_lhc=found["lhc"],
        fakes=fakes["double_majority"],
        fakes_lhc=fakes["lhc"],
        duplicates=duplicates["double_majority"],
        duplicates_lhc=duplicates["lhc"],
        short=short,
        events=len(events),
        min_hits=min_hits,
        sizes=sizes,
    )


def efficiency_against(
    events: Sequence[FoundTracks],
    quantity: Quantity,
    edges: Sequence[float] | npt.NDArray[np.float64],
    kind: Kind = "double_majority",
    *,
    min_hits: int = 3,
    sizes: Sizes = "all",
) -> list[Fraction]:
    """Efficiency in bins of the true pT (GeV) or eta of reconstructable particles.

    Args:
        events: found tracks with truth
        quantity: "pt" or "eta"
        edges: (b + 1,) rising; bins as in `binned_fraction`; particles outside them are in no bin
        kind: definition of found
        min_hits: hits that a track needs
        sizes: which hits of a particle its tracks are compared with

    Returns:
        b fractions; an empty bin is Fraction(0, 0), whose value is NaN: a gap

    Raises:
        ValueError: an event doesn't know the quantity, or there is no such quantity.
    """
    if quantity not in {"pt", "eta"}:
        raise ValueError(f"quantity is pt or eta, not {quantity!r}")
    values, passed = [np.zeros(0)], [np.zeros(0, dtype=np.bool_)]
    for event in events:
        of_particle = event.pt if quantity == "pt" else event.eta
        if of_particle is None:
            raise ValueError(f"FoundTracks.{quantity} is needed: FoundTracks.of takes it from the event")
        values.append(of_particle[event.reconstructable].astype(np.float64))
        on = event.matches(sizes).tracks_on(kind, min_hits)
        passed.append(on[event.reconstructable] > 0)
    return binned_fraction(np.concatenate(values), np.concatenate(passed), edges)
