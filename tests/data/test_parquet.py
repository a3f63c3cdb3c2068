"""Round trips within the stated tolerance, laziness, and refusals."""

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.data import Event, EventFileError, ParquetEvents, iter_parquet, read_parquet, write_parquet
from hepattn.data.parquet import ROUNDING, Rounding

from .conftest import make_event


def assert_same(got: Any, want: Any) -> None:
    """Same fields, same dtypes; integers equal, floats within `ROUNDING`."""
    for item in fields(want):
        name, a, b = item.name, getattr(got, item.name), getattr(want, item.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, name
            key = "charge_sum" if name == "charge" and b.dtype.kind == "f" else name
            if b.dtype.kind == "f":
                np.testing.assert_allclose(a, b, **ROUNDING[key].tolerance, err_msg=name)
            else:
                np.testing.assert_array_equal(a, b, err_msg=name)
        elif name in {"hits", "particles", "truth", "clusters"}:
            assert (a is None) == (b is None), name
            if b is not None:
                assert_same(a, b)
        elif name != "columns":
            assert a == b, name


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 8)), min_size=1, max_size=4),
    flags=st.fixed_dictionaries({name: st.booleans() for name in ("clusters", "truth", "particles", "hit_id")}),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], flags: dict[str, bool]
) -> None:
    path = tmp_path_factory.mktemp("events") / "batch"
    events = [make_event(n, m, seed=i, **flags) for i, (n, m) in enumerate(sizes)]
    files = write_parquet(path, events)
    assert len(files) == 1 + flags["particles"]
    got = read_parquet(path)
    assert len(got) == len(events)
    for a, b in zip(got, events, strict=True):
        assert_same(a, b)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.integers(4, 20))
def test_rounding_of_the_mantissa(values: list[float], bits: int) -> None:
    given_values = np.array(values, dtype=np.float32)
    rounding = Rounding(bits=bits)
    got = rounding(given_values)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    normal = (np.abs(given_values) > 1e-37) & (np.abs(given_values) < 3e38)
    np.testing.assert_allclose(got[normal], given_values[normal], **rounding.tolerance)
    np.testing.assert_array_equal(rounding(got), got)


def test_stated_precision() -> None:
    assert ROUNDING["x"].tolerance["atol"] <= 1e-3  # mm
    assert ROUNDING["px"].tolerance["rtol"] <= 2e-4
    assert ROUNDING["vx"].tolerance["atol"] <= 5e-4  # mm


def test_writing_twice_changes_nothing_more(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", [make_event(100)])
    (first,) = read_parquet(tmp_path / "a")
    files = write_parquet(tmp_path / "b", [first])
    (second,) = read_parquet(tmp_path / "b")
    np.testing.assert_array_equal(first.hits.x, second.hits.x)
    for name, file in zip(("hits", "particles"), files, strict=True):
        assert file.read_bytes() == (tmp_path / f"a.{name}.parquet").read_bytes()


def test_names_that_mean_the_same_batch(tmp_path: Path) -> None:
    files = write_parquet(tmp_path / "new" / "batch.parquet", [make_event()])
    assert [file.name for file in files] == ["batch.hits.parquet", "batch.particles.parquet"]
    for path in (*files, tmp_path / "new" / "batch", tmp_path / "new"):
        assert len(read_parquet(path)) == 1
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [file.name for file in files]


def test_events_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a", [make_event(30 + i, seed=i) for i in range(5)])
    write_parquet(tmp_path / "b", [make_event(10, seed=7)])
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, i: int, **options: Any) -> Any:
        read.append(i)
        return original(self, i, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    events = ParquetEvents(tmp_path)
    assert len(events) == 6
    assert events.event_ids == [0, 1, 2, 3, 4, 7]
    assert events.hit_counts == [30, 31, 32, 33, 34, 10]
    assert read == []
    assert len(events[3].hits) == 33
    assert set(read) == {3}
    assert events[-1].event_id == 7
    assert [event.event_id for event in events[1:5:2]] == [1, 3]
    assert events[1:][1:].event_ids == [2, 3, 4, 7]
    assert len(next(iter_parquet(tmp_path)).hits) == 30
    with pytest.raises(IndexError, match="event 6 of 6"):
        events[6]
    copy = pickle.loads(pickle.dumps(events))
    assert copy[2].event_id == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_read_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", [make_event(30 + i, seed=i) for i in range(4)])
    events = ParquetEvents(tmp_path)
    assert len(events[0].hits) == 30
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert [len(event.hits) for event in pool.map(events.read, range(4))] == [30, 31, 32, 33]


def test_any_reader_sees_plain_columns(tmp_path: Path) -> None:
    events = [make_event(20, seed=i, clusters=False, truth=False, hit_id=False) for i in (3, 4)]
    hits, particles = write_parquet(tmp_path / "a", events)
    table = pq.read_table(hits)
    assert table.column_names == ["event_id", "x", "y", "z", "volume_id", "layer_id", "module_id", "particle"]
    assert table.column("event_id").to_pylist() == [3] * 20 + [4] * 20
    assert pq.read_table(particles).num_rows == 12


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no events to write"):
        write_parquet(tmp_path / "none", [])
    with pytest.raises(ValueError, match=r"event 1 has the columns .* before it in mixed.hits.parquet"):
        write_parquet(tmp_path / "mixed", [make_event(), make_event(seed=1, clusters=False)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no such events"):
        read_parquet(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no \*.hits.parquet"):
        read_parquet(tmp_path)


def test_broken_files(tmp_path: Path) -> None:
    hits, particles = write_parquet(tmp_path / "a", [make_event(500)])
    whole = hits.read_bytes()
    hits.write_bytes(whole[:-20])
    with pytest.raises(EventFileError, match=r"a.hits.parquet is not a whole Parquet file"):
        read_parquet(tmp_path / "a")
    hits.write_bytes(whole[:200] + bytes(100) + whole[300:])
    with pytest.raises(EventFileError, match=r"a.hits.parquet can't be read at event 0"):
        read_parquet(tmp_path / "a")
    hits.write_bytes(whole)
    write_parquet(tmp_path / "b", [make_event(seed=5)])
    particles.write_bytes((tmp_path / "b.particles.parquet").read_bytes())
    with pytest.raises(EventFileError, match="does not belong"):
        read_parquet(tmp_path / "a")
    particles.unlink()
    with pytest.raises(EventFileError, match="missing beside"):
        read_parquet(tmp_path / "a")
    pq.write_table(pq.read_table(tmp_path / "b.hits.parquet").replace_schema_metadata(None), hits)
    with pytest.raises(EventFileError, match="not written by"):
        read_parquet(tmp_path / "a")


def _put(name: str, row: int, value: object, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """Another value in a column, which keeps its type or becomes of another one."""

    def change(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value
        if kind == pa.string():
            values = [str(value) for value in values]
        column = pa.array(values, kind or table.schema.field(name).type, from_pandas=False)
        return table.set_column(table.column_names.index(name), name, column)

    return change


def _drop(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("hits", _drop("y"), "has no column y: it has event_id, x, z"),
        ("hits", _drop("event_id"), "has no column event_id"),
        ("particles", _drop("px"), "has no column px"),
        ("hits", _drop("size_v"), "has no column size_v beside its column size_u"),
        ("hits", _drop("size_u"), "has no column size_u beside its column size_v"),
        ("hits", _drop("tx"), "has no column tx beside its column ty"),
        ("hits", lambda table: table.append_column("x", table.column("x")), "has the column x twice"),
        ("hits", _put("x", 3, "left", pa.string()), "column x holds string, .* in row 0: it should hold numbers"),
        ("hits", _put("layer_id", 3, 1.5, pa.float64()), "column layer_id holds double, .*: it should hold whole numb"),
        ("hits", _put("x", 3, None), r"column x, row 3 \(the event's first is row 0\): the value is missing"),
        ("hits", _put("x", 3, float("nan")), r"column x, row 3 .*: nan is not a finite number"),
        ("hits", _put("charge_sum", 5, float("inf")), r"column charge_sum, row 5 .*: inf is not a finite number"),
        ("hits", _put("z", 4, 1e39, pa.float64()), r"column z, row 4 .*: 1e\+39 is too large for float32"),
        ("particles", _put("vz", 2, float("nan")), r"column vz, row 2 .*: nan is not a finite number"),
        ("hits", _put("particle", 7, 99999), r"column particle, row 7 .*: 99999 is neither a row .* event's 6 nor -1"),
        ("hits", _put("particle", 7, -7), r"column particle, row 7 .*: -7 is neither"),
        ("hits", _put("volume_id", 1, 2**40, pa.int64()), r"column volume_id, row 1 .*: 1099511627776 is out of range"),
        ("hits", _put("event_id", 6, 12), r"column event_id, row 6 .*: 12 where the file's list of events has 8"),
        ("hits", lambda table: table.slice(0, 10), r": 10 rows where the file's list of events has 40 hits"),
        ("hits", lambda table: table.slice(0, 0), r": 0 rows where the file's list of events has 40 hits"),
        ("particles", lambda table: table.slice(1), r": 5 rows where the file's list of events has 6 particles"),
    ],
)
def test_a_changed_column_is_one_sentence_with_its_place(
    tmp_path: Path, part: str, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    write_parquet(tmp_path / "a", [make_event(seed=8)])
    file = tmp_path / f"a.{part}.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(EventFileError, match=rf"a\.{part}\.parquet, event 8.*{words}") as error:
        read_parquet(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_batch_in_one_piece_and_a_broken_list_of_events(tmp_path: Path) -> None:
    hits, _ = write_parquet(tmp_path / "a", [make_event(seed=seed) for seed in (3, 4)])
    table = pq.read_table(hits)
    pq.write_table(table, hits)
    with pytest.raises(EventFileError, match=r"event 4: 1 row groups where the file's list of events has 2"):
        ParquetEvents(tmp_path)
    pq.write_table(table.replace_schema_metadata({"hepattn": "{"}), hits)
    with pytest.raises(EventFileError, match=r"a.hits.parquet has a list of events that can't be read"):
        ParquetEvents(tmp_path)


def test_columns_without_partners_may_go_and_wider_types_come_back(tmp_path: Path) -> None:
    hits, _ = write_parquet(tmp_path / "a", [make_event(seed=8)])
    table = pq.read_table(hits).drop_columns(["hit_id", "cells", "particle"])
    place = table.column_names.index("x")
    table = table.set_column(place, "x", table.column("x").cast(pa.float64()))
    pq.write_table(table.append_column("mine", pa.array(["?"] * 40)), hits)
    (event,) = read_parquet(tmp_path / "a")
    assert event.hits.hit_id is event.hits.particle is None
    assert event.hits.x.dtype == np.float32


def test_an_old_batch_survives_a_failed_write(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", [make_event(10)])

    def fails() -> Iterator[Event]:
        yield make_event(20)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_parquet(tmp_path / "a", fails())
    assert len(read_parquet(tmp_path / "a")[0].hits) == 10
    assert len(list(tmp_path.iterdir())) == 2


def test_size_of_a_small_event(tmp_path: Path) -> None:
    event = make_event(2400, 300, truth=False)
    assert sum(file.stat().st_size for file in write_parquet(tmp_path / "a", [event])) < 100_000


def test_source_is_kept(tmp_path: Path) -> None:
    event: Event = replace(make_event(), source="ttbar, mu = 0, seed 7")
    write_parquet(tmp_path / "a", [event])
    assert read_parquet(tmp_path / "a")[0].source == "ttbar, mu = 0, seed 7"
