"""Columns of a Parquet file of events: which there must be and of which type; a fault is one sentence with the row."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hepattn.data._arrow import to_numpy
from hepattn.data.sequence import EventFileError

Array = npt.NDArray[Any]

_F, _I, _L = np.float32, np.int32, np.int64

GROUPS: dict[str, tuple[dict[str, type[np.number]], ...]] = {
    "hits": (
        {"event_id": _L} | dict.fromkeys("xyz", _F) | dict.fromkeys(("volume_id", "layer_id", "module_id"), _I),
        dict.fromkeys(("size_u", "size_v"), _I)
        | dict.fromkeys(("charge_sum", "eta_local", "phi_local", "eta_global", "phi_global"), _F),
        dict.fromkeys(("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight"), _F),
    ),
    "particles": (
        {"event_id": _L} | dict.fromkeys(("px", "py", "pz", "vx", "vy", "vz"), _F) | {"charge": _I, "particle_id": _L},
    ),
}
"""Part of an event -> columns that come together. The first group must be there, each other whole or not at all."""

ALONE: dict[str, dict[str, type[np.number]]] = {
    "hits": {"particle": _I, "hit_id": _L, "cells": _I},
    "particles": {"pdg": _I, "nhits": _I},
}
"""Columns that may be there or not."""


def checked_columns(table: pa.Table, part: str, event_id: int, place: str) -> dict[str, Array]:
    """The columns of one event's "hits" or "particles", without `event_id`; columns that nothing reads are left out.

    Args:
        table: the event's rows.
        part: "hits" or "particles".
        event_id: as the list of events has it.
        place: what an error calls the file and the event.

    Raises:
        EventFileError: a column is missing or of another type, or a value is missing, not finite, too large for the
            column, or another event's.
    """
    names: list[str] = table.column_names
    kinds = dict(ALONE[part])
    for number, group in enumerate(GROUPS[part]):
        there = [name for name in group if name in names]
        lost = [name for name in group if name not in names]
        if lost and (there or number == 0):
            beside = "" if number == 0 else f" beside its column {there[0]}"
            raise EventFileError(f"{place} has no column {lost[0]}{beside}: it has {', '.join(names)}")
        kinds |= group
    columns = {}
    for name, kind in kinds.items():
        if names.count(name) > 1:
            raise EventFileError(f"{place} has the column {name} twice")
        if name in names:
            columns[name] = _values(table.column(name), name, np.dtype(kind), place)
    other = np.flatnonzero(columns["event_id"] != event_id)
    if len(other):
        got = columns["event_id"][other[0]]
        raise fault(place, "event_id", int(other[0]), f"{got} where the file's list of events has {event_id}")
    del columns["event_id"]
    return columns


def fault(place: str, column: str, row: int, what: str) -> EventFileError:
    """`row` counts the event's rows from 0."""
    return EventFileError(f"{place}, column {column}, row {row} (the event's first is row 0): {what}")


def _values(column: pa.ChunkedArray, name: str, want: np.dtype[Any], place: str) -> Array:
    """The column as it is stored, all of whose values the wanted type can hold."""
    whole = pa.types.is_integer(column.type)
    if not (whole or (want.kind == "f" and (pa.types.is_float32(column.type) or pa.types.is_float64(column.type)))):
        sort = "numbers" if want.kind == "f" else "whole numbers"
        given = "" if not len(column) else f", {column[0].as_py()!r} in row 0"
        raise EventFileError(f"{place}, column {name} holds {column.type}{given}: it should hold {sort} ({want})")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise fault(place, name, row, "the value is missing (null)")
    values = to_numpy(column)
    if want.kind == "f":
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(values.astype(want, copy=False)))
        sort = "is not a finite number" if len(bad) and not np.isfinite(values[bad[0]]) else f"is too large for {want}"
    else:
        bound = np.iinfo(want)
        bad = np.flatnonzero((values < bound.min) | (values > bound.max))
        sort = f"is out of range ({want})"
    if len(bad):
        raise fault(place, name, int(bad[0]), f"{values[bad[0]]} {sort}")
    return values
