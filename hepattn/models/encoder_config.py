"""Every setting of an encoder in one place: checked together, printed, saved with weights, written as YAML."""

from dataclasses import dataclass
from typing import Literal

from hepattn.models.settings import LayerSettings, check_layers, check_types

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class EncoderConfig(LayerSettings):
    """Sizes and switches of an `Encoder`; all switches are off by default.

    What is not a setting is given to the encoder beside it: the mask, which says who may look at whom, and the kernel.

    Raises:
        ValueError: a setting has no such value, or two of them contradict each other; one sentence says what to do.
    """

    owner = "Encoder"
    sizes = ("dim", "num_layers", "num_heads")

    dim: int = 64
    """Channels of a token; a multiple of num_heads."""
    num_layers: int = 4
    num_heads: int = 4
    """Heads of each layer. On a GPU heads of 64 channels are faster than heads of 32."""
    norm: NormKind = "rms"
    """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450), wherever there is one."""
    hybrid_norm: bool = False
    """HybridNorm in place of pre-norm (arXiv:2503.04598), see `EncoderLayer`; norms q, k and v in each head."""
    qk_norm: NormKind | None = None
    """Norm of q and k in each head (arXiv:2010.04245, arXiv:2302.05442)."""
    v_norm: bool = False
    """Norm v in each head too, by the kind of qk_norm ("rms" where that is None)."""
    layer_scale: float | None = None
    """First value of LayerScale (arXiv:2103.17239), a learned factor for each channel of what a branch adds."""
    zero_start: bool = False
    """Each layer begins as the identity: the last linear map of every branch is zero at first."""
    drop_path: float = 0.0
    """DropPath rate of the last layer; it rises linearly from 0 at the first (arXiv:1603.09382)."""
    value_residual: bool = False
    """Later layers mix the first layer's values into theirs, for each token and head (arXiv:2410.17897)."""
    gate: bool = False
    """Gated attention output (AlphaFold 2, Jumper et al. 2021, algorithm 7)."""
    laser: bool = False
    """LASER: attention on exponentials of the values (arXiv:2411.03493)."""
    distance_bias: Literal["linear", "circular"] | None = None
    """Scores fall with the distance in tokens, by a slope that each head learns (ALiBi, arXiv:2108.12409)."""
    dense_ratio: float = 2.0
    """Hidden channels of each dense network over dim."""
    activation: str = "swiglu"
    """Of the dense networks, see `Dense`."""
    experts: int | None = None
    """Networks that a router chooses from, in place of each dense network (mixture of experts, see `Experts`)."""
    experts_per_token: int = 2
    """How many of them serve a token; each has dense_ratio / experts_per_token, so that a token sees the same width."""
    registers: int | None = None
    """A learned register token after every so many hits (arXiv:2309.16588, interspersed for windows)."""
    global_registers: int = 0
    """Learned tokens of each event that attend to all and that all attend to; thrown away at the end."""
    cls: int = 0
    """CLS tokens: the same, but kept for the event (`Encoder.encode`); True is one."""

    def __post_init__(self) -> None:
        if isinstance(self.cls, bool):
            object.__setattr__(self, "cls", int(self.cls))
        check_types("Encoder", self)
        for name in ("dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"Encoder got {name}={getattr(self, name)}: give at least one.")
        if self.dim % self.num_heads:
            raise ValueError(
                f"Encoder got dim={self.dim}, num_heads={self.num_heads}: make dim a multiple of num_heads."
            )
        if round(self.dim * self.dense_ratio) < 1:
            raise ValueError(f"Encoder got dense_ratio={self.dense_ratio}: no channel would be left, so give more.")
        for name in ("cls", "global_registers"):
            if getattr(self, name) < 0:
                raise ValueError(f"Encoder got {name}={getattr(self, name)}: give 0 or more.")
        if self.registers is not None and self.registers < 1:
            raise ValueError(f"Encoder got registers={self.registers}: give the hits between two registers, or None.")
        check_layers("Encoder", self)

    def __str__(self) -> str:
        """One line: sizes, and the switches that are on."""
        return ", ".join([f"{self.num_layers} x {self.dim}, {self.num_heads} heads", *self.switches()])
