"""The hit filter: how probable it is that a hit lies on a reconstructable particle (arXiv:2411.07149).

Features and positional encodings of every hit -> a small dense network -> encoder with a circular window over hits in
phi order -> one logit a hit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from hepattn.data.schema import Event
from hepattn.layers import Dense, Residual, make_norm
from hepattn.layers.experts import RouterLosses
from hepattn.models.encoder import Encoder
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_encoder import CountHead, HitModel, HitModelConfig
from hepattn.sequence import Layout, Packed


@dataclass(frozen=True)
class HitFilterConfig(HitModelConfig):
    """Everything that a hit filter is built from; saved with its weights."""

    attention: bool = True
    """False leaves attention out: a residual network of like size that sees each hit alone, for comparison."""
    count: bool = False
    """Also estimate how many particles of an event are reconstructable, from its CLS tokens (`encoder.cls` >= 1)."""

    title = "hit filter"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary and not self.attention:
            raise ValueError("rotary turns queries and keys, and attention=False has none: leave one of them out")
        if self.count and not (self.attention and self.encoder.cls):
            raise ValueError("count reads the encoder's CLS tokens: give encoder.cls=1, and attention")


class PerHit(nn.Module):
    """Residual dense layers on each hit alone, with as many weights as an encoder of these sizes has.

    Attention's four dim x dim matrices go into the three matrices of the gated dense network.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = config
        ratio = c.dense_ratio + 4 / 3
        self.steps = nn.ModuleList([Residual(c.dim, norm=c.norm) for _ in range(c.num_layers)])
        dense_layers = [Dense(c.dim, ratio=ratio) for _ in range(c.num_layers)]
        self.dense = nn.ModuleList(dense_layers)
        self.norm = make_norm(c.norm, c.dim)
        if c.zero_start:
            for last in (dense.output for dense in dense_layers):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, x: Packed) -> Packed:
        """Values (T, dim) -> (T, dim)."""
        values, layout = x.values, Layout.of(x.lengths, x.values.device, total=len(x.values))
        for step, dense in zip(self.steps, self.dense, strict=True):
            values = step(values, dense, layout)
        return x.with_values(self.norm(values))


@dataclass(frozen=True, eq=False)
class Judged:
    """What a hit filter says of a batch.

    Attributes:
        logits: (T,) float32, in the order of the hits.
        losses: of the encoder's routers, None without experts or without a hit.
        log_count: (B,) float32, estimate of log(1 + number of reconstructable particles); None without `count`.
    """

    logits: Tensor
    losses: RouterLosses | None
    log_count: Tensor | None


class HitFilter(HitModel):
    """Logit of each hit, from its features and from the hits around it in phi.

    Hits may come in any order: they are put into phi order inside (stable, float32) and come back in their own.

    Args:
        config: sizes, features and selection; None takes the defaults
        backend: attention kernel, see `hepattn.attend`
        **changes: single fields of `HitFilterConfig`, instead of a config

    Raises:
        ValueError: for an impossible configuration
    """

    KIND = "hit_filter"
    CONFIG = HitFilterConfig
    PRETRAINED = "mu200"
    config: HitFilterConfig

    def __init__(self, config: HitFilterConfig | None = None, *, backend: str = "auto", **changes: Any) -> None:
        if config is not None and changes:
            raise ValueError(f"give a config or single fields, not both ({', '.join(changes)})")
        c = HitFilterConfig(**changes) if config is None else config
        super().__init__(c, backend=backend)
        dim = c.encoder.dim
        self.output = nn.Linear(dim, 1)
        self.count_head = CountHead(c.encoder.cls, dim) if c.count else None

    @override
    def make_encoder(self, backend: str) -> nn.Module:
        return super().make_encoder(backend) if self.config.attention else PerHit(self.config.encoder)

    def forward(self, inputs: Packed | Tensor, valid: Tensor | None = None) -> Packed | Tensor:
        """Logits of all hits; what comes in (packed, padded with valid, nested) comes out.

        Args:
            inputs: `hepattn.data.dataset.hit_inputs` of each event: Packed of values (T, F + 4), a padded tensor
                (B, N, F + 4), or a nested one
            valid: (B, N) bool with a padded tensor, True = a hit

        Returns:
            Packed of values (T,), (B, N) with zeros where no hit is, or nested; float32

        Raises:
            ValueError: the number of columns is not F + 4
        """
        if isinstance(inputs, Packed):
            return inputs.with_values(self.logits(inputs))
        if inputs.is_nested:
            nested: Any = inputs  # the same offsets again: only such nested tensors can be added
            return torch.nested.nested_tensor_from_jagged(self.logits(Packed.from_nested(nested)), nested.offsets())
        if valid is None:
            raise ValueError("a padded tensor needs valid= (B, N) bool, True = a hit")
        packed = Packed.from_padded(inputs, valid)
        out = inputs.new_zeros(inputs.shape[:2], dtype=torch.float32)
        return out.masked_scatter(valid, self.logits(packed))

    def logits(self, inputs: Packed) -> Tensor:
        """(T,) float32, in the order of `inputs`, whose values are (T, F + 4)."""
        return self.judge(inputs).logits

    def judge(self, inputs: Packed) -> Judged:
        """As `logits`, with what a training needs beside them."""
        if not len(inputs.values):
            zero = 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
            counts = None if self.count_head is None else zero.expand(len(inputs.lengths))
            return Judged(inputs.values.new_zeros(0, dtype=torch.float32) + zero, None, counts)
        hits, coordinates = self.embed(inputs)
        losses = log_count = None
        if isinstance(self.encoder, Encoder):
            encoded = self.encode(hits, coordinates)
            x, losses = encoded.tokens.values, encoded.losses
            log_count = None if self.count_head is None else self.count_head(encoded.cls, hits.lengths)
        else:
            x = self.encoder(hits).values
        logit = self.output(x).squeeze(-1).float()
        return Judged(hits.with_values(logit).unsort().values, losses, log_count)

    @torch.no_grad()
    def score(self, event: Event) -> Tensor:
        """Probability that each hit lies on a reconstructable particle.

        Where the filter's selection names volumes, hits of others get NaN: it does not judge them (and NaN > threshold
        is False). The filter runs in evaluation mode, and its mode is left as it was.

        Returns:
            (n_hits,) float32 on the CPU, in the event's own order

        Raises:
            ValueError: the event lacks what a feature needs (cluster shapes)
        """
        inside = torch.from_numpy(self.config.selection.in_volumes(event.hits))
        probability = self._judge(event).logits.sigmoid().cpu()
        return torch.full((len(inside),), float("nan")).masked_scatter(inside, probability)

    @torch.no_grad()
    def count(self, event: Event) -> float:
        """Estimate of the number of reconstructable particles in an event, in evaluation mode like `score`.

        Raises:
            ValueError: the filter was made without `count`, or the event lacks what a feature needs
        """
        if self.count_head is None:
            raise ValueError("this filter does not count particles: make one with count=True and CLS tokens")
        log_count = self._judge(event).log_count
        assert log_count is not None
        return float(log_count.expm1().clamp(min=0))

    def _judge(self, event: Event) -> Judged:
        """Of the event's hits in the selected volumes, in evaluation mode; the mode is left as it was."""
        inside = self.config.selection.in_volumes(event.hits)
        inputs = self.inputs(event if bool(inside.all()) else event.keep(inside))
        training = self.training
        self.eval()
        try:
            return self.judge(inputs)
        finally:
            self.train(training)
