"""One layer of a decoder, and the residual steps that it is made of."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from hepattn.attention.rotation import Rotation
from hepattn.layers.experts import RouterLosses
from hepattn.layers.norm import make_norm
from hepattn.masks import Dense, Mask
from hepattn.models.blocks import Blocks
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.layer_parts import apply_dense, make_attention, make_dense, make_residual, start_as_identity
from hepattn.sequence import Layout


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of B events on their way through the decoder: what they hold, and what queries and keys know besides."""

    values: Tensor
    """(T, dim)."""
    layout: Layout
    encoding: Tensor | None = None
    """(T, dim) of their places, added to queries and keys; None: none."""
    rotation: Rotation | None = None
    """By their places, of queries and keys; None: they have none, and what they look at is not turned for them."""

    def now(self, values: Tensor) -> "Tokens":
        """The same tokens holding something else."""
        return replace(self, values=values)


class SelfStep(nn.Module):
    """A residual step around attention of tokens to each other."""

    def __init__(self, dim: int, config: DecoderConfig, index: int, *, backend: str) -> None:
        super().__init__()
        self.residual = make_residual(dim, config, index, "attention")
        mixes = config.value_residual and index > 0
        self.attention = make_attention(dim, config, backend=backend, value_residual=mixes)

    def forward(self, x: Tokens, first_value: Tensor | None = None) -> tuple[Tokens, Tensor]:
        """The tokens after it, and its values (T, H, D), of which later layers mix the first layer's into theirs."""
        skip, given = self.residual.split(x.values)
        update, value = self.attention.attend_values(
            given, x.layout, None, first_value, encoding=x.encoding, rotation=x.rotation
        )
        return x.now(self.residual.join(skip, update, x.layout)), value


class CrossStep(nn.Module):
    """A residual step around attention of tokens to a context, which has a norm of its own where they have one."""

    def __init__(self, dim: int, config: DecoderConfig, index: int, *, backend: str) -> None:
        super().__init__()
        self.residual = make_residual(dim, config, index, "attention")
        pre = self.residual.placement == "pre"
        self.context_norm = make_norm(config.norm, dim) if pre else nn.Identity()
        self.attention = make_attention(dim, config, backend=backend)

    def forward(self, x: Tokens, context: Tokens, mask: Mask | None = None) -> Tokens:
        """The tokens after it; `mask` says which tokens of the context, in their event, they may look at."""
        skip, given = self.residual.split(x.values)
        update, _ = self.attention.attend_values(
            given,
            x.layout,
            mask,
            context=self.context_norm(context.values),
            kv_layout=context.layout,
            encoding=x.encoding,
            context_encoding=context.encoding,
            rotation=x.rotation,
            context_rotation=None if x.rotation is None else context.rotation,
        )
        return x.now(self.residual.join(skip, update, x.layout))

    def in_blocks(self, x: Tokens, context: Tokens, blocks: Blocks, mask: Tensor) -> Tokens:
        """Inside the rectangles of `blocks` alone, which stand side by side as if they were events.

        Args:
            x: queries
            context: hits
            blocks: G rectangles of them
            mask: (G, K, W) bool, True = the query may look at the hit
        """
        number, rows, columns = blocks.shape
        skip, given = self.residual.split(x.values)
        query, hit = blocks.query.flatten(), blocks.hit.flatten()
        update, _ = self.attention.attend_values(
            given[query],
            Layout.of([rows] * number, given.device, total=len(query)),
            Dense(list(mask)) if number else None,
            context=self.context_norm(context.values)[hit],
            kv_layout=Layout.of([columns] * number, given.device, total=len(hit)),
            encoding=None if x.encoding is None else x.encoding[query],
            context_encoding=None if context.encoding is None else context.encoding[hit],
            rotation=None if x.rotation is None else x.rotation.of_rows(query),
            context_rotation=None if context.rotation is None else context.rotation.of_rows(hit),
        )
        update = blocks.packed(update.unflatten(0, (number, rows)))
        return x.now(self.residual.join(skip, update, x.layout))


class DenseStep(nn.Module):
    """A residual step around a dense network, or around experts in its place."""

    def __init__(self, dim: int, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.residual = make_residual(dim, config, index, "dense")
        self.dense = make_dense(dim, config)

    def forward(self, x: Tokens) -> tuple[Tokens, RouterLosses | None]:
        """The tokens after it, and the losses of the router, if there is one."""
        skip, given = self.residual.split(x.values)
        update, losses = apply_dense(self.dense, given)
        return x.now(self.residual.join(skip, update, x.layout)), losses


class ClsLayer(nn.Module):
    """CLS tokens read the hits, then the queries, each of their own event."""

    def __init__(self, dim: int, config: DecoderConfig, index: int, *, backend: str) -> None:
        super().__init__()
        self.hits = CrossStep(dim, config, index, backend=backend)
        self.queries = CrossStep(dim, config, index, backend=backend)
        # no router learns to spread the few CLS tokens of a batch evenly
        self.dense = DenseStep(
            dim, replace(config, experts=None, experts_per_token=DecoderConfig.experts_per_token), index
        )

    def forward(self, cls: Tokens, hits: Tokens, queries: Tokens) -> Tokens:
        """The CLS tokens after it."""
        return self.dense(self.queries(self.hits(cls, hits), queries))[0]


class DecoderLayer(nn.Module):
    """Masked cross-attention to hits, a dense network, self-attention among queries, perhaps an update of the hits.

    Each is a residual step, pre-norm as usual: `x + attention(norm(x), norm(context))`. HybridNorm is as in
    `EncoderLayer`: the first layer is pre-norm; later ones give attention x and context as they are, because q, k and v
    are normed in each head, and norm the queries before the dense network, branch and skip alike.

    Args:
        dim: channels
        config: of the decoder
        index: which of its layers this is, 0 for the first
        backend: kernel; but of blocks' cross-attention, realised masks of one shape, where one batched call of sdpa
            serves on any device
    """

    def __init__(self, dim: int, config: DecoderConfig, index: int, *, backend: str) -> None:
        super().__init__()
        c = config
        self.cross = CrossStep(dim, c, index, backend="sdpa" if c.block else backend)
        self.dense = DenseStep(dim, c, index)
        self.among = SelfStep(dim, c, index, backend=backend)
        self.update = CrossStep(dim, c, index, backend=backend) if c.update_hits else None
        self.cls = ClsLayer(dim, c, index, backend=backend) if c.cls else None
        if c.zero_start:
            start_as_identity(self)
