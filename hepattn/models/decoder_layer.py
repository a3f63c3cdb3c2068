"""One layer of a decoder: masked cross-attention to hits, a dense network, self-attention among queries."""

from dataclasses import dataclass

from torch import Tensor, nn

from hepattn.attention.module import Attention
from hepattn.layers import Dense as DenseNetwork
from hepattn.layers import Residual, make_norm
from hepattn.masks import Dense, Mask
from hepattn.models.blocks import Blocks
from hepattn.models.decoder_config import DecoderConfig
from hepattn.sequence import Layout


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
