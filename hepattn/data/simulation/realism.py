"""What the fast simulation lacks: hadrons stopped by nuclear interactions, charges that fluctuate, and noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepattn.data.simulation.detector import READOUT, Modules

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.int64]

FIRST_HADRON = 100
"""PDG codes above are hadrons."""

NOISE_EXTENT = {
    7: (1.2, 2.2),
    8: (1.44, 4.87),
    9: (1.2, 2.2),
    12: (1.1, 0.18),
    13: (1.35, 0.33),
    14: (1.1, 0.18),
    16: (1.5, 0.03),
    17: (1.4, 0.03),
    18: (1.5, 0.03),
}
"""Volume id -> mean extent of a noise cluster beyond its first cell, along u and v, in cells, as in TrackML."""


@dataclass(frozen=True, slots=True)
class NoiseHits:
    """Noise hits; all arrays (n,), mm."""

    module: IndexArray
    """Row in the table of modules."""
    x: FloatArray
    y: FloatArray
    z: FloatArray
    size_u: IntArray
    """Extent in cells, >= 1."""
    size_v: IntArray
    charge: FloatArray
    """As for true hits: path in mm in pixels, number of cells in strips."""


def surviving(
    particle: IndexArray, time: FloatArray, pdg: IndexArray, loss_per_hit: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """(n_crossings,) bool, True = the particle still lived when it crossed the module.

    A hadron is stopped at a crossing that is geometrically distributed (`loss_per_hit` at each); it, and those after
    it in time, are lost.

    Args:
        particle: (n_crossings,) row of the particle.
        time: (n_crossings,) when it crossed.
        pdg: (n_particles,) PDG code.
        loss_per_hit: probability of an interaction at each hit.
        rng: random stream; one number is drawn for each particle.
    """
    last = rng.geometric(loss_per_hit, len(pdg))
    last[np.abs(pdg) <= FIRST_HADRON] = np.iinfo(np.int32).max
    order = np.lexsort((time, particle))
    of_sorted = particle[order]
    starts = np.flatnonzero(np.diff(of_sorted, prepend=-1))
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - starts[run]
    alive: npt.NDArray[np.bool_] = rank < last[particle]
    return alive


def fluctuating(
    charge: FloatArray, cells: npt.NDArray[np.integer], cell_spread: float, rng: np.random.Generator
) -> FloatArray:
    """(n,) charges of clusters whose cells fluctuate each by itself, relative to their own charge.

    A straight path shares itself unevenly among `cells` cells: the sum fluctuates as that of `cells - 1/2` equal ones
    does (at least one; within 10 % of the sums of squares of real TrackML cells).

    Args:
        charge: (n,) sums without fluctuations.
        cells: (n,) how many cells.
        cell_spread: relative standard deviation of one cell's charge.
        rng: random stream; one number is drawn for each cluster.
    """
    relative = cell_spread / np.sqrt(np.maximum(cells - 0.5, 1.0))
    return charge * np.maximum(1.0 + relative * rng.standard_normal(len(charge)), 0.0)


def noise(modules: Modules, per_module: float, rng: np.random.Generator) -> NoiseHits:
    """Poisson(per_module) noise clusters on each module, evenly over its surface, snapped to its cells.

    Extents are 1 + Poisson (along v in the pixel barrel a wider, gamma-mixed Poisson): see `NOISE_EXTENT`.
    """
    module = np.repeat(np.arange(len(modules)), rng.poisson(per_module, len(modules)))
    n = len(module)
    volume = modules.volume_id[module]
    readouts = list(READOUT.values())
    slot = np.zeros(32, dtype=np.int64)
    slot[list(READOUT)] = np.arange(len(READOUT))
    of = slot[volume]
    pitch_u = np.array([r.pitch_u for r in readouts])[of]
    pitch_v = np.array([r.pitch_v for r in readouts])[of]
    thickness = np.array([r.thickness for r in readouts])[of]
    digital = np.array([r.digital for r in readouts])[of]
    extent = np.array([NOISE_EXTENT[v] for v in READOUT])[of]

    size_u = 1 + rng.poisson(extent[:, 0])
    spread = np.where(volume == 8, rng.gamma(2.0, 0.5, n), 1.0)
    size_v = 1 + rng.poisson(extent[:, 1] * spread)

    # A point of a trapezoid: along v in proportion to the width there (inverse of the cumulative), then across.
    half_v = modules.half_v[module]
    low, high = modules.half_u_low[module], modules.half_u_high[module]
    f = rng.random(n)
    slope = high - low
    flat = np.abs(slope) < 1e-9
    safe = np.where(flat, 1.0, slope)
    fraction = np.where(flat, f, (np.sqrt(low**2 + f * (high**2 - low**2)) - low) / safe)
    u = (2 * rng.random(n) - 1) * (low + fraction * slope)
    v = (2 * fraction - 1) * half_v
    # The centre of an odd number of cells lies on a cell's centre, that of an even number on an edge.
    # Where charge is measured, only a single cell pins the place to its centre.
    u = np.where(digital | (size_u == 1), snap(u, size_u, pitch_u), u)
    v = np.where(digital | (size_v == 1), snap(v, size_v, pitch_v), v)
    place = (
        modules.centre[module]
        + u[:, None] * modules.rotation[module, :, 0]
        + v[:, None] * modules.rotation[module, :, 1]
    )

    # The path begins and ends somewhere inside its first and its last cell.
    inside = rng.random((2, n)) + rng.random((2, n))
    along_u, along_v = (np.where(s > 1, s - 2 + i, 0.0) for s, i in zip((size_u, size_v), inside, strict=True))
    path = np.sqrt(thickness**2 + (along_u * pitch_u) ** 2 + (along_v * pitch_v) ** 2)
    charge = np.where(digital, size_u + size_v - 1, path)
    return NoiseHits(
        module=module,
        x=place[:, 0],
        y=place[:, 1],
        z=place[:, 2],
        size_u=size_u.astype(np.int32),
        size_v=size_v.astype(np.int32),
        charge=charge,
    )


def snap(place: FloatArray, size: npt.NDArray[np.integer], pitch: FloatArray) -> FloatArray:
    """The nearest centre that a cluster of `size` cells can have; cell edges lie at whole multiples of the pitch."""
    shift = 0.5 * (size % 2)
    return (np.round(place / pitch - shift) + shift) * pitch
