"""The encoder: layers of local (or global) self-attention and dense networks over hits."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hepattn.attention.beside import enter_beside
from hepattn.attention.doors import Sequences, enter
from hepattn.attention.module import Attention
from hepattn.attention.rotation import Rotation
from hepattn.layers import Dense, Residual, make_norm
from hepattn.layers.residual import Placement
from hepattn.masks import Mask
from hepattn.sequence import Layout


class EncoderLayer(nn.Module):
    """One layer: a residual step around attention, then one around the dense network.

    Usual (pre-norm): `y = x + attention(norm(x))`, `x' = y + dense(norm(y))`.

    HybridNorm (arXiv:2503.04598): attention norms its q, k and v in each head and gets x as it is, and the stream is
    normed before the dense network, branch and skip alike:
    `y = x + attention(x)`, `n = norm(y)`, `x' = n + dense(n)`. As in the paper's variant HybridNorm*, the first layer,
    whose input nobody normed, is different: `y = x + attention(norm(x))`, `x' = y + dense(norm(y))`, q, k and v normed.

    LayerScale and DropPath act on what a branch adds, in every variant.

    Args:
        attention: with a norm of q, k and v where `hybrid_norm`.
        dense: the per-token network.
        norm: "rms" or "layer".
        hybrid_norm: HybridNorm in place of pre-norm.
        first: whether this is an encoder's first layer.
        layer_scale: first value of LayerScale; None: none.
        drop_path: rate of DropPath.
    """

    def __init__(
        self,
        attention: Attention,
        dense: Dense,
        *,
        norm: str = "rms",
        hybrid_norm: bool = False,
        first: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        at_attention: Placement = "none" if hybrid_norm and not first else "pre"
        at_dense: Placement = "post" if hybrid_norm and not first else "pre"

        def residual(placement: Placement) -> Residual:
            return Residual(attention.dim, norm=norm, placement=placement, layer_scale=layer_scale, drop_path=drop_path)

        self.attention = attention
        self.dense = dense
        self.attention_residual = residual(at_attention)
        self.dense_residual = residual(at_dense)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        mask: Mask | None,
        first_value: Tensor | None,
        rotation: Rotation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Maps x (T, dim) -> (x' (T, dim), this layer's values (T, H, D)); `rotation` turns its queries and keys."""
        skip, given = self.attention_residual.split(x)
        update, value = self.attention.attend_values(given, layout, mask, first_value, rotation=rotation)
        x = self.attention_residual.join(skip, update, layout)
        return self.dense_residual(x, self.dense, layout), value


class Encoder(nn.Module):
    """Layers of self-attention over the tokens of each event, and a norm at the end.

    ```python
    encoder = Encoder(dim=64, num_layers=4, num_heads=4, mask=Window(64, wrap=True), hybrid_norm=True)
    y = encoder(x)                        # Packed in, Packed out
    y = encoder(padded, valid=valid)      # (B, N, 64) in and out, padding zero
    y = encoder(nested)                   # nested in, nested out
    ```

    Positional encodings belong to the model that makes the tokens: they are added to its inputs, once. A rotary one is
    given to every call, as angles beside the tokens; it turns queries and keys of every layer, and leaves no trace in
    values and in the residual stream:

    ```python
    rotary = Rotary(64 // 4, periodic=True)                     # for heads of 16 channels
    y = encoder(x, rotation=rotary(phi))                        # phi (T,) in the order of x
    y = encoder(padded, valid=valid, rotation=rotary(phi))      # phi (B, N)
    ```

    `torch.compile(encoder, fullgraph=True, dynamic=True)` takes Packed input; `encoder.compile(...)` compiles what is
    behind the entrance, and so serves all three.

    Args:
        dim: channels of a token, a multiple of `num_heads`.
        num_layers: at least 1.
        num_heads: heads of each layer.
        mask: who may look at whom inside an event, in every layer; None: all at all.
        norm: "rms" or "layer", wherever there is one.
        hybrid_norm: HybridNorm in place of pre-norm, see `EncoderLayer`; implies a norm of q, k and v.
        layer_scale: first value of LayerScale (arXiv:2103.17239), None: none.
        value_residual: later layers mix the first layer's values into theirs (arXiv:2410.17897).
        gate: gated attention output (AlphaFold 2, algorithm 7).
        laser: LASER attention (arXiv:2411.03493).
        experts: not in this release.
        registers: not in this release.
        cls: not in this release.
        drop_path: DropPath rate of the last layer; it rises linearly from 0 at the first (arXiv:1603.09382).
        dense_ratio: hidden width of the dense networks as a multiple of dim.
        activation: of the dense networks, see `Dense`.
        qk_norm: "rms", "layer" or None: norm of q and k in each head; None with hybrid_norm: that of `norm`.
        distance_bias: "linear", "circular" or None: scores fall with distance, by learned slopes, see `Attention`.
        backend: kernel of every layer.

    Raises:
        NotImplementedError: experts, registers or cls is asked for.
        ValueError: an option has no such value.
    """

    _compiled: Callable[[Tensor, Layout, Tensor | None], Tensor] | None = None

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        mask: Mask | None = None,
        *,
        norm: Literal["rms", "layer"] = "rms",
        hybrid_norm: bool = False,
        layer_scale: float | None = None,
        value_residual: bool = False,
        gate: bool = False,
        laser: bool = False,
        experts: int | None = None,
        registers: int | None = None,
        cls: bool = False,
        drop_path: float = 0.0,
        dense_ratio: float = 2.0,
        activation: str = "swiglu",
        qk_norm: Literal["rms", "layer"] | None = None,
        distance_bias: Literal["linear", "circular"] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _refuse_unfinished(experts=experts, registers=registers, cls=cls)
        if num_layers < 1:
            raise ValueError(f"Encoder got num_layers={num_layers}: give at least one.")
        if mask is not None and not isinstance(mask, Mask):
            raise TypeError(f"Encoder got mask={type(mask).__name__}, expected a Mask such as Window(64), or None.")
        self.dim = dim
        self.num_heads = num_heads
        self.mask = mask
        final_norm = make_norm(norm, dim)

        def layer(index: int) -> EncoderLayer:
            attention = Attention(
                dim,
                num_heads,
                backend=backend,
                qk_norm=norm if hybrid_norm and qk_norm is None else qk_norm,
                v_norm=hybrid_norm,
                gate=gate,
                value_residual=value_residual and index > 0,
                laser=laser,
                distance_bias=distance_bias,
            )
            return EncoderLayer(
                attention,
                Dense(dim, ratio=dense_ratio, activation=activation),
                norm=norm,
                hybrid_norm=hybrid_norm,
                first=index == 0,
                layer_scale=layer_scale,
                drop_path=drop_path * index / max(1, num_layers - 1),
            )

        self.value_residual = value_residual
        self.layers = nn.ModuleList([layer(index) for index in range(num_layers)])
        self.norm = final_norm

    def forward(self, x: Sequences, *, valid: Tensor | None = None, rotation: Sequences | None = None) -> Any:
        """Encodes x; what goes in (Packed, padded with `valid`, nested) comes out.

        Args:
            x: Packed (T, dim), padded (B, N, dim), or nested.
            valid: (B, N) bool, True = a token, for a padded x; None: no padding. Rows of padding come out as zeros.
            rotation: angles in radian, one for every two channels of a head, such as `hepattn.encodings.Rotary` gives:
                (.., dim // num_heads // 2) in the form and order of x, or a tensor (T, ..) beside a Packed x. None: no
                rotation.

        Raises:
            TypeError, ValueError: input of another form or width.
        """
        packed, leave = enter(x, valid, self.dim, "Encoder")
        angles = enter_beside(rotation, packed, valid, self.dim // self.num_heads // 2, "Encoder's rotation")
        body = self.encode if self._compiled is None else self._compiled
        return leave(body(packed.values, packed.layout, angles))

    def encode(self, x: Tensor, layout: Layout, angles: Tensor | None = None) -> Tensor:
        """The packed corridor: x (T, dim) with the layout of its events -> (T, dim).

        `angles` (T, P) in radian turn the queries and keys of every layer, P = dim // num_heads // 2.
        """
        if torch.compiler.is_compiling():
            layout = Layout(layout.lengths, layout.offsets, x.shape[0])  # a graph's own keeps what layers share
        first_value: Tensor | None = None
        rotation = None if angles is None else Rotation.of(angles)
        for layer in self.layers:
            x, value = layer(x, layout, self.mask, first_value, rotation)
            if self.value_residual and first_value is None:
                first_value = value
        return self.norm(x)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles, in place, what is behind the entrance; the arguments are those of `torch.compile`.

        The entrance (padding, nested tensors, checks) needs values on the host and stays eager. A copy or a saved
        model is not compiled.
        """
        self._compiled = torch.compile(self.encode, *args, **options)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_compiled", None)
        return state

    def set_backend(self, backend: str) -> None:
        """Another kernel in every layer from now on; mask, weights and meaning stay.

        Raises:
            ValueError: no kernel has that name.
        """
        for part in self.modules():
            if isinstance(part, Attention):
                part.set_backend(backend)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"dim={self.dim}, mask={self.mask}"


def _refuse_unfinished(**options: object) -> None:
    """Options of the constructor that have a place and no code yet."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"Encoder({name}={value!r}) is not in this release yet: leave {name} out.")
