"""Draw what an order of hits does: curves, hits by their place, and in which blocks the pairs of a particle lie."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from hepattn.data.ordering import Order, hilbert_key, hit_order, morton_key, ordered_owner
from hepattn.data.schema import Event, Selection
from hepattn.metrics.attention import BlockPairs, block_pairs, pair_recall, window_blocks
from hepattn.metrics.intervals import Fraction
from hepattn.plotting import style

__all__ = ["block_maps", "block_recall", "curves", "places"]

NAMES: dict[Order, str] = {"phi": "φ", "morton": "Morton (φ, η)", "hilbert": "Hilbert (φ, η)", "random": "random"}
COLOURS: dict[Order, str] = {
    "phi": style.BLUE,
    "morton": style.GREEN,
    "hilbert": style.VERMILLION,
    "random": style.BLACK,
}
WINDOWS = tuple(2**power for power in range(3, 16))
SIZES = (32, 64, 128, 256, 512)

PARTS = 8
"""Consecutive parts of a sequence that are told apart by colour."""

PART_COLOURS = tuple(colormaps[style.CONTINUOUS](np.linspace(0, 1, PARTS)))
MAP = ListedColormap([style.PAPER, *colormaps[style.CONTINUOUS].reversed()(np.linspace(0.1, 1, 255))])
"""Share of active blocks: none is paper, one is darkest."""


def curves(bits: int = 3) -> Figure:
    """The orders on a small grid of cells of (φ, second coordinate), a line through the cells as they are visited.

    Args:
        bits: the grid has 2^bits cells a side; 1 to 6.
    """
    if not 1 <= bits <= 6:
        raise ValueError(f"a line can be followed on a grid of 1 to 6 bits, got {bits}")
    side = 1 << bits
    b, a = (one.ravel() for one in np.mgrid[0:side, 0:side])
    inside = np.random.default_rng(0).permutation(len(a))
    orders = {"phi": np.lexsort((inside, a)), "random": np.argsort(inside)}
    orders |= {"morton": np.argsort(morton_key(a, b, bits)), "hilbert": np.argsort(hilbert_key(a, b, bits))}
    figure, axes = style.canvas(len(NAMES), width=3.7, height=4.0)
    with style.context():
        for ax, (order, name) in zip(axes, NAMES.items(), strict=True):
            along = orders[order]
            ax.plot(b[along], a[along], color=style.FAINT, linewidth=1.2)
            part = np.arange(len(along)) * PARTS // len(along)
            ax.scatter(b[along], a[along], c=[PART_COLOURS[i] for i in part], s=900 / side, zorder=2)
            ax.set_aspect("equal")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel("η")
            ax.set_title(name)
        axes[0].set_ylabel("φ")
        part_bar(figure, axes)
    return figure


def places(event: Event, orders: Sequence[Order] = ("phi", "morton", "hilbert", "random")) -> Figure:
    """Hits in η-φ, coloured by the eighth of the sequence that an order puts them in; one panel an order."""
    figure, axes = style.canvas(len(orders), width=3.7, height=4.6)
    with style.context():
        for ax, order in zip(axes, orders, strict=True):
            panel = PlacePanel(ax)
            panel.show(event, hit_order(event.hits, order))
            ax.set_title(NAMES[order])
        for ax in axes[1:]:
            ax.set_ylabel("")
        part_bar(figure, axes)
        figure.suptitle(f"event {event.event_id}, {len(event.hits):,} hits")
    return figure


class PlacePanel:
    """Hits in η-φ by the eighth of the sequence that they stand in; made once, then moved."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.dots = [
            ax.plot([], [], linestyle="", marker="o", markeredgewidth=0, color=colour)[0] for colour in PART_COLOURS
        ]
        ax.set_xlabel("η")
        ax.set_ylabel("φ [rad]")
        ax.set_ylim(-np.pi - 0.1, np.pi + 0.1)
        ax.set_yticks([-np.pi, 0, np.pi], ["−π", "0", "π"])

    def show(self, event: Event, order: NDArray[np.int64]) -> None:
        """Hits of an event in an order."""
        eta, phi = event.hits.eta, event.hits.phi
        for line, part in zip(self.dots, np.array_split(order, PARTS), strict=True):
            line.set_data(eta[part], phi[part])
            line.set_markersize(float(np.clip(np.sqrt(50_000 / max(len(order), 1)), 0.8, 3.0)))
        reach = float(np.ceil(2 * np.abs(eta).max(initial=0.5)) / 2)
        self.ax.set_xlim(-reach, reach)


def block_maps(
    event: Event,
    selection: Selection,
    orders: Sequence[Order] = ("phi", "morton", "hilbert", "random"),
    *,
    size: int = 128,
    cells: int = 128,
) -> Figure:
    """Which blocks of attention hold a pair of hits on one particle; one panel an order.

    Args:
        event: with truth.
        selection: which particles are meant.
        orders: of the hits.
        size: hits along the side of a block.
        cells: along the side of the picture; of a map of more blocks a cell is the share of active ones.
    """
    figure, axes = style.canvas(len(orders), width=3.6, height=4.7)
    with style.context():
        for ax, order in zip(axes, orders, strict=True):
            found = block_pairs(ordered_owner(event, hit_order(event.hits, order), selection), size)
            panel = BlockMapPanel(ax)
            panel.show(found, cells)
            ax.set_title(f"{NAMES[order]}\n{percent(found.active)} of blocks")
        for ax in axes[1:]:
            ax.set_ylabel("")
        figure.colorbar(panel.image, ax=axes, label="share of active blocks in a cell", shrink=0.8)
        figure.suptitle(f"{len(event.hits):,} hits in blocks of {size} x {size}; {selection}")
    return figure


class BlockMapPanel:
    """The map of active blocks; made once, then moved."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.image: AxesImage = ax.imshow(
            np.zeros((1, 1)), cmap=MAP, norm=Normalize(0, 1), interpolation="nearest", aspect="equal"
        )
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("block of keys")
        ax.set_ylabel("block of queries")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))

    def show(self, found: BlockPairs, cells: int = 128) -> None:
        """Another map."""
        share = found.image(cells)
        side = len(share) * max(1, -(-found.blocks // cells))  # the last cell may reach beyond the last block
        self.image.set_data(share)
        self.image.set_extent((-0.5, side - 0.5, side - 0.5, -0.5))
        self.ax.set_xlim(-0.5, found.blocks - 0.5)
        self.ax.set_ylim(found.blocks - 0.5, -0.5)


def block_recall(
    event: Event,
    selection: Selection,
    orders: Sequence[Order] = ("phi", "morton", "hilbert", "random"),
    *,
    size: int = 128,
    windows: Sequence[int] = WINDOWS,
) -> Figure:
    """What share of the pairs of one particle a share of the blocks can hold, and how the block size matters.

    Left: solid, the fullest blocks first (no mask of such blocks holds more; it needs the truth); dashed, circular
    windows, a dot each. Right: blocks that hold any pair, against the size of a block.

    Args:
        event: with truth.
        selection: which particles are meant.
        orders: of the hits.
        size: hits along the side of a block, left.
        windows: sizes w.
    """
    figure, (left, right) = style.canvas(2, width=6.0, height=4.9)
    n = len(event.hits)
    with style.context():
        for order in orders:
            owner = ordered_owner(event, hit_order(event.hits, order), selection)
            best, local = recall_lines(left, COLOURS[order])
            best.set_data(*best_blocks(block_pairs(owner, size)))
            local.set_data(window_points(n, owner, size, windows))
            shares = [block_pairs(owner, one).active.value for one in SIZES]
            right.plot(SIZES, shares, "o-", color=COLOURS[order])
        share_axis(left)
        left.set_xlim(left.get_xlim()[0], 1)
        left.set_title(f"blocks of {size} x {size}")
        right.set_xscale("log", base=2)
        right.set_yscale("log")
        right.set_xticks(SIZES, [str(one) for one in SIZES])
        right.xaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
        right.grid(color=style.PAPER)
        right.set_xlabel("hits along the side of a block")
        right.set_ylabel("blocks that hold a pair / all blocks")
        right.set_title("all pairs held")
        figure.legend(handles=order_handles(orders), loc="outside lower center", ncols=6)
        figure.suptitle(f"{n:,} hits; {selection}")
    return figure


def recall_lines(ax: Axes, colour: str) -> tuple[Line2D, Line2D]:
    """Empty artists of the fullest blocks (solid) and of windows (dashed, a dot each)."""
    (best,) = ax.plot([], [], color=colour)
    (local,) = ax.plot([], [], color=colour, linestyle="--", linewidth=1.2, marker="o", markersize=4.5)
    return best, local


def share_axis(ax: Axes) -> None:
    """Share of blocks on a logarithmic axis, share of pairs upwards."""
    ax.set_xscale("log")
    ax.relim()
    ax.autoscale_view()
    ax.set_ylim(0, 1.03)
    ax.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
    ax.grid(color=style.PAPER)
    ax.set_xlabel("blocks computed / all blocks")
    ax.set_ylabel("pairs held / all pairs")


def order_handles(orders: Sequence[Order]) -> list[Line2D]:
    """Legend of `recall_lines`."""
    handles = [Line2D([], [], color=COLOURS[order], label=NAMES[order]) for order in orders]
    handles.append(Line2D([], [], color=style.GREY, label="fullest blocks first"))
    return [*handles, Line2D([], [], color=style.GREY, linestyle="--", linewidth=1.2, marker="o", label="windows")]


def best_blocks(found: BlockPairs, points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`BlockPairs.best` at no more points than a line shows, evenly on a logarithmic axis."""
    taken, held = found.best()
    last = len(taken) - 1
    at = np.unique(np.geomspace(1, max(last, 1), points).astype(int).clip(0, last))
    return taken[at], held[at]


def window_points(n: int, owner: NDArray[np.int64], size: int, windows: Sequence[int] = WINDOWS) -> ArrayLike:
    """(2, windows): share of blocks that circular windows compute, and share of pairs that they hold."""
    blocks = [window_blocks(n, window, size).value for window in windows]
    return np.array([blocks, [one.value for one in pair_recall(owner, windows)]])


def percent(share: Fraction) -> str:
    """A share in percent, two digits that matter."""
    return "-" if not share.total else f"{100 * share.value:.2g} %"


def _percent_tick(value: float, _: int) -> str:
    return f"{100 * value:g} %"


def part_bar(figure: Figure, axes: Sequence[Axes], location: Literal["right", "bottom"] = "right") -> None:
    """Colours of the parts of a sequence."""
    bar = ScalarMappable(Normalize(0, PARTS), ListedColormap(PART_COLOURS))
    shrink = 0.85 if location == "right" else 1.0
    made = figure.colorbar(bar, ax=list(axes), label="eighth of the sequence", location=location, shrink=shrink)
    made.set_ticks([i + 0.5 for i in range(PARTS)], labels=[str(i + 1) for i in range(PARTS)])
