"""Draw what a machine can run and how well a hit filter does. Every fraction carries its Clopper-Pearson interval."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Selection
from hepattn.metrics.intervals import Fraction, clopper_pearson
from hepattn.plotting import style
from hepattn.plotting.events import View, _draw, _group


def kernels(available: Mapping[str, bool | str], *, device: str = "cpu", ax: Axes | None = None) -> Figure:
    """Draw which attention kernels do every call here, and what keeps the others from it.

    Args:
        available: What :func:`hepattn.available_backends` returns: name -> True, or what it can't do in words.
        device: What the table is about, for its title.
        ax: Axes to draw in.

    Returns:
        The figure, a table of one row a kernel.

    Raises:
        ValueError: There is no kernel in ``available``.
    """
    if not available:
        raise ValueError("there is no kernel to list")
    rows = [
        (name, "yes" if state is True else "no", "" if state is True else _wrap(state))
        for name, state in available.items()
    ]
    lines = [max(reason.count("\n") + 1, 1) for _, _, reason in rows]
    figure, (panel,) = style.canvas(1, width=9.0, height=0.8 + 0.34 * (sum(lines) + 1), ax=ax)
    with style.context():
        panel.set_axis_off()
        panel.set_title(f"Attention kernels on {device}")
        table = panel.table(
            cellText=rows,
            colLabels=["kernel", "every call", "what it can't do here"],
            colWidths=[0.12, 0.15, 0.73],
            cellLoc="left",
            colLoc="left",
            bbox=Bbox.unit(),
        )
        table.auto_set_font_size(False)
        table.set_fontsize(12)
        for (row, column), cell in table.get_celld().items():
            cell.set_edgecolor(style.FAINT)
            cell.visible_edges = "B"
            cell.set_height(1.0 if row == 0 else lines[row - 1])
            if row == 0:
                cell.set_text_props(weight="bold")
            elif column == 1:
                cell.set_text_props(weight="bold", color=style.BLUE if rows[row - 1][1] == "yes" else style.VERMILLION)
    return figure


def _wrap(reason: bool | str) -> str:
    return textwrap.fill(str(reason) if reason else "no reason given", 62)


def scores(
    scores: ArrayLike,
    target: ArrayLike,
    *,
    threshold: float | None = None,
    noise: ArrayLike | None = None,
    bins: int = 50,
    ax: Axes | None = None,
) -> Figure:
    """Draw the scores of a hit filter, apart for hits to keep and hits to drop.

    Args:
        scores: (n_hits,) probability of lying on a reconstructable particle; NaN = not judged, never kept.
        target: (n_hits,) bool, True = lies on one.
        threshold: Where hits are cut, drawn as a line.
        noise: (n_hits,) bool, True = on no particle; drawn apart from other hits to drop.
        bins: Number of bins between 0 and 1.
        ax: Axes to draw in.

    Returns:
        The figure, counts of hits on a logarithmic axis.

    Raises:
        ValueError: The arrays differ in length, or a score lies outside 0 to 1.
    """
    values, wanted = _checked(scores, target)
    unwanted = ~wanted
    kinds: list[tuple[str, NDArray[np.bool_], str, str]] = [("on a reconstructable particle", wanted, style.BLUE, "-")]
    if noise is None:
        kinds.append(("other hits", unwanted, style.VERMILLION, "--"))
    else:
        silent = np.asarray(noise, dtype=bool)
        if silent.shape != values.shape:
            raise ValueError(f"noise is one bool a hit, shape {values.shape}, got {silent.shape}")
        kinds.append(("on another particle", unwanted & ~silent, style.VERMILLION, "--"))
        kinds.append(("noise", unwanted & silent, style.GREY, ":"))
    figure, (panel,) = style.canvas(1, width=7.0, height=4.6, ax=ax)
    edges = np.linspace(0.0, 1.0, bins + 1)
    with style.context():
        for name, chosen, colour, line in kinds:
            counts, _ = np.histogram(values[chosen], edges)
            panel.stairs(counts, edges, color=colour, linestyle=line, linewidth=2, label=f"{name} ({chosen.sum():,})")
        if threshold is not None:
            panel.axvline(threshold, color=style.BLACK, linewidth=1.2, label=f"threshold {threshold:g}")
        panel.set_yscale("symlog", linthresh=1.0)
        panel.set_ylim(bottom=0.0)
        panel.set_xlim(0.0, 1.0)
        panel.set_xlabel("score")
        panel.set_ylabel(f"hits per {1 / bins:.2g}")
        _legend_above(panel)
    return figure


def efficiency(
    scores: ArrayLike,
    target: ArrayLike,
    *,
    thresholds: ArrayLike | None = None,
    threshold: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw efficiency and purity of a hit filter against its threshold.

    Efficiency = target hits kept / target hits; purity = target hits kept / hits kept; a hit is kept where its score is
    at least the threshold. Bands are 68.3 % Clopper-Pearson intervals; where no hit is left there is a gap.

    Args:
        scores: (n_hits,) probability of lying on a reconstructable particle; NaN = not judged, never kept.
        target: (n_hits,) bool, True = lies on one.
        thresholds: Where to evaluate; left out, 0 to 1 in steps of 0.01.
        threshold: The one in use, drawn as a line.
        ax: Axes to draw in.

    Returns:
        The figure; its lines hold the fractions, its bands the intervals.

    Raises:
        ValueError: The arrays differ in length, or a score lies outside 0 to 1.
    """
    values, wanted = _checked(scores, target)
    cuts = np.linspace(0.0, 1.0, 101) if thresholds is None else np.sort(np.asarray(thresholds, dtype=np.float64))
    kept = len(values) - np.searchsorted(np.sort(values), cuts, side="left")
    hit = int(wanted.sum()) - np.searchsorted(np.sort(values[wanted]), cuts, side="left")
    figure, (panel,) = style.canvas(1, width=7.0, height=4.6, ax=ax)
    with style.context():
        for name, total, colour, line in (
            (f"efficiency, of {int(wanted.sum()):,} target hits", np.full(len(cuts), wanted.sum()), style.BLUE, "-"),
            ("purity, of the hits kept", kept, style.VERMILLION, "--"),
        ):
            low, high = clopper_pearson(hit, total)
            fraction = np.divide(hit, total, out=np.full(len(cuts), np.nan), where=total > 0)
            panel.plot(cuts, fraction, color=colour, linestyle=line, label=name)
            panel.fill_between(cuts, low, high, color=colour, alpha=0.25, linewidth=0)
        if threshold is not None:
            panel.axvline(threshold, color=style.BLACK, linewidth=1.2, label=f"threshold {threshold:g}")
        panel.set_xlim(cuts[0], cuts[-1])
        panel.set_ylim(0.0, 1.02)
        panel.set_xlabel("threshold on the score")
        panel.set_ylabel("fraction (68.3 % intervals)")
        panel.grid(color=style.PAPER, linewidth=1.0)
        _legend_above(panel)
    return figure


def kept(
    event: Event,
    scores: ArrayLike,
    threshold: float,
    selection: Selection,
    views: Sequence[View] = ("xy", "rz"),
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw which hits of an event a filter keeps and which it loses.

    Hits outside the selection's volumes that are not kept are not drawn; the title counts them.

    Args:
        event: With truth.
        scores: (n_hits,) probability of lying on a reconstructable particle; NaN = not judged, never kept.
        threshold: A hit is kept where its score is at least this.
        selection: Which particles are reconstructable; printed on the figure.
        views: As in :func:`hepattn.plotting.event`.
        ax: Axes to draw in (one view only).

    Returns:
        The figure; efficiency and purity at the threshold, with intervals, stand in its title.

    Raises:
        ValueError: There is not one score in 0 to 1 a hit.
    """
    values, wanted = _checked(scores, selection.hits(event))
    passed = values >= threshold
    shown = passed | selection.in_volumes(event.hits)
    kept, able = passed[shown], wanted[shown]
    groups = [
        _group(~kept & ~able, style.FAINT, "dropped, rightly", alpha=0.5),
        _group(kept & ~able, style.ORANGE, "kept, not wanted"),
        _group(kept & able, style.BLUE, "kept, wanted"),
        _group(~kept & able, style.BLACK, "lost", marker="X", scale=3.5),
    ]
    figure = _draw(event.keep(shown), groups, views, ax=ax)
    both = int((passed & wanted).sum())
    fractions = ("efficiency", Fraction(both, int(wanted.sum()))), ("purity", Fraction(both, int(passed.sum())))
    title = "\n".join(f"{name} {fraction}" for name, fraction in fractions)
    title = f"threshold {threshold:g}, reconstructable: {selection}\n{title}"
    if not shown.all():
        title += f"\n{(~shown).sum():,} hits outside these volumes, dropped, are not drawn"
    with style.context():
        figure.suptitle(title) if ax is None else ax.set_title(title)
    return figure


def _checked(scores: Any, target: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores as float64 and target as bool; a hit that is not judged scores below every threshold."""
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(target, dtype=bool)
    if values.ndim != 1 or values.shape != wanted.shape:
        raise ValueError(f"scores and target are one value a hit each, got shapes {values.shape} and {wanted.shape}")
    unjudged = np.isnan(values)
    if not bool(np.all(unjudged | ((values >= 0.0) & (values <= 1.0)))):
        raise ValueError(
            "scores are probabilities, between 0 and 1 (or NaN where a hit is not judged): were logits given?"
        )
    return np.where(unjudged, -np.inf, values), wanted


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.3)
