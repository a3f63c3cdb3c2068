"""Draw what a window of attention holds and costs: pairs of hits on one particle, scores of a filter, time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hepattn.data.ordering import Order, hit_order, ordered_owner
from hepattn.data.schema import Event, Selection
from hepattn.metrics.attention import pair_recall, whole_particles
from hepattn.plotting import style
from hepattn.plotting.ordering import COLOURS, NAMES, WINDOWS

__all__ = ["window_auc", "window_axis", "window_cost", "window_recall"]


def window_recall(
    events: Mapping[str, Event],
    selections: Selection | Sequence[Selection],
    orders: Order | Sequence[Order] = "phi",
    *,
    wraps: Sequence[bool] = (True, False),
    whole: bool = False,
    windows: Sequence[int] = WINDOWS,
) -> Figure:
    """Share of the pairs of hits on one particle that a window holds, against its size; one panel an event.

    Args:
        events: name -> event with truth.
        selections: which particles are meant; of several each gets a colour.
        orders: of the hits, see `hit_order`; of several each gets a colour, with one selection.
        wraps: circular windows (solid) and open ones (dashed).
        whole: draw the share of particles that the window holds whole instead, with 68.3 % intervals. Pairs of one
            particle aren't independent, so that their share has none.
        windows: sizes w.

    Raises:
        ValueError: several selections and several orders at once, or an event without truth.
    """
    cuts = [selections] if isinstance(selections, Selection) else list(selections)
    by = [orders] if isinstance(orders, str) else list(orders)
    if len(cuts) > 1 and len(by) > 1:
        raise ValueError("several selections or several orders, not both: colours tell one of them")
    count = whole_particles if whole else pair_recall
    figure, axes = style.canvas(len(events), width=4.6, height=4.9)
    with style.context():
        for ax, (name, event) in zip(axes, events.items(), strict=True):
            for order in by:
                place = hit_order(event.hits, order)
                for i, cut in enumerate(cuts):
                    owner = ordered_owner(event, place, cut)
                    colour = COLOURS[order] if len(cuts) == 1 else style.CYCLE[i]
                    for wrap in wraps:
                        shares = count(owner, windows, wrap=wrap)
                        ax.plot(windows, [one.value for one in shares], **_line(colour, wrap))
                        if whole and wrap:
                            low, high = np.transpose([one.interval for one in shares])
                            ax.fill_between(windows, low, high, color=colour, alpha=0.2, linewidth=0)
            window_axis(ax, windows)
            ax.set_title(f"{name}: {len(event.hits):,} hits")
        what = "particles\nthat a window holds whole" if whole else "pairs of hits on one particle\nthat a window holds"
        axes[0].set_ylabel(f"share of {what}")
        several = len(cuts) > 1
        labels = [f"pT > {cut.pt_min:g} GeV" for cut in cuts] if several else [NAMES[order] for order in by]
        colours = style.CYCLE[: len(cuts)] if several else [COLOURS[order] for order in by]
        handles = [Line2D([], [], color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
        if len(wraps) > 1:
            handles += [Line2D([], [], label=("wrapped", "not wrapped")[not w], **_line(style.GREY, w)) for w in wraps]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        figure.suptitle(f"hits in {NAMES[by[0]]} order; {_but_pt(cuts[0])}" if several else f"{cuts[0]}")
    return figure


def window_axis(ax: Axes, windows: Sequence[int]) -> None:
    """Window sizes on a logarithmic axis, shares from 0 to 1 upwards."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(windows[0], windows[-1])
    ax.set_ylim(0, 1.03)
    ax.xaxis.set_major_locator(FixedLocator([w for i, w in enumerate(windows) if (len(windows) - 1 - i) % 3 == 0]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(color=style.PAPER)
    ax.set_xlabel("window w [hits]")


def window_auc(curves: Mapping[str, tuple[float, float, float]], trained: str, events: str) -> Figure:
    """AUC of a filter under other windows than the one it was trained with.

    Args:
        curves: window -> (AUC, low, high), in the order to be drawn.
        trained: the window among them that it was trained with.
        events: in words, what was judged.
    """
    figure, (ax,) = style.canvas(width=8.0, height=4.0)
    value, low, high = np.transpose(list(curves.values()))
    at = list(curves).index(trained)
    with style.context():
        ax.errorbar(range(len(value)), value, [value - low, high - value], fmt="o-", color=style.BLUE, capsize=3)
        ax.plot([at], [value[at]], marker="o", markersize=13, fillstyle="none", color=style.VERMILLION, linestyle="")
        ax.annotate("trained with this", (at, value[at]), (0, -24), textcoords="offset points", ha="center")
        ax.set_xticks(range(len(value)), list(curves))
        ax.set_ylim(min(0.5, float(low.min())) - 0.02, 1.02)
        ax.axhline(0.5, color=style.GREY, linewidth=1, linestyle=":")
        ax.set_xlabel("window w [hits]")
        ax.set_ylabel("AUC")
        ax.set_title(f"{events}, 68.3 % intervals; dotted: chance")
    return figure


def window_cost(milliseconds: Mapping[int, Mapping[str, float]], title: str) -> Figure:
    """Time against the number of hits, both axes logarithmic.

    Args:
        milliseconds: number of hits -> who did it -> median time, ms.
        title: what was done, and where.
    """
    lengths = list(milliseconds)
    figure, (ax,) = style.canvas(width=7.0, height=4.2)
    with style.context():
        for side, colour in zip(milliseconds[lengths[0]], (style.VERMILLION, style.BLUE, style.GREEN), strict=False):
            ax.plot(lengths, [milliseconds[n][side] for n in lengths], "o-", color=colour, label=side)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.grid(color=style.PAPER)
        ax.set_xlabel("hits")
        ax.set_ylabel("time [ms]")
        ax.set_title(title)
        ax.legend()
    return figure


def _line(colour: str, wrap: bool) -> dict[str, Any]:
    return {"color": colour, "linestyle": "-" if wrap else "--", "linewidth": 2.0 if wrap else 1.4}


def _but_pt(cut: Selection) -> str:
    return str(cut).partition(", ")[2]
