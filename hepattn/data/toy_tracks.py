"""Toys to learn metrics with: a small event of exact helices, and true tracks that are damaged on purpose."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from hepattn.data.schema import Event, Hits, Particles, Selection
from hepattn.data.tracks import CURVATURE, Tracks

LAYERS = (32.0, 72.0, 116.0, 172.0, 260.0, 360.0, 500.0, 660.0, 820.0, 1020.0)
"""Radii of the layers of the barrel, mm: four of pixels, four of short strips, two of long strips."""

SOFTEST = 0.7
"""GeV. (Below 0.31 GeV a particle turns back before 1020 mm in 2 T.)"""


def toy_event(particles: int = 8, noise: int = 6, seed: int = 0) -> Event:
    """A few charged particles from the origin in 2 T, with an exact hit on each layer up to some layer, and noise.

    Hits are ordered by particle, from the inside out, noise last. Particle 0 is the softest (0.7 GeV), below the usual
    cut of 0.9 GeV; all others are above 1 GeV. Particles leave 6 to 10 hits.

    Args:
        particles: how many, >= 1
        noise: hits on no particle
        seed: of all random numbers

    Raises:
        ValueError: no particle, or a negative number of noise hits.
    """
    if particles < 1 or noise < 0:
        raise ValueError(f"a toy event has particles >= 1 and noise >= 0, not {particles} and {noise}")
    rng = np.random.default_rng(seed)
    pt = np.append(SOFTEST, rng.uniform(1.0, 3.0, particles - 1))
    phi = rng.permutation(np.linspace(-np.pi, np.pi, particles, endpoint=False)) + rng.uniform(-0.25, 0.25, particles)
    eta, charge = rng.uniform(-0.9, 0.9, particles), rng.choice([-1, 1], particles)
    count = rng.integers(6, len(LAYERS) + 1, particles)
    owner = np.repeat(np.arange(particles), count)
    layer = np.concatenate([np.arange(n) for n in count])
    radius = pt / (CURVATURE * 2.0)
    turned = np.arcsin(np.array(LAYERS)[layer] / (2 * radius[owner]))
    angle = phi[owner] - charge[owner] * turned
    z = 2 * radius[owner] * turned * np.sinh(eta[owner])

    owner, layer = np.append(owner, np.full(noise, -1)), np.append(layer, rng.integers(0, len(LAYERS), noise))
    angle, z = np.append(angle, rng.uniform(-np.pi, np.pi, noise)), np.append(z, rng.uniform(-900, 900, noise))
    r, at = np.array(LAYERS)[layer], np.zeros(particles)
    hits = Hits(
        x=r * np.cos(angle),
        y=r * np.sin(angle),
        z=z,
        volume_id=np.array([8, 8, 8, 8, 13, 13, 13, 13, 17, 17])[layer],
        layer_id=np.array([2, 4, 6, 8, 2, 4, 6, 8, 2, 4])[layer],
        module_id=np.ones(len(r), dtype=np.int32),
        particle=owner,
        hit_id=np.arange(len(r)) + 1,
    )
    made = Particles(
        px=pt * np.cos(phi),
        py=pt * np.sin(phi),
        pz=pt * np.sinh(eta),
        vx=at,
        vy=at,
        vz=at,
        charge=charge,
        particle_id=np.arange(particles) + 1,
    )
    return Event(hits, made, event_id=seed, source="a toy")


def true_tracks(event: Event, selection: Selection | None = None) -> Tracks:
    """The hits of each particle as a track, in the order of particles: what a perfect tracker finds.

    Args:
        event: with truth
        selection: which particles, with their hits in its volumes; left out, all that have a hit

    Raises:
        ValueError: the event has no particles, or its hits have no truth.
    """
    chosen = Selection(0.0, np.inf, 1) if selection is None else selection
    target = chosen.hits(event)
    assert event.hits.particle is not None
    return Tracks.from_labels(np.where(target, event.hits.particle, -1))


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done to true tracks; shares in [0, 1]. With one seed, a larger share does the same and more."""

    split: float = 0.0
    """Share of tracks that break in two, somewhere between 20 % and 80 % of their hits."""
    merge: float = 0.0
    """Share of pairs of neighbours in phi that become one track; of split tracks the inner pieces do."""
    drop: float = 0.0
    """Share of tracks that are not found."""
    lost: float = 0.0
    """Share of hits that a filter before the tracker loses."""
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.name != "seed" and not 0.0 <= getattr(self, item.name) <= 1.0:
                raise ValueError(f"Damage.{item.name} is a share in [0, 1], not {getattr(self, item.name)}")


def damage_tracks(event: Event, tracks: Tracks, damage: Damage) -> tuple[Tracks, npt.NDArray[np.bool_]]:
    """Tracks as a faulty tracker would find them after a filter that loses hits.

    Args:
        event: N hits
        tracks: rows of it, no hit on two
        damage: what to do

    Returns:
        the damaged tracks, rows of the whole event, none empty; and `kept` (N,) bool, True = the filter kept the hit

    Raises:
        ValueError: tracks of another event, or a hit on two tracks.
    """
    if tracks.num_hits != len(event.hits):
        raise ValueError(f"the event has {len(event.hits)} hits, its tracks know {tracks.num_hits}")
    labels, count = tracks.labels(), len(tracks)
    rng = np.random.default_rng(damage.seed)
    drop, split, merge = rng.random((3, count))
    place = rng.uniform(0.2, 0.8, count)
    kept = rng.random(len(labels)) >= damage.lost

    rows = np.flatnonzero((labels >= 0) & kept)
    rows = rows[np.lexsort((event.hits.s[rows], labels[rows]))]
    owner = labels[rows]
    length = np.bincount(owner, minlength=count)
    rank = np.arange(len(rows)) - (np.cumsum(length) - length)[owner]
    cut = np.clip(np.rint(place * length), 1, np.maximum(length - 1, 1))
    outer = (split < damage.split)[owner] & (rank >= cut[owner])

    # Where a piece goes: pieces 0 ... K - 1 are inner (or whole) ones, K ... 2 K - 1 the outer ones.
    goes = np.arange(2 * count)
    x, y = (np.bincount(owner, weights=part[rows], minlength=count) for part in (event.hits.x, event.hits.y))
    ranked = np.argsort(np.arctan2(y, x), kind="stable")
    first, second = ranked[: count - count % 2].reshape(-1, 2).T
    joined = merge[: len(first)] < damage.merge
    goes[second[joined]] = first[joined]
    gone = np.flatnonzero(drop < damage.drop)
    goes[gone] = goes[gone + count] = -1
    found = np.full(len(labels), -1, dtype=np.int64)
    found[rows] = goes[owner + count * outer]
    return Tracks.from_labels(found), kept
