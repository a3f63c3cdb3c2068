"""One door to every source of events."""

from pathlib import Path

from hepattn.data.parquet import ParquetEvents, parquet_stem
from hepattn.data.sample import DEFAULT_SAMPLE, sample_events
from hepattn.data.sequence import EventSequence
from hepattn.data.trackml import TrackMLEvents


def open_events(path: str | Path) -> EventSequence:
    """Events of a source, each read when it is asked for.

    Args:
        path: a folder or file of Parquet events (`NAME.hits.parquet`, or `NAME` for both files), a folder, zip or
            prefix of TrackML events, or the word `sample` (`sample:ttbar_mu40` for another than the default).

    Raises:
        FileNotFoundError: there is no such path.
        EventFileError: it holds no events.
        ValueError: there is no such sample.
    """
    word, _, name = str(path).partition(":")
    if word == "sample":
        return sample_events(name or DEFAULT_SAMPLE)
    path = Path(path)
    stem = parquet_stem(path)
    if path.is_dir():
        return ParquetEvents(path) if next(path.glob("*.hits.parquet"), None) else TrackMLEvents(path)
    if stem != path or stem.with_name(f"{stem.name}.hits.parquet").is_file():
        return ParquetEvents(stem)
    return TrackMLEvents(path)
