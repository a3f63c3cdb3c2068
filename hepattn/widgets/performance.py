"""Explore for whom a hit filter works: move the threshold and look at efficiency, purity and retention in bins."""

from collections.abc import Mapping
from typing import Any

import ipywidgets

from hepattn.metrics.by_particle import JudgedEvents
from hepattn.metrics.intervals import Fraction
from hepattn.plotting import style
from hepattn.plotting.filter_performance import NAMES, PerformancePanels
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["PerformanceExplorer"]

BY = {"threshold": "threshold", "hit efficiency": "target"}
"""Words -> which of the two sliders sets the threshold."""


class PerformanceExplorer(Explorer):
    """Efficiency, purity and retention of a hit filter against a quantity, at a threshold that a slider moves.

    Scores are computed once, before. State:

    - `filter`: a name;
    - `by`: "threshold", or "target" to cut where a hit efficiency is reached;
    - `threshold`: a hit is kept when its score >= threshold;
    - `target`: that hit efficiency, over all events of the filter;
    - `quantity`: "pt", "eta", "hits" or "radius", see `hepattn.metrics.by_particle.Quantity`;
    - `bins`: about how many.

    Args:
        judged: name of a filter and its events -> its scores and the truth
    """

    def __init__(self, judged: Mapping[str, JudgedEvents]) -> None:
        self.judged = dict(judged)
        if not self.judged:
            raise ValueError("there is no filter to explore: give name -> JudgedEvents.of(events, scores, selection)")
        figure, self.panels = PerformancePanels.new()
        words = {"description_width": "initial"}
        exponents: dict[str, Any] = {"min": -4.0, "max": 0.0, "step": 0.02}
        controls = {
            "filter": choice("filter", list(self.judged)),
            "by": choice("cut at a", BY),
            "threshold": ipywidgets.FloatLogSlider(value=0.1, description="threshold", style=words, **exponents),
            "target": slider("hit efficiency", 0.98, 0.8, 0.999, 0.001),
            "quantity": choice("against", {label: name for name, label in NAMES.items()}),
            "bins": slider("bins", 12, 4, 24),
        }
        controls["target"].readout_format = ".3f"
        super().__init__(figure, controls, moving=self.panels.moving)

    def cut(self) -> float:
        """The threshold in use."""
        if self.by == "threshold":
            return float(self.threshold)
        return self.judged[self.filter].threshold_at(float(self.target))

    def update(self) -> str:
        """Moves bins, intervals and counts; returns the numbers of all bins together."""
        judged, threshold = self.judged[self.filter], self.cut()
        with style.context():
            whole = self.panels.show(judged, self.quantity, threshold, int(self.bins), self.filter)
        noise = judged.noise_kept(threshold)
        rows = {
            "hit efficiency": whole.efficiency,
            "hit purity": whole.purity,
            "hits kept": whole.kept,
            "particles retained": whole.retention,
            "noise hits kept": noise,
        }
        return f"threshold {threshold:.4g}<br>" + "<br>".join(f"{name}: {_words(one)}" for name, one in rows.items())


def _words(share: Fraction) -> str:
    return str(share) if share.total else "there are none (0 of 0)"
