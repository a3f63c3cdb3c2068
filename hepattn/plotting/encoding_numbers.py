"""How alike an encoding makes two directions, in numbers: against Δφ, across φ = ±π, far away, and for real hits."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepattn.attention.rotation import Rotation
from hepattn.data.schema import Event, Selection
from hepattn.encodings import ENCODINGS, Encoding, Fields, RandomFourier, Rotary, RotaryFields
from hepattn.metrics.intervals import Fraction
from hepattn.plotting.attention_pattern import phi_encoding
from hepattn.plotting.attention_tokens import turn

__all__ = [
    "KINDS",
    "Likeness",
    "Ranks",
    "around",
    "compare",
    "compare_hits",
    "encode",
    "encoding",
    "frequencies",
    "hit_ranks",
    "measure",
    "similarity",
]

AnyEncoding = Encoding | Rotary | RotaryFields
"""What is looked at: numbers that are added to a token, or angles that turn queries and keys."""

KINDS: tuple[str, ...] = (*ENCODINGS, "rotary", "rotary_phi")
"""Names of encodings of φ: those that are added, rotary with any frequencies, rotary with whole ones."""

CLOSE = 1e-4
"""Half the distance of the pairs across the seam that `measure` compares, rad."""

FAR = 0.5
"""From this |Δφ| on a likeness is one of places that have nothing to do with each other, rad."""

TIE = 1e-12
"""Similarities closer than this are the same number, but for the order of its sum."""

STEPS = 24 * 524
"""Directions in the full turn: half a milliradian apart, so that a wave of 1000 rad a rad has a dozen."""


def encoding(
    kind: str,
    channels: int,
    *,
    alpha: float | None = None,
    base: float | None = None,
    scale: float | None = None,
    seed: int = 0,
) -> Encoding | Rotary:
    """The encoding of φ called `kind`, one of `KINDS`.

    Args:
        kind: Its name.
        channels: d.
        alpha: Highest frequency, rad a rad; None: that encoding's own. Random features have none.
        base: Ratio of the highest to the lowest frequency, None: that encoding's own. Random features have none.
        scale: Width of the frequencies of random features, as `RandomFourier` takes it; None: its own.
        seed: Of random features.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(map(repr, KINDS))}, not {kind!r}")
    if kind.startswith("rotary"):
        return Rotary(channels, alpha=64.0 if alpha is None else alpha, base=base, periodic=kind == "rotary_phi")
    if kind.endswith("fourier"):
        return ENCODINGS[kind](channels, seed=seed, **({} if scale is None else {"scale": scale}))
    made = phi_encoding(kind, channels, alpha, base)
    assert made is not None
    return made


def encode(of: AnyEncoding, x: NDArray[Any] | Tensor | Mapping[str, Tensor]) -> NDArray[np.float64]:
    """What is compared, (n, d): the encoding of x, or a query that its angles turn (pairs of length 1).

    Args:
        of: The encoding.
        x: Coordinates, (n,) or name -> (n,): rad for φ. `RandomFourier` of several reads names in their order.
    """
    place: Any = x
    if not isinstance(x, Mapping):
        place = torch.as_tensor(x, dtype=torch.float32)
    elif not isinstance(of, Fields | RotaryFields):
        place = torch.stack(list(x.values()), dim=-1)
    with torch.no_grad():
        if isinstance(of, Rotary | RotaryFields):
            angles = of(place)
            query = torch.full((len(angles), 1, of.channels), math.sqrt(0.5))
            values = Rotation.of(angles).turn(query)[:, 0]
        else:
            values = of(place)
    return np.asarray(values.double().numpy())


def similarity(of: AnyEncoding, x: Any, y: Any) -> NDArray[np.float64]:
    """Cosine of the encodings of x (n,) and y (m,): (n, m), 1 = the same.

    For a rotary encoding it is the mean over pairs of channels of `cos(omega (x - y))`, the score of a query and a key
    with equal channels, over the largest.
    """
    first, second = (_unit(encode(of, one)) for one in (x, y))
    return first @ second.T


def around(of: AnyEncoding, points: int = 24) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Similarity of some directions and all others, against Δφ.

    Args:
        of: An encoding of φ.
        points: Directions that others are compared with, evenly spaced from -π + π / points.

    Returns:
        Δφ (n,), ascending from -π in steps of half a milliradian, zero among them, and the similarities (points, n).

    Raises:
        ValueError: The points are none, or do not share the n directions evenly.
    """
    if points < 1 or STEPS % (2 * points):
        raise ValueError(f"points must divide {STEPS // 2}, got {points}: 24, 12 or 8 do")
    stride = STEPS // points
    here = np.arange(points) * stride + stride // 2
    all_of = _unit(encode(of, np.arange(STEPS) / STEPS * 2 * np.pi - np.pi))
    alike = all_of[here] @ all_of.T
    turned = np.stack([np.roll(row, STEPS // 2 - at) for row, at in zip(alike, here, strict=True)])
    return (np.arange(STEPS) - STEPS // 2) / STEPS * 2 * np.pi, turned


def frequencies(of: Encoding | Rotary) -> NDArray[np.float64]:
    """Its frequencies in rad a rad, ascending, without sign."""
    unit = 2 * math.pi if isinstance(of, RandomFourier) and not of.periodic else 1.0
    found = of.B[0] if isinstance(of, RandomFourier) else of.omega
    assert isinstance(found, Tensor)
    return np.sort(np.abs(unit * np.asarray(found.double().numpy())))


@dataclass(frozen=True)
class Likeness:
    """An encoding of φ in numbers; distances are those around the full turn."""

    low: float
    """Lowest frequency, rad a rad."""
    high: float
    """Highest frequency, rad a rad."""
    width: float
    """|Δφ| at which the mean similarity is first half-way from 1 to its mean over the turn; rad, NaN: all are alike."""
    ordered: float
    """Of three random directions, how often the nearer of two to the third is the more similar; 0.5 = by chance."""
    alias: float
    """Largest similarity of two directions that are farther apart than `FAR`; mean over directions."""
    seam: float
    """Similarity of φ = π - 0.0001 and -π + 0.0001, less the mean of pairs as near elsewhere; 0 = no seam."""


def measure(
    of: Encoding | Rotary,
    *,
    points: int = 24,
    draws: int = 3000,
    known: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Likeness:
    """The numbers of an encoding of φ.

    Args:
        of: The encoding.
        points: Directions that others are compared with, as in `around`.
        draws: Triples of directions that are drawn, with a fixed seed.
        known: What `around` gives for them, where it is at hand.
    """
    omega = frequencies(of)
    away, alike = around(of, points) if known is None else known
    mean = alike.mean(axis=0)
    below = np.flatnonzero((away >= 0) & (mean < (1 + mean.mean()) / 2 - TIE))
    rng = np.random.default_rng(0)
    one, two, three = rng.uniform(-np.pi, np.pi, (3, draws))
    vectors = [_unit(encode(of, x)) for x in (one, two, three)]
    nearer = np.abs(turn(one - two)) < np.abs(turn(one - three))
    liker = (vectors[0] * vectors[1]).sum(1) > (vectors[0] * vectors[2]).sum(1)
    here = (np.arange(points) + 0.5) / points * 2 * np.pi - np.pi
    inside = np.diag(similarity(of, here - CLOSE, here + CLOSE)).mean()
    across = float(similarity(of, [np.pi - CLOSE], [-np.pi + CLOSE])[0, 0])
    return Likeness(
        low=float(omega[0]),
        high=float(omega[-1]),
        width=float(away[below[0]]) if len(below) else math.nan,
        ordered=float((nearer == liker).mean()),
        alias=float(alike[:, np.abs(away) > FAR].max(axis=1).mean()),
        seam=across - float(inside),
    )


def compare(encodings: Mapping[str, Encoding | Rotary]) -> pd.DataFrame:
    """`measure` of each as a table: one row an encoding."""
    rows = {}
    for name, of in encodings.items():
        found = measure(of)
        rows[name] = {
            "lowest [rad/rad]": f"{found.low:.2f}",
            "highest [rad/rad]": f"{found.high:.0f}",
            "half-width [rad]": f"{found.width:.4f}",
            "nearer is liker": f"{100 * found.ordered:.0f} %",
            "largest when far": f"{found.alias:.2f}",
            "step at the seam": f"{round(found.seam, 2) + 0.0:+.2f}",  # never -0.00
        }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True, eq=False)
class Ranks:
    """How an encoding ranks, for each hit on a chosen particle, the nearest other hit of that particle."""

    above: NDArray[np.float64]
    """(n,) hits of other particles, and of none, that are more alike (half of those that are as alike), as a share."""
    seam: NDArray[np.bool_]
    """(n,) True: the hit and the nearest of its particle lie on both sides of φ = ±π."""

    def among(self, share: float, *, seam: bool = False) -> Fraction:
        """Hits whose nearest has at most this share of others above it; with `seam` of those across φ = ±π."""
        chosen = self.above[self.seam] if seam else self.above
        return Fraction(int((chosen <= share).sum()), len(chosen))


def hit_ranks(
    event: Event, encodings: Mapping[str, AnyEncoding], selection: Selection | None = None
) -> dict[str, Ranks]:
    """Are the hits of one particle more alike than others? Ranks for each encoding.

    Each hit of a selected particle, in the selected volumes, has one *nearest* hit: of the same particle, there, and
    nearest in space (mm). All hits of the event that are not of that particle are the others.

    Args:
        event: With truth.
        encodings: Title -> encoding of φ, or of the fields "phi" (rad), "eta", "r" and "z" (m), or `RandomFourier` of
            the first two, three or four of these.
        selection: Of particles.

    Raises:
        ValueError: The event has no truth, or no particle with two hits is selected.
    """
    selection = selection or Selection()
    first, nearest = _neighbours(event, selection)
    hits, particle = event.hits, event.hits.particle
    assert particle is not None
    fields = {"phi": hits.phi, "eta": hits.eta, "r": hits.r / 1000, "z": hits.z / 1000}
    places = {name: torch.from_numpy(np.asarray(values)).float() for name, values in fields.items()}
    seam = np.abs(hits.phi[first] - hits.phi[nearest]) > np.pi
    found = {}
    for name, of in encodings.items():
        read: Any = places if isinstance(of, Fields | RotaryFields) else places["phi"]
        if isinstance(of, RandomFourier) and of.coordinates > 1:
            read = dict(itertools.islice(places.items(), of.coordinates))
        values = _unit(encode(of, read))
        above = []
        for part in np.array_split(np.arange(len(first)), 1 + len(first) // 256):
            others = particle != particle[first[part], None]
            alike = values[first[part]] @ values.T
            best = (values[first[part]] * values[nearest[part]]).sum(axis=1, keepdims=True)
            more = np.where(np.abs(alike - best) < TIE, 0.5, alike > best)
            above.append((more * others).sum(axis=1) / np.maximum(others.sum(axis=1), 1))
        found[name] = Ranks(np.concatenate(above), seam)
    return found


def compare_hits(ranks: Mapping[str, Ranks], share: float = 0.01) -> pd.DataFrame:
    """`hit_ranks` as a table: one row an encoding; intervals are 68.3 % ones, as if hits were independent."""
    rows = {}
    for name, found in ranks.items():
        rows[name] = {
            "others less alike, mean": f"{100 * (1 - found.above.mean()):.2f} %",
            f"nearest among the {100 * share:g} % most alike": _percent(found.among(share)),
            "the same across φ = ±π": _percent(found.among(share, seam=True)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _percent(share: Fraction) -> str:
    low, high = share.interval
    return f"{100 * share.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {share.total:,}" if share.total else "-"


def _neighbours(event: Event, selection: Selection) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of hits on selected particles that have another hit, and of the nearest hit of the same particle."""
    mine, particle = selection.hits(event), event.hits.particle
    assert particle is not None
    xyz = np.stack([event.hits.x, event.hits.y, event.hits.z], axis=1).astype(np.float64)
    first: list[NDArray[np.int64]] = []
    nearest: list[NDArray[np.int64]] = []
    for one in np.unique(particle[mine]):
        rows = np.flatnonzero(mine & (particle == one))
        if len(rows) > 1:
            apart = np.linalg.norm(xyz[rows, None] - xyz[None, rows], axis=2)
            np.fill_diagonal(apart, np.inf)
            first.append(rows)
            nearest.append(rows[apart.argmin(axis=1)])
    if not first:
        raise ValueError(f"no particle of event {event.event_id} has two hits and is reconstructable: {selection}")
    return np.concatenate(first), np.concatenate(nearest)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
