"""Every setting of a decoder in one place: checked together, printed, saved with weights, written as YAML."""

from dataclasses import dataclass

from hepattn.models.encoder_config import NormKind
from hepattn.models.settings import LayerSettings, check_layers, check_types


@dataclass(frozen=True)
class DecoderConfig(LayerSettings):
    """Sizes and switches of a `Decoder`; its width is that of the encoder before it.

    Raises:
        ValueError: a setting has no such value, or two of them contradict each other.
    """

    owner = "Decoder"
    sizes = ("num_layers", "num_heads")

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
    hybrid_norm: bool = False
    """HybridNorm in place of pre-norm (arXiv:2503.04598), see `DecoderLayer`; norms q, k and v in each head."""
    qk_norm: NormKind | None = "rms"
    """Norm of q and k in each head; None: none."""
    v_norm: bool = False
    """Norm v in each head too, by the kind of qk_norm ("rms" where that is None)."""
    value_residual: bool = False
    """In self-attention among queries later layers mix the first layer's values into theirs, for each query and head
    (arXiv:2410.17897). Cross-attention, whose values are not those of the tokens that look, has no first value defined:
    it stays as it is."""
    rotary: bool = False
    """Queries and keys of all attention are turned by phi and eta (arXiv:2104.09864), see `Rotary`: hits by their own,
    queries, also learned ones, by those of the hit at which they stand. CLS tokens stand nowhere: neither they nor the
    keys that they look at are turned."""
    gate: bool = False
    """Gated attention output, see `Attention`."""
    laser: bool = False
    """LASER attention, see `Attention`."""
    layer_scale: float | None = None
    """First value of LayerScale."""
    zero_start: bool = True
    """Each layer begins as the identity, with hybrid_norm but for its norm: the last linear map of a branch is zero."""
    drop_path: float = 0.0
    """DropPath rate of the last layer; it rises linearly from 0 at the first."""
    dense_ratio: float = 2.0
    """Hidden channels of each dense network over those of a query."""
    activation: str = "swiglu"
    """Of the dense networks, see `hepattn.layers.Dense`."""
    experts: int | None = None
    """Networks that a router chooses from, in place of each layer's dense network (mixture of experts, see `Experts`).
    CLS tokens, of which an event has a few, keep a dense network."""
    experts_per_token: int = 2
    """How many of them serve a query; each has dense_ratio / experts_per_token, so that a query sees the same width."""
    parameters: bool = False
    """Predict track parameters."""
    iou: bool = False
    """Predict how well each mask fits (IoU)."""

    def __post_init__(self) -> None:
        if isinstance(self.cls, bool):
            object.__setattr__(self, "cls", int(self.cls))
        check_types("Decoder", self)
        for name, least in (("num_layers", 0), ("num_heads", 1), ("cls", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Decoder got {name}={getattr(self, name)}: give at least {least}.")
        for name in ("block", "window", "update_hits"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Decoder got {name}={value}: give at least 1, or None.")
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"Decoder got mask_threshold={self.mask_threshold}, expected a probability in (0, 1).")
        check_layers("Decoder", self)

    def __str__(self) -> str:
        """One line: sizes, and what is not as by default."""
        return ", ".join([f"{self.num_layers} layers, {self.num_heads} heads", *self.switches()])
