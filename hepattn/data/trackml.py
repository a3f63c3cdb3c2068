"""The reader of TrackML events: a folder, a zip, or one event's files, csv or csv.gz, all or some parts.

Format: A. Salzburger et al., "The TrackML challenge" (arXiv:1904.06778), in its two public releases. The Kaggle release
has no particle types, the CodaLab release a column `particle_type` (PDG code); `Event.columns` tells what was found.
Lengths in mm, momenta in GeV, charge in e. `particle_id` 0 is noise.

Files of an event: `event000001000-{hits,cells,particles,truth}.csv[.gz]`. Hits are needed. With cells and
`detectors.csv` the hits get cluster shapes. Without truth `Hits.particle` is None. With truth but no particles,
`Hits.particle` numbers the particles in ascending order of their ids, and `Event.particles` is None.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from hepattn.data._tables import Array, Folder, Table, open_folder
from hepattn.data.schema import Clusters, Event, Hits, Particles, Truth
from hepattn.data.sequence import EventFileError, EventSequence

PARTS = ("hits", "cells", "particles", "truth")

_DETECTORS = ("detectors.csv", "detectors.csv.gz", "detectors.zip")


def read_trackml(
    path: str | Path, event_id: int | None = None, detectors: str | Path | None = None, *, clusters: bool = True
) -> Event:
    """Read one event.

    Args:
        path: a folder, a zip (with or without sub-folders), or a prefix such as `folder/event000001000`; a
            file of the event (`folder/event000001000-hits.csv.gz`) means its prefix.
        event_id: which event; may be left out where there is only one.
        detectors: the description of the modules (`detectors.csv`, gz or zip); where left out, looked for beside
            the events.
        clusters: False leaves cells unread, even where they are there.

    Returns:
        An `Event`; `event.columns` says which columns each part had.

    Raises:
        EventFileError: one sentence naming the file, the column and the row at fault (line of the file, from 1).
        FileNotFoundError: there is no such path.
    """
    folder, prefix_id = open_folder(Path(path))
    event_id = prefix_id if event_id is None else event_id
    available = folder.events()
    if not available:
        raise EventFileError(f"no event*-hits.csv or event*-hits.csv.gz in {folder.path}")
    if event_id is None:
        if len(available) > 1:
            shown = ", ".join(map(str, list(available)[:5])) + (", ..." if len(available) > 5 else "")
            raise EventFileError(f"{folder.path} has {len(available)} events ({shown}): say which one with event_id")
        event_id = next(iter(available))
    if event_id not in available:
        raise EventFileError(f"no hits file of event {event_id} in {folder.path}")

    files = folder.parts(event_id)
    tables = {
        part: Table.read(folder, files[part], part) for part in PARTS if part in files and (clusters or part != "cells")
    }
    hits = tables["hits"]
    if hits.rows == 0:
        raise EventFileError(f"{hits.file} has no hits: only a header")
    hit_rows = _Lookup(hits["hit_id"])
    if hit_rows.duplicate is not None:
        row = hit_rows.duplicate
        raise hits.error("hit_id", row, f"{hits['hit_id'][row]} is there twice")

    columns = {part: table.columns for part, table in tables.items()}
    shapes = None
    if "cells" in tables:
        modules = _find_detectors(folder, detectors)
        if modules is not None:
            shapes = _clusters(hits, hit_rows, tables["cells"], modules)
            columns["detectors"] = modules.columns

    particles = _particles(tables["particles"]) if "particles" in tables else None
    particle, truth = _truth(hits, hit_rows, tables, particles) if "truth" in tables else (None, None)
    return Event(
        hits=Hits(
            **{name: hits.float32(name) for name in "xyz"},
            **{name: hits.int32(name) for name in ("volume_id", "layer_id", "module_id")},
            particle=particle,
            hit_id=hits["hit_id"],
            clusters=shapes,
        ),
        particles=particles,
        event_id=event_id,
        source=f"TrackML {folder.path.name}/event{event_id:09d}",
        truth=truth,
        columns=columns,
    )


def list_trackml(path: str | Path) -> list[int]:
    """Numbers of the events whose hits are in a folder or a zip, or of the one event of a prefix; ascending.

    Raises:
        FileNotFoundError: there is no such path.
    """
    folder, event_id = open_folder(Path(path))
    events = list(folder.events())
    return events if event_id is None else [number for number in events if number == event_id]


class TrackMLEvents(EventSequence):
    """The events of a folder or a zip in ascending order of their numbers, each read when it is asked for."""

    def __init__(self, path: str | Path, detectors: str | Path | None = None) -> None:
        """List the events, read none.

        Raises:
            EventFileError: there are none.
            FileNotFoundError: there is no such path.
        """
        self._path, self._detectors = Path(path), detectors
        self._ids = list_trackml(path)
        if not self._ids:
            raise EventFileError(f"no event*-hits.csv or event*-hits.csv.gz in {path}")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def event_ids(self) -> list[int]:
        """The number of every event, without reading them."""
        return list(self._ids)

    def read(self, index: int) -> Event:
        """Event number `index` >= 0 of the sequence."""
        return read_trackml(self._path, self._ids[index], self._detectors)


def cluster_angles(
    size_u: Array, size_v: Array, pitch_u: Array, pitch_v: Array, thickness: Array, rotation: Array
) -> dict[str, Array]:
    """Directions of clusters, as the public TrackML solutions define them (own code).

    Source: the cell features of the TrackML starter solutions, also used by Exa.TrkX (arXiv:2103.06995). A particle
    that crosses size_u x size_v cells of a module travelled along (size_u * pitch_u, size_v * pitch_v, thickness) in
    the module's frame (u, v, w), up to signs that one hit can't tell. TrackML's `module_t` is half the thickness.

    Args:
        size_u: (n,) extent in cells along u.
        size_v: (n,) extent in cells along v.
        pitch_u: (n,) cell size along u, mm.
        pitch_v: (n,) cell size along v, mm.
        thickness: (n,) full thickness of the module, mm.
        rotation: (n, 3, 3), rotates (u, v, w) into (x, y, z).

    Returns:
        `eta_local`, `phi_local` (about w) and `eta_global`, `phi_global` (about z), each (n,) float32, angles in rad.
    """
    local = np.stack([size_u * pitch_u, size_v * pitch_v, np.broadcast_to(thickness, np.shape(size_u))], axis=-1)
    turned = np.einsum("nij,nj->ni", rotation, local)
    angles: dict[str, Array] = {}
    for name, direction in (("local", local), ("global", turned)):
        along = np.linalg.norm(direction, axis=-1)
        across = np.maximum(np.hypot(direction[:, 0], direction[:, 1]), 1e-6 * along)
        angles[f"eta_{name}"] = np.arcsinh(direction[:, 2] / across).astype(np.float32)
        angles[f"phi_{name}"] = np.arctan2(direction[:, 1], direction[:, 0]).astype(np.float32)
    return angles


# -- files ------------------------------------------------------------------------------------------


class _Lookup:
    """Ids -> rows, exact on int64."""

    def __init__(self, ids: Array) -> None:
        self._order: Array | None = None
        if len(ids) > 1 and not (ids[1:] > ids[:-1]).all():
            self._order = np.argsort(ids, kind="stable")
        self._sorted = ids if self._order is None else ids[self._order]
        repeated = np.flatnonzero(self._sorted[1:] == self._sorted[:-1]) + 1
        self.duplicate: int | None = None
        """Row of the first id that was there before, None where all differ."""
        if len(repeated):
            self.duplicate = int((repeated if self._order is None else self._order[repeated]).min())

    def __call__(self, wanted: Array) -> Array:
        """Row of each wanted id, int64; -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(wanted), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        found = self._sorted[place] == wanted
        rows = place if self._order is None else self._order[place]
        return np.where(found, rows, -1)


# -- parts ------------------------------------------------------------------------------------------


def _particles(table: Table) -> Particles:
    ids = table["particle_id"]
    noise = np.flatnonzero(ids == 0)
    if len(noise):
        raise table.error("particle_id", int(noise[0]), "0 means noise and can't be a particle")
    duplicate = _Lookup(ids).duplicate
    if duplicate is not None:
        raise table.error("particle_id", duplicate, f"{ids[duplicate]} is there twice")
    return Particles(
        **{name: table.float32(name) for name in ("px", "py", "pz", "vx", "vy", "vz")},
        charge=table.int32("q"),
        particle_id=ids,
        pdg=table.int32("particle_type") if "particle_type" in table else None,
        nhits=table.int32("nhits") if "nhits" in table else None,
    )


def _truth(
    hits: Table, hit_rows: _Lookup, tables: dict[str, Table], particles: Particles | None
) -> tuple[Array, Truth | None]:
    """Particle index of each hit, and the true crossings where the columns are there."""
    table = tables["truth"]
    truth_rows = _hit_by_hit(table, hit_rows, hits)
    ids = table["particle_id"][truth_rows]
    if particles is None:
        known = np.unique(ids[ids != 0])
        particle = np.where(ids == 0, -1, np.searchsorted(known, ids)) if len(known) else np.full(len(ids), -1)
    else:
        particle = _Lookup(particles.particle_id)(ids)
        lost = np.flatnonzero((particle < 0) & (ids != 0))
        if len(lost):
            row = int(truth_rows[lost].min())
            unknown = table["particle_id"][row]
            raise table.error("particle_id", row, f"particle {unknown} is not in {Path(tables['particles'].file).name}")
    names = ("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight")
    truth = None
    if all(name in table for name in names):
        truth = Truth(**{name: table.float32(name)[truth_rows] for name in names})
    return particle.astype(np.int32), truth


def _hit_by_hit(table: Table, hit_rows: _Lookup, hits: Table) -> Array:
    """Row of `table` for each hit; the table must name every hit exactly once."""
    ids = table["hit_id"]
    _known_hits(table, hit_rows, hits)
    lookup = _Lookup(ids)
    if lookup.duplicate is not None:
        raise table.error("hit_id", lookup.duplicate, f"{ids[lookup.duplicate]} is there twice")
    rows = lookup(hits["hit_id"])
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        row = int(missing[0])
        raise hits.error("hit_id", row, f"hit {hits['hit_id'][row]} is not in {Path(table.file).name}")
    return rows


def _known_hits(table: Table, hit_rows: _Lookup, hits: Table) -> Array:
    """Row of the hit of each row of `table`."""
    rows = hit_rows(table["hit_id"])
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        row = int(unknown[0])
        raise table.error("hit_id", row, f"hit {table['hit_id'][row]} is not in {Path(hits.file).name}")
    return rows


def _clusters(hits: Table, hit_rows: _Lookup, cells: Table, detectors: Table) -> Clusters:
    """Extents, charge and directions of the cells of each hit."""
    n = hits.rows
    hit = _known_hits(cells, hit_rows, hits)
    count = np.bincount(hit, minlength=n)
    bare = np.flatnonzero(count == 0)
    if len(bare):
        row = int(bare[0])
        raise hits.error("hit_id", row, f"hit {hits['hit_id'][row]} has no cell in {Path(cells.file).name}")
    # Cells of a hit side by side (stable), so that each hit is one run.
    order = np.argsort(hit, kind="stable")
    starts = np.cumsum(count) - count

    def extent(channel: str) -> Array:
        values = cells[channel][order]
        return np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts) + 1

    size_u, size_v = extent("ch0"), extent("ch1")
    charge = np.bincount(hit, weights=cells["value"], minlength=n)

    keys = [_module_key(table) for table in (hits, detectors)]
    module = _Lookup(keys[1])(keys[0])
    lost = np.flatnonzero(module < 0)
    if len(lost):
        row = int(lost[0])
        place = "/".join(str(hits[name][row]) for name in ("volume_id", "layer_id", "module_id"))
        raise hits.error("module_id", row, f"no module {place} (volume/layer/module) in {Path(detectors.file).name}")
    rotation = np.stack([np.stack([detectors[f"rot_{a}{b}"][module] for b in "uvw"], -1) for a in "xyz"], -2)
    angles = cluster_angles(
        size_u,
        size_v,
        detectors["pitch_u"][module],
        detectors["pitch_v"][module],
        2 * detectors["module_t"][module],
        rotation,
    )
    return Clusters(
        size_u=size_u,
        size_v=size_v,
        charge=charge,
        cells=count,
        **angles,
    )


def _module_key(table: Table) -> Array:
    """One int64 a module; ids are below 2^20."""
    for name in ("volume_id", "layer_id", "module_id"):
        bad = np.flatnonzero((table[name] < 0) | (table[name] >= 2**20))
        if len(bad):
            raise table.error(name, int(bad[0]), f"{table[name][bad[0]]} is out of range")
    return (table["volume_id"] << 40) | (table["layer_id"] << 20) | table["module_id"]


def _find_detectors(folder: Folder, given: str | Path | None) -> Table | None:
    """The table of modules: as given, in the folder or zip, or beside it; None where there is none."""
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"no such file of detector modules: {path}")
        return _read_detectors(path, path.stat().st_mtime_ns)
    if not folder.path.is_dir():
        for name in sorted(folder.names, key=len):
            if Path(name).name in _DETECTORS[:2]:
                return Table.read(folder, name, "detectors")
    places = [folder.path] if folder.path.is_dir() else []
    for place in (*places, folder.path.absolute().parent):
        for name in _DETECTORS:
            if (place / name).is_file():
                return _read_detectors(place / name, (place / name).stat().st_mtime_ns)
    return None


@lru_cache(maxsize=4)
def _read_detectors(path: Path, _modified: int) -> Table:
    """Kept, since every event of a folder asks for it."""
    if path.suffix == ".zip":
        folder, _ = open_folder(path)
        for name in folder.names:
            if Path(name).name in _DETECTORS[:2]:
                return Table.read(folder, name, "detectors")
        raise EventFileError(f"no detectors.csv in {path}")
    return Table.read(Folder(path.parent, (path.name,)), path.name, "detectors")
