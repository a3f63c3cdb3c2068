"""Hits as a Kalman filter takes them: on which module, where in its frame, how precisely.

TrackML's detector is the same one, module for module, to 4 um. Its barrels have the same numbers, its end-caps are
numbered differently within a disc, so that hits there find their module by their place.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from hepattn.data.schema import Hits
from hepattn.data.simulation.detector import READOUT, Modules

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

OFF_PLANE = 0.05
"""mm. A hit lies on a module only if it is nearer to its plane. (Places in files are off by 2 um, TrackML's by 8.)"""

OFF_EDGE = 1.0
"""mm. It may lie so far beyond its edge: the middle of a cluster may, where a slanted edge cuts its cells."""

NEIGHBOURS = 24
"""So many modules of a layer are tried for a hit whose ids name a module elsewhere, those with the nearest centres."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """M hits of an event in the frames of their modules, in rising order of module; all arrays (M,)."""

    hit: IndexArray
    """Row of `Event.hits`."""
    module: IndexArray
    """Row of the table of modules."""
    u: FloatArray
    """mm from the module's centre."""
    v: FloatArray
    sigma_u: FloatArray
    """mm, one standard deviation."""
    sigma_v: FloatArray

    def __len__(self) -> int:
        return len(self.hit)


def measure(hits: Hits, table: Modules) -> Measurements:
    """Find each hit's module and its place there; hits that lie on no module are left out.

    Ids are believed where the hit lies on the module that they name (the simulator's events, TrackML's barrels). Else
    the module is sought by place among those of the same volume and layer.

    Args:
        hits: N hits.
        table: all modules.

    Returns:
        M <= N measurements.
    """
    module = table.find(hits.volume_id, hits.layer_id, hits.module_id)
    known = module < len(table)
    module[~known] = 0
    for name in ("volume_id", "layer_id", "module_id"):
        known &= getattr(table, name)[module] == getattr(hits, name)
    place = np.stack([hits.x, hits.y, hits.z], axis=1).astype(np.float64)
    local = to_local(table, module, place)
    placed = known & (outside(table, module, local) < np.inf)

    lost = np.flatnonzero(~placed)
    found = nearest_module(hits.take(lost), place[lost], table)
    on = found >= 0
    module[lost[on]], placed[lost[on]] = found[on], True
    local[lost[on]] = to_local(table, found[on], place[lost[on]])

    hit = np.flatnonzero(placed)
    hit = hit[np.argsort(module[hit], kind="stable")]
    sigma_u, sigma_v = precision(hits.volume_id[hit])
    return Measurements(hit, module[hit], local[hit, 0], local[hit, 1], sigma_u, sigma_v)


def to_local(table: Modules, module: IndexArray, place: FloatArray) -> FloatArray:
    """(n, 3) places (u, v, w) in the frames of modules, w along the normal, from (n, 3) global ones; mm."""
    return np.einsum("ni,nij->nj", place - table.centre[module], table.rotation[module])


def outside(table: Modules, module: IndexArray, local: FloatArray) -> FloatArray:
    """(n,) distance from the plane, mm, of places on the modules; infinity for those that are off plane or edge."""
    u, v, w = local.T
    half_v = table.half_v[module]
    low, high = table.half_u_low[module], table.half_u_high[module]
    half_u = low + (high - low) * np.clip((v + half_v) / (2 * half_v), 0, 1)
    on = (np.abs(w) < OFF_PLANE) & (np.abs(v) < half_v + OFF_EDGE) & (np.abs(u) < half_u + OFF_EDGE)
    return np.where(on, np.abs(w), np.inf)


def nearest_module(hits: Hits, place: FloatArray, table: Modules) -> IndexArray:
    """(n,) module of the hits' own volume and layer that each lies on, by place alone; -1 = on none.

    Args:
        hits: n hits, of which only volume and layer are used.
        place: (n, 3) mm.
        table: all modules.
    """
    found = np.full(len(hits), -1, dtype=np.int64)
    layers = np.stack([hits.volume_id, hits.layer_id], axis=1)
    for volume, layer in np.unique(layers, axis=0):
        here = np.flatnonzero((hits.volume_id == volume) & (hits.layer_id == layer))
        there = np.flatnonzero((table.volume_id == volume) & (table.layer_id == layer))
        if not len(there):
            continue
        tried = min(NEIGHBOURS, len(there))
        _, near = cKDTree(table.centre[there]).query(place[here], k=np.arange(1, tried + 1))
        candidate = there[near]
        of = np.repeat(here, tried)
        local = to_local(table, candidate.ravel(), place[of])
        away = outside(table, candidate.ravel(), local).reshape(candidate.shape)
        best = away.argmin(axis=1)
        row = np.arange(len(here))
        found[here] = np.where(away[row, best] < np.inf, candidate[row, best], -1)
    return found


def precision(volume_id: npt.NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
    """(n,) standard deviations of u and v, mm: pitch / sqrt(12), the most that one cell leaves open.

    Clusters of several pixels know better (down to a tenth). Told so, the filter took no more hits and lost some, those
    whose cluster is cut by an edge or shared with another particle.

    Args:
        volume_id: (n,) of each hit.
    """
    pitch = np.zeros((max(READOUT) + 1, 2))
    for volume, readout in READOUT.items():
        pitch[volume] = readout.pitch_u, readout.pitch_v
    sigma = pitch[volume_id] / np.sqrt(12)
    return sigma[:, 0], sigma[:, 1]
