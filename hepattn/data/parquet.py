"""Events in Parquet: small, exact where it matters, one event readable at a time.

A batch of events is two files, `NAME.hits.parquet` and `NAME.particles.parquet`, with one row group an event and an
`event_id` column, so that any Parquet reader can use them. Compression is zstd. Floats are rounded before they are
written (see `ROUNDING`; they are read back as float32), then split into byte streams; integers are exact.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hepattn.data._columns import checked_columns, fault
from hepattn.data.schema import Clusters, Event, Hits, Particles, Truth
from hepattn.data.sequence import EventFileError, EventSequence

Array = npt.NDArray[Any]

VERSION = 1
_KEY = b"hepattn"
_SUFFIXES = (".hits.parquet", ".particles.parquet", ".parquet")


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a float column is rounded before it is written.

    `step`: to a multiple of this power of two (error at most half of it). `bits`: to this many bits of mantissa
    (relative error at most 2^-(bits + 1)). Exactly one of the two is given.
    """

    step: float | None = None
    bits: int | None = None

    def __call__(self, values: Array) -> Array:
        """Rounded float32 copy of float32 `values`."""
        if self.step is not None:
            return (np.round(values.astype(np.float64) / self.step) * self.step).astype(np.float32)
        assert self.bits is not None
        drop = np.uint32(23 - self.bits)
        raw = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        half = np.uint64(1) << np.uint64(drop - 1)
        mask = np.uint64(0xFFFFFFFF) ^ ((np.uint64(1) << np.uint64(drop)) - np.uint64(1))
        rounded = ((raw + half) & mask).astype(np.uint32).view(np.float32)
        # Rounding up at the very end of float32 would give infinity.
        return np.where(np.isfinite(rounded), rounded, values)

    @property
    def tolerance(self) -> dict[str, Any]:
        """The largest error, as the arguments `rtol` and `atol` of `numpy.testing.assert_allclose`."""
        if self.step is not None:
            return {"rtol": 1e-7, "atol": self.step / 2}
        assert self.bits is not None
        return {"rtol": 2.0 ** -(self.bits + 1), "atol": 0.0}


_POSITION = Rounding(step=2.0**-9)
_VERTEX = Rounding(step=2.0**-11)
_MOMENTUM = Rounding(bits=12)
_ANGLE = Rounding(step=2.0**-12)

ROUNDING: dict[str, Rounding] = {
    **dict.fromkeys(("x", "y", "z", "tx", "ty", "tz"), _POSITION),
    **dict.fromkeys(("vx", "vy", "vz"), _VERTEX),
    **dict.fromkeys(("px", "py", "pz", "tpx", "tpy", "tpz", "charge_sum", "weight"), _MOMENTUM),
    **dict.fromkeys(("eta_local", "phi_local", "eta_global", "phi_global"), _ANGLE),
}
"""Column -> rounding. Positions 2 um steps (error < 1 um), vertices 0.5 um steps, momenta, charges and weights 12 bits
of mantissa (error < 0.013 %), cluster angles 0.24 mrad steps."""

# Few distinct values compress best through a dictionary; every other integer as differences; every other float as byte
# streams.
_DICTIONARY = frozenset({"size_u", "size_v", "cells", "charge_sum", "eta_local", "phi_local", "pdg", "charge"})


def write_parquet(path: str | Path, events: Iterable[Event]) -> tuple[Path, ...]:
    """Write a batch of events; a reader never sees half a file (written beside it under another name, then renamed).

    Args:
        path: `NAME`, or `NAME.hits.parquet` / `NAME.parquet` which mean the same. A missing folder is made.
        events: any iterable; only one event is held at a time. All must have the same optional columns (clusters,
            truth, hit ids, particles). `Event.columns` is not kept, it describes another file.

    Returns:
        The files written: hits, and particles where the events have any.

    Raises:
        ValueError: no events, or events that differ in their columns.
    """
    stem = parquet_stem(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    index: list[dict[str, object]] = []
    with _Writer(stem, "particles") as particles, _Writer(stem, "hits") as hits:
        for event in events:
            index.append(
                {
                    "event_id": int(event.event_id),
                    "source": event.source,
                    "hits": len(event.hits),
                    "particles": None if event.particles is None else len(event.particles),
                }
            )
            hits.write(_hit_columns(event), event.event_id)
            particles.write(_particle_columns(event), event.event_id)
        if not index:
            raise ValueError(f"no events to write to {stem}")
        # The hits come last: a batch exists when its hits do.
        written = (particles.commit(index), hits.commit(index))
    return tuple(file for file in reversed(written) if file is not None)


def read_parquet(path: str | Path) -> list[Event]:
    """Every event of a batch, a file, or a folder of them; see `ParquetEvents` for one at a time."""
    return list(ParquetEvents(path))


def iter_parquet(path: str | Path) -> Iterator[Event]:
    """One event after the other; only one is held at a time."""
    yield from ParquetEvents(path)


def parquet_stem(path: str | Path) -> Path:
    """`dir/NAME` for `dir/NAME`, `dir/NAME.hits.parquet`, `dir/NAME.particles.parquet` and `dir/NAME.parquet`."""
    path = Path(path)
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.with_name(path.name.removesuffix(suffix))
    return path


class ParquetEvents(EventSequence):
    """The events of one batch, or of every batch in a folder (by name), each read when it is asked for.

    Can be pickled and shared with worker processes: files are opened where they are read.
    """

    def __init__(self, path: str | Path) -> None:
        """Read only the lists of events.

        Raises:
            FileNotFoundError: there is no such batch.
            EventFileError: a file is broken, its particles belong to other events, or an event has another number of
                rows than the list of events says.
        """
        path = Path(path)
        if path.is_dir():
            self._stems = sorted(parquet_stem(file) for file in path.glob("*.hits.parquet"))
            if not self._stems:
                raise FileNotFoundError(f"no *.hits.parquet in {path}")
        else:
            self._stems = [parquet_stem(path)]
            if not _file(self._stems[0], "hits").exists():
                raise FileNotFoundError(f"no such events: {_file(self._stems[0], 'hits')}")
        self._open: dict[Path, pq.ParquetFile] = {}
        self._process = os.getpid()
        self._entries: list[tuple[Path, int, dict[str, Any]]] = []
        for stem in self._stems:
            index = self._index(stem, "hits")
            self._count(stem, "hits", index)
            if any(entry["particles"] is not None for entry in index):
                if self._index(stem, "particles") != index:
                    raise EventFileError(
                        f"{_file(stem, 'particles')} does not belong to the events of {_file(stem, 'hits')}"
                    )
                self._count(stem, "particles", index)
            self._entries += [(stem, row, entry) for row, entry in enumerate(index)]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def event_ids(self) -> list[int]:
        """The number of every event, without reading them."""
        return [int(entry["event_id"]) for _, _, entry in self._entries]

    @property
    def hit_counts(self) -> list[int]:
        """How many hits every event has, without reading them."""
        return [int(entry["hits"]) for _, _, entry in self._entries]

    def read(self, index: int) -> Event:
        """Event number `index` >= 0 of the sequence.

        Raises:
            EventFileError: it can't be read, a column is missing, or a value is none.
        """
        stem, row, entry = self._entries[index]
        hits = self._columns(stem, "hits", row, entry)
        particles = None
        if entry["particles"] is not None:
            columns = self._columns(stem, "particles", row, entry)
            particles = Particles(**_select(Particles, columns))
        if "particle" in hits:
            last = np.iinfo(np.int32).max if particles is None else len(particles) - 1
            wrong = np.flatnonzero((hits["particle"] < -1) | (hits["particle"] > last))
            if len(wrong):
                known = "" if particles is None else f" of the event's {len(particles)}"
                what = f"{hits['particle'][wrong[0]]} is neither a row of particles{known} nor -1 (noise)"
                raise fault(_place(stem, "hits", entry), "particle", int(wrong[0]), what)
        clusters = None
        if "size_u" in hits:
            clusters = Clusters(**_select(Clusters, {**hits, "charge": hits["charge_sum"]}))
        truth = Truth(**_select(Truth, hits)) if "tx" in hits else None
        return Event(
            hits=Hits(**_select(Hits, hits), clusters=clusters),
            particles=particles,
            event_id=int(entry["event_id"]),
            source=str(entry["source"]),
            truth=truth,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _handle(self, stem: Path, part: str) -> pq.ParquetFile:
        file = _file(stem, part)
        if self._process != os.getpid():
            # A forked worker opens its own files.
            self._open, self._process = {}, os.getpid()
        if file not in self._open:
            if not file.exists():
                raise EventFileError(f"{file} is missing beside its other half")
            try:
                self._open[file] = pq.ParquetFile(file, page_checksum_verification=True)
            except (pa.ArrowInvalid, OSError) as error:
                raise EventFileError(f"{file} is not a whole Parquet file: {_sentence(error)}") from error
        return self._open[file]

    def _index(self, stem: Path, part: str) -> list[dict[str, Any]]:
        handle = self._handle(stem, part)
        raw = (handle.metadata.metadata or {}).get(_KEY)
        if raw is None:
            raise EventFileError(
                f"{_file(stem, part)} was not written by hepattn.data.write_parquet: it has no list of events"
            )
        try:
            stored = json.loads(raw)
            version, events = stored["version"], list(stored["events"])
        except (ValueError, KeyError, TypeError) as error:
            raise EventFileError(f"{_file(stem, part)} has a list of events that can't be read: {error!r}") from error
        if version != VERSION:
            raise EventFileError(f"{_file(stem, part)} has format version {version}, this release reads {VERSION}")
        return events

    def _count(self, stem: Path, part: str, index: list[dict[str, Any]]) -> None:
        """Compare the rows that a file has with its list of events; reads nothing more than its end."""
        metadata = self._handle(stem, part).metadata
        groups = metadata.num_row_groups
        if groups != len(index):
            first = _place(stem, part, index[min(groups, len(index) - 1)])
            raise EventFileError(
                f"{first}: {groups} row groups where the file's list of events has {len(index)}, one an event; "
                "write it with hepattn.data.write_parquet"
            )
        for row, entry in enumerate(index):
            rows = metadata.row_group(row).num_rows
            if rows != entry[part]:
                raise EventFileError(
                    f"{_place(stem, part, entry)}: {rows:,} rows where the file's list of events has "
                    f"{entry[part]:,} {part}"
                )

    def _columns(self, stem: Path, part: str, row: int, entry: dict[str, Any]) -> dict[str, Array]:
        handle = self._handle(stem, part)
        try:
            table = handle.read_row_group(row, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise EventFileError(f"{_file(stem, part)} can't be read at event {row}: {_sentence(error)}") from error
        return checked_columns(table, part, int(entry["event_id"]), _place(stem, part, entry))


class _Writer:
    """One Parquet file under a temporary name; `commit` gives it its own, anything else removes it."""

    def __init__(self, stem: Path, part: str) -> None:
        self.file = _file(stem, part)
        self.temporary: Path | None = None
        self.names: tuple[str, ...] | None = None
        self.started = False
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)

    def write(self, columns: dict[str, Array] | None, event_id: int) -> None:
        names = None if columns is None else tuple(columns)
        if self.started and names != self.names:
            raise ValueError(
                f"event {event_id} has the columns {names}, the events before it in {self.file.name} have {self.names}"
            )
        self.started, self.names = True, names
        if columns is None:
            return
        length = len(next(iter(columns.values())))
        table = pa.table({"event_id": np.full(length, event_id, dtype=np.int64), **columns})
        if self.writer is None:
            self.writer = self._start(table.schema)
        self.writer.write_table(table, row_group_size=max(length, 1))

    def commit(self, index: list[dict[str, object]]) -> Path | None:
        if self.writer is None or self.temporary is None:
            return None
        self.writer.add_key_value_metadata({_KEY: json.dumps({"version": VERSION, "events": index})})
        self.writer.close()
        self.writer = None
        self.temporary.replace(self.file)
        self.temporary = None
        return self.file

    def _start(self, schema: pa.Schema) -> pq.ParquetWriter:
        handle, name = tempfile.mkstemp(prefix=f".{self.file.name}.", suffix=".tmp", dir=self.file.parent)
        os.close(handle)
        self.temporary = Path(name)
        mode = os.umask(0)
        os.umask(mode)
        self.temporary.chmod(0o666 & ~mode)
        dictionary = [item.name for item in schema if item.name in _DICTIONARY]
        streams = [item.name for item in schema if pa.types.is_floating(item.type) and item.name not in _DICTIONARY]
        deltas = [item.name for item in schema if item.name not in {*dictionary, *streams}]
        return pq.ParquetWriter(
            name,
            schema,
            compression="zstd",
            compression_level=9,
            use_dictionary=dictionary,
            use_byte_stream_split=streams,
            column_encoding=dict.fromkeys(deltas, "DELTA_BINARY_PACKED"),
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
        )


def _file(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}.parquet")


def _place(stem: Path, part: str, entry: dict[str, Any]) -> str:
    """What an error calls an event of a file."""
    return f"{_file(stem, part)}, event {entry['event_id']}"


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _select(kind: type, columns: dict[str, Array]) -> dict[str, Any]:
    return {item.name: columns[item.name] for item in fields(kind) if item.name in columns}


def _rounded(columns: dict[str, Array]) -> dict[str, Array]:
    return {name: ROUNDING[name](values) if name in ROUNDING else values for name, values in columns.items()}


def _hit_columns(event: Event) -> dict[str, Array]:
    hits = event.hits
    columns: dict[str, Array] = _arrays(hits)
    if hits.clusters is not None:
        # `charge` is the particles' electric charge everywhere else.
        columns |= {"charge_sum" if name == "charge" else name: array for name, array in _arrays(hits.clusters).items()}
    if event.truth is not None:
        columns |= _arrays(event.truth)
    return _rounded(columns)


def _particle_columns(event: Event) -> dict[str, Array] | None:
    return None if event.particles is None else _rounded(_arrays(event.particles))


def _arrays(record: object) -> dict[str, Array]:
    values = {item.name: getattr(record, item.name) for item in fields(record)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
