"""Events: what they are (schema), where they come from (TrackML, Parquet, simulator, samples), and their features."""

from hepattn.data.features import CLUSTER_FEATURES, DEFAULT_FEATURES, FEATURES, hit_features
from hepattn.data.ordering import ORDERS, hit_order, ordered_owner
from hepattn.data.parquet import ParquetEvents, iter_parquet, read_parquet, write_parquet
from hepattn.data.sample import data_directory, sample_event, sample_events, sample_names
from hepattn.data.schema import Clusters, Event, Hits, Particles, Selection, Truth
from hepattn.data.sequence import EventFileError, EventSequence
from hepattn.data.simulation.driver import simulate
from hepattn.data.sources import open_events
from hepattn.data.toy_tracks import Damage, damage_tracks, toy_event, true_tracks
from hepattn.data.trackml import TrackMLEvents, list_trackml, read_trackml
from hepattn.data.tracks import Track, TrackParameters, Tracks, read_submission, write_submission

__all__ = [
    "CLUSTER_FEATURES",
    "DEFAULT_FEATURES",
    "FEATURES",
    "ORDERS",
    "Clusters",
    "Damage",
    "Event",
    "EventFileError",
    "EventSequence",
    "Hits",
    "ParquetEvents",
    "Particles",
    "Selection",
    "Track",
    "TrackMLEvents",
    "TrackParameters",
    "Tracks",
    "Truth",
    "damage_tracks",
    "data_directory",
    "hit_features",
    "hit_order",
    "iter_parquet",
    "list_trackml",
    "open_events",
    "ordered_owner",
    "read_parquet",
    "read_submission",
    "read_trackml",
    "sample_event",
    "sample_events",
    "sample_names",
    "simulate",
    "toy_event",
    "true_tracks",
    "write_parquet",
    "write_submission",
]
