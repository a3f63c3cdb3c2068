"""Which particle a track is, and whether it may be called found: double majority, perfect, LHC.

Sizes of particles are counted on the whole event, before any filter, unless `counted` says otherwise: a hit that a
filter lost then counts against the track.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hepattn.data.tracks import Tracks

Kind = Literal["double_majority", "perfect", "lhc"]
"""`double_majority`: > 50 % of the track's hits are the particle's and > 50 % of the particle's hits are on the track.
`perfect`: the same set of hits. `lhc`: > 75 % of the track's hits are the particle's."""

KINDS: tuple[Kind, ...] = ("perfect", "double_majority", "lhc")
"""All of them, in the order in which figures and tables show them."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """For each of K tracks the particle that it shares most hits with, and the verdicts; p particles.

    A tie goes to the lowest row of particles. It never decides a verdict: who ties has at most half of the track's
    hits, and so fails all three. Noise is no particle: it counts in the track's size only.
    """

    majority: Ints
    """(K,) row of particles; -1 for a track without a hit on any."""
    shared: Ints
    """(K,) hits of the track on that particle."""
    size: Ints
    """(K,) hits of the track, noise too."""
    particle_size: Ints
    """(K,) hits of the majority particle; 0 where there is none."""
    sizes: Ints
    """(p,) hits of every particle, as counted."""

    def __len__(self) -> int:
        return len(self.majority)

    @property
    def purity(self) -> Floats:
        """(K,) shared / size; NaN for a track without hits."""
        return _ratio(self.shared, self.size)

    @property
    def completeness(self) -> Floats:
        """(K,) shared / particle_size; NaN for a track without a majority particle."""
        return _ratio(self.shared, self.particle_size)

    @property
    def double_majority(self) -> Bools:
        """(K,) True = more than half of the track's hits and more than half of the particle's."""
        return (2 * self.shared > self.size) & (2 * self.shared > self.particle_size)

    @property
    def perfect(self) -> Bools:
        """(K,) True = track and particle are the same set of hits."""
        return (self.shared > 0) & (self.shared == self.size) & (self.shared == self.particle_size)

    @property
    def lhc(self) -> Bools:
        """(K,) True = more than three quarters of the track's hits."""
        return 4 * self.shared > 3 * self.size

    def verdict(self, kind: Kind, min_hits: int = 0) -> Bools:
        """(K,) True = matched by the definition `kind`, and at least `min_hits` hits.

        Raises:
            ValueError: there is no such definition.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
        good: Bools = getattr(self, kind)
        return good & (self.size >= min_hits)

    def tracks_on(self, kind: Kind, min_hits: int = 0) -> Ints:
        """(p,) tracks that are matched to each particle, by the definition `kind`."""
        return np.bincount(self.majority[self.verdict(kind, min_hits)], minlength=len(self.sizes))


def match_tracks(
    tracks: Tracks,
    particle: npt.NDArray[np.integer[Any]],
    num_particles: int | None = None,
    counted: Bools | None = None,
) -> Matches:
    """Match every track to the particle that it shares most hits with.

    Args:
        tracks: K tracks of an event with N hits
        particle: (N,) row of particles for all hits of the event, before any filter; -1 = noise
        num_particles: rows of particles; left out, as many as `particle` names
        counted: (N,) bool, True = the hit counts in a particle's size, e.g. those that were given to the tracker; left
            out, all hits

    Raises:
        ValueError: arrays of another length than the event, a particle outside the rows, a track with a hit that isn't
            counted.
    """
    owner = np.asarray(particle)
    if owner.shape != (tracks.num_hits,):
        raise ValueError(
            f"particle has one entry for each of the event's {tracks.num_hits} hits before any filter, not "
            f"{owner.shape}; see Tracks.in_event for tracks found after one"
        )
    last = int(owner.max()) if len(owner) else -1
    count = last + 1 if num_particles is None else num_particles
    if last >= count or (len(owner) and int(owner.min()) < -1):
        raise ValueError(f"particle lies in -1 ... {count - 1}, got {int(owner.min())} to {last}")
    on_particle = owner >= 0
    if counted is not None:
        if counted.shape != owner.shape or counted.dtype != np.bool_:
            raise ValueError(f"counted is ({len(owner)},) bool, not {counted.dtype} of shape {counted.shape}")
        if not counted[tracks.hits].all():
            raise ValueError("a track holds a hit that isn't counted: it was not given to the tracker")
        on_particle = on_particle & counted
    sizes = np.bincount(owner[on_particle], minlength=count)

    found = owner[tracks.hits]
    real = found >= 0
    pairs, shared = np.unique(tracks.owner[real] * max(count, 1) + found[real], return_counts=True)
    track, candidate = np.divmod(pairs, max(count, 1))
    # Pairs come in rising order of (track, particle): of each track the first with the most hits.
    best = np.lexsort((candidate, -shared, track))
    first = best[np.flatnonzero(np.diff(track[best], prepend=-1))]
    majority, most, of = (np.full(len(tracks), fill, dtype=np.int64) for fill in (-1, 0, 0))
    majority[track[first]] = candidate[first]
    most[track[first]] = shared[first]
    of[track[first]] = sizes[candidate[first]]
    return Matches(majority, most, tracks.lengths, of, sizes)


def _ratio(part: Ints, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
