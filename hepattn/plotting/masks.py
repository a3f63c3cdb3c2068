"""Draw who may look at whom: one row a query, one column a key, 1 and a dark cell where the query may attend.

Kernels look at blocks of pairs, not at pairs: `blocks` draws both, `hepattn.metrics.sparsity` counts both.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from hepattn.masks import Dense, Mask
from hepattn.masks.blocks import block_relation
from hepattn.masks.compose import Both, Either
from hepattn.metrics.sparsity import allowed_pairs, layouts, pairs, sparsity
from hepattn.plotting import style
from hepattn.sequence import Layout, Lengths

LARGEST = 4096
"""Positions that are still drawn pair by pair; beyond that a picture has fewer pixels than the mask has pairs."""

WASTED, FULL = "#F6CF87", "#00263E"
"""Of pairs that are looked at in vain (pale orange), and of blocks that are wholly allowed (darker than blue)."""

STATES: tuple[tuple[str, str], ...] = (
    (style.PAPER, "empty block: skipped"),
    (WASTED, "looked at, not allowed"),
    (style.BLUE, "looked at, allowed"),
    (FULL, "wholly allowed block"),
)
"""What a pair can be -> its colour and words; the numbers of `states`."""

FINEST = 320
"""Cells along the side of a picture of blocks; of larger masks a cell stands for several pairs."""


def mask(
    mask: Mask | Sequence[Mask], n: int, n_kv: int | None = None, *, digits: bool | None = None, ax: Axes | None = None
) -> Figure:
    """Draw a mask, or several side by side, over one sequence.

    The same picture as ``print(mask.draw(n))``: row i is what query i sees, column j is key j, and True (1, dark)
    means *may attend*.

    Args:
        mask: One mask, or several that each get a panel.
        n: Queries in the sequence.
        n_kv: Keys in the sequence; as many as queries where it is left out (self-attention).
        digits: Write 1 and 0 in the cells; left out, where they are large enough to read (up to 16 positions).
        ax: Axes to draw in (one mask only).

    Returns:
        The figure; ``figure.axes[i]`` is the panel of mask i.

    Raises:
        ValueError: n or n_kv is below 1 or above 4,096, or ``ax`` was given with several masks.
    """
    many = list(mask) if isinstance(mask, Sequence) else [mask]
    n_kv = n if n_kv is None else n_kv
    if not (1 <= n <= LARGEST and 1 <= n_kv <= LARGEST):
        raise ValueError(f"a mask is drawn for 1 to {LARGEST} positions, got n={n}, n_kv={n_kv}")
    if not many:
        raise ValueError("there is no mask to draw")
    digits = max(n, n_kv) <= 16 if digits is None else digits
    height = float(np.clip(4.1 * n / n_kv, 2.0, 6.0)) + 1.3
    figure, axes = style.canvas(len(many), width=4.6, height=height, ax=ax)
    with style.context():
        for one, panel in zip(many, axes, strict=True):
            _panel(panel, one, n, n_kv, digits=digits)
        if ax is None:
            keys = [
                Patch(facecolor=style.BLUE, label="1, True: may attend"),
                Patch(facecolor=style.PAPER, edgecolor=style.FAINT, label="0, False: may not"),
            ]
            figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def _panel(ax: Axes, mask: Mask, n: int, n_kv: int, *, digits: bool) -> None:
    allowed = mask.dense(n, n_kv).cpu().numpy().astype(bool)
    ax.imshow(allowed, cmap=ListedColormap([style.PAPER, style.BLUE]), vmin=0, vmax=1, interpolation="nearest")
    if max(n, n_kv) <= 64:
        ax.set_xticks(np.arange(n_kv + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5 if max(n, n_kv) <= 16 else 0.5)
        ax.tick_params(which="minor", length=0)
    if max(n, n_kv) <= 16:
        ax.set_xticks(np.arange(n_kv))
        ax.set_yticks(np.arange(n))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if digits:
        for (row, column), may in np.ndenumerate(allowed):
            colour = "white" if may else style.GREY
            ax.text(column, row, str(int(may)), color=colour, ha="center", va="center", family="monospace")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("key j (is seen)")
    ax.set_ylabel("query i (sees)")
    ax.set_title(f"{textwrap.fill(name(mask), 34)}\n{allowed.mean():.0%} of {allowed.size:,} pairs")


def states(mask: Mask | None, queries: Layout, keys: Layout, size: int) -> NDArray[np.uint8]:
    """What each pair is: its place in `STATES`, `(all queries, all keys)`."""
    some, every = (
        one.repeat_interleave(size, 0)[: queries.total].repeat_interleave(size, 1)[:, : keys.total]
        for one in block_relation(mask, queries, keys, size)
    )
    state = some.to(torch.uint8)
    state[pairs(mask, queries, keys)] = 2
    state[every] = 3
    return state.numpy()


class BlockPanel:
    """Pairs in the colours of `STATES`, the grid of blocks, and the frame of each event; made once, then moved."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        colours = ListedColormap([colour for colour, _ in STATES])
        self.image = ax.imshow(
            np.zeros((1, 1), np.uint8), cmap=colours, vmin=0, vmax=3, interpolation="nearest", aspect="auto"
        )
        self.grid = LineCollection([], colors=style.GREY)
        self.frames = LineCollection([], colors=style.BLACK, linewidths=1.6)
        ax.add_collection(self.grid)
        ax.add_collection(self.frames)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xlabel("key (is seen)")
        ax.set_ylabel("query (sees)")

    def show(self, mask: Mask | None, queries: Layout, keys: Layout, size: int) -> None:
        """Shows a mask over the packed tokens of some events."""
        high, wide = queries.total, keys.total
        cells, (down, across) = _coarse(states(mask, queries, keys, size))
        self.image.set_data(cells)
        self.image.set_extent((-0.5, across * cells.shape[1] - 0.5, down * cells.shape[0] - 0.5, -0.5))
        rows, columns = (np.append(np.arange(0, n, size), n) - 0.5 for n in (high, wide))
        level = [[(-0.5, y), (wide - 0.5, y)] for y in rows]
        upright = [[(x, -0.5), (x, high - 0.5)] for x in columns]
        self.grid.set_segments(level + upright)
        self.grid.set_linewidth(float(np.clip(15 / max(len(rows), len(columns)), 0.15, 0.9)))
        boxes = []
        if queries.batch > 1:
            top, left = ((layout.offsets.numpy() - 0.5).tolist() for layout in (queries, keys))
            for a, b, c, d in zip(left, left[1:], top, top[1:], strict=False):
                boxes.append([(a, c), (b, c), (b, d), (a, d), (a, c)])
        self.frames.set_segments(boxes)
        self.ax.set_xlim(-0.5, wide - 0.5)
        self.ax.set_ylim(high - 0.5, -0.5)
        for axis, n in ((self.ax.xaxis, wide), (self.ax.yaxis, high)):
            axis.set_major_locator(FixedLocator(range(n)) if n <= 16 else MaxNLocator(5, integer=True))


def blocks(
    mask: Mask | Sequence[Mask | None] | None,
    lengths: Lengths,
    *,
    size: int | Sequence[int] = 128,
    kv_lengths: Lengths = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw masks as a kernel sees them: in blocks, over the packed tokens of one or several events.

    Args:
        mask: One mask, or several that each get a panel; None: everything inside an event.
        lengths: Queries of each event.
        size: Tokens along the side of a block; of several sizes each gets a panel.
        kv_lengths: Keys of each event; left out, the queries themselves.
        ax: Axes to draw in (one panel only).

    Returns:
        The figure; ``figure.axes[i]`` is a panel, sizes of one mask side by side.

    Raises:
        ValueError: No or more than 4,096 queries or keys in all, no panel, a size below 1, or a mask that does not fit.
    """
    queries, keys = layouts(lengths, kv_lengths)
    if not (1 <= queries.total <= LARGEST and 1 <= keys.total <= LARGEST):
        raise ValueError(
            f"blocks are drawn for 1 to {LARGEST} positions, got {queries.total} queries and {keys.total} keys: "
            "hepattn.metrics.sparsity counts them at any size"
        )
    masks = list(mask) if isinstance(mask, Sequence) else [mask]
    many = [(one, n) for one in masks for n in ([size] if isinstance(size, int) else size)]
    if not many:
        raise ValueError("there is no mask, or no block size, to draw")
    shape = float(np.clip(queries.total / keys.total, 0.4, 1.6))
    wide = 4.6 if len(many) > 1 else 5.6  # the legend needs it
    figure, axes = style.canvas(len(many), width=wide, height=3.75 * shape + (1.8 if len(many) > 2 else 2.3), ax=ax)
    with style.context():
        for (one, n), panel in zip(many, axes, strict=True):
            found = sparsity(one, queries, n, keys)
            BlockPanel(panel).show(one, queries, keys, n)
            panel.set_box_aspect(shape)
            panel.set_title(
                f"{textwrap.fill(title(one), 36)}\nblocks of {n}: {share(found.active, found.blocks)} active, "
                f"{share(found.full, found.blocks)} full\n{share(found.allowed, found.pairs)} of pairs allowed",
                fontsize=12,
            )
        if ax is None:
            figure.legend(handles=state_handles(), loc="outside lower center", ncols=2 if len(many) <= 2 else 4)
    return figure


def state_handles() -> list[Patch]:
    """Of a legend: what the colours of pairs mean."""
    return [Patch(facecolor=colour, edgecolor=style.GREY, linewidth=0.6, label=words) for colour, words in STATES]


def block_sizes(
    masks: Sequence[Mask], lengths: Lengths, sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048)
) -> Figure:
    """Draw what the size of blocks costs: scores computed in vain, and the index that names the blocks.

    Args:
        masks: One line each.
        lengths: Tokens of each event.
        sizes: Of blocks, in tokens.

    Returns:
        The figure: scores computed over pairs allowed; and the index in MB, which is the same for all masks (block
        sparse kernels read four maps of all blocks, 4 bytes each: partly and wholly allowed, by row and by column).
    """
    layout = Layout.of(lengths, "cpu")
    figure, (waste, index) = style.canvas(2, width=5.2, height=4.4)
    with style.context():
        for mask, colour, marker in zip(masks, style.CYCLE, "osD^vP*", strict=False):
            allowed = allowed_pairs(mask, layout, layout)
            each = [int(block_relation(mask, layout, layout, size)[0].sum()) * size**2 / allowed for size in sizes]
            waste.plot(sizes, each, marker=marker, color=colour, label=name(mask))
        waste.axhline(1, color=style.GREY, linewidth=1, linestyle="--")
        waste.set_ylabel("scores computed / pairs allowed")
        waste.legend(loc="upper left")
        index.plot(sizes, [16 * (-(-layout.total // size)) ** 2 / 1e6 for size in sizes], "o-", color=style.BLACK)
        index.set_ylabel("index of blocks [MB]")
        for panel in (waste, index):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.xaxis.set_major_locator(FixedLocator(list(sizes)))
            panel.xaxis.set_minor_locator(NullLocator())
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(FuncFormatter(_plain))
            panel.set_xlabel("size of a block [tokens]")
        waste.yaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32, 64]))
        waste.yaxis.set_minor_locator(NullLocator())
        figure.suptitle(f"{layout.total:,} tokens" + (f" in {layout.batch} events" if layout.batch > 1 else ""))
    return figure


def _coarse(state: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """At most `FINEST` cells a side, and the height and width of a cell: of its pairs the highest state shows.

    Otherwise the row of a single global token would fall between two pixels.
    """
    down, across = (2 ** max(0, math.ceil(math.log2(n / FINEST))) for n in state.shape)
    high, wide = -(-state.shape[0] // down), -(-state.shape[1] // across)
    padded = np.zeros((high * down, wide * across), np.uint8)
    padded[: state.shape[0], : state.shape[1]] = state
    return padded.reshape(high, down, wide, across).max(axis=(1, 3)), (down, across)


def share(part: float, whole: float) -> str:
    """A share in percent, with as many digits as it needs: 100 %, 12 %, 2.0 %, 0.04 %."""
    percent = 100 * part / whole if whole else math.nan
    if not math.isfinite(percent):
        return "–"
    digits = 0 if percent >= 10 or percent == 0 else 1 if percent >= 1 else 2
    return f"{percent:.{digits}f} %"


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def title(mask: Mask | None) -> str:
    """As `name`; None is everything inside an event."""
    return "no mask" if mask is None else name(mask)


def name(mask: Mask) -> str:
    """A mask as one would write it: ``Window(4) | GlobalTokens([0])``, without the values that are defaults."""
    if isinstance(mask, Both | Either):
        sides = [
            f"({name(side)})" if isinstance(side, Both | Either) else name(side) for side in (mask.left, mask.right)
        ]
        return (" & " if isinstance(mask, Both) else " | ").join(sides)
    given: list[str] = []
    shown: tuple[Field[Any], ...] = () if isinstance(mask, Dense) or not is_dataclass(mask) else fields(mask)
    for place, item in enumerate(shown):
        value = getattr(mask, item.name)
        if not item.repr or (item.default is not MISSING and value == item.default):
            continue
        value = list(value) if isinstance(value, tuple) else value  # as users write it
        given.append(repr(value) if place == 0 else f"{item.name}={value!r}")
    return f"{type(mask).__name__}({', '.join(given)})" if shown else type(mask).__name__
