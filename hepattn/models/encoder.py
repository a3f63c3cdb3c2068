"""The encoder: layers of local (or global) self-attention and dense networks over hits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hepattn.attention.beside import enter_beside
from hepattn.attention.doors import Sequences, enter
from hepattn.attention.module import Attention
from hepattn.attention.rotation import Rotation
from hepattn.layers.experts import RouterLosses, mean_losses
from hepattn.layers.norm import make_norm
from hepattn.layers.tokens import ExtraTokens, Inserted, spread
from hepattn.masks import Mask, Window
from hepattn.masks.compose import Both, Either
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.layer_parts import apply_dense, make_attention, make_dense, make_residual, start_as_identity
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
        config: of the encoder.
        index: which of its layers this is, 0 for the first.
        backend: kernel.
    """

    def __init__(self, config: EncoderConfig, index: int, *, backend: str = "auto") -> None:
        super().__init__()
        c, mixes = config, config.value_residual and index > 0
        self.attention = make_attention(c.dim, c, backend=backend, value_residual=mixes, distance_bias=c.distance_bias)
        self.dense = make_dense(c.dim, c)
        self.attention_residual = make_residual(c.dim, c, index, "attention")
        self.dense_residual = make_residual(c.dim, c, index, "dense")
        if c.zero_start:
            start_as_identity(self)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        mask: Mask | None,
        first_value: Tensor | None,
        rotation: Rotation | None = None,
    ) -> tuple[Tensor, Tensor, RouterLosses | None]:
        """Maps x (T, dim) -> (x' (T, dim), this layer's values (T, H, D), losses of its router, if it has one).

        `rotation` turns queries and keys.
        """
        skip, given = self.attention_residual.split(x)
        update, value = self.attention.attend_values(given, layout, mask, first_value, rotation=rotation)
        skip, given = self.dense_residual.split(self.attention_residual.join(skip, update, layout))
        update, losses = apply_dense(self.dense, given)
        return self.dense_residual.join(skip, update, layout), value, losses


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder made of a batch.

    Attributes:
        tokens: (T, dim) of the hits, in the form that went in: Packed, padded or nested.
        cls: (B, C, dim), the CLS tokens of each event; C is 0 without them.
        losses: of the routers, mean over layers, to be added to the training loss; None without experts.
    """

    tokens: Any
    cls: Tensor
    losses: RouterLosses | None


class Stream(NamedTuple):
    """`Encoded` inside the packed corridor: hits (T, dim), CLS tokens (B, C, dim), losses of the routers."""

    tokens: Tensor
    cls: Tensor
    losses: RouterLosses | None


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

    Registers and CLS tokens are put among the hits at the entrance and taken out at the exit, see `ExtraTokens`; CLS
    tokens and the losses of routers are had from `encode`, which gives `Encoded` where a call gives its tokens alone.

    `encoder.compile(...)` compiles what is behind the entrance, and so serves all three forms;
    `torch.compile(encoder, fullgraph=True, dynamic=True)` takes Packed input, without registers between hits.

    Args:
        config: all settings, see `EncoderConfig`.
        mask: who may look at whom inside an event, in every layer; None: all at all.
        backend: kernel of every layer.
        **settings: single settings of `EncoderConfig` by name, instead of a config.

    Raises:
        TypeError: the mask is not a `Mask`.
        ValueError: a mask without room for registers or CLS tokens, or without sight of them; an unknown setting, a
            value that it can't have, or settings that contradict each other.
    """

    _compiled: Callable[[Tensor, Layout, Tensor | None, Inserted | None], Stream] | None = None

    def __init__(
        self,
        config: EncoderConfig | None = None,
        *,
        mask: Mask | None = None,
        backend: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__()
        if config is not None and settings:
            raise ValueError(
                f"Encoder got a config and single settings ({', '.join(settings)}): give one or the other."
            )
        self.config = c = EncoderConfig.of(settings) if config is None else config
        self.extra: ExtraTokens | None = None
        if c.cls or c.global_registers or c.registers is not None:
            self.extra = ExtraTokens(c.dim, cls=c.cls, global_registers=c.global_registers, every=c.registers)
        self.set_mask(mask)
        self.layers = nn.ModuleList([EncoderLayer(c, index, backend=backend) for index in range(c.num_layers)])
        self.norm = make_norm(c.norm, c.dim)

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
        return self.encode(x, valid=valid, rotation=rotation).tokens

    def encode(self, x: Sequences, *, valid: Tensor | None = None, rotation: Sequences | None = None) -> Encoded:
        """As a call, with CLS tokens and the losses of routers beside the tokens."""
        c = self.config
        packed, leave = enter(x, valid, c.dim, "Encoder")
        angles = enter_beside(rotation, packed, valid, c.dim // c.num_heads // 2, "Encoder's rotation")
        inserted = None if self.extra is None else self.extra.plan(packed.layout)
        run = self.run if self._compiled is None else self._compiled
        stream = run(packed.values, packed.layout, angles, inserted)
        return Encoded(leave(stream.tokens), stream.cls, stream.losses)

    def run(self, x: Tensor, layout: Layout, angles: Tensor | None = None, inserted: Inserted | None = None) -> Stream:
        """The packed corridor: hits x (T, dim) with the layout of their events.

        `angles` (T, P) in radian turn the queries and keys of every layer, P = dim // num_heads // 2; `inserted` is
        the plan of the learned tokens for this layout, where the encoder has some; None: it is made here.
        """
        if self.extra is not None:
            inserted = self.extra.plan(layout) if inserted is None else inserted
            x = self.extra.insert(x, inserted)
            angles = None if angles is None else spread(angles, inserted, between=True)
            layout = inserted.layout
        layout = layout.entered(x.shape[0])
        first_value: Tensor | None = None
        losses: list[RouterLosses] = []
        rotation = None if angles is None else Rotation.of(angles)
        for layer in self.layers:
            x, value, loss = layer(x, layout, self.inner_mask, first_value, rotation)
            if self.config.value_residual and first_value is None:
                first_value = value
            if loss is not None:
                losses.append(loss)
        x = self.norm(x)
        if self.extra is None or inserted is None:
            cls = x.new_zeros(layout.batch, 0, x.shape[1])
        else:
            cls, x = self.extra.cls(x, inserted), self.extra.remove(x, inserted)
        return Stream(x, cls, mean_losses(losses) if losses else None)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles, in place, what is behind the entrance; the arguments are those of `torch.compile`.

        The entrance (padding, nested tensors, checks) needs values on the host and stays eager. A copy or a saved
        model is not compiled.
        """
        self._compiled = torch.compile(self.run, *args, **options)

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called: hooks and recordings are then no part of what runs."""
        return self._compiled is not None

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

    def set_mask(self, mask: Mask | None) -> None:
        """Another mask in every layer from now on; kernel and weights stay. Nothing is changed where it is refused.

        Raises:
            TypeError: it is not a `Mask`.
            ValueError: it has no room for the registers or CLS tokens, or no sight of them.
        """
        if mask is not None and not isinstance(mask, Mask):
            raise TypeError(f"Encoder got mask={type(mask).__name__}, expected a Mask such as Window(64), or None.")
        self.inner_mask = mask if self.extra is None else _with_room(mask, self.extra)
        """Of the sequence with learned tokens in it."""
        self._mask = mask

    @property
    def mask(self) -> Mask | None:
        """Who may look at whom; `set_mask` changes it, an assignment would miss the learned tokens and is refused."""
        return self._mask

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.config}, mask={self.mask}"


def _with_room(mask: Mask | None, extra: ExtraTokens) -> Mask | None:
    """The mask of the sequence with learned tokens in it.

    Raises:
        ValueError: it names or counts tokens in another way than windows do, or a window sees no register.
    """
    for window in _parts(mask):
        if not isinstance(window, Window):
            raise ValueError(  # noqa: TRY004  (a mask it is)
                f"Encoder inserts registers or CLS tokens, which moves the tokens that {window!r} names: use windows, "
                "or put the tokens in yourself (hepattn.layers.ExtraTokens) with a mask made for them."
            )
        least = extra.smallest_window(wrap=window.wrap)
        if least is not None and window.size < least:
            raise ValueError(
                f"Encoder got registers={extra.every} with {window}, where some hit sees no register: "
                f"make the window {least} or more, or registers smaller."
            )
    return extra.mask(mask)


def _parts(mask: Mask | None) -> list[Mask]:
    """The masks that `&` and `|` made it of."""
    if isinstance(mask, Both | Either):
        return [*_parts(mask.left), *_parts(mask.right)]
    return [] if mask is None else [mask]
