"""Draw positional encodings: their waves, how alike they make two directions, also across φ = ±π, and real hits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from hepattn.encodings import Encoding, Rotary
from hepattn.plotting import style
from hepattn.plotting.attention_tokens import turn
from hepattn.plotting.encoding_numbers import AnyEncoding, Ranks, around, encode, similarity

__all__ = ["encoding_hits", "encoding_planes", "encoding_similarity", "encoding_waves"]

POINTS = 4001
"""Of a curve."""

ROW = 4
"""Panels in a row."""

DASHES = ("-", "--", "-.")
"""Lines of neighbouring colours differ in these, too."""


def encoding_waves(encodings: Mapping[str, Encoding | Rotary], *, points: int = POINTS) -> Figure:
    """Every channel against φ, a row of colours each; of a rotary encoding a query of ones, turned.

    Where a channel swings faster than the picture has points, its row is a uniform grey.

    Args:
        encodings: Title -> encoding of φ.
        points: Values of φ.

    Returns:
        The figure, one panel an encoding.
    """
    figure, axes = _grid(len(encodings), height=3.4)
    with style.context():
        for ax, (title, of) in zip(axes, encodings.items(), strict=False):
            image = wave_image(ax, encode(of, np.linspace(-np.pi, np.pi, points)))
            angle_axis(ax, "φ [rad]")
            ax.set_title(title)
        for ax in axes[::ROW]:
            ax.set_ylabel("channel")
        figure.colorbar(image, ax=list(axes), label="value", shrink=0.7, ticks=[-1, 0, 1])
    return figure


def wave_image(ax: Axes, values: NDArray[np.float64]) -> Any:
    """Channels (n, d) as rows of colours from -1 to 1 over the full turn; returns the image."""
    image = ax.imshow(
        values.T,
        extent=(-math.pi, math.pi, values.shape[1] - 0.5, -0.5),
        aspect="auto",
        cmap=style.CONTINUOUS,
        vmin=-1,
        vmax=1,
        interpolation="antialiased",
        interpolation_stage="data",
    )
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return image


def encoding_similarity(
    encodings: Mapping[str, AnyEncoding],
    reference: float = 0.0,
    *,
    half: float = math.pi,
    pair: float | None = None,
) -> Figure:
    """Similarity of the encodings of `reference` and of reference + Δφ, against Δφ; one panel an encoding.

    The mean over 24 references is drawn in grey: an encoding without a seam, and of differences alone, lies on it.
    Where the seam φ = ±π is in view, it is a dashed line.

    Args:
        encodings: Title -> encoding of φ.
        reference: φ that others are compared with, rad.
        half: Δφ runs from -half to half, at most π; rad.
        pair: Two neighbours so far on either side of the reference (rad) are marked, and their similarities written.

    Returns:
        The figure.
    """
    figure, axes = _grid(len(encodings), height=3.0, sharey=True)
    away = np.linspace(-half, half, POINTS)
    seam = float(turn(np.asarray(np.pi - reference)))
    with style.context():
        for ax, (title, of) in zip(axes, encodings.items(), strict=False):
            every, alike = around(of)
            ax.plot(every, alike.mean(axis=0), color=style.FAINT, linewidth=5.0)
            (line,) = ax.plot(away, similarity(of, [reference], turn(reference + away))[0], color=style.BLUE)
            line.set_linewidth(1.3)
            if abs(seam) < half:
                ax.axvline(seam, color=style.VERMILLION, linestyle="--", linewidth=1.3)
            if pair is not None:
                _mark(ax, of, reference, pair)
            angle_axis(ax, "Δφ [rad]", half)
            ax.set_title(title)
            ax.set_ylim(-1.05, 1.05)
            ax.grid(axis="y", color=style.PAPER)
        for ax in axes[::ROW]:
            ax.set_ylabel("similarity")
        handles = [
            Line2D([], [], color=style.BLUE, label=f"from φ = {reference:.2f} rad"),
            Line2D([], [], color=style.FAINT, linewidth=5, label="mean of 24 directions"),
        ]
        if abs(seam) < half:
            handles.append(Line2D([], [], color=style.VERMILLION, linestyle="--", label="φ = ±π"))
        if pair is not None:
            words = f"neighbours, {pair:g} rad away"
            dots = Line2D([], [], color=style.ORANGE, marker="o", markeredgecolor="black", linestyle="", label=words)
            handles.append(dots)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def encoding_planes(
    encodings: Mapping[str, AnyEncoding],
    reference: tuple[float, float] = (0.0, 0.0),
    *,
    reach: float = 3.0,
    points: int = 181,
) -> Figure:
    """Similarity of a reference and every other place in φ and η, as a map; one panel an encoding of both.

    Args:
        encodings: Title -> encoding of "phi" and "eta" (`Fields`, `RotaryFields`).
        reference: φ (rad) and η; a cross.
        reach: η runs from -reach to reach.
        points: Cells along a side.

    Returns:
        The figure.
    """
    figure, axes = style.canvas(len(encodings), width=3.8, height=3.7)
    phi, eta = np.linspace(-np.pi, np.pi, points), np.linspace(-reach, reach, points)
    grid = [torch.from_numpy(one.ravel()).float() for one in np.meshgrid(phi, eta)]
    with style.context():
        for ax, (title, of) in zip(axes, encodings.items(), strict=True):
            one = {"phi": torch.tensor([reference[0]]), "eta": torch.tensor([reference[1]])}
            values = similarity(of, one, dict(zip(("phi", "eta"), grid, strict=True))).reshape(points, points)
            image = ax.imshow(
                values,
                extent=(-math.pi, math.pi, -reach, reach),
                origin="lower",
                aspect="auto",
                cmap=style.CONTINUOUS,
                vmin=-1,
                vmax=1,
            )
            ax.plot(*reference, marker="+", color=style.VERMILLION, markersize=12, markeredgewidth=2)
            angle_axis(ax, "φ [rad]")
            ax.set_title(title)
        axes[0].set_ylabel("η")
        figure.colorbar(image, ax=axes, label="similarity", ticks=[-1, 0, 1])
    return figure


def encoding_hits(ranks: Mapping[str, Ranks]) -> Figure:
    """Hits whose nearest of the same particle is among the most alike, against how many those are; a line an encoding.

    Both axes are shares: of hits, and of the hits of other particles that are more alike than the nearest. Dots:
    chance.

    Args:
        ranks: Title -> what `hit_ranks` gives.

    Returns:
        The figure.
    """
    figure, (ax,) = style.canvas(width=8.4, height=4.6)
    share = np.geomspace(3e-4, 1, 300)
    with style.context():
        for row, (title, found) in enumerate(ranks.items()):
            held = np.searchsorted(np.sort(found.above), share, side="right") / len(found.above)
            colour = style.CYCLE[row % len(style.CYCLE)]
            width = max(1.5, 6.0 - 1.5 * row)  # where lines lie on each other, the first are seen beside the last
            ax.semilogx(share, held, color=colour, linestyle=DASHES[row % len(DASHES)], linewidth=width, label=title)
        ax.semilogx(share, share, color=style.GREY, linestyle=":", label="chance")
        ax.set_xlim(share[0], 1)
        ax.set_ylim(0, 1.02)
        ax.set_xlabel("share of other particles' hits that are more alike")
        ax.set_ylabel("share of hits with at most so many")
        ax.grid(axis="y", color=style.PAPER)
        figure.legend(loc="outside right center")
    return figure


def _mark(ax: Axes, of: AnyEncoding, reference: float, pair: float) -> None:
    """The two neighbours `pair` rad away, with their similarities."""
    for away in (-pair, pair):
        value = float(similarity(of, [reference], turn(np.asarray([reference + away])))[0, 0])
        ax.plot([away], [value], marker="o", color=style.ORANGE, markeredgecolor="black", linestyle="", zorder=4)
        side = "left" if away < 0 else "right"
        x = 0.03 if away < 0 else 0.97
        ax.text(x, 0.03, f"{value:.2f}", transform=ax.transAxes, ha=side, va="bottom")  # type: ignore[arg-type]


def _grid(count: int, *, height: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Panels in rows of `ROW` and the figure; panels that are too many are hidden."""
    rows, columns = math.ceil(count / ROW), min(count, ROW)
    with style.context():
        figure = style.Figure(figsize=(max(3.3 * columns, 6.6), height * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, list(axes)


def angle_axis(ax: Axes, label: str, half: float = math.pi) -> None:
    """An axis in rad from -half to half, with ticks at quarters of a turn where it is the full one."""
    ax.set_xlim(-half, half)
    if half == math.pi:
        ax.xaxis.set_major_locator(FixedLocator([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _PI[round(2 * x / math.pi)]))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_xlabel(label)


_PI = {-2: "-π", -1: "-π/2", 0: "0", 1: "π/2", 2: "π"}
"""Ticks of a full turn, by their number of quarters."""
