"""What a pattern of attention says in numbers: maps in φ, shares, distances, entropies, and the step at φ = ±π."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepattn.plotting.attention_pattern import Pattern
from hepattn.plotting.attention_tokens import turn
from hepattn.sequence import Role

__all__ = [
    "STRONGEST",
    "Numbers",
    "across",
    "alike",
    "binned",
    "change",
    "compare",
    "measure",
    "on_own_particle",
    "preference",
    "shares",
    "strongest",
    "strongest_table",
]

STRONGEST = 40
"""Lines that are drawn for a hit: the keys with the largest weights."""


@dataclass(frozen=True)
class Numbers:
    """A pattern in numbers: means over queries, which are hits (or queries of cross-attention), no learned tokens."""

    own: float
    """Share of attention on the other hits of the query's particle; over queries on a particle of two hits or more."""
    itself: float
    """Share on the query itself; NaN in cross-attention."""
    distance: float
    """Mean |Δφ| of the keys that are hits, weighted with attention; rad, at most π."""
    entropy: float
    """Of a row, in bits: 2^entropy is the number of keys that a query looks at, as it were; at most log2 n."""


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
        (bins, bins) or (Nq, bins); over the full turn a row sums to one. A row is NaN where no query lies. Behind the
        bins of φ one more for each kind of learned token (`Pattern.kinds`), wherever these stand.
    """
    place = _place(pattern, bins, centre, half)
    columns = bins + len(pattern.kinds)
    to = torch.nn.functional.one_hot(torch.from_numpy(place) + 1, columns + 1)[:, 1:].double()
    count = columns if pattern.hits else len(pattern.q)
    origin = torch.from_numpy(place if pattern.hits else np.arange(count))
    chosen = torch.arange(len(pattern.q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
    chosen = chosen[origin[chosen] >= 0]
    sums = torch.zeros(count, len(pattern.k))
    for part, keys, weights in pattern.chunks(head, chosen):
        here, place = origin[part].unique(return_inverse=True)
        sums[here[:, None], keys] += torch.zeros(len(here), len(keys)).index_add_(0, place, weights)
    taken = torch.bincount(origin[chosen], minlength=count).double()
    return np.asarray(((sums.double() @ to) / taken.where(taken > 0, torch.nan)[:, None]).numpy())


def alike(pattern: Pattern, bins: int = 64, **options: Any) -> NDArray[np.float64]:
    """`binned` of attention to all keys alike that the mask allows: its shape, or one row for all without a mask."""
    if pattern.mask is not None:
        return binned(pattern.uniform(), bins, **options)
    index = _place(pattern, bins, options.get("centre", 0.0), options.get("half", math.pi))
    return np.bincount(index[index >= 0], minlength=bins + len(pattern.kinds))[None] / len(pattern.k)


def preference(
    pattern: Pattern,
    bins: int = 64,
    head: int | None = None,
    *,
    chance: NDArray[np.float64] | None = None,
    **options: Any,
) -> NDArray[np.float64]:
    """`binned` over the same of attention to all keys alike that the mask allows: 1 = none; NaN: no key there.

    Args:
        pattern: Of any length.
        bins: As in `binned`, like head and the options.
        head: One head, or None for the mean of all.
        chance: What `alike` gives, where it is at hand.
        options: rows, centre, half, as in `binned`.
    """
    shares = binned(pattern, bins, head, **options)
    chance = alike(pattern, bins, **options) if chance is None else chance
    return shares / np.where(chance > 0, chance, np.nan)


def change(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2(after / before); NaN where neither has attention."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log2(after) - np.log2(before))


def strongest(
    pattern: Pattern, row: int, count: int = STRONGEST, head: int | None = None, *, only_hits: bool = False
) -> tuple[Tensor, Tensor]:
    """The keys that query `row` looks at most: (weights, positions in the sequence), largest first.

    Args:
        pattern: Of any length.
        row: Position of the query.
        count: How many keys, at most.
        head: One head, or None for the mean of all.
        only_hits: Leave learned tokens out; `shares` says what they get.
    """
    keys = torch.from_numpy(np.flatnonzero(pattern.is_hit) if only_hits else np.arange(len(pattern.k)))
    weights, place = pattern.rows([row], head)[0, keys].topk(min(count, len(keys)))
    return weights, keys[place]


def strongest_table(pattern: Pattern, row: int, count: int = 10, head: int | None = None) -> pd.DataFrame:
    """The keys that query `row` looks at most, by name: one a row, largest weight first.

    Args:
        pattern: Of any length.
        row: Position of the query.
        count: How many keys, at most; keys without any weight are left out.
        head: One head, or None for the mean of all.

    Returns:
        Columns "token" ("hit", "register", "CLS" ...), "number" (from 0 among the tokens of that name, in the order of
        the sequence), "weight [%]", "Δφ [rad]" (NaN of learned tokens) and "own particle".
    """
    weights, keys = (found.numpy() for found in strongest(pattern, row, count, head))
    keys, weights = keys[weights > 0], weights[weights > 0]
    roles = np.zeros(len(pattern.k), dtype=np.int64) if pattern.roles is None else pattern.roles
    number = np.zeros(len(roles), dtype=np.int64)
    for kind in Role:
        number[roles == kind] = np.arange(int((roles == kind).sum()))
    columns = {
        "token": [Role(int(role)).title for role in roles[keys]],
        "number": number[keys],
        "weight [%]": np.round(100 * weights.astype(np.float64), 3),
        "Δφ [rad]": np.round(turn(pattern.key_phi[keys] - pattern.query_phi[row]), 3),
        "own particle": pattern.mine(row)[keys],
    }
    return pd.DataFrame(columns)


def shares(
    pattern: Pattern, head: int | None = None, *, rows: Sequence[int] | Tensor | None = None
) -> dict[Role, float]:
    """Share of attention that goes to each kind of learned token, mean over queries; empty where there are none.

    Args:
        pattern: Of any length.
        head: One head, or None for the mean of all.
        rows: Queries to take, None: all.
    """
    if pattern.roles is None:
        return {}
    sums, count = dict.fromkeys(pattern.kinds, 0.0), 0
    for part, keys, weights in pattern.chunks(head, rows):
        count += len(part)
        for kind in sums:
            sums[kind] += float(weights[:, torch.from_numpy(pattern.roles[keys.numpy()] == kind)].double().sum())
    return {kind: total / count if count else math.nan for kind, total in sums.items()}


def measure(pattern: Pattern, head: int | None = None, *, rows: Sequence[int] | Tensor | None = None) -> Numbers:
    """Numbers of a pattern; with `head` None of the mean of all heads.

    Args:
        pattern: Of any length.
        head: One head, or None.
        rows: Queries to take, None: all. In self-attention the hits among them count.
    """
    is_hit = torch.from_numpy(pattern.is_hit)
    if pattern.kinds and pattern.hits:
        chosen = torch.arange(len(pattern.q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        rows = chosen[is_hit[chosen]]
    query_phi, key_phi = torch.from_numpy(pattern.query_phi).float(), torch.from_numpy(pattern.key_phi).float()
    found: list[Tensor] = []
    for part, keys, weights in pattern.chunks(head, rows):
        distance = (key_phi[keys] - query_phi[part, None]).abs()
        distance = torch.minimum(distance, 2 * math.pi - distance)
        itself = (weights * (keys == part[:, None])).sum(dim=1) if pattern.hits else torch.full((len(part),), torch.nan)
        entropy = -torch.xlogy(weights, weights).sum(dim=1) / math.log(2)
        far = (weights * distance.nan_to_num(0.0)).sum(dim=1)
        if pattern.kinds:
            far = far / (weights * is_hit[keys]).sum(dim=1)
        columns = [on_own_particle(pattern, part, keys, weights), itself, far, entropy]
        found.append(torch.stack(columns, dim=1))
    mean = torch.cat(found).double().nanmean(dim=0).tolist() if found else [math.nan] * 4
    return Numbers(*mean)


def on_own_particle(pattern: Pattern, rows: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """Of some weights (R, K), the share on the other hits of each query's particle: (R,).

    NaN where a query is on no particle, or in self-attention on one that has no other hit. Rows and keys are positions.
    """
    asks, owner = torch.from_numpy(pattern.query_particle)[rows], torch.from_numpy(pattern.key_particle)[keys]
    own = owner == asks[:, None]
    if pattern.hits:
        own &= keys != rows[:, None]
    return (weights * own).sum(dim=1).where(torch.from_numpy(pattern.in_company)[rows], torch.nan)


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
        rows = pattern.sampled(every)
        each = [measure(pattern, h, rows=rows) for h in heads]
        found[name] = {
            "own particle [%]": 100 * float(np.mean([one.own for one in each])),
            "itself [%]": 100 * float(np.mean([one.itself for one in each])),
            "mean |Δφ| [rad]": float(np.mean([one.distance for one in each])),
            "entropy [bit]": float(np.mean([one.entropy for one in each])),
        }
        if pattern.kinds:
            hits = rows[torch.from_numpy(pattern.is_hit)[rows]] if pattern.hits else rows
            to = shares(pattern, None if name == "uniform" else head, rows=hits)
            found[name] |= {f"{kind.title} [%]": 100 * share for kind, share in to.items()}
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
    for part, keys, weights in pattern.chunks(head, torch.from_numpy(near)):
        phi, key_phi = pattern.query_phi[part.numpy()][:, None], pattern.key_phi[keys.numpy()]
        distance = np.abs(turn(key_phi - phi))
        far = (distance >= width) & (distance < 3 * width)
        for beyond in (0, 1):
            chosen = torch.from_numpy(far & ((np.sign(key_phi) != np.sign(phi)) == bool(beyond)))
            sums[beyond] += float(weights[chosen].sum())
            pairs[beyond] += int(chosen.sum())
    if not all(pairs) or not sums[0]:
        return math.nan
    return (sums[1] / pairs[1]) / (sums[0] / pairs[0])


def _place(pattern: Pattern, bins: int, centre: float, half: float) -> NDArray[np.int64]:
    """Bin of each key: of φ (-1: outside), and behind these one for each kind of learned token."""
    place = _bin(pattern.key_phi, bins, centre, half)
    for index, kind in enumerate(pattern.kinds):
        place[pattern.roles == kind] = bins + index
    return place


def _bin(phi: NDArray[Any], bins: int, centre: float, half: float) -> NDArray[np.int64]:
    """Bin of each angle in [centre - half, centre + half]; -1 outside, and of NaN."""
    there = ~np.isnan(phi)
    place = np.floor((turn(np.where(there, phi, centre) - centre) + half) / (2 * half) * bins).astype(np.int64)
    if half >= np.pi:
        place = np.clip(place, 0, bins - 1)
    place[~there] = -1
    return np.where((place >= 0) & (place < bins), place, -1)
