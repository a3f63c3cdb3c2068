"""What the heads of a trained filter look at, in numbers, and what the filter loses when parts are taken away.

Layers and heads count from 1 in tables, as in the titles of figures.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepattn.data.schema import Event
from hepattn.metrics.by_particle import JudgedEvents
from hepattn.metrics.filter import roc_auc
from hepattn.models.hit_filter import HitFilter
from hepattn.models.knock_out import Sight, attention_layers, heads_silenced, score_seeing
from hepattn.plotting.attention_numbers import measure, on_own_particle
from hepattn.plotting.attention_pattern import Pattern, filter_patterns
from hepattn.plotting.attention_tokens import turn

__all__ = ["EFFICIENCY", "head_table", "own_by_distance", "own_of_hit", "sight_table", "silenced_table"]

EFFICIENCY = 0.98
"""Share of the target hits that is kept where a purity is given."""

SAMPLED = 256
"""Queries whose keys tell where the bins of distance end."""


class _Apart:
    """Bins of how far a key is from a query of the same hits: Δφ and Δη, and one bin of the query itself."""

    def __init__(self, pattern: Pattern, rows: Tensor, bins: int) -> None:
        assert pattern.key_eta is not None
        self.phi, self.eta, self.bins = pattern.key_phi, pattern.key_eta, bins
        near: list[NDArray[np.floating[Any]]] = []
        for part, keys in pattern.parts(rows[:: max(1, len(rows) // SAMPLED)]):
            seen = (pattern.allowed(part, keys) & (keys != part[:, None])).numpy()
            near.append(np.stack([np.abs(delta)[seen] for delta in self._deltas(part, keys)]))
        self.ends = np.quantile(np.concatenate(near, axis=1), np.arange(1, bins) / bins, axis=1).T

    def __len__(self) -> int:
        return 4 * self.bins**2 + 1

    def _deltas(self, rows: Tensor, keys: Tensor) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        query, key = rows.numpy()[:, None], keys.numpy()
        return turn(self.phi[key] - self.phi[query]), self.eta[key] - self.eta[query]

    def bin(self, rows: Tensor, keys: Tensor) -> Tensor:
        """(R, K), of every pair."""
        of_phi, of_eta = (
            2 * np.searchsorted(ends, np.abs(delta)) + (delta > 0)
            for ends, delta in zip(self.ends, self._deltas(rows, keys), strict=True)
        )
        return torch.from_numpy(2 * self.bins * of_phi + of_eta).where(keys != rows[:, None], len(self) - 1)


def own_by_distance(
    pattern: Pattern, *, bins: int = 24, rows: Sequence[int] | Tensor | None = None
) -> NDArray[np.float64]:
    """Share of attention on the other hits of the own particle, if a head knew no more than how far a key is: (H,).

    Hits of one particle lie close together, so a head that only looks at what is near finds them, too. This stand-in
    gives every key the weight that the head gives, in the mean over all queries, to keys as far away in φ and in η
    (and to the query itself), and each row sums to one. What a head has beyond it, it has not from distance alone.

    Args:
        pattern: hits looking at hits
        bins: of |Δφ| and of |Δη|, as many keys in each, on either side: 4 bins² in all
        rows: queries to take, None: all

    Returns:
        Of each head the mean over queries on a particle of two hits or more, as `measure` gives it for the head itself.

    Raises:
        ValueError: the pattern is of cross-attention, has learned tokens, or η of its keys is not known
    """
    if not pattern.hits or pattern.kinds or pattern.key_eta is None:
        raise ValueError(
            f"distances in φ and η are those of hits that look at hits alone, and {pattern.name} is another pattern"
        )
    chosen = torch.arange(len(pattern.q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
    apart = _Apart(pattern, chosen, bins)
    heads = range(pattern.heads)
    weight, count = (torch.zeros(n, len(apart), dtype=torch.float64) for n in (pattern.heads, 1))
    for part, keys in pattern.parts(chosen):
        index = apart.bin(part, keys).flatten()
        count += torch.bincount(index, pattern.allowed(part, keys).flatten(), minlength=len(apart))
        for head in heads:
            weight[head].index_add_(0, index, pattern.weights(part, keys, head).double().flatten())
    mean = weight / count.clamp(min=1)
    found: list[list[Tensor]] = [[] for _ in heads]
    for part, keys in pattern.parts(chosen):
        index, allowed = apart.bin(part, keys), pattern.allowed(part, keys)
        for head in heads:
            given = mean[head, index] * allowed
            share = given / given.sum(dim=1, keepdim=True).clamp(min=1e-30)
            found[head].append(on_own_particle(pattern, part, keys, share))
    return np.array([float(torch.cat(each).nanmean()) if each else math.nan for each in found])


def own_of_hit(patterns: Sequence[Pattern], row: int) -> NDArray[np.float64]:
    """Share of one query's attention on the other hits of its particle: (layers, heads), NaN where it has none.

    Args:
        patterns: of the layers, as many heads in each
        row: position of the query
    """
    rows, keys = torch.tensor([row]), torch.arange(len(patterns[0].k))
    shares = [
        [on_own_particle(one, rows, keys, one.rows(rows, head)).item() for head in range(one.heads)] for one in patterns
    ]
    return np.array(shares)


def head_table(net: HitFilter, events: Event | Iterable[Event], *, every: int = 1) -> pd.DataFrame:
    """Where each head of a filter looks: a row a head, the mean over events.

    Args:
        net: a filter with attention, whose mask is one for all layers
        events: with truth
        every: take every so many-th hit as a query, for long events

    Returns:
        Index (layer, head). Columns: "own particle [%]", the share of attention on the other hits of the query's
        particle; "by distance [%]", the same of a head that knows distances alone (`own_by_distance`); "chance [%]",
        of one that looks at all alike that the mask allows; "itself [%]"; "mean |Δφ| [rad]"; "entropy [bit]".

    Raises:
        ValueError: there is no event, or the filter has learned tokens or no attention
    """
    given = [events] if isinstance(events, Event) else list(events)
    if not given:
        raise ValueError("there is no event to look at")
    tables = []
    for event in given:
        patterns = filter_patterns(net, event)
        rows = patterns[0].sampled(every)
        chance = 100 * measure(patterns[0].uniform(), 0, rows=rows).own
        found = {}
        for layer, pattern in enumerate(patterns, start=1):
            near = own_by_distance(pattern, rows=rows)
            for head in range(pattern.heads):
                numbers = measure(pattern, head, rows=rows)
                found[layer, head + 1] = {
                    "own particle [%]": 100 * numbers.own,
                    "by distance [%]": 100 * near[head],
                    "chance [%]": chance,
                    "itself [%]": 100 * numbers.itself,
                    "mean |Δφ| [rad]": numbers.distance,
                    "entropy [bit]": numbers.entropy,
                }
        tables.append(pd.DataFrame.from_dict(found, orient="index"))
    mean = sum(tables[1:], start=tables[0]) / len(tables)
    return mean.rename_axis(index=["layer", "head"])


def silenced_table(net: HitFilter, events: Sequence[Event], *, layers: bool = False) -> pd.DataFrame:
    """What a filter loses when one of its heads says the same to all hits (`heads_silenced`): a row a head.

    Args:
        net: a filter with attention, not compiled
        events: with truth; the more, the smaller the errors
        layers: silence whole layers in place of heads

    Returns:
        Index (layer, head), or layer; the first row, of number 0, is the whole filter. Columns as of `sight_table`.
    """
    sizes = [one.num_heads for one in attention_layers(net)]
    every = {(layer + 1, head + 1): [(layer, head)] for layer, count in enumerate(sizes) for head in range(count)}
    whole = {layer + 1: [(layer, head) for head in range(count)] for layer, count in enumerate(sizes)}
    chosen: dict[Any, list[tuple[int, int]]] = {0: [], **whole} if layers else {(0, 0): [], **every}

    table = _losses({name: partial(_score_silent, net, heads) for name, heads in chosen.items()}, net, events)
    return table.rename_axis(index=["layer"] if layers else ["layer", "head"])


def _score_silent(net: HitFilter, heads: Sequence[tuple[int, int]], event: Event) -> Tensor:
    with heads_silenced(net, heads):
        return net.score(event)


def sight_table(net: HitFilter, events: Sequence[Event], *, seed: int = 0) -> pd.DataFrame:
    """What a filter loses when hits see a part only of what its mask allows, in every layer (`score_seeing`).

    Args:
        net: a filter with attention, without learned tokens
        events: with truth; the more, the smaller the errors
        seed: of what "fewer others" draws

    Returns:
        Index "all", then each of `Sight`. Columns: "AUC", the mean over events of the area under the ROC curve; "AUC
        lost" against the first row and its standard "error", from the spread over events (NaN of one); "wrong order
        [%]", 100 (1 - AUC): of the pairs of a target hit and another, those whose scores stand the wrong way round;
        "purity [%]" of all hits together, where 98 % of the target hits are kept.
    """
    ways: dict[Any, Callable[[Event], Tensor]] = {"all": net.score}
    ways |= {seen: partial(score_seeing, net, seen=seen, seed=seed) for seen in get_args(Sight)}
    return _losses(ways, net, events).rename_axis(index="seen")


def _losses(ways: dict[Any, Callable[[Event], Tensor]], net: HitFilter, events: Sequence[Event]) -> pd.DataFrame:
    """What filters that score in some ways reach, against the first of them; columns as of `sight_table`."""
    selection, found, aucs = net.config.selection, {}, {}
    for name, score in ways.items():
        scores = [score(event) for event in events]
        each = [JudgedEvents.of([one], [said], selection) for one, said in zip(events, scores, strict=True)]
        together = JudgedEvents.of(events, scores, selection)
        purity = together.at(together.threshold_at(EFFICIENCY)).purity
        aucs[name] = np.array([roc_auc(one.scores, one.target) for one in each])
        lost = next(iter(aucs.values())) - aucs[name]
        found[name] = {
            "AUC": aucs[name].mean(),
            "AUC lost": lost.mean(),
            "error": lost.std(ddof=1) / math.sqrt(len(lost)) if len(lost) > 1 else math.nan,
            "wrong order [%]": 100 * (1 - aucs[name].mean()),
            "purity [%]": 100 * purity.passed / purity.total,
        }
    return pd.DataFrame.from_dict(found, orient="index")
