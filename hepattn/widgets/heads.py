"""Look through the heads of a trained hit filter: where one hit looks, and in which heads that is its own particle."""

from collections.abc import Sequence

import torch

from hepattn.data.schema import Event
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting import style
from hepattn.plotting.attention_numbers import Numbers, measure, strongest_table
from hepattn.plotting.attention_panels import DetectorPanel, UnrolledPanel, mark_legend
from hepattn.plotting.attention_pattern import Pattern, filter_patterns
from hepattn.plotting.gallery import outer_direction
from hepattn.plotting.head_numbers import own_of_hit
from hepattn.plotting.heads import HeadGrid
from hepattn.widgets.attention import NUMBERS, SAMPLED, number_cells
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["HeadExplorer"]

LISTED = 10
"""Keys in the table, at most."""


class HeadExplorer(Explorer):
    """One hit's attention in every head of a trained filter.

    Left and middle: the event across the beam, and unrolled along φ; lines go from the hit to the hits that the chosen
    head looks at most, and rings are the true hits of its particle. Right: how much of the hit's attention each head
    puts on the other hits of that particle; the box is the chosen head. Below: the head's numbers, and the strongest
    keys one by one. State:

    - `event`: place in the list of events;
    - `layer`, `head`: from 1;
    - `hit`: φ (rad) of the query; the nearest hit is taken, around the full turn. At first the outermost hit of the
      reconstructable particle with the most hits;
    - `count`: how many lines, at most.

    Args:
        events: with truth, one or a few to choose from
        net: a trained hit filter with attention

    Raises:
        ValueError: there is no event, or the filter has no attention
    """

    def __init__(self, events: Event | Sequence[Event], net: HitFilter) -> None:
        self.events = [events] if isinstance(events, Event) else list(events)
        if not self.events:
            raise ValueError("there is no event to look at")
        self.net = net
        self.kept: dict[int, list[Pattern]] = {}
        self.means: dict[tuple[int, int, int], Numbers] = {}
        first = self._patterns(0)
        layers, heads = len(first), first[0].heads
        with style.context():
            figure = style.Figure(figsize=(15.5, 5.8), layout="constrained")
            across, along, right = figure.subplots(1, 3, width_ratios=[1.15, 1.0, 0.95])
            self.detectors = [DetectorPanel(across, "across the beam"), UnrolledPanel(along, "unrolled")]
            self.grid = HeadGrid(right, layers, heads, "the hit's attention on its particle")
            mark_legend(figure, count=None)
        titles = {f"{one.event_id}: {len(one.hits):,} hits": index for index, one in enumerate(self.events)}
        controls = {
            "event": choice("event", titles),
            "layer": slider("layer", 1, 1, layers),
            "head": slider("head", 1, 1, heads),
            "hit": slider("hit at φ [rad]", outer_direction(self.events[0], net.config.selection), -3.14, 3.14, 0.005),
            "count": slider("strongest keys", 20, 1, 40),
        }
        moving = [*(artist for panel in self.detectors for artist in panel.moving), *self.grid.moving]
        super().__init__(figure, controls, moving=moving)

    def _patterns(self, event: int) -> list[Pattern]:
        if event not in self.kept:
            self.kept[event] = filter_patterns(self.net, self.events[event])
        return self.kept[event]

    def pattern(self) -> Pattern:
        """Of the chosen layer."""
        return self._patterns(self.event)[self.layer - 1]

    def row(self) -> int:
        """Position of the chosen hit in φ order."""
        return self.pattern().nearest(self.hit)

    def update(self) -> str:
        """Moves lines, rings and shares; the strongest keys and the head's numbers as tables."""
        pattern, row, head = self.pattern(), self.row(), self.head - 1
        for panel in self.detectors:
            panel.show(pattern, row, head, count=self.count)
        self.grid.show(100 * own_of_hit(self._patterns(self.event), row), self.layer - 1, head)
        table = strongest_table(pattern, row, min(self.count, LISTED), head)
        return self._numbers(pattern, row, head) + table.to_html(index=False)

    def _numbers(self, pattern: Pattern, row: int, head: int) -> str:
        key = (self.event, self.layer, head)
        if key not in self.means:
            rows = pattern.sampled(max(1, len(pattern.q) // SAMPLED))
            self.means[key] = measure(pattern, head, rows=rows)
        this, mean = measure(pattern, head, rows=torch.tensor([row])), self.means[key]
        each = ((f"this hit, φ = {pattern.query_phi[row]:.3f}", this), ("all hits, mean", mean))
        lines = ["<tr><td>" + "</td><td>".join([name, *number_cells(of)]) + "</td></tr>" for name, of in each]
        head_row = "<tr><th>" + "</th><th>".join(["", *NUMBERS]) + "</th></tr>"
        return f"<table border=1 cellpadding=4>{head_row}{''.join(lines)}</table>"
