"""Draw who may look at whom: one row a query, one column a key, 1 and a dark cell where the query may attend."""

import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hepattn.masks import Dense, Mask
from hepattn.masks.compose import Both, Either
from hepattn.plotting import style

LARGEST = 4096
"""Positions that are still drawn pair by pair; beyond that a picture has fewer pixels than the mask has pairs."""


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
