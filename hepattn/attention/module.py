"""Multi-head attention with weights: projections, norms, gates, residual values, and no idea of which kernel runs."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepattn.attention.backends.registry import check_backend
from hepattn.attention.beside import enter_beside
from hepattn.attention.bias import DistanceBias
from hepattn.attention.doors import Sequences, enter
from hepattn.attention.functional import attend
from hepattn.attention.laser import laser_output, laser_values
from hepattn.attention.record import AttentionCall, Recordable, record_attention
from hepattn.attention.rotation import Rotation
from hepattn.masks import Mask
from hepattn.sequence import Layout

__all__ = ["Attention", "AttentionCall", "record_attention"]


class HeadNorm(nn.Module):
    """RMSNorm or LayerNorm over the channels of each head, one set of weights for all heads; eps = 1e-6.

    Computed in the dtype of its weight (float32 under autocast), returned in the dtype of x.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.norm = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}[name](channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (T, H, D) -> (T, H, D)."""
        return self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)


class Attention(Recordable):
    """Multi-head self- or cross-attention: tokens look at those of their own event that `mask` allows.

    With x (Tq, dim) and context c (Tk, dim; in self-attention c = x), head by head of D = dim / num_heads channels:

        q = norm(W_q (x + e_x)),  k = norm(W_k (c + e_c)),  v = norm(W_v c)        norms and encodings e where given
        q, k turned by the angles of their tokens                  rotation, where given (arXiv:2104.09864)
        v = m v + (1 - m) v_first,  m = sigmoid(W_m c)             value residual, m (Tk, H)
        o = attend(q, k, v, bias),  scale D^-1/2                    or LASER: log(attend(q, k, exp(v - max))) + max
        out = W_o (sigmoid(W_g x) * o)                             the gate where asked for

    Args:
        dim: channels of tokens; a multiple of `num_heads`.
        num_heads: H. On a GPU heads of 64 channels are faster than heads of 32.
        backend: kernel, "auto" takes the fastest that can do exactly what is asked.
        qk_norm: "rms", "layer" or None: norm of q and k in each head (arXiv:2010.04245, arXiv:2302.05442).
        v_norm: norm v too, by the kind of `qk_norm` ("rms" where that is None) (arXiv:2503.04598).
        gate: gated output, W_g = 0 and b_g = 1 at first (AlphaFold 2, Jumper et al. 2021, algorithm 7).
        value_residual: mix the first layer's values into v, for each token and head (arXiv:2410.17897).
        laser: attention on exponentials of the values (arXiv:2411.03493).
        bias: whether the projections to q, k, v and from the heads add one.
        distance_bias: "linear" or "circular": scores fall with the distance in tokens, inside the event, by a slope
            that each head learns, at first 2^(-8 (h + 1) / H) (ALiBi, arXiv:2108.12409); for self-attention.

    Raises:
        ValueError: dim is not a multiple of num_heads, or no norm or kernel has that name.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        backend: str = "auto",
        qk_norm: Literal["rms", "layer"] | None = None,
        v_norm: bool = False,
        gate: bool = False,
        value_residual: bool = False,
        laser: bool = False,
        bias: bool = True,
        distance_bias: Literal["linear", "circular"] | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"Attention got dim={dim}, num_heads={num_heads}: make dim a multiple of num_heads.")
        if qk_norm not in {None, "rms", "layer"}:
            raise ValueError(
                f"Attention got qk_norm={qk_norm!r}, expected 'rms', 'layer' or None: choose one of these."
            )
        if distance_bias not in {None, "linear", "circular"}:
            raise ValueError(
                f"Attention got distance_bias={distance_bias!r}, expected 'linear', 'circular' or None: choose one."
            )
        self.dim = dim
        self.num_heads = num_heads
        self.distance_bias = distance_bias
        slopes = 2.0 ** (-8.0 * torch.arange(1, num_heads + 1) / num_heads)
        self.slopes = nn.Parameter(slopes) if distance_bias else None
        self.backend = check_backend(backend)
        self.laser = laser
        channels = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)
        self.q_norm = HeadNorm(qk_norm, channels) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(qk_norm, channels) if qk_norm else nn.Identity()
        self.v_norm = HeadNorm(qk_norm or "rms", channels) if v_norm else nn.Identity()
        self.mix = nn.Linear(dim, num_heads) if value_residual else None
        self.gate = nn.Linear(dim, dim) if gate else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)

    def set_backend(self, backend: str) -> None:
        """Another kernel from now on; weights and meaning stay.

        Raises:
            ValueError: no kernel has that name.
        """
        self.backend = check_backend(backend)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"dim={self.dim}, num_heads={self.num_heads}, backend={self.backend}, laser={self.laser}"

    def forward(
        self,
        x: Sequences,
        context: Sequences | None = None,
        *,
        mask: Mask | None = None,
        first_value: Tensor | None = None,
        valid: Tensor | None = None,
        context_valid: Tensor | None = None,
        encoding: Sequences | None = None,
        context_encoding: Sequences | None = None,
        rotation: Sequences | None = None,
        context_rotation: Sequences | None = None,
    ) -> Any:
        """Attention from x to context (None: to x itself), event by event; what goes in as x comes out.

        Args:
            x: Packed, padded (B, N, dim) with `valid`, or nested.
            context: the same choice, with the same number of events.
            mask: who may look at whom inside an event; None: all at all. Positions count tokens: beside padding, too, a
                `Dense` has the size of the valid tokens, (n, m) for an event of n tokens and m of the context.
            first_value: (Tk, H, D) packed values of the first layer; only with value_residual=True.
            valid: (B, N) bool, True = a token, for a padded x.
            context_valid: the same for a padded context.
            encoding: (.., dim) in the form of x, or a tensor (Tq, dim) beside a Packed x: added to what queries (and in
                self-attention keys) are made of, never to what values are made of.
            context_encoding: the same in the form of context, for its keys.
            rotation: (.., D // 2) angles in radian, such as `hepattn.encodings.Rotary` gives, in the form of x: queries
                (and in self-attention keys) are turned by them, values never.
            context_rotation: the same in the form of context, for its keys.

        Raises:
            TypeError, ValueError: input of another form or width; a different number of events in x and context.
        """
        packed, leave = enter(x, valid, self.dim, "Attention")
        layout = packed.layout
        pairs = self.dim // self.num_heads // 2
        of_x: dict[str, Any] = {
            "encoding": enter_beside(encoding, packed, valid, self.dim, "Attention's encoding"),
            "rotation": _rotation(enter_beside(rotation, packed, valid, pairs, "Attention's rotation")),
        }
        if context is None:
            if context_encoding is not None or context_rotation is not None:
                raise ValueError("Attention got an encoding or a rotation of a context without context=: leave it out.")
            return leave(self.attend_values(packed.values, layout, mask, first_value, **of_x)[0])
        other, _ = enter(context, context_valid, self.dim, "Attention's context")
        kv_layout = other.layout
        if kv_layout.batch != layout.batch:
            raise ValueError(
                f"Attention got {layout.batch} events in x and {kv_layout.batch} in context: give as many in both."
            )
        angles = enter_beside(context_rotation, other, context_valid, pairs, "Attention's context_rotation")
        added = enter_beside(context_encoding, other, context_valid, self.dim, "Attention's context_encoding")
        of_context: dict[str, Any] = {"context_encoding": added, "context_rotation": _rotation(angles)}
        beside = of_x | of_context
        return leave(self.attend_values(packed.values, layout, mask, first_value, other.values, kv_layout, **beside)[0])

    def attend_values(
        self,
        x: Tensor,
        layout: Layout,
        mask: Mask | None = None,
        first_value: Tensor | None = None,
        context: Tensor | None = None,
        kv_layout: Layout | None = None,
        *,
        encoding: Tensor | None = None,
        context_encoding: Tensor | None = None,
        rotation: Rotation | None = None,
        context_rotation: Rotation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The packed corridor: x (Tq, dim) -> (out (Tq, dim), v (Tk, H, D) before any mixing, for later layers).

        `first_value` None leaves v as it is: a first layer has nothing to mix. `encoding` (Tq, dim) and `rotation`
        are for queries and in self-attention for keys too; `context_encoding` (Tk, dim) and `context_rotation` are for
        the keys of a context. Values see neither.

        Raises:
            ValueError: only one of queries and keys of a context would be turned, or a shape is wrong.
        """
        kv_layout = layout if kv_layout is None else kv_layout
        if context is not None and (rotation is None) != (context_rotation is None):
            raise ValueError(
                "Attention got a rotation for one of queries and context only: scores depend on differences of angles, "
                "so give rotation= and context_rotation=."
            )
        q, k, v = self._project(x, context, encoding, context_encoding)
        if rotation is not None:
            q, k = rotation.turn(q), (rotation if context_rotation is None else context_rotation).turn(k)
        value = v
        if first_value is not None:
            v = self._mix_values(x if context is None else context, v, first_value)
        bias = None if self.slopes is None else DistanceBias(self.slopes, wrap=self.distance_bias == "circular")
        self.tell(q, k, mask, layout, kv_layout, bias)
        out = self._attend(q, k, v, mask, layout, kv_layout, bias).flatten(-2)
        if self.gate is not None:
            out = torch.sigmoid(self.gate(x)) * out
        return self.output(out), value

    def _project(
        self, x: Tensor, context: Tensor | None, encoding: Tensor | None, context_encoding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        place = _sum(x, encoding)
        if context is None and encoding is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        elif context is None:
            q, k = self._linear(place, 0, 2).chunk(2, dim=-1)
            v = self._linear(x, 2, 3)
        elif context_encoding is None:
            q = self._linear(place, 0, 1)
            k, v = self._linear(context, 1, 3).chunk(2, dim=-1)
        else:
            q, k = self._linear(place, 0, 1), self._linear(_sum(context, context_encoding), 1, 2)
            v = self._linear(context, 2, 3)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in (q, k, v))
        return self.q_norm(q), self.k_norm(k), self.v_norm(v)

    def _linear(self, x: Tensor, first: int, last: int) -> Tensor:
        """Some of the projections to q (0), k (1) and v (2): `first` up to but without `last`."""
        rows = slice(first * self.dim, last * self.dim)
        return F.linear(x, self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows])

    def _mix_values(self, source: Tensor, v: Tensor, first_value: Tensor) -> Tensor:
        if self.mix is None:
            raise ValueError("Attention got first_value but was made without value_residual=True: leave it out.")
        if first_value.shape != v.shape:
            raise ValueError(f"Attention got first_value {tuple(first_value.shape)}, expected {tuple(v.shape)}.")
        share = torch.sigmoid(self.mix(source)).unsqueeze(-1)
        return share * v + (1 - share) * first_value

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask | None,
        layout: Layout,
        kv_layout: Layout,
        bias: DistanceBias | None,
    ) -> Tensor:
        def kernel(values: Tensor) -> Tensor:
            query, key = q.to(values.dtype), k.to(values.dtype)
            return attend(
                query, key, values, mask=mask, lengths=layout, kv_lengths=kv_layout, bias=bias, backend=self.backend
            )

        if not self.laser:
            return kernel(v)
        exponential, peak = laser_values(v, kv_layout)
        if exponential.dtype != v.dtype:  # float16 has no room for exponentials, also not by way of autocast
            with torch.autocast(q.device.type, enabled=False):
                return laser_output(kernel(exponential), peak, layout, v.dtype)
        return laser_output(kernel(exponential), peak, layout, v.dtype)


def _sum(x: Tensor, encoding: Tensor | None) -> Tensor:
    """The sum (T, dim), in the dtype of x."""
    if encoding is None:
        return x
    if encoding.shape != x.shape:
        raise ValueError(f"Attention got an encoding {tuple(encoding.shape)} for tokens {tuple(x.shape)}: make it fit.")
    return x + encoding.to(x.dtype)


def _rotation(angles: Tensor | None) -> Rotation | None:
    return None if angles is None else Rotation.of(angles)
