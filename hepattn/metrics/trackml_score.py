"""The score of the TrackML challenge (arXiv:1904.06778, "Scoring"), and the weights that it needs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hepattn.data.schema import Event
from hepattn.data.tracks import Tracks
from hepattn.metrics.track_matching import match_tracks

FEWEST_HITS = 4
"""Hits that a particle needs to have weight."""


def trackml_score(tracks: Tracks, particle: npt.NDArray[np.integer[Any]], weight: npt.NDArray[Any]) -> float:
    """Weight of the hits that lie on the right track, out of the weight of all hits of an event.

    The challenge takes the mean over events, and so weighs events alike.

    A track of any size is good when more than half of its hits are one particle's and they are more than half of that
    particle's hits (hits are counted, not weighed). Of a good track the hits on that particle score their weight; all
    other hits score nothing. Particles with three hits or fewer and noise have weight zero, so that nothing is won or
    lost with them but by spoiling a track.

    Args:
        tracks: K tracks of an event with N hits, each hit on at most one
        particle: (N,) row of particles for all hits before any filter; -1 = noise
        weight: (N,) >= 0 of all hits; divided by its sum

    Returns:
        in [0, 1]

    Raises:
        ValueError: a hit on two tracks, weights of another length, negative or not finite, or all zero.
    """
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != (tracks.num_hits,):
        raise ValueError(f"weight has one entry for each of the event's {tracks.num_hits} hits, not {weights.shape}")
    total = float(weights.sum())
    if not (np.isfinite(total) and total > 0 and weights.min() >= 0):
        raise ValueError("weights are finite, >= 0 and not all zero; see trackml_weights and pt_weights")
    tracks.labels()  # says which hit lies on two tracks
    matches = match_tracks(tracks, particle)
    goal = np.where(matches.double_majority, matches.majority, -2)[tracks.owner]
    return float(weights[tracks.hits][np.asarray(particle)[tracks.hits] == goal].sum()) / total


def trackml_weights(event: Event) -> npt.NDArray[np.float64]:
    """(N,) the challenge's own weight of each hit, as its truth files give it.

    Raises:
        ValueError: the event has none; only TrackML's files with truth do.
    """
    if event.truth is None:
        raise ValueError(
            f"event {event.event_id} of {event.source or 'an unnamed source'} has no TrackML weights, which come with "
            "TrackML's truth files: pt_weights gives weights of the same kind for any event with particles"
        )
    return event.truth.weight.astype(np.float64)


def pt_weights(event: Event) -> npt.NDArray[np.float64]:
    """(N,) weights in the manner of TrackML's for any event with truth; they sum to one. Not the challenge's numbers.

    As there, a particle with fewer than four hits and noise weigh nothing, and the weight of a whole particle does not
    depend on its number of hits but grows with pT, linearly from 0.2 at 0.5 GeV to 1 at 3 GeV. Unlike there, all hits
    of a particle weigh the same (the challenge's first and last hits weigh more), and no secondaries are left out.

    Raises:
        ValueError: the event has no particles or its hits have no truth, or no particle has four hits.
    """
    count = event.hits_per_particle
    assert event.particles is not None
    assert event.hits.particle is not None
    of_particle = np.interp(event.particles.pt.astype(np.float64), [0.5, 3.0], [0.2, 1.0])
    share = np.where(count >= FEWEST_HITS, of_particle / np.maximum(count, 1), 0.0)
    # One more row, of weight zero, is where noise (-1) points to.
    weights: npt.NDArray[np.float64] = np.append(share, 0.0)[event.hits.particle]
    total = float(weights.sum())
    if not total:
        raise ValueError(f"no particle of event {event.event_id} has {FEWEST_HITS} hits, so that none has weight")
    return weights / total
