"""The parts that layers of encoder and decoder have alike, made from their settings."""

from typing import Literal

from torch import Tensor, nn

from hepattn.attention.module import Attention
from hepattn.layers.dense import Dense
from hepattn.layers.experts import Experts, RouterLosses
from hepattn.layers.residual import Placement, Residual
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.encoder_config import EncoderConfig

LayerConfig = EncoderConfig | DecoderConfig


def make_residual(dim: int, config: LayerConfig, index: int, around: Literal["attention", "dense"]) -> Residual:
    """The residual step around attention or around a dense network.

    Pre-norm; with HybridNorm (arXiv:2503.04598) in all layers but the first no norm around attention, and around a
    dense network one of branch and skip alike.

    Args:
        dim: channels.
        config: of encoder or decoder.
        index: which of its layers this is, 0 for the first.
        around: what it is around.
    """
    hybrid: dict[str, Placement] = {"attention": "none", "dense": "post"}
    return Residual(
        dim,
        norm=config.norm,
        placement=hybrid[around] if config.hybrid_norm and index > 0 else "pre",
        layer_scale=config.layer_scale,
        drop_path=config.drop_path * index / max(1, config.num_layers - 1),
    )


def make_attention(
    dim: int,
    config: LayerConfig,
    *,
    backend: str,
    value_residual: bool = False,
    distance_bias: Literal["linear", "circular"] | None = None,
) -> Attention:
    """Attention with the norms of the configuration, which with HybridNorm are those of q, k and v; its gate, LASER.

    The last two arguments differ between the layers of a model, or between models, see `Attention`.
    """
    c = config
    return Attention(
        dim,
        c.num_heads,
        backend=backend,
        qk_norm=c.norm if c.hybrid_norm and c.qk_norm is None else c.qk_norm,
        v_norm=c.hybrid_norm or c.v_norm,
        gate=c.gate,
        value_residual=value_residual,
        laser=c.laser,
        distance_bias=distance_bias,
    )


def make_dense(dim: int, config: LayerConfig) -> Dense | Experts:
    """The dense network of a layer, or the experts in its place, of which a token sees the same width."""
    c = config
    if c.experts is None:
        return Dense(dim, ratio=c.dense_ratio, activation=c.activation)
    ratio, k = c.dense_ratio / c.experts_per_token, c.experts_per_token
    return Experts(dim, experts=c.experts, top_k=k, ratio=ratio, activation=c.activation)


def apply_dense(dense: nn.Module, x: Tensor) -> tuple[Tensor, RouterLosses | None]:
    """What `make_dense` made, of tokens x (T, dim): (T, dim), and the losses of the router, if there is one."""
    return dense(x) if isinstance(dense, Experts) else (dense(x), None)


def start_as_identity(layer: nn.Module) -> None:
    """Sets the last linear map of every branch in it to zero, of all experts where there are some."""
    for part in layer.modules():
        last: list[nn.Parameter | None] = []
        if isinstance(part, Experts):
            last = [part.output, part.output_bias]
        elif isinstance(part, Attention | Dense):
            last = [*part.output.parameters()]
        for parameter in last:
            if parameter is not None:
                nn.init.zeros_(parameter)
