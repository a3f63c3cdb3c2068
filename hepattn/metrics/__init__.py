"""Metrics: they see arrays, never a model."""

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
    "Estimate",
    "FilterMetrics",
    "Fraction",
    "ScoredEvent",
    "at_efficiency",
    "at_purity",
    "binned_fraction",
    "clopper_pearson",
    "filter_metrics",
    "roc_auc",
    "roc_auc_delong",
    "roc_auc_events",
    "threshold_at_efficiency",
    "threshold_at_purity",
]
