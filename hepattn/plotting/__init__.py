"""Static figures: masks, events, and what a filter does. Each function returns a matplotlib Figure and shows nothing.

No pyplot and no global state: a notebook shows the figure that a cell ends with, a script calls ``figure.savefig``.
"""

from hepattn.plotting.ablation import ablation
from hepattn.plotting.agreement import kernel_answers, kernel_costs, kernel_errors
from hepattn.plotting.attention import attention_maps, attention_rows, attention_seam
from hepattn.plotting.encodings import encoding_hits, encoding_planes, encoding_similarity, encoding_waves
from hepattn.plotting.events import attended, event
from hepattn.plotting.filter_performance import performance_by, turn_on
from hepattn.plotting.heads import heads_against_chance, heads_against_loss, heads_on_hit
from hepattn.plotting.masks import block_sizes, blocks, mask
from hepattn.plotting.occupancy import composition, hits_per_particle, occupancy
from hepattn.plotting.ordering import block_maps, block_recall, curves, places
from hepattn.plotting.peers import peers
from hepattn.plotting.performance import efficiency, kept, kernels, scores
from hepattn.plotting.queries import (
    attention_on_own,
    query_attention,
    query_costs,
    query_hits,
    query_masks,
    query_tracks,
)
from hepattn.plotting.style import Figure
from hepattn.plotting.tracks import found_tracks, toy_matching, track_efficiency
from hepattn.plotting.windows import window_auc, window_cost, window_recall

__all__ = [
    "Figure",
    "ablation",
    "attended",
    "attention_maps",
    "attention_on_own",
    "attention_rows",
    "attention_seam",
    "block_maps",
    "block_recall",
    "block_sizes",
    "blocks",
    "composition",
    "curves",
    "efficiency",
    "encoding_hits",
    "encoding_planes",
    "encoding_similarity",
    "encoding_waves",
    "event",
    "found_tracks",
    "heads_against_chance",
    "heads_against_loss",
    "heads_on_hit",
    "hits_per_particle",
    "kept",
    "kernel_answers",
    "kernel_costs",
    "kernel_errors",
    "kernels",
    "mask",
    "occupancy",
    "peers",
    "performance_by",
    "places",
    "query_attention",
    "query_costs",
    "query_hits",
    "query_masks",
    "query_tracks",
    "scores",
    "toy_matching",
    "track_efficiency",
    "turn_on",
    "window_auc",
    "window_cost",
    "window_recall",
]
