"""The panels of a training: losses, held-out AUC, scores, efficiency against purity and pT, and one event."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hepattn.data.schema import Selection
from hepattn.metrics import Fraction, binned_fraction, clopper_pearson
from hepattn.plotting import style
from hepattn.widgets.held_out import BINS, HeldOut, Judgement

__all__ = ["RUN_OF_LOSSES", "TrainingPanels", "name_axes", "running_mean"]

RUN_OF_LOSSES = 50
"""Steps over which the loss is averaged for the thick line."""


class TrainingPanels:
    """The figure and the artists in it, made once and moved: `moving`."""

    def __init__(self, selection: Selection) -> None:
        with style.context():
            self.figure: Figure = style.Figure(figsize=(14.0, 7.6), layout="constrained")
            grid = self.figure.subplots(2, 3, gridspec_kw={"width_ratios": [1, 1, 1.75]})
            (self.loss, self.auc, self.event), (self.histogram, self.curve, self.pt) = grid
            self._make_curves()
            self._make_scores(selection)
            self._make_event()
        self.moving: list[Artist] = [self.raw, self.mean, self.old, self.new, self.wanted, self.others, self.cut]
        self.moving += [self.trade, self.cross, self.point, self.bars, self.fractions, *self.groups]

    def _make_curves(self) -> None:
        (self.raw,) = self.loss.plot([], [], color=style.FAINT, linewidth=0.8, label="each step")
        (self.mean,) = self.loss.plot([], [], color=style.BLUE, label=f"mean of {RUN_OF_LOSSES}")
        name_axes(self.loss, "training", "step", "loss")
        self.loss.legend(loc="upper right")
        (self.old,) = self.auc.plot([], [], color=style.GREY, linestyle="--", label="training before")
        (self.new,) = self.auc.plot([], [], color=style.BLUE, marker=".", markersize=5, label="this training")
        name_axes(self.auc, "held-out events", "step", "area under ROC curve")
        self.auc.set_ylim(0.45, 1.0)
        self.auc.grid(color=style.PAPER)
        self.auc.legend(loc="lower right")

    def _make_scores(self, selection: Selection) -> None:
        none = np.zeros(len(BINS) - 1)
        self.wanted = self.histogram.stairs(none, BINS, color=style.BLUE, linewidth=2, label="wanted")
        self.others = self.histogram.stairs(
            none, BINS, color=style.VERMILLION, linestyle="--", linewidth=2, label="other hits"
        )
        self.cut = self.histogram.axvline(0.5, color=style.BLACK, linewidth=1.2, label="threshold")
        name_axes(self.histogram, "", "score of held-out hits", f"hits per {BINS[1]:.3g}")
        self.histogram.set_xlim(0, 1)
        self.histogram.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=3,
            columnspacing=1.0,
            handlelength=1.4,
            borderaxespad=0.1,
        )
        (self.trade,) = self.curve.plot([], [], color=style.BLUE)
        (self.point,) = self.curve.plot([], [], "o", color=style.BLACK, markersize=7, label="at the threshold")
        self.cross = LineCollection([], color=style.BLACK, linewidth=1.5)
        self.curve.add_collection(self.cross, autolim=False)
        name_axes(self.curve, "every threshold", "efficiency", "purity")
        self.curve.set(xlim=(0, 1.02), ylim=(0, 1.02))
        self.curve.grid(color=style.PAPER)
        self.curve.legend(loc="lower left")
        (self.fractions,) = self.pt.plot([], [], "o", color=style.BLUE, markersize=5)
        self.bars = LineCollection([], color=style.BLUE, linewidth=1.5)
        self.pt.add_collection(self.bars, autolim=False)
        name_axes(self.pt, "wanted hits kept, 68.3 % intervals", "pT of the particle [GeV]", "efficiency")
        self.pt.set_xscale("log")
        self._pt_axis(selection.pt_min)

    def _pt_axis(self, low: float) -> None:
        self.pt_min = low
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if tick >= low * 0.99]
        self.pt.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        self.pt.minorticks_off()
        self.pt.set(xlim=(max(low, 0.1) * 0.9, 22), ylim=(0, 1.02))
        self.pt.grid(color=style.PAPER)

    def _make_event(self) -> None:
        self.groups: list[Line2D] = []
        for label, colour, marker, size in (
            ("dropped, rightly", style.FAINT, "o", 1.6),
            ("kept, not wanted", style.ORANGE, "o", 2.6),
            ("kept, wanted", style.BLUE, "o", 2.6),
            ("lost", style.BLACK, "X", 4.5),
        ):
            self.groups += self.event.plot(
                [], [], marker, color=colour, markersize=size, markeredgewidth=0, label=label
            )
        name_axes(self.event, "one of the held-out events", "x [mm]", "y [mm]")
        self.event.set_aspect("equal", adjustable="box")
        self.event.set_anchor("W")
        legend = self.event.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.5, handletextpad=0.1, borderaxespad=0.1
        )
        legend.set_in_layout(False)  # it stands where the square leaves room

    def move_curves(
        self,
        losses: Sequence[float],
        aucs: Sequence[tuple[int, float]],
        before: Sequence[tuple[int, float]],
        total: int,
    ) -> None:
        """The two upper left panels."""
        values = np.array(losses)
        self.raw.set_data(np.arange(1, len(values) + 1), values)
        self.mean.set_data(*running_mean(values))
        for line, points in ((self.new, aucs), (self.old, before)):
            line.set_data([step for step, _ in points], [auc for _, auc in points])
        right = max(total, 1, *(step for step, _ in before)) if before else max(total, 1)
        self.loss.set_xlim(0, max(total, 1))
        self.auc.set_xlim(0, right * 1.01)
        finite = values[np.isfinite(values)]
        highest = 1.1 * float(np.quantile(finite, 0.995)) if len(finite) else 1.5
        self.loss.set_ylim(0, math.ceil(4 * highest) / 4)  # in coarse moves: each one redraws the axes

    def move_scores(self, judgement: Judgement, threshold: float) -> tuple[Fraction, Fraction]:
        """All that depends on scores; returns efficiency and purity at the threshold."""
        held_out = judgement.held_out
        kept, target = judgement.scores >= threshold, held_out.target
        good = int((kept & target).sum())
        efficiency, purity = Fraction(good, int(target.sum())), Fraction(good, int(kept.sum()))
        self.wanted.set_data(judgement.wanted)
        self.others.set_data(judgement.others)
        highest = 1.1 * max(judgement.wanted.max(), judgement.others.max(), 1)
        self.histogram.set_ylim(0, 1.5 ** math.ceil(math.log(highest, 1.5)))
        self.cut.set_xdata([threshold, threshold])
        self.trade.set_data(judgement.efficiency, judgement.purity)
        self.point.set_data([efficiency.value], [purity.value])
        across, up = efficiency.interval, purity.interval
        self.cross.set_segments(
            [
                np.array([(across[0], purity.value), (across[1], purity.value)]),
                np.array([(efficiency.value, up[0]), (efficiency.value, up[1])]),
            ]
        )
        self._move_pt(held_out, kept)
        self._move_event(held_out, kept)
        return efficiency, purity

    def _move_pt(self, held_out: HeldOut, kept: NDArray[np.bool_]) -> None:
        edges, wanted = held_out.pt_edges, held_out.target
        # particles above the last edge count in the last bin
        bins = binned_fraction(np.minimum(held_out.pt[wanted], edges[-1]), kept[wanted], edges)
        low, high = clopper_pearson([one.passed for one in bins], [one.total for one in bins])
        centre = np.sqrt(edges[1:] * edges[:-1])
        segments = [np.array([(x, a), (x, b)]) for x, a, b in zip(centre, low, high, strict=True)]
        value = np.array([one.value for one in bins])
        segments += [np.array([(a, v), (b, v)]) for a, b, v in zip(edges[:-1], edges[1:], value, strict=True)]
        self.bars.set_segments(segments)
        self.fractions.set_data(centre, value)
        if held_out.selection.pt_min != self.pt_min:
            self._pt_axis(held_out.selection.pt_min)

    def _move_event(self, held_out: HeldOut, kept: NDArray[np.bool_]) -> None:
        x, y = held_out.x, held_out.y
        keep, want = kept[: len(x)], held_out.target[: len(x)]
        for line, chosen in zip(self.groups, (~keep & ~want, keep & ~want, keep & want, ~keep & want), strict=True):
            line.set_data(x[chosen], y[chosen])
        reach = 200.0 * math.ceil(1.02 * float(max(np.abs(x).max(), np.abs(y).max(), 1.0)) / 200.0)
        self.event.set(xlim=(-reach, reach), ylim=(-reach, reach))


def running_mean(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and mean loss of the (at most) 50 steps up to each."""
    if not len(values):
        return np.zeros(0), np.zeros(0)
    total = np.append(0.0, np.cumsum(values))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - RUN_OF_LOSSES, 0)
    return end.astype(np.float64), (total[end] - total[begin]) / (end - begin)


def name_axes(ax: Axes, title: str, across: str, up: str) -> None:
    """Title and labels of a panel."""
    ax.set_title(title)
    ax.set_xlabel(across)
    ax.set_ylabel(up)
