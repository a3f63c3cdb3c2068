"""Tables in csv files, plain, gzipped or zipped, read in columns; a fault is one sentence with file, column and row."""

import io
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from hepattn.data._arrow import dtype_of, to_numpy
from hepattn.data.sequence import EventFileError

Array = npt.NDArray[Any]

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


@dataclass(frozen=True)
class Folder:
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


def open_folder(path: Path) -> tuple[Folder, int | None]:
    """The folder or zip that holds the event(s) of `path`, and the event number where `path` is a prefix or a file."""
    if path.is_dir():
        return Folder(path, tuple(sorted(item.name for item in path.iterdir()))), None
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return Folder(path, tuple(sorted(name for name in archive.namelist() if "__MACOSX" not in name))), None
    if path.suffix == ".zip" and path.is_file():
        raise EventFileError(f"{path} is not a whole zip file")
    prefix = re.fullmatch(r"event(\d+)(-.*)?", path.name)
    if prefix and path.parent.is_dir():
        return Folder(path.parent, tuple(sorted(item.name for item in path.parent.iterdir()))), int(prefix[1])
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
class Table:
    """Columns of one csv file, int64 and float64."""

    file: str
    part: str
    columns: tuple[str, ...]
    """Every column of the file, also those that nothing reads."""
    data: dict[str, Array] = field(repr=False)
    raw: bytes = field(repr=False)

    @classmethod
    def read(cls, folder: Folder, name: str, part: str) -> "Table":
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
