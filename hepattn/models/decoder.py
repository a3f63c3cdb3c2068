"""The decoder: queries look at hits and at each other, and say after every layer which hits are theirs.

MaskFormer's decoder (arXiv:2107.06278; masked attention: arXiv:2112.01527) for tracks (arXiv:2411.07149), on packed
events. It is block-local by default: queries stand in phi order among the hits, in blocks, and each block sees a window
of hits around it (see `Blocks`). With `block=None, window=None` it is the dense decoder.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hepattn.attention.module import Attention
from hepattn.attention.rotation import Rotation
from hepattn.encodings import rotary_of_hits
from hepattn.layers import RouterLosses, make_norm, mean_losses
from hepattn.masks import Strided
from hepattn.models.blocks import Blocks
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.decoder_layer import DecoderLayer, Tokens
from hepattn.models.track_losses import PARAMETERS, ParameterScale
from hepattn.sequence import Layout

__all__ = ["Decoded", "Decoder", "Prediction"]


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
    losses: RouterLosses | None
    """Of the routers, mean over layers, to be added to the training loss; None without experts."""

    @property
    def last(self) -> Prediction:
        """After the last layer."""
        return self.predictions[-1]


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
        ValueError: dim is no multiple of the heads, or heads are too small for `rotary`
    """

    unit: Tensor

    def __init__(self, dim: int, config: DecoderConfig | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = c = DecoderConfig() if config is None else config
        self.dim = dim
        layers = [DecoderLayer(dim, c, index, backend=backend) for index in range(c.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = make_norm(c.norm, dim)
        self.rotary = rotary_of_hits(dim // c.num_heads) if c.rotary else None
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
        coordinates: Tensor | None = None,
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
            coordinates: (T, 2) float32, phi (radian) and eta of the hits; read with `rotary` alone, which needs them

        Raises:
            ValueError: shapes that do not fit, see `Blocks.of`; or `rotary` without coordinates
        """
        c = self.config
        blocks = Blocks.of(place, query_layout.host_lengths, hit_layout.host_lengths, c.block, c.window)
        turned = self._rotation(coordinates)
        q = Tokens(queries, query_layout, encoding, None if turned is None else turned.of_rows(place))
        x = Tokens(hits, hit_layout, hit_encoding, turned)
        cls = self._cls(hit_layout)
        mine = None if own is None else own[blocks.query][:, :, None] == blocks.hit[:, None]
        predictions = [self.predict(q.values, x.values, blocks, anchor)]
        first_value: Tensor | None = None
        losses: list[RouterLosses] = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            q = layer.cross.in_blocks(q, x, blocks, self.attention_mask(predictions[-1].masks, blocks, mine))
            q, loss = layer.dense(q)
            q, value = layer.among(q, first_value)
            if c.value_residual and first_value is None:
                first_value = value
            if loss is not None:
                losses.append(loss)
            if layer.update is not None:
                assert c.update_hits is not None
                x = layer.update(x, q, Strided(c.update_hits, wrap=True).transpose)
            if layer.cls is not None:
                assert cls is not None
                cls = layer.cls(cls, x, q)
            predictions.append(self.predict(q.values, x.values, blocks, anchor))
        none = hits.new_zeros(hit_layout.batch, 0, self.dim)
        out = none if cls is None else self.norm(cls.values).unflatten(0, (hit_layout.batch, -1))
        return Decoded(tuple(predictions), blocks, out, mean_losses(losses) if losses else None)

    def _rotation(self, coordinates: Tensor | None) -> Rotation | None:
        """Of the hits."""
        if self.rotary is None:
            return None
        if coordinates is None:
            raise ValueError("Decoder with rotary=True got no coordinates: give phi and eta of the hits, (T, 2).")
        return Rotation.of(self.rotary(coordinates))

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
