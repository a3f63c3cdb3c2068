"""What `hepattn track predict` leaves: tracks as Parquet, and a TrackML submission."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from hepattn.data.schema import Event
from hepattn.data.tracks import TrackParameters, Tracks, write_submission
from hepattn.training.base import say
from hepattn.training.track_data import EventBatch
from hepattn.training.tracking import Predicted

__all__ = ["TrackWriter"]

PARAMETERS = tuple(item.name for item in fields(TrackParameters))


class TrackWriter(Callback):
    """Writes what `predict` finds, event after event.

    The Parquet file has a row for each hit on a track: event_id, track (from 0 in each event), hit (row in the event),
    score of the track, and its parameters (pt in GeV, eta, phi in rad, d0 and z0 in mm, charge) where the tracker
    predicts them. Events whose hits have a hit_id go into a TrackML submission too, see
    `hepattn.data.tracks.write_submission`.

    Files are written under the name NAME.partial and get their own at the end, so that what an earlier run left is
    replaced only by a whole; after an error or Ctrl-C the partial ones are readable and stay.

    Args:
        path: the Parquet file
        submission: the csv; None writes none
    """

    def __init__(self, path: str = "tracks.parquet", submission: str | None = "submission.csv") -> None:
        self.path = Path(path)
        self.submission = None if submission is None else Path(submission)
        self._reset()

    def _reset(self) -> None:
        self._table: pyarrow.parquet.ParquetWriter | None = None
        self._events = self._tracks = 0
        self._submitted: set[int] = set()
        self._unnamed = self._repeated = 0

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins anew."""
        self._reset()
        for path in (self.path, self.submission):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished(path).unlink(missing_ok=True)

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Predicted,
        batch: EventBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the tracks of a batch."""
        for event, tracks in zip(batch.events, outputs.tracks, strict=True):
            table = track_table(event, tracks)
            if self._table is None:
                self._table = pyarrow.parquet.ParquetWriter(unfinished(self.path), table.schema)
            self._table.write_table(table)
            self._events, self._tracks = self._events + 1, self._tracks + len(tracks)
            if self.submission is not None:
                self._submit(self.submission, event, tracks)

    def _submit(self, path: Path, event: Event, tracks: Tracks) -> None:
        if event.hits.hit_id is None:
            self._unnamed += 1
            return
        if event.event_id in self._submitted:
            self._repeated += 1
            return
        with tempfile.TemporaryDirectory() as folder:
            one = Path(folder) / "one.csv"
            write_submission(one, [(event, tracks)])
            with one.open("rb") as lines, unfinished(path).open("ab") as file:
                if self._submitted:
                    next(lines)  # the names of the columns are there already
                shutil.copyfileobj(lines, file)
        self._submitted.add(event.event_id)

    def _close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the files their names, and says what is in them."""
        self._close()
        self._finish([self.path] if self._events else [])
        if self.submission is not None and self._submitted:
            self._finish([self.submission])
        said = f"{self._tracks} tracks of {self._events} events in {self.path}"
        if self._submitted:
            said += f", and as a submission in {self.submission}"
        sys.stdout.write(f"\n{said}\n")
        if self.submission is not None and self._unnamed:
            say(f"{self._unnamed} events without hit_id are in no submission")
        if self._repeated:
            say(f"{self._repeated} events whose number came before are not in the submission")

    @staticmethod
    def _finish(paths: Sequence[Path]) -> None:
        for path in paths:
            unfinished(path).replace(path)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the partial files, and says where they are."""
        if self._table is not None:
            self._close()
            say(f"\nnot finished: the tracks of the first {self._events} events are in {unfinished(self.path)}")


def unfinished(path: Path) -> Path:
    """Where a file is while it is being written."""
    return path.with_name(f"{path.name}.partial")


def track_table(event: Event, tracks: Tracks) -> pa.Table:
    """The tracks of an event as rows, one for each hit on a track; see `TrackWriter`."""
    owner = tracks.owner
    columns: dict[str, Any] = {
        "event_id": np.full(len(owner), event.event_id, dtype=np.int64),
        "track": owner.astype(np.int64),
        "hit": tracks.hits,
        "score": tracks.score[owner],
    }
    if tracks.parameters is not None:
        columns |= {name: getattr(tracks.parameters, name)[owner] for name in PARAMETERS}
    return pa.table(columns)
