"""Draw what kernels give and cost: errors against the reference, refusals, time and memory against length."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from hepattn.attention.agreement import Agreement
from hepattn.plotting import style

__all__ = ["kernel_answers", "kernel_costs", "kernel_errors", "slope"]

COLOURS = {"sdpa": style.BLUE, "flex": style.VERMILLION, "flash": style.GREEN, "auto": style.PURPLE}
"""Of the kernels."""

SIDES = (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE)
"""Of who was measured, in turn."""


def kernel_errors(found: Sequence[Agreement]) -> Figure:
    """Errors of kernels against the reference in float64: a panel a dtype, a row a mask, on logarithmic axes.

    Filled dots are outputs, open ones gradients. A grey bar is what the dtype costs the reference itself, a black one
    what is allowed. An error of zero is drawn at the left end.

    Args:
        found: answers of kernels that were run; refusals are left out.

    Raises:
        ValueError: no kernel was run.
    """
    run = [one for one in found if one.value is not None]
    if not run:
        raise ValueError("no kernel was run: there is no error to draw")
    dtypes, masks, kernels = (
        list(dict.fromkeys(getattr(one, key) for one in run)) for key in ("dtype", "mask", "kernel")
    )
    figure, panels = style.canvas(len(dtypes), width=4.4, height=1.9 + 0.5 * len(masks))
    with style.context():
        for panel, dtype in zip(panels, dtypes, strict=True):
            _errors(panel, [one for one in run if one.dtype == dtype], masks, kernels)
            panel.set_title(f"{dtype}, eps {_eps(dtype):.0e}")
            panel.set_yticks(range(len(masks)), masks if panel is panels[0] else [""] * len(masks))
        dot = {"linestyle": "", "marker": "o", "markersize": 7.0}
        handles = [Line2D([], [], color=COLOURS[kernel], label=kernel, **dot) for kernel in kernels]  # type: ignore[arg-type]
        handles.append(Line2D([], [], color=style.GREY, label="its gradients", fillstyle="none", **dot))  # type: ignore[arg-type]
        bar = {"linestyle": "", "marker": "|", "markersize": 14.0}
        handles.append(Line2D([], [], color=style.GREY, markeredgewidth=3, label="what the dtype costs", **bar))  # type: ignore[arg-type]
        handles.append(Line2D([], [], color=style.BLACK, markeredgewidth=2, label="allowed (output)", **bar))  # type: ignore[arg-type]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _eps(dtype: str) -> float:
    return float(torch.finfo(getattr(torch, dtype)).eps)


def _errors(panel: Axes, run: Sequence[Agreement], masks: list[str], kernels: list[str]) -> None:
    low = _eps(run[0].dtype) / 20
    for one in run:
        assert one.value is not None
        y = masks.index(one.mask)
        at = y + 0.16 * (kernels.index(one.kernel) - (len(kernels) - 1) / 2)
        for part, fill in ((one.gradient, "none"), (one.value, "full")):
            if part is not None:
                panel.plot(
                    max(part.error, low),
                    at,
                    "o",
                    color=COLOURS[one.kernel],
                    fillstyle=fill,
                    markersize=7,
                    zorder=3,  # type: ignore[arg-type]
                )
        if one.value.own:
            panel.plot(one.value.own, y, "|", color=style.GREY, markersize=16, markeredgewidth=3)
        panel.plot(one.value.allowed, y, "|", color=style.BLACK, markersize=20, markeredgewidth=2)
    panel.set_xscale("log")
    panel.set_xlim(left=low / 1.5)
    panel.set_ylim(len(masks) - 0.5, -0.5)
    panel.xaxis.set_major_locator(LogLocator(numticks=5))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis="x", color=style.PAPER)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("largest difference from float64")


def kernel_answers(found: Sequence[Agreement], title: str) -> Figure:
    """A table: a row a mask, a column a kernel; that it agrees, that it takes the call, or its refusal.

    Args:
        found: one answer a mask and kernel.
        title: which calls these are.

    Raises:
        ValueError: there is no answer to show.
    """
    if not found:
        raise ValueError("there is no answer to show")
    masks, kernels = (list(dict.fromkeys(getattr(one, key) for one in found)) for key in ("mask", "kernel"))
    by = {(one.mask, one.kernel): one for one in found}
    width = 78 // len(kernels)
    words = [
        [textwrap.fill(mask, 24), *(_answer(by.get((mask, kernel)), width) for kernel in kernels)] for mask in masks
    ]
    lines = [max(cell.count("\n") + 1 for cell in row) + 0.4 for row in words]
    figure, (panel,) = style.canvas(width=11.0, height=0.7 + 0.24 * (sum(lines) + 1.6))
    with style.context():
        panel.set_axis_off()
        panel.set_title(title)
        share = 0.78 / len(kernels)
        table = panel.table(
            cellText=words, colLabels=["mask", *kernels], colWidths=[0.22, *([share] * len(kernels))], cellLoc="left",
            colLoc="left", bbox=Bbox.unit(),
        )  # fmt: skip
        table.auto_set_font_size(False)
        table.set_fontsize(11.5)
        for (row, column), cell in table.get_celld().items():
            cell.set_edgecolor(style.FAINT)
            cell.visible_edges = "B"
            cell.set_height(1.6 if row == 0 else lines[row - 1])
            text = cell.get_text().get_text()
            if row == 0:
                cell.set_text_props(weight="bold")
            elif column and not text.startswith("refuses"):
                cell.set_text_props(color=style.BLUE)
            elif column:
                cell.set_text_props(color=style.VERMILLION)
    return figure


def _answer(one: Agreement | None, width: int) -> str:
    if one is None:
        return "-"
    if one.refusal:
        return textwrap.fill(f"refuses: {one.refusal.removeprefix(one.kernel + ': ')}", width)
    if one.value is None:
        return "takes it (not run)"
    return "agrees" if one.agrees else textwrap.fill(f"differs: {one.worst:.3g} times what is allowed", width)


def kernel_costs(
    milliseconds: Mapping[int, Mapping[str, float]], megabytes: Mapping[int, Mapping[str, float | None]], title: str
) -> Figure:
    """Time and memory against the number of tokens, on logarithmic axes, with the slope of each curve at its end.

    Args:
        milliseconds: tokens -> who did it -> median time, ms.
        megabytes: tokens -> who did it -> growth of peak memory, MB; None where it was not measured.
        title: what was done, and where.
    """
    figure, panels = style.canvas(2, width=5.6, height=4.6)
    with style.context():
        both: tuple[tuple[str, Mapping[int, Mapping[str, float | None]]], ...] = (
            ("time [ms]", {n: dict(sides) for n, sides in milliseconds.items()}),
            ("growth of peak memory [MB]", megabytes),
        )
        for panel, (what, cost) in zip(panels, both, strict=True):
            for side, colour in zip(next(iter(cost.values())), SIDES, strict=False):
                points = [(n, value) for n, sides in cost.items() if (value := sides[side])]
                label = f"{side}: slope {slope(points):.1f}" if len(points) > 1 else side
                panel.plot(*np.transpose(points or np.empty((0, 2))), "o-", color=colour, label=label)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(list(cost), [f"{n:,}" for n in cost])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.grid(color=style.PAPER)
            panel.set_xlabel("tokens")
            panel.set_ylabel(what)
            panel.legend(loc="upper left", handlelength=1.2)
            low, high = panel.get_ylim()
            panel.set_ylim(low, high * (high / low) ** 0.55)  # room for the legend
        figure.suptitle(title)
    return figure


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How a cost grows between the last two points: the exponent p of n^p, 1 for linear, 2 for quadratic."""
    (n0, first), (n1, last) = points[-2:]
    return float(np.log(last / first) / np.log(n1 / n0))
