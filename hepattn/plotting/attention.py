"""Draw who looks at whom, weighted: maps of attention in φ, one hit's attention on the detector, and its numbers.

A `Pattern` holds the queries and keys of one attention layer on one event, in φ order, never the weights of all pairs:
these are computed a few rows at a time, so that 100,000 hits are as drawable as 2,000. Angles in rad, lengths in mm.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from torch import Tensor

from hepattn.attention.module import Attention, record_attention
from hepattn.attention.weights import attention_weights
from hepattn.data.features import hit_features
from hepattn.data.schema import Event
from hepattn.encodings import Encoding, make_encoding
from hepattn.masks import Mask
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting import style

CONTENT = ("r", "z", "eta", "theta", "size_u", "size_v", "log_charge")
"""Features of a hit that don't tell its φ: what an untrained layer knows of it without an encoding."""

BLOCK = 1 << 22
"""Weights that are held at one time (16 MiB)."""

STRONGEST = 40
"""Lines that are drawn for a hit: the keys with the largest weights."""

REACHES = (400.0, 1100.0)
"""mm: how far a view along the beam goes; few steps, so that a moving picture keeps its scale."""

TICKS = ([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], ["−π", "−π/2", "0", "π/2", "π"])

OWN, OTHER, BEFORE, AFTER = style.VERMILLION, style.SKY, style.GREY, style.BLUE


@dataclass(frozen=True, eq=False)
class Pattern:
    """Attention of one layer on one event: queries and keys, both in φ order."""

    name: str
    """What it is, for titles."""
    q: Tensor
    """(Nq, H, D), as a kernel gets it."""
    k: Tensor
    """(Nk, H, D)."""
    query_phi: NDArray[np.floating[Any]]
    """(Nq,) rad, ascending."""
    key_phi: NDArray[np.floating[Any]]
    """(Nk,) rad, ascending."""
    query_xy: NDArray[np.floating[Any]]
    """(Nq, 2) mm; a query that is no hit stands outside the detector, in its direction."""
    key_xy: NDArray[np.floating[Any]]
    """(Nk, 2) mm."""
    query_particle: NDArray[np.integer[Any]]
    """(Nq,) the particle of a query; -1: none, or not known."""
    key_particle: NDArray[np.integer[Any]]
    """(Nk,)."""
    mask: Mask | None = None
    """Who may look at whom; None: all at all."""
    hits: bool = True
    """True: query i and key i are the same hit. False: cross-attention."""

    @property
    def heads(self) -> int:
        """H."""
        return self.q.shape[1]

    @property
    def rows_drawn(self) -> int | None:
        """Rows of its map: one a query where queries are no hits; None: as many as bins."""
        return None if self.hits else len(self.q)

    def rows(self, rows: Sequence[int] | Tensor, head: int | None = None) -> Tensor:
        """Weights of some queries: (R, Nk) float32, each row summing to one (or zero, where nothing may be seen).

        Args:
            rows: Positions of R queries in φ order.
            head: One head, or None for the mean of all.
        """
        self._check(head)
        q, k = (self.q, self.k) if head is None else (self.q[:, head : head + 1], self.k[:, head : head + 1])
        return attention_weights(q, k, mask=self.mask, rows=rows).mean(dim=0)

    def chunks(self, head: int | None = None, rows: Sequence[int] | Tensor | None = None) -> Iterator[Any]:
        """Pairs of (positions (R,), weights (R, Nk)) that cover `rows` (None: all), at most `BLOCK` weights each."""
        chosen = torch.arange(len(self.q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        width = max(1, len(self.k) * (self.heads if head is None else 1))
        for part in chosen.split(max(1, BLOCK // width)):
            yield part, self.rows(part, head)

    def nearest(self, phi: float) -> int:
        """Position of the query whose direction is nearest to phi (rad), around the full turn."""
        return int(np.abs(turn(self.query_phi - phi)).argmin())

    def uniform(self) -> Self:
        """The same mask without any preference: the random baseline of every number."""
        return replace(self, name="uniform", q=torch.zeros_like(self.q[:, :1]), k=torch.zeros_like(self.k[:, :1]))

    def _check(self, head: int | None) -> None:
        if head is not None and not 0 <= head < self.heads:
            raise ValueError(f"head must lie in 0 ... {self.heads - 1}, got {head}")


@dataclass(frozen=True)
class Numbers:
    """A pattern in numbers: means over queries."""

    own: float
    """Share of attention on the other hits of the query's particle; over queries on a particle of two hits or more."""
    itself: float
    """Share on the query itself; NaN in cross-attention."""
    distance: float
    """Mean |Δφ| of the keys, weighted with attention; rad, at most π."""
    entropy: float
    """Of a row, in bits: 2^entropy is the number of keys that a query looks at, as it were; at most log2 n."""


def turn(angle: NDArray[Any]) -> NDArray[Any]:
    """Angles (rad) brought into [-π, π)."""
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


def phi_encoding(name: str, channels: int, alpha: float | None = None, base: float | None = None) -> Encoding | None:
    """The encoding of φ called `name` (see `hepattn.encodings`), or None for "none".

    Args:
        name: "none" or a name in `hepattn.encodings.ENCODINGS`.
        channels: Outputs.
        alpha: Highest frequency in rad a rad; of random Fourier features the width of their frequencies. None: that
            encoding's own.
        base: Ratio of the highest to the lowest frequency, None: that encoding's own; random features have none.
    """
    if name == "none":
        return None
    if name in {"fourier", "periodic_fourier"}:
        unit = 1.0 if name == "periodic_fourier" else 2 * math.pi
        return make_encoding(name, channels, **({} if alpha is None else {"scale": alpha / unit}))
    given = {"alpha": alpha, "base": base}
    return make_encoding(name, channels, **{key: value for key, value in given.items() if value is not None})


def layer_pattern(
    event: Event,
    encoding: Encoding | str | None = None,
    *,
    tied: bool = False,
    queries: int | None = None,
    dim: int = 64,
    heads: int = 4,
    seed: int = 0,
    name: str | None = None,
) -> Pattern:
    """Attention of one untrained layer whose inputs are `content + encoding(φ)`.

    The content is a random linear map of `CONTENT`, standardised over the event and as large as an encoding (mean
    square 1/2). Queries and keys are RMS-normed in each head, so that scores are of order one without training.

    Args:
        event: The hits.
        encoding: Added to the content of queries and keys: an encoding of `dim` channels, its name, or None.
        tied: W_q = W_k: a score is then the likeness of two projected inputs. False: two random matrices.
        queries: None: hits look at hits. A number: so many queries, evenly spaced in φ from -π, with random content,
            look at the hits.
        dim: Channels of an input.
        heads: Heads; a multiple of it is dim.
        seed: Of the layer and of the random content.
        name: For titles; None: the encoding's.

    Raises:
        ValueError: An event without hits, or an encoding of another number of channels.
    """
    if not len(event.hits):
        raise ValueError("an event without hits has no attention")
    encode = phi_encoding(encoding, dim) if isinstance(encoding, str) else encoding
    if encode is not None and encode.channels != dim:
        raise ValueError(f"an encoding of {dim} channels is added here, not one of {encode.channels}")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = Attention(dim, heads, qk_norm="rms")
    keys = _hits(event)
    names = CONTENT if event.hits.clusters is not None else CONTENT[:4]
    features = hit_features(event, names)[torch.from_numpy(keys.order)]
    features = (features - features.mean(dim=0)) / features.std(dim=0, correction=0).clamp(min=1e-6)
    x = _sized(features @ torch.randn(len(names), dim, generator=generator))
    asking, c = keys, x
    if queries is not None:
        asking = _directions(queries, keys)
        c = _sized(torch.randn(queries, dim, generator=generator))
    if encode is not None:
        c = c + encode(torch.from_numpy(asking.phi).float())
        x = x + encode(torch.from_numpy(keys.phi).float())
    with torch.no_grad():
        if tied:
            layer.qkv.weight[dim : 2 * dim] = layer.qkv.weight[:dim]
            layer.qkv.bias[dim : 2 * dim] = layer.qkv.bias[:dim]
        q = layer.q_norm(layer.qkv(c)[:, :dim].unflatten(-1, (heads, -1)))
        k = layer.k_norm(layer.qkv(x)[:, dim : 2 * dim].unflatten(-1, (heads, -1)))
    title = name or (encoding if isinstance(encoding, str) else type(encoding).__name__ if encoding else "none")
    return _pattern(title, q, k, asking, keys, None)


def filter_patterns(net: HitFilter, event: Event, *, encoded: bool = True, name: str = "hit filter") -> list[Pattern]:
    """Attention of every layer of a hit filter on an event.

    Args:
        net: A filter with attention.
        event: The hits; where the filter reads only some volumes, these.
        encoded: False takes the positional encodings away: their mean over the event stands in the place of each
            hit's. The features stay, and these may tell φ too (x, y).
        name: For titles.

    Raises:
        ValueError: The filter has no attention.
    """
    inside = net.config.selection.in_volumes(event.hits)
    event = event if inside.all() else event.keep(inside)
    keys = _hits(event)
    training = net.training
    taken = None if encoded else net.encoding.register_forward_hook(_same_for_all)
    try:
        net.eval()
        with torch.no_grad(), record_attention(net) as calls:
            net.logits(net.inputs(event))
    finally:
        net.train(training)
        if taken is not None:
            taken.remove()
    return [
        _pattern(f"{name}, layer {i}", call.q.float().cpu(), call.k.float().cpu(), keys, keys, call.mask)
        for i, call in enumerate(calls, start=1)
    ]


def binned(
    pattern: Pattern,
    bins: int = 64,
    head: int | None = None,
    *,
    rows: Sequence[int] | Tensor | None = None,
    centre: float = 0.0,
    half: float = math.pi,
) -> NDArray[np.float64]:
    """Attention between bins of φ: entry (a, b) is the mean share that a query in bin a gives to all keys in bin b.

    Args:
        pattern: Of any length: weights are computed a few rows at a time.
        bins: Equal ones in [centre - half, centre + half]; of queries that are no hits there are as many as queries.
        head: One head, or None for the mean of all.
        rows: Queries to take, None: all. Every tenth is enough for a picture of 100,000 hits.
        centre: rad.
        half: rad, up to π: the full turn.

    Returns:
        (bins, bins) or (Nq, bins); over the full turn a row sums to one. A row is NaN where no query lies.
    """
    key_bin = torch.from_numpy(_bin(pattern.key_phi, bins, centre, half))
    to = torch.nn.functional.one_hot(key_bin + 1, bins + 1)[:, 1:].float()
    count = bins if pattern.hits else len(pattern.q)
    origin = torch.from_numpy(_bin(pattern.query_phi, bins, centre, half) if pattern.hits else np.arange(count))
    chosen = torch.arange(len(pattern.q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
    sums, taken = torch.zeros(count, bins, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for part, weights in pattern.chunks(head, chosen[origin[chosen] >= 0]):
        sums.index_add_(0, origin[part], (weights @ to).double())
        taken.index_add_(0, origin[part], torch.ones(len(part), dtype=torch.float64))
    return np.asarray((sums / taken.where(taken > 0, torch.nan)[:, None]).numpy())


def preference(pattern: Pattern, bins: int = 64, head: int | None = None, **options: Any) -> NDArray[np.float64]:
    """`binned` over the same of attention to all keys alike that the mask allows: 1 = none; NaN: no key there."""
    shares = binned(pattern, bins, head, **options)
    if pattern.mask is None:
        centre, half = options.get("centre", 0.0), options.get("half", math.pi)
        index = _bin(pattern.key_phi, bins, centre, half)
        alike = np.bincount(index[index >= 0], minlength=bins) / len(pattern.k)
    else:
        alike = binned(pattern.uniform(), bins, **options)
    return shares / np.where(alike > 0, alike, np.nan)


def strongest(pattern: Pattern, row: int, count: int = STRONGEST, head: int | None = None) -> tuple[Tensor, Tensor]:
    """The keys that query `row` looks at most: (weights, positions in φ order), largest first."""
    weights, keys = pattern.rows([row], head)[0].topk(min(count, len(pattern.k)))
    return weights, keys


def measure(pattern: Pattern, head: int | None = None, *, rows: Sequence[int] | Tensor | None = None) -> Numbers:
    """Numbers of a pattern; with `head` None of the mean of all heads.

    Args:
        pattern: Of any length.
        head: One head, or None.
        rows: Queries to take, None: all.
    """
    query_phi, key_phi = torch.from_numpy(pattern.query_phi).float(), torch.from_numpy(pattern.key_phi).float()
    asks, owner = torch.from_numpy(pattern.query_particle), torch.from_numpy(pattern.key_particle)
    size = torch.bincount(owner[owner >= 0], minlength=1)
    found: list[Tensor] = []
    for part, weights in pattern.chunks(head, rows):
        distance = (key_phi - query_phi[part, None]).abs()
        distance = torch.minimum(distance, 2 * math.pi - distance)
        itself = weights[torch.arange(len(part)), part] if pattern.hits else torch.full((len(part),), torch.nan)
        mine = asks[part]
        own = (weights * (owner == mine[:, None])).sum(dim=1) - (itself if pattern.hits else 0.0)
        has = (mine >= 0) & (size[mine.clamp(0, len(size) - 1)] > 1)
        entropy = -torch.xlogy(weights, weights).sum(dim=1) / math.log(2)
        columns = [own.where(has, torch.nan), itself, (weights * distance).sum(dim=1), entropy]
        found.append(torch.stack(columns, dim=1))
    mean = torch.cat(found).double().nanmean(dim=0).tolist() if found else [math.nan] * 4
    return Numbers(*mean)


def compare(patterns: Mapping[str, Pattern], head: int | None = None, every: int = 1) -> pd.DataFrame:
    """Numbers of several patterns, one a row, and last those of attention to all keys alike.

    Args:
        patterns: Name -> pattern, of the same event.
        head: One head, or None for the mean of the heads' numbers.
        every: Take every so many-th query.
    """
    found = {}
    for name, pattern in [*patterns.items(), *[("uniform", p.uniform()) for p in list(patterns.values())[:1]]]:
        heads = [head] if head is not None and name != "uniform" else range(pattern.heads)
        each = [measure(pattern, h, rows=torch.arange(0, len(pattern.q), every)) for h in heads]
        found[name] = {
            "own particle [%]": 100 * float(np.mean([one.own for one in each])),
            "itself [%]": 100 * float(np.mean([one.itself for one in each])),
            "mean |Δφ| [rad]": float(np.mean([one.distance for one in each])),
            "entropy [bit]": float(np.mean([one.entropy for one in each])),
        }
    return pd.DataFrame.from_dict(found, orient="index").dropna(axis="columns", how="all").round(2)


def across(pattern: Pattern, head: int | None = None, *, width: float = 0.05) -> float:
    """How much of attention gets across the seam at φ = ±π: about 1 = as much as on this side, 0 = none.

    Of queries within `width` of the seam: the mean weight of keys at |Δφ| in [width, 3 width) beyond the seam, over
    that of keys as far away on the query's own side. An encoding that closes need not give exactly 1: HEPFormer's
    periodic one is continuous at ±π, but the likeness of two angles depends there on more than their difference.

    Args:
        pattern: Of any length.
        head: One head, or None for the mean of all.
        width: rad.

    Returns:
        The ratio; NaN where there are no such queries or keys.
    """
    near = np.flatnonzero(np.pi - np.abs(pattern.query_phi) < width)
    sums, pairs = [0.0, 0.0], [0, 0]
    for part, weights in pattern.chunks(head, torch.from_numpy(near)):
        phi = pattern.query_phi[part.numpy()][:, None]
        distance = np.abs(turn(pattern.key_phi - phi))
        far = (distance >= width) & (distance < 3 * width)
        for beyond in (0, 1):
            chosen = torch.from_numpy(far & ((np.sign(pattern.key_phi) != np.sign(phi)) == bool(beyond)))
            sums[beyond] += float(weights[chosen].sum())
            pairs[beyond] += int(chosen.sum())
    if not all(pairs) or not sums[0]:
        return math.nan
    return (sums[1] / pairs[1]) / (sums[0] / pairs[0])


# -- panels: artists are made once and moved, by figures and by explorers alike -------------------------


class MapPanel:
    """A map of attention between bins of φ, on a logarithmic scale around 1 = attention to all keys alike."""

    def __init__(
        self,
        ax: Axes,
        title: str,
        *,
        bins: int = 64,
        queries: int | None = None,
        limit: float = 16,
        change: bool = False,
    ) -> None:
        self.ax = ax
        self.queries = queries
        norm = Normalize(-4, 4) if change else LogNorm(1 / limit, limit)
        self.image = ax.imshow(
            np.full((queries or bins, bins), np.nan),
            origin="lower",
            cmap="PuOr_r" if change else style.CONTINUOUS,
            norm=norm,
            interpolation="nearest",
            aspect="auto",
        )
        self.line = ax.axhline(0, color="black" if change else "white", linewidth=1.2, linestyle="--", visible=False)
        ax.set_facecolor(style.FAINT)
        ax.set_xlabel("φ of the key [rad]")
        ax.set_ylabel("φ of the query [rad]")
        ax.set_title(title)
        self.centre, self.half = math.nan, math.nan
        self.frame(0.0, math.pi)

    def frame(self, centre: float, half: float) -> None:
        """The range of φ that the map covers; of queries that are no hits always the full turn."""
        if (centre, half) == (self.centre, self.half):
            return
        self.centre, self.half = centre, half
        low, high = centre - half, centre + half
        bottom, top = low, high
        if self.queries is not None:  # they stand at -π, -π + 2π / Q ...: in the middle of rows
            bottom, top = -np.pi - np.pi / self.queries, np.pi - np.pi / self.queries
        self.image.set_extent((low, high, bottom, top))
        for axis, whole in ((self.ax.xaxis, half == math.pi), (self.ax.yaxis, half == math.pi or self.queries)):
            if whole:
                axis.set_ticks(*TICKS)
            else:
                ticks = np.round(centre + half * np.array([-0.8, -0.4, 0, 0.4, 0.8]), 2)
                axis.set_ticks(ticks, [f"{tick:.2f}" for tick in ticks])
        self.ax.set_xlim(low, high)
        self.ax.set_ylim(bottom, top)

    def bare(self) -> None:
        """Without the vertical axis' words: another map stands to the left."""
        self.ax.set_ylabel("")
        self.ax.tick_params(axis="y", labelleft=False)

    def show(self, values: NDArray[np.float64], title: str | None = None, at: float | None = None) -> None:
        """Shows a map; `at`: φ of a query that is marked by a line."""
        self.image.set_data(values)
        if title is not None:
            self.ax.set_title(title)
        self.line.set_visible(at is not None)
        if at is not None:
            self.line.set_ydata([at, at])


class DetectorPanel:
    """One query's attention in the x-y plane: lines to the keys that it looks at most, its own particle ringed."""

    def __init__(self, ax: Axes, title: str) -> None:
        self.ax = ax
        self.hits = ax.scatter([], [], s=3, c=style.FAINT, linewidths=0, rasterized=True)
        self.lines = LineCollection([], zorder=2)
        ax.add_collection(self.lines)
        self.rings = ax.scatter([], [], s=55, facecolors="none", edgecolors=style.BLACK, linewidths=1.1, zorder=3)
        self.star = ax.scatter([], [], s=150, c=style.ORANGE, marker="*", edgecolors="black", linewidths=0.6, zorder=4)
        ax.set_aspect("equal", adjustable="box")
        ax.set_xlabel("x [mm]")
        ax.set_ylabel("y [mm]")
        ax.set_title(title)

    def show(self, pattern: Pattern, row: int, head: int | None, title: str | None = None) -> None:
        """Shows the attention of query `row`."""
        weights, keys = (found.numpy()[::-1] for found in strongest(pattern, row, head=head))  # the strongest on top
        if pattern.hits:
            weights, keys = weights[keys != row], keys[keys != row]
        mine = _mine(pattern, row)
        self.hits.set_offsets(pattern.key_xy)
        self.rings.set_offsets(pattern.key_xy[mine])
        self.star.set_offsets(pattern.query_xy[row])
        start = np.broadcast_to(pattern.query_xy[row], (len(keys), 2))
        self.lines.set_segments(list(np.stack([start, pattern.key_xy[keys]], axis=1)))
        share = weights / max(float(weights.max(initial=0.0)), 1e-30)
        colours = np.where(mine[keys, None], to_rgba(OWN), to_rgba(OTHER))
        colours[:, 3] = 0.35 + 0.65 * share
        self.lines.set_color(list(colours))
        self.lines.set_linewidth(list(0.7 + 2.3 * share))
        shown = np.concatenate([pattern.key_xy[keys[share > 0.1]], pattern.key_xy[mine], pattern.query_xy[[row]]])
        needed = 1.05 * float(np.abs(shown).max())
        reach = next((one for one in REACHES if one >= needed), needed)
        self.ax.set_xlim(-reach, reach)
        self.ax.set_ylim(-reach, reach)
        if title is not None:
            self.ax.set_title(title)


class AnglePanel:
    """Attention of one query against Δφ = φ(key) - φ(query), a step curve a pattern, over the share of keys there."""

    def __init__(
        self, ax: Axes, labels: Sequence[str], colours: Sequence[str], *, bins: int = 48, reach: float = math.pi
    ) -> None:
        self.ax = ax
        self.edges = np.linspace(-reach, reach, bins + 1)
        blank = np.full(bins, 1e-9)
        self.keys = ax.stairs(blank, self.edges, fill=True, color=style.FAINT, label="share of the keys")
        self.curves = [
            ax.stairs(blank, self.edges, baseline=None, color=colour, linewidth=1.6, label=label)
            for label, colour in zip(labels, colours, strict=True)
        ]
        ax.set_yscale("log")
        ax.set_ylim(1e-3, 12)
        ax.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
        ax.minorticks_off()
        ax.set_xlim(-reach, reach)
        if reach == math.pi:
            ax.set_xticks(*TICKS)
        ax.set_xlabel("Δφ = φ(key) − φ(query) [rad]")
        ax.set_ylabel(f"share of attention, bins of {2 * reach / bins:.2g} rad")
        ax.legend(loc="upper left", handlelength=1.2, ncols=2, columnspacing=1.0)

    def show(self, patterns: Sequence[Pattern], rows: Sequence[int], head: int | None) -> None:
        """Shows the attention of one query of each pattern."""
        for curve, pattern, row in zip(self.curves, patterns, rows, strict=True):
            delta = turn(pattern.key_phi - pattern.query_phi[row])
            values = np.histogram(delta, self.edges, weights=pattern.rows([row], head)[0].numpy())[0]
            curve.set_data(np.maximum(values, 1e-9))
            self.keys.set_data(np.maximum(np.histogram(delta, self.edges)[0] / len(delta), 1e-9))


def mark_legend(figure: Figure, *, own: bool = True) -> None:
    """The marks of `DetectorPanel` under a figure; `own`: queries have particles."""
    handles = [
        Line2D([], [], linestyle="", marker="*", markersize=13, color=style.ORANGE, label="the query"),
        Line2D([], [], color=OTHER, label=f"its {STRONGEST} strongest keys; wide and dark: more attention"),
    ]
    if own:
        handles[1:1] = [
            Line2D(
                [], [], linestyle="", marker="o", markersize=8, mfc="none", mec="black", label="hit of its particle"
            ),
            Line2D([], [], color=OWN, label="to its own particle"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


# -- figures --------------------------------------------------------------------------------------------


def attention_maps(
    patterns: Mapping[str, Pattern],
    head: int | None = 0,
    *,
    bins: int = 64,
    difference: bool = False,
    every: int = 1,
    centre: float = 0.0,
    half: float = math.pi,
    limit: float = 16,
) -> Figure:
    """Maps of attention between bins of φ, side by side.

    Args:
        patterns: Title -> pattern.
        head: One head, or None for the mean of all.
        bins: Bins of φ.
        difference: With two patterns a third panel: log2 of the second over the first, that is the difference of
            their colours; 0 = the same.
        every: Take every so many-th query, for long events.
        centre: Middle of the range of φ, rad; a range may run across ±π.
        half: Half of that range, rad; π: the full turn.
        limit: Colours run from 1 / limit to limit, times attention to all keys alike that the mask allows.

    Returns:
        The figure: one panel a pattern, then the difference, then the colour bars.

    Raises:
        ValueError: No pattern, or a difference of another number than two.
    """
    if not patterns or (difference and len(patterns) != 2):
        raise ValueError(f"maps of one pattern or more, a difference of two: got {len(patterns)}")
    count = len(patterns) + difference
    figure, axes = style.canvas(count, width=4.5 if count < 4 else 3.3, height=4.5 if count < 4 else 4.0)
    with style.context():
        maps, panels = [], []
        for ax, (title, pattern) in zip(axes, patterns.items(), strict=False):
            rows = torch.arange(0, len(pattern.q), every)
            maps.append(preference(pattern, bins, head, rows=rows, centre=centre, half=half))
            panels.append(MapPanel(ax, title, bins=bins, queries=pattern.rows_drawn, limit=limit))
        map_bar(figure, panels[0].image, axes[: len(patterns)])
        if difference:
            maps.append(change(*maps))
            panels.append(MapPanel(axes[-1], "difference", bins=bins, queries=pattern.rows_drawn, change=True))
            change_bar(figure, panels[-1].image, axes[-1])
        for panel, values in zip(panels, maps, strict=True):
            panel.frame(centre, half)
            panel.show(values)
        for panel in panels[1:]:
            panel.bare()
    return figure


def change(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2(after / before); NaN where neither has attention."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log2(after) - np.log2(before))


def map_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes]) -> None:
    """The colour bar of maps."""
    bar = figure.colorbar(image, ax=list(axes), label="attention / uniform attention", shrink=0.9, pad=0.015)
    power = round(math.log2(image.get_clim()[1] or 16) / 2)
    ticks = [2.0 ** (power * i) for i in (-2, -1, 0, 1, 2)]
    bar.set_ticks(ticks, labels=[f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
    bar.minorticks_off()


def change_bar(figure: Figure, image: AxesImage, ax: Axes) -> None:
    """The colour bar of a difference."""
    figure.colorbar(image, ax=ax, label="log₂(after / before)", shrink=0.9, pad=0.03, ticks=[-4, -2, 0, 2, 4])


def attention_rows(
    patterns: Mapping[str, Pattern], row: int, head: int | None = 0, *, reach: float = math.pi
) -> Figure:
    """One query's attention under several patterns: lines on the detector, and against Δφ.

    Args:
        patterns: Title -> pattern, of the same event; at most seven.
        row: Position of the query in φ order (`Pattern.nearest` finds one).
        head: One head, or None for the mean of all.
        reach: |Δφ| up to which the last panel goes, rad.

    Returns:
        The figure: one x-y panel a pattern, and the panel of Δφ.

    Raises:
        ValueError: There is no such query.
    """
    chosen = list(patterns.values())
    for pattern in chosen:
        if not 0 <= row < len(pattern.q):
            raise ValueError(f"query {row} is not one of the {len(pattern.q)} of {pattern.name!r}")
    figure, axes = style.canvas(len(chosen) + 1, width=4.6, height=5.6, ratios=[1.0] * len(chosen) + [1.1])
    with style.context():
        for ax, (title, pattern) in zip(axes, patterns.items(), strict=False):
            DetectorPanel(ax, title).show(pattern, row, head)
        angles = AnglePanel(axes[-1], list(patterns), style.CYCLE[: len(chosen)], reach=reach)
        angles.show(chosen, [row] * len(chosen), head)
        for ax in axes[1:-1]:
            ax.set_ylabel("")
        mark_legend(figure, own=bool(_mine(chosen[0], row).any()))
        figure.suptitle(f"the query at φ = {chosen[0].query_phi[row]:.2f} rad, {len(chosen[0].k):,} hits")
    return figure


def attention_seam(
    patterns: Mapping[str, Pattern], head: int | None = None, *, reach: float = 0.5, bins: int = 20, width: float = 0.05
) -> Figure:
    """Attention of the queries just below φ = +π, on both sides of the seam: the axis runs on to π + reach.

    Args:
        patterns: Title -> pattern, of the same event.
        head: One head, or None for the mean of all.
        reach: Drawn on either side of the seam, rad.
        bins: Points of a curve.
        width: Queries in (π - width, π) are averaged, rad.

    Returns:
        The figure; one curve a pattern, 1 = attention to all keys alike.

    Raises:
        ValueError: No query lies there.
    """
    figure, (ax,) = style.canvas(width=8.5, height=4.2)
    edges = np.linspace(np.pi - reach, np.pi + reach, bins + 1)
    with style.context():
        for (title, pattern), colour in zip(patterns.items(), style.CYCLE, strict=False):
            near = np.flatnonzero(np.pi - pattern.query_phi < width)
            if not len(near):
                raise ValueError(f"no query of {title!r} lies within {width} rad below π")
            row = sum(w.sum(dim=0) for _, w in pattern.chunks(head, torch.from_numpy(near))).numpy() / len(near)
            phi = np.where(pattern.key_phi < 0, pattern.key_phi + 2 * np.pi, pattern.key_phi)
            count = np.histogram(phi, edges)[0]
            found = np.histogram(phi, edges, weights=row)[0] * len(pattern.k)
            mean = np.where(count > 0, found / np.maximum(count, 1), np.nan)
            middle = (edges[1:] + edges[:-1]) / 2
            label = f"{title} ({across(pattern, head, width=width):.2f})"
            ax.plot(middle, mean, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
        ax.axvline(np.pi, color="black", linewidth=1, linestyle=":")
        ax.axhline(1, color=style.GREY, linewidth=1)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(_plain))
        ax.set_xlabel("φ of the key [rad]; beyond the dotted line φ − 2π, next to −π")
        ax.set_ylabel("attention / uniform attention")
        ax.set_title(f"queries within {width} rad below φ = +π")
        figure.legend(loc="outside right upper", title="(across the seam\n / on this side)")
    return figure


# -- parts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Hits, or directions, in φ order. `order`: indices in the event."""

    phi: NDArray[np.floating[Any]]
    xy: NDArray[np.floating[Any]]
    particle: NDArray[np.integer[Any]]
    order: NDArray[np.integer[Any]]


def _hits(event: Event) -> _Tokens:
    order = np.argsort(event.hits.phi.astype(np.float32), kind="stable")
    owner = np.full(len(order), -1) if event.hits.particle is None else event.hits.particle[order]
    xy = np.stack([event.hits.x, event.hits.y], axis=1)[order]
    return _Tokens(event.hits.phi[order], xy, owner.astype(np.int64), order)


def _directions(count: int, keys: _Tokens) -> _Tokens:
    if count < 1:
        raise ValueError(f"queries must be at least 1, got {count}")
    phi = -np.pi + 2 * np.pi * np.arange(count) / count
    rim = 1.06 * float(np.hypot(*keys.xy.T).max())
    return _Tokens(phi, rim * np.stack([np.cos(phi), np.sin(phi)], axis=1), np.full(count, -1), np.arange(count))


def _pattern(name: str, q: Tensor, k: Tensor, asking: _Tokens, keys: _Tokens, mask: Mask | None) -> Pattern:
    same = asking is keys
    return Pattern(
        name, q, k, asking.phi, keys.phi, asking.xy, keys.xy, asking.particle, keys.particle, mask=mask, hits=same
    )


def _sized(x: Tensor) -> Tensor:
    """Scaled to mean square 1/2, that of sines and cosines."""
    return x * (0.5 / x.square().mean().clamp(min=1e-12)).sqrt()


def _plain(value: float, _: int) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def _same_for_all(_: torch.nn.Module, __: Any, encoded: Tensor) -> Tensor:
    return encoded.mean(dim=0, keepdim=True).expand_as(encoded)


def _bin(phi: NDArray[Any], bins: int, centre: float, half: float) -> NDArray[np.int64]:
    """Bin of each angle in [centre - half, centre + half]; -1 outside."""
    place = np.floor((turn(phi - centre) + half) / (2 * half) * bins).astype(np.int64)
    if half >= np.pi:
        return np.clip(place, 0, bins - 1)
    return np.where((place >= 0) & (place < bins), place, -1)


def _mine(pattern: Pattern, row: int) -> NDArray[np.bool_]:
    """(Nk,) hits of the query's particle; none where it has no particle."""
    owner = int(pattern.query_particle[row])
    return pattern.key_particle == owner if owner >= 0 else np.zeros(len(pattern.k), dtype=bool)
