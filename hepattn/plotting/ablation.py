"""Draw trainings that differ in one thing: what each gains or loses, beside what it costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from hepattn.metrics.ablation import BASELINE, Run, frame, variants
from hepattn.plotting import style

__all__ = ["ablation"]

FAR = 3.0
"""Variants whose difference is so many times that of three quarters of all are not drawn to scale."""

LINE: Mapping[str, Any] = {"color": style.BLACK, "linewidth": 1.0, "linestyle": "--"}


def ablation(runs: Sequence[Run]) -> Figure:
    """What each variant gains or loses against the baseline in AUC, and its speed and memory.

    Left: difference of means with its standard error (from the spread over seeds that all variants pool; without two
    seeds of any variant there is none), blue where it is more than two errors from zero and grey where it isn't; small
    dots are single seeds. A variant far beyond the others is an arrow at the edge with its number. Middle and right:
    training steps a second and peak memory; "-" where they were not measured. The dashed line is the baseline.

    Args:
        runs: of the baseline and of any variants; best at the top, the baseline first.

    Raises:
        KeyError: the baseline has no run
    """
    table, grouped = frame(runs), variants(runs)
    rows = {name: len(table) - 1 - i for i, name in enumerate(table.index)}  # the best of them on top
    base = float(table["AUC"][BASELINE])
    seeds = {name: np.array([run.auc for run in grouped[name]]) - base for name in rows}
    figure, (gain, speed, memory) = style.canvas(3, width=4.3, height=1.7 + 0.36 * len(rows), ratios=[2.0, 1.0, 1.0])
    with style.context():
        low, high = _limits(table, seeds)
        gain.set_xlim(low, high)
        gain.axvline(0.0, **LINE)
        for name, row in rows.items():
            away, error, clear = (table.loc[name, column] for column in ("difference", "error", "clear"))
            colour = style.BLUE if clear else style.GREY
            if low <= away <= high:
                reach = error if np.isfinite(error) else 0.0
                gain.plot([away - reach, away + reach], [row, row], color=colour, linewidth=2.4)
                gain.plot([away], [row], "o", color=colour, markersize=7)
            elif np.isfinite(away):
                edge, mark, turn = (low, "<", "left") if away < low else (high, ">", "right")
                words = f"{away:+.4f} ± {error:.4f}" if np.isfinite(error) else f"{away:+.4f}"
                gain.plot([edge], [row], mark, color=colour, markersize=9, clip_on=False)
                offset = (10 if turn == "left" else -10, 0)
                gain.annotate(words, (edge, row), offset, textcoords="offset points", ha=turn, va="center")
            gain.plot(seeds[name], np.full(len(seeds[name]), row - 0.22), ".", color=style.ORANGE, markersize=5)
        gain.set_yticks(list(rows.values()), list(rows))
        gain.xaxis.set_major_locator(MaxNLocator(6))
        gain.set_xlabel(f"difference in AUC to the baseline's {base:.4f}")
        _bars(speed, rows, table["steps/s"], "training [steps/s]")
        _bars(memory, rows, table["GiB"], "peak memory [GiB]")
        for ax in (gain, speed, memory):
            ax.set_ylim(-0.7, len(rows) - 0.3)
            ax.grid(axis="x", color=style.PAPER)
        handles = [
            Line2D([], [], marker="o", color=style.BLUE, label="more than two standard errors from zero"),
            Line2D([], [], marker="o", color=style.GREY, label="no clear difference"),
            Line2D([], [], marker=".", linestyle="", color=style.ORANGE, label="one seed"),
            Line2D([], [], label="baseline", **LINE),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _limits(table: pd.DataFrame, seeds: Mapping[str, NDArray[np.float64]]) -> tuple[float, float]:
    """Of the differences that are drawn to scale, with their errors and seeds; zero lies inside."""
    away, error = table["difference"].to_numpy(), table["error"].fillna(0.0).to_numpy()
    near = np.abs(away) <= FAR * (np.nanquantile(np.abs(away), 0.75) if np.isfinite(away).any() else 0.0)
    near |= np.isnan(away)  # the baseline itself
    ends = [0.0, *(away - error)[near], *(away + error)[near]]
    ends += [one for name, there in zip(table.index, near, strict=True) if there for one in seeds[name]]
    low, high = np.nanmin(ends), np.nanmax(ends)
    margin = 0.06 * (high - low) or 1e-3
    return float(low - margin), float(high + margin)


def _bars(ax: Axes, rows: Mapping[str, int], values: "pd.Series[float]", label: str) -> None:
    """A bar a row, with the baseline as a line."""
    for name, row in rows.items():
        value = float(values[name])
        if np.isfinite(value):
            ax.barh(row, value, height=0.62, color=style.SKY)
            ax.annotate(f"{value:.3g}", (0, row), (4, 0), textcoords="offset points", va="center", fontsize=10)
        else:
            ax.annotate("-", (0, row), (4, 0), textcoords="offset points", va="center", fontsize=10)
    if np.isfinite(values[BASELINE]):
        ax.axvline(float(values[BASELINE]), **LINE)
    ax.set_xlim(left=0.0)
    ax.set_yticks(list(rows.values()), [""] * len(rows))
    measured = bool(np.isfinite(values.to_numpy(dtype=np.float64)).any())
    ax.xaxis.set_major_locator(MaxNLocator(4) if measured else NullLocator())
    ax.set_xlabel(label)
