"""Draw for whom a hit filter works: efficiency, purity and retention in bins, with intervals and with their counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from hepattn.metrics.by_particle import JudgedEvents, Quantity
from hepattn.metrics.filter import FilterMetrics
from hepattn.metrics.intervals import Fraction
from hepattn.plotting import style

__all__ = ["FractionPanel", "PerformancePanels", "performance_by", "turn_on"]

LABELS: Mapping[Quantity, str] = {
    "pt": "pT of the particle [GeV]",
    "eta": "η of the particle",
    "hits": "hits of the particle",
    "radius": "production radius [mm]",
}
"""Words on the axes; the last bin of pT and of radii holds all above, too."""

NAMES: Mapping[Quantity, str] = {"pt": "pT", "eta": "η", "hits": "number of hits", "radius": "production radius"}

TICKS: Mapping[Quantity, tuple[float, ...]] = {"pt": (0.1, 0.3, 1, 3, 10), "radius": (0.01, 0.1, 1, 10, 100)}
"""Of quantities that have a logarithmic axis."""


class FractionPanel:
    """One fraction in bins: above its value and interval, below what was counted; made once, then moved.

    Args:
        top: axes of the fraction; a bar across is the bin, a bar upwards the interval, an empty bin a gap.
        bottom: axes of the counts: the denominator as a line, the numerator filled.
        colour: of both.
        counted: in words, numerator and denominator.
    """

    def __init__(self, top: Axes, bottom: Axes, colour: str, counted: tuple[str, str]) -> None:
        self.top, self.bottom = top, bottom
        self._by: Quantity | None = None
        (self.bins,) = top.plot([], [], color=colour, linewidth=2.2, solid_capstyle="butt")
        (self.intervals,) = top.plot([], [], color=colour, linewidth=1.2)
        (self.values,) = top.plot([], [], "o", color=colour, markersize=4.5)
        start = np.array([0.0, 1.0])
        self.passed = bottom.stairs([1.0], start, baseline=0.5, fill=True, color=colour, alpha=0.35, label=counted[0])
        self.total = bottom.stairs([1.0], start, baseline=0.5, color=style.BLACK, linewidth=1.2, label=counted[1])
        top.grid(color=style.PAPER)
        top.tick_params(labelbottom=False)
        top.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        bottom.set_yscale("log")
        bottom.yaxis.set_major_locator(FixedLocator([1, 100, 10_000, 1_000_000]))
        bottom.yaxis.set_major_formatter(FuncFormatter(_plain))
        bottom.yaxis.set_minor_locator(NullLocator())
        bottom.legend(loc="upper right", fontsize=10, borderaxespad=0.1, handlelength=1.4)

    @property
    def moving(self) -> tuple[Any, ...]:
        """The artists that `show` moves."""
        return self.bins, self.intervals, self.values, self.passed, self.total

    def show(self, fractions: Sequence[Fraction], edges: NDArray[np.float64], by: Quantity, label: str) -> None:
        """Other fractions, one a bin, over `edges` of the quantity `by`."""
        low, high = np.transpose([one.interval for one in fractions])
        value = np.array([one.value for one in fractions])
        gap = np.full(len(value), np.nan)
        middle = np.sqrt(edges[1:] * edges[:-1]) if by in TICKS else (edges[1:] + edges[:-1]) / 2
        self.bins.set_data(np.stack([edges[:-1], edges[1:], gap], 1).ravel(), np.stack([value, value, gap], 1).ravel())
        self.intervals.set_data(np.stack([middle, middle, gap], 1).ravel(), np.stack([low, high, gap], 1).ravel())
        self.values.set_data(middle, value)
        for stairs, counts in (
            (self.passed, [one.passed for one in fractions]),
            (self.total, [one.total for one in fractions]),
        ):
            stairs.set_data(np.maximum(counts, 0.5), edges, baseline=0.5)
        most = max(one.total for one in fractions)
        for ax in (self.top, self.bottom):
            if by != self._by:
                quantity_axis(ax, by)
            ax.set_xlim(edges[0], edges[-1])
        self._by = by
        self.bottom.set_xlabel(label)
        self.bottom.set_ylim(0.5, 10.0 ** (np.ceil(np.log10(max(most, 1))) + 1.6))
        # all values, and the intervals of bins that say something; in steps, so that the axis seldom moves
        shown = [*value, *low[[one.total >= 10 for one in fractions]]]
        least = np.floor(10 * np.fmin.reduce([0.95, *shown])) / 10
        self.top.set_ylim(least - 0.02, 1.02)


class PerformancePanels:
    """Efficiency, purity and retention side by side, each a `FractionPanel`; made once, then moved."""

    def __init__(self, figure: Figure, axes: NDArray[Any]) -> None:
        parts = (
            ("hit efficiency", style.BLUE, ("target hits kept", "target hits")),
            ("hit purity", style.VERMILLION, ("target hits kept", "all hits kept")),
            ("particles retained", style.GREEN, ("with 3 hits kept", "reconstructable")),
        )
        self.title = figure.suptitle("one\ntwo")
        self.panels = []
        for (top, bottom), (title, colour, counted) in zip(axes.T, parts, strict=True):
            top.set_title(title, loc="left")
            self.panels.append(FractionPanel(top, bottom, colour, counted))
        axes[0, 0].set_ylabel("fraction (68.3 % intervals)")
        axes[1, 0].set_ylabel("count")

    @classmethod
    def new(cls) -> tuple[Figure, "PerformancePanels"]:
        """A figure with panels, empty."""
        figure = style.Figure(figsize=(14.0, 5.8), layout="constrained")
        with style.context():
            return figure, cls(figure, figure.subplots(2, 3, height_ratios=[1.7, 1.0]))

    @property
    def moving(self) -> tuple[Any, ...]:
        """The artists that `show` moves besides limits, labels and titles of axes."""
        return self.title, *(artist for panel in self.panels for artist in panel.moving)

    def show(self, judged: JudgedEvents, by: Quantity, threshold: float, bins: int, name: str) -> FilterMetrics:
        """Another state; returns the numbers of all bins together."""
        edges, everyone = judged.edges(by, bins), judged.edges(by, bins, everyone=True)
        efficiency, purity, retention = self.panels
        efficiency.show(judged.efficiency(by, edges, threshold), edges, by, LABELS[by])
        words = "η of the hit" if by == "eta" else f"{LABELS[by]}, without noise"
        purity.show(judged.purity(by, everyone, threshold), everyone, by, words)
        retention.show(judged.retention(by, edges, threshold), edges, by, LABELS[by])
        whole = judged.at(threshold)
        events = f"{judged.events} event{'s' * (judged.events > 1)}"
        self.title.set_text(f"{name}, {events}: hits kept with score ≥ {threshold:.3g}\n{_cut(judged)}")
        return whole


def performance_by(
    judged: JudgedEvents, by: Quantity = "pt", *, threshold: float, bins: int = 12, name: str = "hit filter"
) -> Figure:
    """Efficiency, purity and retention at one threshold, in bins, with the counts that they are made of.

    Efficiency and retention are binned by the particle. Purity in η is binned by the hit's own; in anything else by the
    hit's particle, which noise has not: its kept hits are in no bin.

    Args:
        judged: events with scores and truth.
        by: the quantity.
        threshold: a hit is kept when its score >= threshold.
        bins: about how many.
        name: of the filter, for the title.
    """
    figure, panels = PerformancePanels.new()
    with style.context():
        panels.show(judged, by, threshold, bins, name)
    return figure


def turn_on(judged: Mapping[str, JudgedEvents], thresholds: Mapping[str, float], *, bins: int = 24) -> Figure:
    """Share of hits kept against the pT of their particle, on both sides of the cut.

    A perfect filter keeps none below and all above (but for particles that another cut forbids). Noise, which has no
    pT, is left out.

    Args:
        judged: name -> events with scores and truth, a colour each.
        thresholds: the same names -> a hit is kept when its score >= threshold.
        bins: above the cut; below they are as wide.

    Raises:
        ValueError: nothing to draw
    """
    if not judged:
        raise ValueError("there are no judged events to draw")
    figure, (ax,) = style.canvas(1, width=8.5, height=4.8)
    with style.context():
        lowest, highest = np.inf, 0.0
        for (name, one), colour in zip(judged.items(), style.CYCLE, strict=False):
            edges = one.edges("pt", bins, everyone=True)
            shares = one.kept("pt", edges, thresholds[name])
            low, high = np.transpose([share.interval for share in shares])
            middle = np.sqrt(edges[1:] * edges[:-1])
            label = f"{name}, score ≥ {thresholds[name]:.3g}\n{one.selection}"
            ax.plot(middle, [share.value for share in shares], "o-", color=colour, markersize=4, label=label)
            ax.fill_between(middle, low, high, color=colour, alpha=0.25, linewidth=0)
            lowest, highest = min(lowest, edges[0]), max(highest, edges[-1])
        for cut in sorted({one.selection.pt_min for one in judged.values()}):
            ax.axvline(cut, color=style.BLACK, linewidth=1, linestyle="--")
            ax.annotate(f"cut {cut:g} GeV", (cut, 0.95), (-5, 0), textcoords="offset points", ha="right")
        quantity_axis(ax, "pt")
        ax.set_xlim(lowest, highest)
        ax.set_ylim(-0.02, 1.02)
        ax.grid(color=style.PAPER)
        ax.set_xlabel("pT of the hit's particle [GeV]")
        ax.set_ylabel("share of hits kept (68.3 % bands)")
        ax.legend(loc="lower right", fontsize=10, handlelength=1.2, borderaxespad=0.1)
    return figure


def quantity_axis(ax: Axes, by: Quantity) -> None:
    """Scale and ticks of an axis for a quantity."""
    logarithmic = by in TICKS
    ax.set_xscale("log" if logarithmic else "linear")
    if logarithmic:
        ax.xaxis.set_major_locator(FixedLocator(TICKS[by]))
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _plain(value: float, _: Any) -> str:
    return f"{value:,.7g}"


def _cut(judged: JudgedEvents) -> str:
    return f"reconstructable: {judged.selection}"
