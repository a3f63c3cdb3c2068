"""Take parts of a trained model's attention away: weights say where a head looks, and what is lost without it what for.

Heads are silenced as in "Are sixteen heads really better than one?" (arXiv:1905.10650), with their mean in place of
zeros (arXiv:2211.00593), so that the layers behind see inputs of the kind that they know.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hepattn.attention.module import Attention
from hepattn.data.ordering import hit_order
from hepattn.data.schema import Event
from hepattn.masks import Dense, Mask
from hepattn.models.encoder import Encoder
from hepattn.models.hit_filter import HitFilter

__all__ = ["Sight", "attention_layers", "heads_silenced", "score_seeing", "sight"]

Sight = Literal["own particle", "other particles", "fewer others", "itself"]
"""Which hits a hit may still look at, itself always among them: those of its own particle; all but these; all but as
many others as it sees of its own particle, drawn at random; none else."""

PAIRS = 1 << 28
"""True and False that are written out for one event: 256 MiB, 16,384 hits."""


def attention_layers(model: nn.Module) -> list[Attention]:
    """The attention modules of a model, first to last.

    Raises:
        ValueError: there is none
    """
    found = [module for module in model.modules() if isinstance(module, Attention)]
    if not found:
        raise ValueError(f"{type(model).__name__} contains no Attention: there are no heads to take away")
    return found


@contextmanager
def heads_silenced(model: nn.Module, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """Inside it some heads tell every token the same: the mean over all tokens of a call stands for what each was told.

    Args:
        model: not compiled, since a graph goes on as it was traced
        heads: (layer, head), both from 0, layers as in `attention_layers`

    Raises:
        ValueError: there is no such head, or no attention, or the model is compiled
    """
    layers = attention_layers(model)
    if hasattr(model, "_orig_mod") or any(isinstance(one, Encoder) and one.compiled for one in model.modules()):
        raise ValueError("a compiled model can't be silenced in parts: take the model as it was before it was compiled")
    of_layer: dict[int, set[int]] = {}
    for layer, head in heads:
        if not 0 <= layer < len(layers) or not 0 <= head < layers[layer].num_heads:
            sizes = ", ".join(str(one.num_heads) for one in layers)
            raise ValueError(f"there is no head {head} in layer {layer}: the layers have {sizes} heads, counted from 0")
        of_layer.setdefault(layer, set()).add(head)
    hooks = [
        layers[layer].output.register_forward_pre_hook(partial(_mean_of_heads, sorted(chosen), layers[layer].num_heads))
        for layer, chosen in of_layer.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mean_of_heads(chosen: list[int], count: int, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
    (told,) = arguments
    by_head = told.unflatten(-1, (count, -1)).clone()  # (T, H, D)
    by_head[:, chosen] = by_head[:, chosen].mean(dim=0)
    return (by_head.flatten(-2),)


def score_seeing(net: HitFilter, event: Event, seen: Sight, *, seed: int = 0) -> Tensor:
    """`HitFilter.score` where in every layer each hit sees a part only of what the filter's mask allows.

    Args:
        net: a filter with attention, without registers and CLS tokens
        event: with truth
        seen: see `Sight`; noise has no particle, so that all others are "other particles" to it
        seed: of what "fewer others" draws

    Raises:
        ValueError: the event has no truth or more than 16,384 hits in the filter's volumes, or the filter has learned
            tokens or no attention
    """
    encoder = net.encoder
    if not isinstance(encoder, Encoder):
        raise ValueError("this filter looks at each hit alone (attention=False): there is nothing to hide from it")  # noqa: TRY004
    hits = event.hits.take(net.config.selection.in_volumes(event.hits))
    if hits.particle is None:
        raise ValueError("who is on the same particle is not known: give an event with truth")
    particle = torch.from_numpy(hits.particle[hit_order(hits, "phi")].astype(np.int64))
    mask = encoder.mask
    allowed = Dense(sight(particle, seen, mask, seed=seed))
    try:
        encoder.set_mask(allowed if mask is None else mask & allowed)
        return net.score(event)
    finally:
        encoder.set_mask(mask)


def sight(particle: Tensor, seen: Sight, mask: Mask | None = None, *, seed: int = 0) -> Tensor:
    """Who may look at whom, from the particles alone: (n, n) bool, to be taken beside `mask`.

    Args:
        particle: (n,) of each hit in the order of the sequence; negative = noise, which is on no particle
        seen: see `Sight`
        mask: what "fewer others" counts and draws in; None: all hits
        seed: of the draw

    Raises:
        ValueError: `seen` is none of `Sight`, or there are more than 16,384 hits
    """
    n = len(particle)
    if seen not in get_args(Sight):
        raise ValueError(f"seen is one of {', '.join(map(repr, get_args(Sight)))}, not {seen!r}")
    if n * n > PAIRS:
        raise ValueError(f"{n:,} hits are {n * n:,} pairs, and {PAIRS:,} are written out: keep a part of the event")
    itself = torch.eye(n, dtype=torch.bool)
    if seen == "itself":
        return itself
    own = (particle[:, None] == particle) & (particle >= 0)
    if seen == "own particle":
        return own | itself
    if seen == "other particles":
        return ~own | itself
    allowed = torch.ones_like(own) if mask is None else mask.dense(n)
    others = allowed & ~own & ~itself
    lost = (allowed & own & ~itself).sum(dim=1, keepdim=True)
    drawn = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).masked_fill_(~others, 2.0)
    last = drawn.sort(dim=1).values.gather(1, (lost - 1).clamp(min=0))
    return ~(others & (drawn <= last) & (lost > 0))
