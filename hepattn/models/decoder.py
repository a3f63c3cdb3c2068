"""The decoder: queries look at hits and at each other, and say after every layer which hits are theirs.

MaskFormer's decoder (arXiv:2107.06278; masked attention: arXiv:2112.01527) for tracks (arXiv:2411.07149), on packed
events. It is block-local by default: queries stand in phi order among the hits, in blocks, and each block sees a window
of hits around it (see `Blocks`). With `block=None, window=None` it is the dense decoder.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from hepattn.attention.module import Attention
from hepattn.layers import Dense as DenseNetwork
from hepattn.layers import Residual, make_norm
from hepattn.layers.dense import ACTIVATIONS, GATED
from hepattn.masks import Dense, Mask, Strided
from hepattn.models.blocks import Blocks
from hepattn.models.encoder_config import NormKind
from hepattn.models.settings import check_names, check_types
from hepattn.models.track_losses import PARAMETERS, ParameterScale
from hepattn.sequence import Layout

__all__ = ["Decoded", "Decoder", "DecoderConfig", "Prediction"]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a `Decoder`; its width is that of the encoder before it.

    Raises:
        ValueError: a setting has no such value, or two of them contradict each other.
    """

    num_layers: int = 3
    num_heads: int = 4
    block: int | None = 64
    """Queries of a block, neighbours in phi; None: all of an event."""
    window: int | None = 1024
    """Hits that a block sees, around the full turn; None: all of an event. It must hold the hits from the block's first
    query to its last, and beyond as far as tracks bend: `hepattn.models.track_targets.TrackLoss.inside` tells."""
    masked: bool = True
    """Masked attention: a query attends where the layer before found its mask; where that is empty, to all it sees."""
    mask_threshold: float = 0.1
    """Probability from which a hit is in that mask."""
    mask_bias: float = -4.0
    """First value of what is added to all mask logits: most hits that a query sees are not its own."""
    update_hits: int | None = None
    """Hits attend to queries after each layer, in `Strided(update_hits, wrap=True)` read from the hits; None: never."""
    cls: int = 0
    """CLS tokens: read hits and queries after each layer, and are read out for the event; True is one."""
    norm: NormKind = "rms"
    qk_norm: NormKind | None = "rms"
    """Norm of q and k in each head; None: none."""
    gate: bool = False
    """Gated attention output, see `Attention`."""
    laser: bool = False
    """LASER attention, see `Attention`."""
    layer_scale: float | None = None
    """First value of LayerScale."""
    zero_start: bool = True
    """Each layer begins as the identity."""
    drop_path: float = 0.0
    """DropPath rate of the last layer; it rises linearly from 0 at the first."""
    dense_ratio: float = 2.0
    activation: str = "swiglu"
    parameters: bool = False
    """Predict track parameters."""
    iou: bool = False
    """Predict how well each mask fits (IoU)."""

    def __post_init__(self) -> None:
        if isinstance(self.cls, bool):
            object.__setattr__(self, "cls", int(self.cls))
        check_types("Decoder", self)
        if self.activation not in ACTIVATIONS | GATED:
            known = ", ".join(map(repr, ACTIVATIONS | GATED))
            raise ValueError(f"Decoder got activation={self.activation!r}, expected one of {known}.")
        for name, least in (("num_layers", 0), ("num_heads", 1), ("cls", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Decoder got {name}={getattr(self, name)}: give at least {least}.")
        for name in ("block", "window", "update_hits"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Decoder got {name}={value}: give at least 1, or None.")
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"Decoder got mask_threshold={self.mask_threshold}, expected a probability in (0, 1).")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"Decoder got drop_path={self.drop_path}, expected a probability in [0, 1).")
        if self.layer_scale is not None and self.layer_scale < 0:
            raise ValueError(f"Decoder got layer_scale={self.layer_scale}: give a factor of at least 0, or None.")
        if self.drop_path and self.num_layers == 1:
            raise ValueError("drop_path rises from 0 at the first layer to its rate: with one layer, leave it out.")
        if self.zero_start and self.layer_scale is not None:
            raise ValueError("zero_start and layer_scale both let a layer begin as (nearly) the identity: choose one.")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """The configuration with these settings, such as `asdict` gave or a file holds.

        Raises:
            ValueError: one of them is unknown; the others are named.
        """
        check_names("Decoder", cls, settings)
        return cls(**settings)

    def __str__(self) -> str:
        """One line: sizes, and what is not as by default."""
        changed = [
            name if value is True else f"{name}={value}"
            for name, value in asdict(self).items()
            if name not in {"num_layers", "num_heads"} and value != getattr(DecoderConfig(), name)
        ]
        return ", ".join([f"{self.num_layers} layers, {self.num_heads} heads", *changed])


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the decoder says after one layer (or before the first); G, K, W as in `Blocks`, Q queries in all."""

    masks: Tensor
    """(G, K, W) float32, logits "this hit is mine"; what stands where no query or no hit is means nothing."""
    objects: Tensor
    """(Q,) float32, logits "I am a track"."""
    parameters: Tensor | None
    """(Q, 6) float32, see `hepattn.models.track_losses.parameter_loss`; None where they are not predicted."""
    iou: Tensor | None
    """(Q,) float32, logits of the IoU of the mask; None where it is not predicted."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """All that a decoder made of a batch."""

    predictions: tuple[Prediction, ...]
    """Before the first layer and after each, so num_layers + 1."""
    blocks: Blocks
    cls: Tensor
    """(B, C, dim) CLS tokens; C is 0 without them."""

    @property
    def last(self) -> Prediction:
        """After the last layer."""
        return self.predictions[-1]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of B events on their way through the decoder: what they hold, and what is added to queries and keys."""

    values: Tensor
    """(T, dim)."""
    layout: Layout
    encoding: Tensor | None = None
    """(T, dim) of their places; None: none."""

    def now(self, values: Tensor) -> "Tokens":
        """The same tokens holding something else."""
        return Tokens(values, self.layout, self.encoding)


class Branch(nn.Module):
    """A residual step around attention of tokens to each other or to a context: `x + attention(norm(x), norm(c))`."""

    def __init__(self, dim: int, config: DecoderConfig, rate: float, *, backend: str, cross: bool) -> None:
        super().__init__()
        c = config
        self.residual = Residual(dim, norm=c.norm, layer_scale=c.layer_scale, drop_path=rate)
        self.context_norm = make_norm(c.norm, dim) if cross else None
        self.attention = Attention(dim, c.num_heads, backend=backend, qk_norm=c.qk_norm, gate=c.gate, laser=c.laser)

    def forward(self, x: Tokens, context: Tokens | None = None, mask: Mask | None = None) -> Tokens:
        """The tokens after it; `mask` says which tokens of their event they may look at."""
        skip, given = self.residual.split(x.values)
        if context is None:
            update = self.attention.attend_values(given, x.layout, mask, encoding=x.encoding)[0]
        else:
            assert self.context_norm is not None
            update = self.attention.attend_values(
                given,
                x.layout,
                mask,
                context=self.context_norm(context.values),
                kv_layout=context.layout,
                encoding=x.encoding,
                context_encoding=context.encoding,
            )[0]
        return x.now(self.residual.join(skip, update, x.layout))

    def in_blocks(self, x: Tokens, context: Tokens, blocks: Blocks, mask: Tensor) -> Tokens:
        """Cross-attention inside the rectangles of `blocks` alone, which stand side by side as if they were events.

        Args:
            x: queries
            context: hits
            blocks: G rectangles of them
            mask: (G, K, W) bool, True = the query may look at the hit
        """
        assert self.context_norm is not None
        number, rows, columns = blocks.shape
        skip, given = self.residual.split(x.values)
        query, hit = blocks.query.flatten(), blocks.hit.flatten()
        update = self.attention.attend_values(
            given[query],
            Layout.of([rows] * number, given.device, total=len(query)),
            Dense(list(mask)) if number else None,
            context=self.context_norm(context.values)[hit],
            kv_layout=Layout.of([columns] * number, given.device, total=len(hit)),
            encoding=None if x.encoding is None else x.encoding[query],
            context_encoding=None if context.encoding is None else context.encoding[hit],
        )[0]
        update = blocks.packed(update.unflatten(0, (number, rows)))
        return x.now(self.residual.join(skip, update, x.layout))


class ClsLayer(nn.Module):
    """CLS tokens read the hits, then the queries, each of their own event."""

    def __init__(self, dim: int, config: DecoderConfig, rate: float, *, backend: str) -> None:
        super().__init__()
        self.hits = Branch(dim, config, rate, backend=backend, cross=True)
        self.queries = Branch(dim, config, rate, backend=backend, cross=True)
        self.dense = DenseStep(dim, config, rate)

    def forward(self, cls: Tokens, hits: Tokens, queries: Tokens) -> Tokens:
        """The CLS tokens after it."""
        return self.dense(self.queries(self.hits(cls, hits), queries))


class DenseStep(nn.Module):
    """A residual step around a dense network."""

    def __init__(self, dim: int, config: DecoderConfig, rate: float) -> None:
        super().__init__()
        c = config
        self.residual = Residual(dim, norm=c.norm, layer_scale=c.layer_scale, drop_path=rate)
        self.dense = DenseNetwork(dim, ratio=c.dense_ratio, activation=c.activation)

    def forward(self, x: Tokens) -> Tokens:
        """The tokens after it."""
        return x.now(self.residual(x.values, self.dense, x.layout))


class DecoderLayer(nn.Module):
    """Masked cross-attention to hits, a dense network, self-attention among queries, perhaps an update of the hits.

    Args:
        dim: channels
        config: of the decoder
        index: which of its layers this is, 0 for the first
        backend: kernel; but of blocks' cross-attention, realised masks of one shape, where one batched call of sdpa
            serves on any device
    """

    def __init__(self, dim: int, config: DecoderConfig, index: int, *, backend: str) -> None:
        super().__init__()
        c, rate = config, config.drop_path * index / max(1, config.num_layers - 1)
        self.cross = Branch(dim, c, rate, backend="sdpa" if c.block else backend, cross=True)
        self.dense = DenseStep(dim, c, rate)
        self.among = Branch(dim, c, rate, backend=backend, cross=False)
        self.update = Branch(dim, c, rate, backend=backend, cross=True) if c.update_hits else None
        self.cls = ClsLayer(dim, c, rate, backend=backend) if c.cls else None
        if c.zero_start:
            for part in self.modules():
                if isinstance(part, Attention | DenseNetwork):
                    for parameter in part.output.parameters():
                        nn.init.zeros_(parameter)


class Head(nn.Sequential):
    """`W_2 silu(W_1 x)`, from dim channels to `out`."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, out))


class Decoder(nn.Module):
    """Layers of queries that look at hits, with a prediction before the first and after each.

    Args:
        dim: channels of queries and hits; a multiple of config.num_heads
        config: sizes and switches
        backend: attention kernel, see `hepattn.attend`

    Raises:
        ValueError: dim is no multiple of the heads
    """

    unit: Tensor

    def __init__(self, dim: int, config: DecoderConfig | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = c = DecoderConfig() if config is None else config
        self.dim = dim
        layers = [DecoderLayer(dim, c, index, backend=backend) for index in range(c.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = make_norm(c.norm, dim)
        self.mask_query, self.mask_hit = Head(dim, dim), Head(dim, dim)
        self.mask_bias = nn.Parameter(torch.tensor(c.mask_bias))
        self.objects = Head(dim, 1)
        self.parameters_head = Head(dim, len(PARAMETERS)) if c.parameters else None
        self.iou = Head(dim, 1) if c.iou else None
        self.cls = nn.Parameter(0.02 * torch.randn(c.cls, dim)) if c.cls else None
        scale = ParameterScale()
        unit = {"z0": scale.z0, "d0": scale.d0}
        self.register_buffer("unit", torch.tensor([unit.get(name, 1.0) for name in PARAMETERS]), persistent=False)

    def forward(
        self,
        queries: Tensor,
        query_layout: Layout,
        hits: Tensor,
        hit_layout: Layout,
        place: Tensor,
        *,
        own: Tensor | None = None,
        encoding: Tensor | None = None,
        hit_encoding: Tensor | None = None,
        anchor: Tensor | None = None,
    ) -> Decoded:
        """Decodes; queries and hits are packed, in phi order inside each event.

        Args:
            queries: (Q, dim)
            query_layout: of the queries' events
            hits: (T, dim), an encoder's tokens
            hit_layout: of the hits' events
            place: (Q,) int64, row of the hits where each query stands
            own: (Q,) int64, row of a hit that its query may look at whatever its mask says; None: none
            encoding: (Q, dim) added to what queries are made of, never to values
            hit_encoding: (T, dim) the same for keys
            anchor: (Q, 6) float32 to which predicted parameters are added, in their units; None: zeros

        Raises:
            ValueError: shapes that do not fit, see `Blocks.of`
        """
        c = self.config
        blocks = Blocks.of(place, query_layout.host_lengths, hit_layout.host_lengths, c.block, c.window)
        q, x = Tokens(queries, query_layout, encoding), Tokens(hits, hit_layout, hit_encoding)
        cls = self._cls(hit_layout)
        mine = None if own is None else own[blocks.query][:, :, None] == blocks.hit[:, None]
        predictions = [self.predict(q.values, x.values, blocks, anchor)]
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            q = layer.cross.in_blocks(q, x, blocks, self.attention_mask(predictions[-1].masks, blocks, mine))
            q = layer.among(layer.dense(q))
            if layer.update is not None:
                assert c.update_hits is not None
                x = layer.update(x, q, Strided(c.update_hits, wrap=True).transpose)
            if layer.cls is not None:
                assert cls is not None
                cls = layer.cls(cls, x, q)
            predictions.append(self.predict(q.values, x.values, blocks, anchor))
        none = hits.new_zeros(hit_layout.batch, 0, self.dim)
        out = none if cls is None else self.norm(cls.values).unflatten(0, (hit_layout.batch, -1))
        return Decoded(tuple(predictions), blocks, out)

    def _cls(self, layout: Layout) -> Tokens | None:
        if self.cls is None:
            return None
        number = len(self.cls)
        values = self.cls.expand(layout.batch, -1, -1).flatten(0, 1)
        return Tokens(values, Layout.of([number] * layout.batch, layout.device, total=number * layout.batch))

    def attention_mask(self, masks: Tensor, blocks: Blocks, own: Tensor | None = None) -> Tensor:
        """(G, K, W) bool: where a query may look, from the mask logits of the layer before.

        Its own hit is always allowed; a query whose mask is empty looks at all hits that it sees.
        """
        there = blocks.hit_valid[:, None].expand_as(masks)
        if not self.config.masked:
            return there
        cut = torch.tensor(self.config.mask_threshold, dtype=torch.float64).logit().item()
        mask = masks.detach() > cut
        if own is not None:
            mask = mask | own
        mask = mask & there
        return mask | (there & ~mask.any(-1, keepdim=True))

    def predict(self, queries: Tensor, hits: Tensor, blocks: Blocks, anchor: Tensor | None = None) -> Prediction:
        """What the queries (Q, dim) say of the hits (T, dim)."""
        q = self.norm(queries)
        rows, columns = self.mask_query(q)[blocks.query], self.mask_hit(hits)[blocks.hit]
        masks = (rows @ columns.mT).float() * self.dim**-0.5 + self.mask_bias
        parameters = None
        if self.parameters_head is not None:
            parameters = self.parameters_head(q).float() * self.unit
            parameters = parameters if anchor is None else parameters + anchor
        iou = None if self.iou is None else self.iou(q).float().squeeze(-1)
        return Prediction(masks, self.objects(q).float().squeeze(-1), parameters, iou)

    def set_backend(self, backend: str) -> None:
        """Another kernel from now on, for all but the cross-attention of blocks (see `DecoderLayer`)."""
        for name, part in self.named_modules():
            if isinstance(part, Attention) and not (self.config.block and ".cross." in name):
                part.set_backend(backend)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return str(self.config)
