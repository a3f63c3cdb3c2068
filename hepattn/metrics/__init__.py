"""Metrics: they see arrays, never a model."""

from hepattn.metrics.attention import (
    BlockPairs,
    block_pairs,
    pair_recall,
    particle_spread,
    whole_particles,
    window_blocks,
)
from hepattn.metrics.filter import (
    FilterMetrics,
    ScoredEvent,
    at_efficiency,
    at_purity,
    filter_metrics,
    roc_auc,
    roc_auc_delong,
    roc_auc_events,
    threshold_at_efficiency,
    threshold_at_purity,
)
from hepattn.metrics.intervals import ONE_SIGMA, Estimate, Fraction, binned_fraction, clopper_pearson
from hepattn.metrics.peers import Peers, peer_edges
from hepattn.metrics.track_matching import Matches, match_tracks
from hepattn.metrics.trackml_score import pt_weights, trackml_score, trackml_weights
from hepattn.metrics.tracks import FoundTracks, TrackMetrics, efficiency_against, track_metrics

__all__ = [
    "ONE_SIGMA",
    "BlockPairs",
    "Estimate",
    "FilterMetrics",
    "FoundTracks",
    "Fraction",
    "Matches",
    "Peers",
    "ScoredEvent",
    "TrackMetrics",
    "at_efficiency",
    "at_purity",
    "binned_fraction",
    "block_pairs",
    "clopper_pearson",
    "efficiency_against",
    "filter_metrics",
    "match_tracks",
    "pair_recall",
    "particle_spread",
    "peer_edges",
    "pt_weights",
    "roc_auc",
    "roc_auc_delong",
    "roc_auc_events",
    "threshold_at_efficiency",
    "threshold_at_purity",
    "track_metrics",
    "trackml_score",
    "trackml_weights",
    "whole_particles",
    "window_blocks",
]
