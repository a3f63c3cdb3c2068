"""What an event is: typed numpy arrays in mm, GeV, radian, and the words of physics that are defined on them.

Every source (TrackML files, Parquet, the simulator, the samples) gives an `Event`; every later stage sees only `Event`.
The dataclasses are frozen and validate once, when built: equal lengths, finite numbers, ids in range. An array that
already has the right dtype is kept as it is, not copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

# What a constructor takes: it casts to the dtype that the field's text names.
FloatArray = npt.NDArray[Any]
IntArray = npt.NDArray[Any]
IdArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]

RADIUS_FLOOR = 1e-3
"""mm. Nearer to the beam axis than this, eta, u and v are computed as if at this distance, so that they stay finite."""

MOMENTUM_FLOOR = 1e-6
"""GeV. Below this transverse momentum eta is computed as if at this momentum, so that it stays finite."""


def _array(owner: object, name: str, dtype: npt.DTypeLike, length: int | None = None) -> int:
    """Cast field `name` of a frozen dataclass to `dtype`, check shape and content, and return its length.

    Raises:
        ValueError: not one-dimensional, not of the given length, not finite, or an integer that the dtype can't hold.
    """
    kind = type(owner).__name__
    given = np.asarray(getattr(owner, name))
    want = np.dtype(dtype)
    if given.ndim != 1:
        raise ValueError(f"{kind}.{name} must have one dimension, not shape {given.shape}")
    if length is not None and len(given) != length:
        raise ValueError(f"{kind}.{name} has {len(given)} values where {length} are needed")
    if given.dtype != want:
        if want.kind in "iu" and given.dtype.kind not in "iub" and len(given):
            raise ValueError(f"{kind}.{name} holds integers, got {given.dtype} (ids must never pass through floats)")
        if given.dtype.kind not in "iubf":
            raise ValueError(f"{kind}.{name} holds numbers, got {given.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            cast = given.astype(want)
        if want.kind in "iu" and len(given) and not np.array_equal(cast, given):
            raise ValueError(f"{kind}.{name} has values outside the range of {want}")
        given = cast
    if want.kind == "f":
        bad = np.flatnonzero(~np.isfinite(given))
        if len(bad):
            raise ValueError(f"{kind}.{name} is not finite at index {bad[0]} ({given[bad[0]]})")
    object.__setattr__(owner, name, given)
    return len(given)


def _pseudorapidity(longitudinal: FloatArray, transverse: FloatArray, floor: float) -> FloatArray:
    """Eta = arcsinh(longitudinal / transverse), with `transverse` not below `floor`."""
    ratio = longitudinal.astype(np.float64) / np.maximum(transverse.astype(np.float64), floor)
    return np.arcsinh(ratio).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Shape of the group of cells behind each hit; all arrays (n_hits,).

    Angles follow the features that the public TrackML solutions use: the direction (size_u * pitch_u, size_v * pitch_v,
    thickness) in the frame of the module (local), and the same rotated into the frame of the detector (global); see
    `hepattn.data.trackml.cluster_angles`.
    """

    size_u: IntArray
    """Extent along u in cells, int32, >= 1."""
    size_v: IntArray
    """Extent along v in cells, int32, >= 1."""
    charge: FloatArray
    """Sum of the cells' values, float32, in the units of the source (TrackML: arbitrary)."""
    eta_local: FloatArray
    """Pseudorapidity of the direction about the module's normal w, float32."""
    phi_local: FloatArray
    """Azimuth of the direction in the module's plane (u, v), float32, rad."""
    eta_global: FloatArray
    """Pseudorapidity of the direction about the beam axis, float32."""
    phi_global: FloatArray
    """Azimuth of the direction about the beam axis, float32, rad."""
    cells: IntArray | None = None
    """Number of cells above threshold, int32; None where only the extents are known."""

    def __post_init__(self) -> None:
        n = _array(self, "size_u", np.int32)
        _array(self, "size_v", np.int32, n)
        for name in ("charge", "eta_local", "phi_local", "eta_global", "phi_global"):
            _array(self, name, np.float32, n)
        if self.cells is not None:
            _array(self, "cells", np.int32, n)

    def __len__(self) -> int:
        return len(self.size_u)

    def take(self, index: npt.NDArray[np.integer] | BoolArray) -> "Clusters":
        """The clusters at `index` (integers, or bool with True = keep)."""
        return Clusters(**_taken(self, index))


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Measured space points; all arrays (n_hits,)."""

    x: FloatArray
    """mm, float32."""
    y: FloatArray
    """mm, float32."""
    z: FloatArray
    """mm, float32, along the beam."""
    volume_id: IntArray
    """TrackML volume, int32: pixels 7 8 9, short strips 12 13 14, long strips 16 17 18."""
    layer_id: IntArray
    """Layer inside the volume, int32."""
    module_id: IntArray
    """Module inside the layer, int32."""
    particle: IntArray | None = None
    """Row of `Event.particles` that made the hit, int32; -1 is noise. None where no truth is known."""
    hit_id: IdArray | None = None
    """The source's own number of the hit, int64, unique; None where the source has none."""
    clusters: Clusters | None = None
    """Cluster shapes, where cells are known."""

    def __post_init__(self) -> None:
        n = _array(self, "x", np.float32)
        for name in ("y", "z"):
            _array(self, name, np.float32, n)
        for name in ("volume_id", "layer_id", "module_id"):
            _array(self, name, np.int32, n)
        if self.particle is not None:
            _array(self, "particle", np.int32, n)
            if n and int(self.particle.min()) < -1:
                raise ValueError(
                    f"Hits.particle must be -1 (noise) or a row of particles, got {int(self.particle.min())}"
                )
        if self.hit_id is not None:
            _array(self, "hit_id", np.int64, n)
        if self.clusters is not None and len(self.clusters) != n:
            raise ValueError(f"Hits.clusters describes {len(self.clusters)} hits where {n} are needed")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def r(self) -> FloatArray:
        """Distance from the beam axis, sqrt(x^2 + y^2), mm."""
        return np.hypot(self.x, self.y)

    @property
    def s(self) -> FloatArray:
        """Distance from the origin, sqrt(x^2 + y^2 + z^2), mm."""
        return np.hypot(self.r, self.z)

    @property
    def phi(self) -> FloatArray:
        """Azimuth, atan2(y, x) in [-pi, pi], rad, float32."""
        return np.arctan2(self.y, self.x)

    @property
    def theta(self) -> FloatArray:
        """Polar angle from the beam axis, atan2(r, z) in [0, pi], rad."""
        return np.arctan2(self.r, self.z)

    @property
    def eta(self) -> FloatArray:
        """Pseudorapidity, arcsinh(z / r) = -ln tan(theta / 2); finite, see `RADIUS_FLOOR`."""
        return _pseudorapidity(self.z, self.r, RADIUS_FLOOR)

    @property
    def u(self) -> FloatArray:
        """Conformal coordinate x / (x^2 + y^2), 1/mm; finite, see `RADIUS_FLOOR`.

        Circles through the origin become lines in (u, v).
        """
        return self._conformal(self.x)

    @property
    def v(self) -> FloatArray:
        """Conformal coordinate y / (x^2 + y^2), 1/mm; finite, see `RADIUS_FLOOR`."""
        return self._conformal(self.y)

    def _conformal(self, coordinate: FloatArray) -> FloatArray:
        squared = np.maximum(self.r.astype(np.float64), RADIUS_FLOOR) ** 2
        return (coordinate / squared).astype(np.float32)

    def take(self, index: npt.NDArray[np.integer] | BoolArray) -> "Hits":
        """The hits at `index` (integers, or bool with True = keep), e.g. those that a filter keeps."""
        return Hits(**_taken(self, index))


@dataclass(frozen=True, slots=True, eq=False)
class Particles:
    """Generated particles; all arrays (n_particles,)."""

    px: FloatArray
    """GeV, float32, at the production vertex."""
    py: FloatArray
    """GeV, float32."""
    pz: FloatArray
    """GeV, float32, along the beam."""
    vx: FloatArray
    """mm, float32, production vertex."""
    vy: FloatArray
    """mm, float32."""
    vz: FloatArray
    """mm, float32."""
    charge: IntArray
    """In units of e, int32."""
    particle_id: IdArray
    """The source's own id, int64, unique; exact, never through a float (TrackML's reach 2^60)."""
    pdg: IntArray | None = None
    """PDG code, int32, where known (TrackML: the column particle_type of the CodaLab release)."""
    nhits: IntArray | None = None
    """Hits that the source says the particle left, int32, where stated. Known even without truth on the hits."""

    def __post_init__(self) -> None:
        n = _array(self, "px", np.float32)
        for name in ("py", "pz", "vx", "vy", "vz"):
            _array(self, name, np.float32, n)
        _array(self, "charge", np.int32, n)
        _array(self, "particle_id", np.int64, n)
        for name in ("pdg", "nhits"):
            if getattr(self, name) is not None:
                _array(self, name, np.int32, n)

    def __len__(self) -> int:
        return len(self.px)

    @property
    def pt(self) -> FloatArray:
        """Transverse momentum, GeV."""
        return np.hypot(self.px, self.py)

    @property
    def p(self) -> FloatArray:
        """Momentum, GeV."""
        return np.hypot(self.pt, self.pz)

    @property
    def phi(self) -> FloatArray:
        """Azimuth of the momentum in [-pi, pi], rad."""
        return np.arctan2(self.py, self.px)

    @property
    def eta(self) -> FloatArray:
        """Pseudorapidity of the momentum, arcsinh(pz / pt); finite, see `MOMENTUM_FLOOR`."""
        return _pseudorapidity(self.pz, self.pt, MOMENTUM_FLOOR)

    def take(self, index: npt.NDArray[np.integer] | BoolArray) -> "Particles":
        """The particles at `index`. `Hits.particle` is not renumbered."""
        return Particles(**_taken(self, index))


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What truly happened at each hit, where the source tells; all arrays (n_hits,). Noise has values of no meaning."""

    tx: FloatArray
    """mm, float32, true crossing of the module."""
    ty: FloatArray
    """mm, float32."""
    tz: FloatArray
    """mm, float32."""
    tpx: FloatArray
    """GeV, float32, true momentum there."""
    tpy: FloatArray
    """GeV, float32."""
    tpz: FloatArray
    """GeV, float32."""
    weight: FloatArray
    """Weight in the TrackML score, float32; sums to one over a full event."""

    def __post_init__(self) -> None:
        n = _array(self, "tx", np.float32)
        for name in ("ty", "tz", "tpx", "tpy", "tpz", "weight"):
            _array(self, name, np.float32, n)

    def __len__(self) -> int:
        return len(self.tx)

    def take(self, index: npt.NDArray[np.integer] | BoolArray) -> "Truth":
        """The truth of the hits at `index`."""
        return Truth(**_taken(self, index))


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One collision with its pile-up: hits, the particles that made them, and where both come from."""

    hits: Hits
    particles: Particles | None = None
    """None where the source lists none."""
    event_id: int = 0
    source: str = ""
    """Where the event comes from, in words or as a file name; printed on figures."""
    truth: Truth | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Which columns each part of the source had, e.g. {"hits": ("hit_id", "x", ...)}; empty where there was no file."""

    def __post_init__(self) -> None:
        if self.truth is not None and len(self.truth) != len(self.hits):
            raise ValueError(f"Event.truth describes {len(self.truth)} hits where {len(self.hits)} are needed")
        particle = self.hits.particle
        if self.particles is not None and particle is not None and len(particle):
            last = int(particle.max())
            if last >= len(self.particles):
                raise ValueError(f"Hits.particle points to row {last} of {len(self.particles)} particles")

    def __repr__(self) -> str:
        particles = "no particles" if self.particles is None else f"{len(self.particles):,} particles"
        return f"Event({self.event_id}, {len(self.hits):,} hits, {particles}, source={self.source!r})"

    @property
    def hits_per_particle(self) -> IntArray:
        """(n_particles,) int32, hits of this event on each particle (noise is not counted).

        Raises:
            ValueError: the event has no particles, or its hits have no truth.
        """
        particles, particle = _truth(self)
        return np.bincount(particle[particle >= 0], minlength=len(particles)).astype(np.int32)

    def keep(self, index: npt.NDArray[np.integer] | BoolArray) -> "Event":
        """The event with only the hits at `index` (integers, or bool with True = keep); all particles stay.

        Decide what is reconstructable on the whole event, before: what a filter loses belongs into the denominator.
        """
        truth = None if self.truth is None else self.truth.take(index)
        return replace(self, hits=self.hits.take(index), truth=truth)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which particles are *reconstructable*: pT > pt_min, |eta| < eta_max, >= min_hits hits in the selected volumes.

    Decided on the whole event, before any filter, so that what a filter loses stays in the denominator. Noise is never
    selected. `str(selection)` is the sentence to print on a figure.
    """

    pt_min: float = 0.9
    """GeV, exclusive."""
    eta_max: float = 4.0
    """Exclusive, on |eta|; infinity for no cut."""
    min_hits: int = 3
    """Inclusive, counted in the selected volumes only."""
    volumes: tuple[int, ...] | None = None
    """TrackML volume ids; None for all."""

    def __post_init__(self) -> None:
        if self.volumes is not None:
            object.__setattr__(self, "volumes", tuple(int(volume) for volume in self.volumes))
            if not self.volumes:
                raise ValueError("Selection.volumes must name at least one volume, or be None for all")
        if not (self.pt_min >= 0 and self.eta_max > 0 and self.min_hits >= 0):
            raise ValueError(f"Selection needs pt_min >= 0, eta_max > 0 and min_hits >= 0, got {self}")

    def __str__(self) -> str:
        parts = [f"pT > {self.pt_min:g} GeV"]
        if np.isfinite(self.eta_max):
            parts.append(f"|eta| < {self.eta_max:g}")
        parts.append(f">= {self.min_hits} hits")
        parts.append("all volumes" if self.volumes is None else "volumes " + " ".join(map(str, self.volumes)))
        return ", ".join(parts)

    def in_volumes(self, hits: Hits) -> BoolArray:
        """(n_hits,) bool, True = the hit lies in the selected volumes."""
        if self.volumes is None:
            return np.ones(len(hits), dtype=np.bool_)
        return np.isin(hits.volume_id, self.volumes)

    def particles(self, event: Event) -> BoolArray:
        """(n_particles,) bool, True = reconstructable.

        Raises:
            ValueError: the event has no particles, or its hits have no truth.
        """
        particles, particle = _truth(event)
        counted = self.in_volumes(event.hits) & (particle >= 0)
        nhits = np.bincount(particle[counted], minlength=len(particles))
        selected: BoolArray = (
            (particles.pt > self.pt_min) & (np.abs(particles.eta) < self.eta_max) & (nhits >= self.min_hits)
        )
        return selected

    def hits(self, event: Event) -> BoolArray:
        """(n_hits,) bool, True = lies in the selected volumes on a reconstructable particle: the hit filter's target.

        Raises:
            ValueError: the event has no particles, or its hits have no truth.
        """
        _, particle = _truth(event)
        # One more row, never selected, is where noise (-1) points to.
        selected = np.append(self.particles(event), np.False_)
        target: BoolArray = selected[particle] & self.in_volumes(event.hits)
        return target


def _taken(record: Clusters | Hits | Particles | Truth, index: npt.NDArray[np.integer] | BoolArray) -> dict[str, Any]:
    """Every field of a record of arrays at `index`; fields that are None stay None."""
    taken: dict[str, Any] = {}
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, np.ndarray):
            value = value[index]
        elif isinstance(value, Clusters):
            value = value.take(index)
        taken[item.name] = value
    return taken


def _truth(event: Event) -> tuple[Particles, IntArray]:
    """Particles and the hits' rows in them, or a sentence that says which of the two is missing."""
    if event.particles is None or event.hits.particle is None:
        missing = "particles" if event.particles is None else "truth on its hits"
        raise ValueError(f"event {event.event_id} of {event.source or 'an unnamed source'} has no {missing}")
    return event.particles, event.hits.particle
