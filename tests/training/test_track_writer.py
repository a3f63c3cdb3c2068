"""Files of found tracks: whole, or partial and readable."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hepattn.data import Event, read_submission
from hepattn.data.tracks import TrackParameters, Tracks
from hepattn.training.track_writer import TrackWriter, track_table
from hepattn.training.tracking import Predicted

from .conftest import toy_event

NOBODY: Any = None


def numbered(number: int) -> Event:
    event = toy_event(number)
    return replace(event, hits=replace(event.hits, hit_id=np.arange(72) + 7))


def found(*lengths: int) -> Tracks:
    ends = np.cumsum(lengths)
    rows = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return Tracks.from_hits(rows, 72, np.linspace(0.5, 1, len(lengths)))


def give(writer: TrackWriter, events: list[Event], tracks: list[Tracks]) -> None:
    batch: Any = SimpleNamespace(events=events)
    writer.on_predict_batch_end(NOBODY, NOBODY, Predicted(tracks), batch, 0)


@pytest.fixture
def writer(tmp_path) -> TrackWriter:
    out = TrackWriter(str(tmp_path / "out" / "tracks.parquet"), str(tmp_path / "out" / "submission.csv"))
    out.on_predict_start(NOBODY, NOBODY)
    return out


def test_files_appear_at_the_end_and_say_what_is_in_them(writer, tmp_path, capsys):
    give(writer, [numbered(1), toy_event(2)], [found(3, 4), found()])
    give(writer, [numbered(3), numbered(1)], [found(5), found(6)])
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["submission.csv.partial", "tracks.parquet.partial"]
    writer.on_predict_end(NOBODY, NOBODY)
    assert sorted(path.name for path in folder.iterdir()) == ["submission.csv", "tracks.parquet"]
    table = pd.read_parquet(folder / "tracks.parquet")
    assert table.event_id.tolist() == [1] * 7 + [3] * 5 + [1] * 6
    assert table.track.tolist() == [0] * 3 + [1] * 4 + [0] * 11
    assert table.hit.tolist() == [*range(7), *range(5), *range(6)]
    assert table.score[[0, 6]].tolist() == [0.5, 1.0]
    read = read_submission(folder / "submission.csv", [numbered(1), numbered(3)])
    assert read[1].lengths.tolist() == [3, 4]
    assert read[3].lengths.tolist() == [5]
    out = capsys.readouterr()
    assert f"4 tracks of 4 events in {folder / 'tracks.parquet'}" in out.out
    assert "1 events without hit_id" in out.err
    assert "1 events whose number came before" in out.err


def test_an_interrupted_run_leaves_what_it_has_and_not_half_of_an_earlier_one(writer, tmp_path, capsys):
    give(writer, [numbered(1)], [found(3)])
    writer.on_predict_end(NOBODY, NOBODY)
    writer.on_predict_start(NOBODY, NOBODY)
    give(writer, [numbered(2)], [found(4)])
    writer.on_exception(NOBODY, NOBODY, KeyboardInterrupt())
    folder = tmp_path / "out"
    assert pd.read_parquet(folder / "tracks.parquet").event_id.unique().tolist() == [1]
    assert pd.read_parquet(folder / "tracks.parquet.partial").event_id.unique().tolist() == [2]
    assert len((folder / "submission.csv.partial").read_text().splitlines()) == 73
    assert "the tracks of the first 1 events are in" in capsys.readouterr().err


def test_nothing_found_and_nothing_given(tmp_path):
    writer = TrackWriter(str(tmp_path / "tracks.parquet"), None)
    writer.on_predict_start(NOBODY, NOBODY)
    writer.on_predict_end(NOBODY, NOBODY)
    assert list(tmp_path.iterdir()) == []
    give(writer, [numbered(1)], [found()])
    writer.on_predict_end(NOBODY, NOBODY)
    assert len(pd.read_parquet(tmp_path / "tracks.parquet")) == 0


def test_parameters_are_columns_where_they_are_predicted():
    numbers = np.arange(12, dtype=np.float32).reshape(6, 2)
    tracks = Tracks.from_hits([[0, 1, 2], [5, 6, 7]], 72, parameters=TrackParameters(*numbers))
    table = track_table(toy_event(0), tracks).to_pandas()
    assert list(table.columns) == ["event_id", "track", "hit", "score", "pt", "eta", "phi", "d0", "z0", "charge"]
    assert table.pt.tolist() == [0.0] * 3 + [1.0] * 3
    assert table.charge.tolist() == [10.0] * 3 + [11.0] * 3
