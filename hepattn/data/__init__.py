"""Events: what they are (schema), where they come from (TrackML, Parquet, simulator, samples), and their features."""

from hepattn.data.parquet import ParquetEvents, iter_parquet, read_parquet, write_parquet
from hepattn.data.schema import Clusters, Event, Hits, Particles, Selection, Truth
from hepattn.data.sequence import EventFileError, EventSequence

__all__ = [
    "Clusters",
    "Event",
    "EventFileError",
    "EventSequence",
    "Hits",
    "ParquetEvents",
    "Particles",
    "Selection",
    "Truth",
    "iter_parquet",
    "read_parquet",
    "write_parquet",
]
