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

__all__ = [
    "ONE_SIGMA",
    "BlockPairs",
    "Estimate",
    "FilterMetrics",
    "Fraction",
    "ScoredEvent",
    "at_efficiency",
    "at_purity",
    "binned_fraction",
    "block_pairs",
    "clopper_pearson",
    "filter_metrics",
    "pair_recall",
    "particle_spread",
    "roc_auc",
    "roc_auc_delong",
    "roc_auc_events",
    "threshold_at_efficiency",
    "threshold_at_purity",
    "whole_particles",
    "window_blocks",
]
