"""`Pattern`: the queries and keys of one attention layer on one event, of an untrained layer or of a hit filter.

Never the weights of all pairs: these are computed a few rows at a time, so that 100,000 hits are as drawable as 2,000.
Everything is in φ order; angles in rad, lengths in mm. Learned tokens among the hits (registers, CLS) keep their places
in the sequence and their names; they have no φ and no place on the detector: NaN.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hepattn.attention.module import Attention, AttentionCall, record_attention
from hepattn.attention.weights import attention_weights
from hepattn.data.features import hit_features
from hepattn.data.schema import Event
from hepattn.encodings import Encoding, make_encoding
from hepattn.masks import Mask
from hepattn.masks.base import Place, Span
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting.attention_tokens import Tokens, among, directions, hits_of, standing_at, turn
from hepattn.sequence import Role

__all__ = ["EncodedSide", "Pattern", "call_pattern", "filter_patterns", "layer_pattern", "phi_encoding"]

EncodedSide = Literal["both", "queries", "keys", "none"]
"""What an encoding is added to before queries and keys are made of it."""

CONTENT = ("r", "z", "eta", "theta", "size_u", "size_v", "log_charge")
"""Features of a hit that don't tell its φ: what an untrained layer knows of it without an encoding."""

BLOCK = 1 << 18
"""Weights that are held at one time (1 MiB, so that they stay in a core's cache)."""

RUN = 64
"""Queries at a time under a mask, and keys in a run that may be left out."""


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
    """(Nq,) rad; NaN: a learned token."""
    key_phi: NDArray[np.floating[Any]]
    """(Nk,) rad; NaN: a learned token."""
    query_xy: NDArray[np.floating[Any]]
    """(Nq, 2) mm; a query of cross-attention stands outside the detector, in its direction."""
    key_xy: NDArray[np.floating[Any]]
    """(Nk, 2) mm; NaN: a learned token."""
    query_particle: NDArray[np.integer[Any]]
    """(Nq,) the particle of a query; -1: none, or not known."""
    key_particle: NDArray[np.integer[Any]]
    """(Nk,)."""
    mask: Mask | None = None
    """Who may look at whom; None: all at all."""
    hits: bool = True
    """True: query i and key i are the same hit (or learned token). False: cross-attention."""
    roles: NDArray[np.integer[Any]] | None = None
    """(Nk,) the `Role` of each key, and where `hits` of each query; None: all are hits."""
    key_eta: NDArray[np.floating[Any]] | None = None
    """(Nk,) pseudorapidity; NaN: a learned token. None: not known."""

    @property
    def heads(self) -> int:
        """H."""
        return self.q.shape[1]

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """(Nk,) True: the key is a hit, and no learned token."""
        return np.ones(len(self.k), dtype=bool) if self.roles is None else self.roles == Role.HIT

    @property
    def kinds(self) -> tuple[Role, ...]:
        """The kinds of learned tokens among the keys."""
        return tuple(kind for kind in Role if kind != Role.HIT and self.roles is not None and kind in self.roles)

    @property
    def rows_drawn(self) -> NDArray[np.floating[Any]] | None:
        """φ (rad) of the rows of its map, one a query, in cross-attention; None: as many rows as bins."""
        return None if self.hits else self.query_phi

    def rows(self, rows: Sequence[int] | Tensor, head: int | None = None) -> Tensor:
        """Weights of some queries: (R, Nk) float32, each row summing to one (or zero, where nothing may be seen).

        Args:
            rows: Positions of R queries in φ order.
            head: One head, or None for the mean of all.
        """
        self._check(head)
        q, k = (self.q, self.k) if head is None else (self.q[:, head : head + 1], self.k[:, head : head + 1])
        return attention_weights(q, k, mask=self.mask, rows=rows).mean(dim=0)

    def chunks(
        self, head: int | None = None, rows: Sequence[int] | Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Parts of the map that cover `rows` (None: all), at most `BLOCK` weights each: (rows, keys, weights).

        Rows (R,) and keys (K,) are positions, keys ascending; weights (R, K) float32. Keys that none of the rows may
        see can be left out, so that a window costs what it holds.
        """
        for part, keys in self.parts(rows, self.heads if head is None else 1):
            yield part, keys, self.weights(part, keys, head)

    def parts(self, rows: Sequence[int] | Tensor | None = None, heads: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and keys of `chunks`, without the weights; `heads`: of how many the weights are held at one time."""
        chosen = torch.arange(len(self.q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        size = max(1, BLOCK // max(1, len(self.k) * heads))
        for part in chosen.split(size if self.mask is None else min(size, RUN)):
            yield part, self._seen(part)

    def _seen(self, rows: Tensor) -> Tensor:
        """Positions of the keys in all runs of `RUN` that one of the rows may see; never none."""
        n = len(self.k)
        if self.mask is None or not len(rows):
            return torch.arange(n)
        first = torch.arange(0, n, RUN)[None]
        asking = Span(rows.min().reshape(1, 1), rows.max().reshape(1, 1))
        some, _ = self.mask.relate(asking, Span(first, (first + RUN - 1).clamp(max=n - 1)), Place(len(self.q), n))
        keys = (first[some.expand_as(first)][:, None] + torch.arange(RUN)).flatten()
        return keys[keys < n] if len(keys) else torch.arange(1)

    def weights(self, rows: Tensor, keys: Tensor, head: int | None = None) -> Tensor:
        """(R, K) weights of some pairs, where no other keys have any; the mean of all heads unless one is asked for."""
        self._check(head)
        heads = slice(None) if head is None else slice(head, head + 1)
        q, k = self.q[rows, heads].float() * self.q.shape[-1] ** -0.5, self.k[keys, heads].float()
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0)
        if self.mask is None:
            return scores.softmax(dim=-1).mean(dim=0)
        return scores.masked_fill_(~self.allowed(rows, keys), -torch.inf).softmax(dim=-1).nan_to_num_(0.0).mean(dim=0)

    def allowed(self, rows: Tensor, keys: Tensor) -> Tensor:
        """(R, K) bool, True: the query at one of these positions may look at the key at the other."""
        if self.mask is None:
            return torch.ones(len(rows), len(keys), dtype=torch.bool)
        return self.mask.allowed(rows[:, None], keys[None], Place(len(self.q), len(self.k)))

    def nearest(self, phi: float) -> int:
        """Position of the query whose direction is nearest to phi (rad), around the full turn."""
        return int(np.nanargmin(np.abs(turn(self.query_phi - phi))))

    def sampled(self, every: int) -> Tensor:
        """Positions of every so many-th query; of each kind of token, so that none is missed. Ascending."""
        if self.roles is None or not self.hits:
            return torch.arange(0, len(self.q), every)
        each = [np.flatnonzero(self.roles == kind)[::every] for kind in (Role.HIT, *self.kinds)]
        return torch.from_numpy(np.sort(np.concatenate(each)))

    def uniform(self) -> Self:
        """The same mask without any preference: the random baseline of every number."""
        return replace(self, name="uniform", q=torch.zeros_like(self.q[:, :1]), k=torch.zeros_like(self.k[:, :1]))

    @cached_property
    def in_company(self) -> NDArray[np.bool_]:
        """(Nq,) True: two keys or more lie on the query's particle."""
        size = np.bincount(
            self.key_particle[self.key_particle >= 0], minlength=int(self.query_particle.max(initial=0)) + 1
        )
        return (self.query_particle >= 0) & (size[self.query_particle.clip(0)] > 1)

    def mine(self, row: int) -> NDArray[np.bool_]:
        """(Nk,) hits of the query's particle; none where it has no particle."""
        owner = int(self.query_particle[row])
        return self.key_particle == owner if owner >= 0 else np.zeros(len(self.k), dtype=bool)

    def _check(self, head: int | None) -> None:
        if head is not None and not 0 <= head < self.heads:
            raise ValueError(f"head must lie in 0 ... {self.heads - 1}, got {head}")


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
    queries: int | ArrayLike | None = None,
    encoded: EncodedSide = "both",
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
            look at the hits. Numbers (Nq,): such queries at these φ (rad), which are put into φ order.
        encoded: What the encoding is added to: both, queries alone, keys alone, or none of them.
        dim: Channels of an input.
        heads: Heads; a multiple of it is dim.
        seed: Of the layer and of the random content.
        name: For titles; None: the encoding's.

    Raises:
        ValueError: An event without hits, an encoding of another number of channels, or no query.
    """
    if not len(event.hits):
        raise ValueError("an event without hits has no attention")
    if encoded not in get_args(EncodedSide):
        raise ValueError(f"encoded is one of {', '.join(get_args(EncodedSide))}, not {encoded!r}")
    encode = phi_encoding(encoding, dim) if isinstance(encoding, str) else encoding
    if encode is not None and encode.channels != dim:
        raise ValueError(f"an encoding of {dim} channels is added here, not one of {encode.channels}")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = Attention(dim, heads, qk_norm="rms")
    keys = hits_of(event)
    names = CONTENT if event.hits.clusters is not None else CONTENT[:4]
    features = hit_features(event, names)[torch.from_numpy(keys.order)]
    features = (features - features.mean(dim=0)) / features.std(dim=0, correction=0).clamp(min=1e-6)
    x = _sized(features @ torch.randn(len(names), dim, generator=generator))
    asking, c = keys, x
    if queries is not None:
        asking = directions(queries, keys)
        c = _sized(torch.randn(len(asking.phi), dim, generator=generator))
    if encode is not None and encoded in {"both", "queries"}:
        c = c + encode(torch.from_numpy(asking.phi).float())
    if encode is not None and encoded in {"both", "keys"}:
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
            hit's, rotary angles included, so that no two hits are turned against each other. The features stay, and
            these may tell φ too (x, y).
        name: For titles.

    Raises:
        ValueError: The filter has no attention.
    """
    inside = net.config.selection.in_volumes(event.hits)
    event = event if inside.all() else event.keep(inside)
    keys = hits_of(event)
    training = net.training
    told = [] if encoded else [part for part in (net.encoding, net.rotary) if part is not None]
    hooks = [part.register_forward_hook(_same_for_all) for part in told]
    try:
        net.eval()
        with torch.no_grad(), record_attention(net) as calls:
            net.logits(net.inputs(event))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return [_of_call(f"{name}, layer {i}", call, keys) for i, call in enumerate(calls, start=1)]


def call_pattern(
    call: AttentionCall, event: Event, name: str | None = None, *, query_phi: ArrayLike | None = None
) -> Pattern:
    """Attention of a recorded call on one event, whose hits the model had in φ order.

    Args:
        call: From `hepattn.record_attention`; learned tokens are known by the call's `roles`.
        event: The hits that the model saw, in any order.
        name: For titles; None: the call's.
        query_phi: (Nq,) rad, of a call of cross-attention: where its queries stand, such as
            `event.hits.phi` of the hits that they are. In self-attention queries are the hits: None.

    Raises:
        ValueError: The call is of several events (of a decoder in blocks each block is one: record it with block=None,
            or see `hepattn.plotting.query_attention`), has a distance bias (which a pattern does not draw), has another
            number of hits, or is of cross-attention and `query_phi` does not say where each query stands.
    """
    if query_phi is None:
        return _of_call(name or call.name, call, hits_of(event))
    return _of_cross(name or call.name, call, hits_of(event), np.asarray(query_phi, dtype=np.float64))


def _of_call(name: str, call: AttentionCall, hits: Tokens) -> Pattern:
    if call.layout.batch != 1 or call.kv_layout is not call.layout or call.bias is not None:
        raise ValueError(
            f"a pattern is drawn of self-attention in one event, without a distance bias; {call.name} was recorded "
            f"with {call.layout.batch} events, {'a' if call.bias is not None else 'no'} bias, and "
            f"{'itself' if call.kv_layout is call.layout else 'another sequence'} for its keys; of cross-attention "
            "query_phi says where the queries stand"
        )
    roles = None if call.roles is None else call.roles.cpu().numpy()
    tokens = _told(call.name, hits, roles, len(call.q))
    pattern = _pattern(name, call.q.float().cpu(), call.k.float().cpu(), tokens, tokens, call.mask)
    return replace(pattern, roles=roles)


def _of_cross(name: str, call: AttentionCall, hits: Tokens, phi: NDArray[np.float64]) -> Pattern:
    if call.layout.batch != 1 or call.kv_layout is call.layout or call.bias is not None:
        raise ValueError(
            f"query_phi belongs to cross-attention in one event, without a distance bias; {call.name} was recorded "
            f"with {call.layout.batch} events, {'a' if call.bias is not None else 'no'} bias, and "
            f"{'itself' if call.kv_layout is call.layout else 'another sequence'} for its keys"
        )
    if phi.shape != (len(call.q),) or not np.isfinite(phi).all():
        raise ValueError(f"{call.name} has {len(call.q)} queries: give φ of each, not an array of shape {phi.shape}")
    roles = None if call.kv_roles is None else call.kv_roles.cpu().numpy()
    keys = _told(call.name, hits, roles, len(call.k))
    asking = standing_at(turn(phi), keys)
    pattern = _pattern(name, call.q.float().cpu(), call.k.float().cpu(), asking, keys, call.mask)
    return replace(pattern, roles=roles)


def _told(name: str, hits: Tokens, roles: NDArray[np.integer[Any]] | None, count: int) -> Tokens:
    """All tokens of a recorded sequence: the hits, and what stands among them."""
    found = count if roles is None else int((roles == Role.HIT).sum())
    if found != len(hits.phi):
        raise ValueError(f"{name} was recorded with {found} hits, and the event has {len(hits.phi)}")
    return hits if roles is None else among(hits, roles)


def _pattern(name: str, q: Tensor, k: Tensor, asking: Tokens, keys: Tokens, mask: Mask | None) -> Pattern:
    return Pattern(
        name, q, k, asking.phi, keys.phi, asking.xy, keys.xy, asking.particle, keys.particle, mask=mask,
        hits=asking is keys, key_eta=keys.eta,
    )  # fmt: skip


def _sized(x: Tensor) -> Tensor:
    """Scaled to mean square 1/2, that of sines and cosines."""
    return x * (0.5 / x.square().mean().clamp(min=1e-12)).sqrt()


def _same_for_all(_: torch.nn.Module, __: Any, encoded: Tensor) -> Tensor:
    return encoded.mean(dim=0, keepdim=True).expand_as(encoded)
