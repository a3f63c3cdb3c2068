"""Draw two finders of tracks side by side: efficiency against pT and η, and who finds what."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from hepattn.data.schema import Event
from hepattn.metrics.intervals import Fraction
from hepattn.metrics.peers import Peers, peer_edges
from hepattn.metrics.tracks import Quantity
from hepattn.plotting import style
from hepattn.plotting.track_panels import NAMES, grouped

__all__ = ["EfficiencyPanel", "GroupPanel", "group_handles", "groups_of_hits", "peers"]

LOOKS = ((style.BLUE, "o", -0.1), (style.VERMILLION, "^", 0.1))
"""Of each finder: colour, marker, and by how much of a bin its points are moved aside, so that none is hidden."""

GROUPS = ((style.GREEN, "s"), LOOKS[0][:2], LOOKS[1][:2], (style.BLACK, "x"))
"""Of both, only the first, only the second, neither: as `DetectorPanel` draws all but those that both found."""

LABELS: Mapping[Quantity, str] = {"pt": "true pT [GeV]; the last bin holds all above", "eta": "true η"}

PT_TICKS = (0.5, 0.7, 1, 2, 3, 5, 10, 20)


class EfficiencyPanel:
    """Efficiency of two finders in bins of one quantity; made once, then moved.

    A horizontal bar is the bin, a vertical one the 68.3 % Clopper-Pearson interval, an empty bin a gap.

    Args:
        ax: where to draw
        quantity: "pt" (logarithmic, GeV) or "eta"
    """

    def __init__(self, ax: Axes, quantity: Quantity) -> None:
        self.ax, self.quantity = ax, quantity
        self.bins: list[Line2D] = []
        self.intervals: list[Line2D] = []
        self.values: list[Line2D] = []
        for colour, marker, _ in LOOKS:
            self.bins += ax.plot([], [], color=colour, linewidth=1.4, solid_capstyle="butt", alpha=0.6)
            self.intervals += ax.plot([], [], color=colour, linewidth=1.6)
            self.values += ax.plot([], [], linestyle="", marker=marker, color=colour, markersize=6)
        if quantity == "pt":
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(PT_TICKS))
            ax.xaxis.set_major_formatter(FuncFormatter(_plain))
            ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.set_xlabel(LABELS[quantity])
        ax.set_ylabel("efficiency (68.3 % intervals)")
        ax.grid(color=style.PAPER)

    @property
    def moving(self) -> list[Line2D]:
        """The artists that `show` moves, the last on top."""
        return [*self.bins, *self.intervals, *self.values]

    def show(self, of: Peers, edges: NDArray[np.float64]) -> None:
        """Other particles, in bins over `edges`, (b + 1,) in GeV for pT."""
        scale = np.log(edges) if self.quantity == "pt" else edges
        gap = np.full(len(edges) - 1, np.nan)
        least = [0.9]
        for side, (_, _, aside) in enumerate(LOOKS):
            shares = of.efficiency_against(side, self.quantity, edges)
            value = np.array([share.value for share in shares])
            low, high = np.transpose([share.interval for share in shares])
            middle = scale[:-1] + (0.5 + aside) * np.diff(scale)
            x = np.exp(middle) if self.quantity == "pt" else middle
            self.bins[side].set_data(_lines(edges[:-1], edges[1:], gap), _lines(value, value, gap))
            self.intervals[side].set_data(_lines(x, x, gap), _lines(low, high, gap))
            self.values[side].set_data(x, value)
            # all values, and the intervals of bins that say something; in steps, so that the axis seldom moves
            least += [*value, *low[[share.total >= 10 for share in shares]]]
        self.ax.set_xlim(edges[0], edges[-1])
        bottom = float(np.floor(10 * np.nanmin(least) + 1e-9) / 10)
        self.ax.set_ylim(bottom - 0.03 * (1 - bottom), 1 + 0.03 * (1 - bottom))


class GroupPanel:
    """How many particles both find, only one of them, and neither: four points on a logarithmic axis; made once.

    Bars are 68.3 % Clopper-Pearson intervals of the share, times the number of particles; a group that holds none has
    no point, and the bar says how many it might hold.
    """

    def __init__(self, ax: Axes, names: Sequence[str]) -> None:
        self.ax = ax
        self.intervals: list[Line2D] = []
        self.points: list[Line2D] = []
        self.words: list[Text] = []
        for row, (colour, marker) in enumerate(GROUPS):
            self.intervals += ax.plot([], [], color=colour, linewidth=1.8)
            self.points += ax.plot(
                [], [], linestyle="", marker=marker, color=colour, markersize=9, markeredgewidth=2 if row == 3 else 1
            )
            self.words.append(ax.text(0.02, row - 0.24, "", transform=ax.get_yaxis_transform(), va="center"))
        ax.set_yticks(range(len(GROUPS)), names)
        ax.set_ylim(len(GROUPS) - 0.6, -0.5)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([1, 10, 100, 1000, 10_000, 100_000]))
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("particles (68.3 % intervals)")
        ax.grid(axis="x", color=style.PAPER)

    def show(self, shares: Mapping[str, Fraction]) -> None:
        """Other numbers, in the order of `Peers.shares`."""
        for row, share in enumerate(shares.values()):
            low, high = np.array(share.interval) * share.total
            self.intervals[row].set_data([max(low, 0.1), high], [row, row])
            self.points[row].set_data([share.passed] if share.passed else [], [row] if share.passed else [])
            self.words[row].set_text(words(share))
        total = max(next(iter(shares.values())).total, 1)
        self.ax.set_xlim(0.5, 2 * total)


def peers(of: Peers, pt_min: float, eta_max: float, *, bins: int = 10, wanted: str = "", events: int = 1) -> Figure:
    """Draw two finders side by side: efficiency against pT, against η, and who finds what.

    Args:
        of: What they found.
        pt_min: Where the bins begin, GeV; the cut of the particles that count.
        eta_max: Where they end, on |η|.
        bins: How many.
        wanted: Which particles count, to print on the figure.
        events: In how many events, to print on the figure.

    Returns:
        The figure, three panels.

    Raises:
        ValueError: A cut that makes no bins.
    """
    figure, (left, middle, right) = style.canvas(3, width=5.2, height=4.9, ratios=[1.15, 1.15, 1.0])
    with style.context():
        for panel in (EfficiencyPanel(left, "pt"), EfficiencyPanel(middle, "eta")):
            panel.show(of, peer_edges(panel.quantity, pt_min, eta_max, bins))
        left.set_title("against pT")
        middle.set_title("against η")
        shares = of.shares()
        GroupPanel(right, [name.replace("only ", "only\n") for name in shares]).show(shares)
        right.set_title("who finds what")
        number = f"{int(of.wanted.sum()):,} particles of {events} event{'s' * (events > 1)}"
        figure.suptitle(f"definition of found: {NAMES[of.kind]}; {number}\n{wanted}".rstrip())
        figure.legend(handles=side_handles(of), loc="outside lower center", ncols=2)
    return figure


def side_handles(of: Peers) -> list[Line2D]:
    """What the points of `EfficiencyPanel` mean, with the efficiency of each finder."""
    return [
        Line2D([], [], color=colour, marker=marker, markersize=6, label=f"{name}: {words(of.efficiency(side))}")
        for side, (name, (colour, marker, _)) in enumerate(zip(of.names, LOOKS, strict=True))
    ]


def group_handles(names: Sequence[str]) -> list[Line2D]:
    """What the lines and dots of a `DetectorPanel` mean that shows `groups_of_hits`."""
    labels = (f"only by {names[0]}", f"only by {names[1]}", "by neither")
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=6, linewidth=1.2, label=f"found {label}")
        for label, (colour, marker) in zip(labels, GROUPS[1:], strict=True)
    ]
    handles[1].set_linestyle("--")
    handles[2].set_linestyle(":")
    return [*handles, Line2D([], [], linestyle="", marker="o", color=style.FAINT, label="all hits")]


def groups_of_hits(event: Event, of: Peers, most: int | None = None) -> tuple[list[NDArray[np.int64]], ...]:
    """Hits of the particles on which the finders of one event don't agree, and of those that neither found.

    Args:
        event: the event, with truth
        of: what was found in this event alone
        most: particles of each group, the hardest; left out, all

    Returns:
        neither, only the first, only the second, in the order of `DetectorPanel.show`: of each particle all rows of
        hits, from the inside out

    Raises:
        ValueError: another number of particles than the event has.
    """
    particle = event.hits.particle
    if particle is None or event.particles is None or len(event.particles) != len(of.wanted):
        raise ValueError(f"event {event.event_id} doesn't have the {len(of.wanted)} particles that were compared")
    _, first, second, neither = of.groups().values()
    return tuple(_hits(event, _hardest(mask, of, most)) for mask in (neither, first, second))


def _hardest(chosen: NDArray[np.bool_], of: Peers, most: int | None) -> NDArray[np.bool_]:
    """The `most` of the chosen particles that have the highest pT."""
    if most is None or chosen.sum() <= most:
        return chosen
    kept = np.zeros_like(chosen)
    kept[np.argsort(np.where(chosen, of.pt, -np.inf))[-most:]] = True
    return kept


def _hits(event: Event, chosen: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    assert event.hits.particle is not None
    number = np.full(len(chosen) + 1, -1)  # one more row, for noise (-1)
    number[:-1][chosen] = np.arange(int(chosen.sum()))
    return grouped(number[event.hits.particle], event.hits.s, int(chosen.sum()))


def words(share: Fraction) -> str:
    """The fraction in percent with its counts, short."""
    return f"{100 * share.value:.1f} % ({share.passed:,} of {share.total:,})" if share.total else "- (0 of 0)"


def _lines(begin: NDArray[np.float64], end: NDArray[np.float64], gap: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3 b,) pieces from begin to end, with a gap after each."""
    return np.stack([begin, end, gap], 1).ravel()


def _plain(value: float, _: object) -> str:
    return f"{value:,.7g}"
