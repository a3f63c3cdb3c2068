"""The reader of TrackML events: a folder, a zip, or one event's files, csv or csv.gz, all or some parts.

Format: A. Salzburger et al., "The TrackML challenge" (arXiv:1904.06778), in its two public releases. The Kaggle release
has no particle types, the CodaLab release a column `particle_type` (PDG code); `Event.columns` tells what was found.
Lengths in mm, momenta in GeV, charge in e. `particle_id` 0 is noise.

Files of an event: `event000001000-{hits,cells,particles,truth}.csv[.gz]`. Hits are needed. With cells and
`detectors.csv` the hits get cluster shapes. Without truth `Hits.particle` is None. With truth but no particles,
`Hits.particle` numbers the particles in ascending order of their ids, and `Event.particles` is None.
"""

import io
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from hepattn.data._arrow import dtype_of, to_numpy
from hepattn.data.schema import Clusters, Event, Hits, Particles, Truth
from hepattn.data.sequence import EventFileError, EventSequence

Array = npt.NDArray[Any]

PARTS = ("hits", "cells", "particles", "truth")

_FLOAT, _INT = pa.float64(), pa.int64()
_TYPES: dict[str, dict[str, pa.DataType]] = {
    "hits": dict.fromkeys(("hit_id", "volume_id", "layer_id", "module_id"), _INT) | dict.fromkeys("xyz", _FLOAT),
    "cells": dict.fromkeys(("hit_id", "ch0", "ch1"), _INT) | {"value": _FLOAT},
    "particles": dict.fromkeys(("particle_id", "q", "nhits", "particle_type"), _INT)
    | dict.fromkeys(("vx", "vy", "vz", "px", "py", "pz"), _FLOAT),
    "truth": dict.fromkeys(("hit_id", "particle_id"), _INT)
    | dict.fromkeys(("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight"), _FLOAT),
    "detectors": dict.fromkeys(("volume_id", "layer_id", "module_id"), _INT)
    | {f"rot_{a}{b}": _FLOAT for a in "xyz" for b in "uvw"}
    | dict.fromkeys(("module_t", "pitch_u", "pitch_v"), _FLOAT),
}
_OPTIONAL = {
    "particles": {"nhits", "particle_type"},
    "truth": {"tx", "ty", "tz", "tpx", "tpy", "tpz", "weight"},
}
_NAME = re.compile(r"event(?P<id>\d+)-(?P<part>hits|cells|particles|truth)\.csv(\.gz)?$")
_WHOLE = re.compile(r"-?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
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
    folder, prefix_id = _folder(Path(path))
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
        part: _Table.read(folder, files[part], part)
        for part in PARTS
        if part in files and (clusters or part != "cells")
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
    folder, event_id = _folder(Path(path))
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


@dataclass(frozen=True)
class _Folder:
    """A folder or a zip: names of the TrackML files in it, and their bytes."""

    path: Path
    names: tuple[str, ...]

    def events(self) -> dict[int, None]:
        """Event numbers with hits, ascending (a dict used as an ordered set)."""
        found = (_NAME.search(name) for name in self.names)
        return dict.fromkeys(sorted({int(match["id"]) for match in found if match and match["part"] == "hits"}))

    def parts(self, event_id: int) -> dict[str, str]:
        """Part -> name of its file; plain csv goes before gz."""
        files: dict[str, str] = {}
        for name in sorted(self.names, key=lambda name: name.endswith(".gz")):
            match = _NAME.search(name)
            if match and int(match["id"]) == event_id:
                files.setdefault(match["part"], name)
        return files

    def full(self, name: str) -> str:
        """What an error calls the file."""
        return str(self.path / name)

    def bytes(self, name: str) -> bytes:
        """Content of a file, unpacked."""
        if self.path.is_dir():
            raw = (self.path / name).read_bytes()
        else:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    raw = archive.read(name)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise EventFileError(f"{self.full(name)} can't be unpacked: {error}") from error
        return _gunzip(raw, self.full(name)) if name.endswith(".gz") else raw


def _folder(path: Path) -> tuple[_Folder, int | None]:
    """The folder or zip that holds the event(s) of `path`, and the event number where `path` is a prefix or a file."""
    if path.is_dir():
        return _Folder(path, tuple(sorted(item.name for item in path.iterdir()))), None
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _Folder(path, tuple(sorted(name for name in archive.namelist() if "__MACOSX" not in name))), None
    if path.suffix == ".zip" and path.is_file():
        raise EventFileError(f"{path} is not a whole zip file")
    prefix = re.fullmatch(r"event(\d+)(-.*)?", path.name)
    if prefix and path.parent.is_dir():
        return _Folder(path.parent, tuple(sorted(item.name for item in path.parent.iterdir()))), int(prefix[1])
    if path.exists():
        raise EventFileError(f"{path} is neither a folder, a zip, nor a file named event*-hits.csv")
    raise FileNotFoundError(f"no such folder, zip or prefix of TrackML events: {path}")


def _gunzip(raw: bytes, file: str) -> bytes:
    """Unpack gzip (any number of members); a broken end is an error that says how far the file is whole."""
    unpacked = bytearray()
    rest = raw
    while rest:
        member = zlib.decompressobj(wbits=31)
        try:
            unpacked += member.decompress(rest)
        except zlib.error as error:
            whole = unpacked.count(b"\n")
            raise EventFileError(f"{file} is not a whole gzip file, it breaks after row {whole}: {error}") from error
        if not member.eof:
            whole = unpacked.count(b"\n")
            raise EventFileError(f"{file} is cut short: the gzip stream ends after row {whole}")
        rest = member.unused_data.lstrip(b"\0")
    return bytes(unpacked)


# -- tables ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    """Columns of one csv file, int64 and float64."""

    file: str
    part: str
    columns: tuple[str, ...]
    """Every column of the file, also those that nothing reads."""
    data: dict[str, Array] = field(repr=False)
    raw: bytes = field(repr=False)

    @classmethod
    def read(cls, folder: _Folder, name: str, part: str) -> "_Table":
        file, raw = folder.full(name), folder.bytes(name)
        types, optional = _TYPES[part], _OPTIONAL.get(part, set())
        head, _, body = raw.removeprefix(b"\xef\xbb\xbf").partition(b"\n")
        names = tuple(name.strip().strip('"') for name in head.decode("utf-8", "replace").split(","))
        if not head.strip():
            raise EventFileError(f"{file} is empty: row 1 should name the columns {', '.join(types)}")
        for column in types:
            if names.count(column) > 1:
                raise EventFileError(f"{file} names column {column} twice in row 1")
            if column not in names and column not in optional:
                raise EventFileError(f"{file} has no column {column}: row 1 names {', '.join(names)}")
        wanted = {column: kind for column, kind in types.items() if column in names}
        if body.strip():
            data = _numbers(file, raw, names, wanted)
        else:
            data = {column: np.empty(0, dtype_of(kind)) for column, kind in wanted.items()}
        self = cls(file, part, names, data, raw)
        for column, kind in wanted.items():
            if kind == _FLOAT:
                # 3e38 is the largest float32.
                bad = np.flatnonzero(~(np.abs(data[column]) < 3e38))
                if len(bad):
                    raise self.error(column, int(bad[0]), f"{data[column][bad[0]]} is not a finite number")
        return self

    def __getitem__(self, column: str) -> Array:
        return self.data[column]

    def __contains__(self, column: str) -> bool:
        return column in self.data

    @property
    def rows(self) -> int:
        return len(next(iter(self.data.values())))

    def float32(self, column: str) -> Array:
        return self.data[column].astype(np.float32)

    def int32(self, column: str) -> Array:
        values = self.data[column]
        bad = np.flatnonzero(values != values.astype(np.int32))
        if len(bad):
            raise self.error(column, int(bad[0]), f"{values[bad[0]]} is out of range")
        return values.astype(np.int32)

    def error(self, column: str, row: int, what: str) -> EventFileError:
        """`row` counts data rows from 0; the message counts lines of the file from 1."""
        lines = self.raw.split(b"\n")
        filled = [number for number, line in enumerate(lines, start=1) if line.strip(b"\r")]
        return EventFileError(f"{self.file}, column {column}, row {filled[row + 1]}: {what}")


def _numbers(file: str, raw: bytes, names: tuple[str, ...], wanted: dict[str, pa.DataType]) -> dict[str, Array]:
    """Columns of a csv with at least one line after the header."""
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(raw),
            read_options=pyarrow.csv.ReadOptions(column_names=list(names), skip_rows=1),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=wanted, include_columns=list(wanted), null_values=[], strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise _diagnose(file, raw, names, wanted, error) from error
    return {column: to_numpy(table.column(column)) for column in wanted}


def _diagnose(
    file: str, raw: bytes, names: tuple[str, ...], wanted: dict[str, pa.DataType], error: Exception
) -> EventFileError:
    """Find the first cell that can't be read; slow, only for files that are wrong."""
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), start=1):
        if number == 1 or not line:
            continue
        cells = line.split(",")
        if len(cells) != len(names):
            missing = f", column {names[len(cells)]}" if len(cells) < len(names) else ""
            return EventFileError(
                f"{file}{missing}, row {number}: {len(cells)} values where the header has {len(names)}"
            )
        for name, cell in zip(names, cells, strict=True):
            kind = wanted.get(name)
            if kind is None:
                continue
            text = cell.strip().strip('"')
            if not (_NUMBER if kind == _FLOAT else _WHOLE).fullmatch(text):
                sort = "a number" if kind == _FLOAT else "a whole number"
                return EventFileError(f"{file}, column {name}, row {number}: {text!r} is not {sort}")
            if kind == _INT and not -(2**63) <= int(text) < 2**63:
                return EventFileError(f"{file}, column {name}, row {number}: {text} is out of range")
    return EventFileError(f"{file} can't be read as csv: {' '.join(str(error).split())}")


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


def _particles(table: _Table) -> Particles:
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
    hits: _Table, hit_rows: _Lookup, tables: dict[str, _Table], particles: Particles | None
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


def _hit_by_hit(table: _Table, hit_rows: _Lookup, hits: _Table) -> Array:
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


def _known_hits(table: _Table, hit_rows: _Lookup, hits: _Table) -> Array:
    """Row of the hit of each row of `table`."""
    rows = hit_rows(table["hit_id"])
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        row = int(unknown[0])
        raise table.error("hit_id", row, f"hit {table['hit_id'][row]} is not in {Path(hits.file).name}")
    return rows


def _clusters(hits: _Table, hit_rows: _Lookup, cells: _Table, detectors: _Table) -> Clusters:
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


def _module_key(table: _Table) -> Array:
    """One int64 a module; ids are below 2^20."""
    for name in ("volume_id", "layer_id", "module_id"):
        bad = np.flatnonzero((table[name] < 0) | (table[name] >= 2**20))
        if len(bad):
            raise table.error(name, int(bad[0]), f"{table[name][bad[0]]} is out of range")
    return (table["volume_id"] << 40) | (table["layer_id"] << 20) | table["module_id"]


def _find_detectors(folder: _Folder, given: str | Path | None) -> _Table | None:
    """The table of modules: as given, in the folder or zip, or beside it; None where there is none."""
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"no such file of detector modules: {path}")
        return _read_detectors(path, path.stat().st_mtime_ns)
    if not folder.path.is_dir():
        for name in sorted(folder.names, key=len):
            if Path(name).name in _DETECTORS[:2]:
                return _Table.read(folder, name, "detectors")
    places = [folder.path] if folder.path.is_dir() else []
    for place in (*places, folder.path.absolute().parent):
        for name in _DETECTORS:
            if (place / name).is_file():
                return _read_detectors(place / name, (place / name).stat().st_mtime_ns)
    return None


@lru_cache(maxsize=4)
def _read_detectors(path: Path, _modified: int) -> _Table:
    """Kept, since every event of a folder asks for it."""
    if path.suffix == ".zip":
        folder, _ = _folder(path)
        for name in folder.names:
            if Path(name).name in _DETECTORS[:2]:
                return _Table.read(folder, name, "detectors")
        raise EventFileError(f"no detectors.csv in {path}")
    return _Table.read(_Folder(path.parent, (path.name,)), path.name, "detectors")
