"""The hit filter: how probable it is that a hit lies on a reconstructable particle (arXiv:2411.07149).

Features and positional encodings of every hit -> a small dense network -> encoder with a circular window over hits in
phi order -> one logit a hit.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hepattn.data.dataset import COORDINATES, hit_inputs
from hepattn.data.features import DEFAULT_FEATURES, check_features
from hepattn.data.sample import data_directory
from hepattn.data.schema import Event, Selection
from hepattn.encodings import Rotary, RotaryFields, Sinusoidal
from hepattn.encodings.base import close_turn
from hepattn.layers import Dense, Residual, make_norm
from hepattn.layers.experts import RouterLosses
from hepattn.masks import Window
from hepattn.models.encoder import Encoder
from hepattn.models.encoder_config import EncoderConfig
from hepattn.sequence import Layout, Packed

PRETRAINED = "mu200"
"""The weights that `HitFilter.pretrained()` takes unless another name is given."""


@dataclass(frozen=True)
class HitFilterConfig:
    """Everything that a hit filter is built from; saved with its weights."""

    features: tuple[str, ...] = DEFAULT_FEATURES
    """Names in `hepattn.data.features`."""
    pt_min: float = 0.9
    """GeV; this and the next three are the `Selection`: which particles are reconstructable."""
    eta_max: float = 4.0
    min_hits: int = 3
    volumes: tuple[int, ...] | None = None
    """TrackML volume ids; the filter reads only hits of these. None for all."""
    window: int = 128
    """Hits in phi order that a hit may attend to: window // 2 on either side, around the full turn; >= 1."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Sizes and switches of the encoder."""
    attention: bool = True
    """False leaves attention out: a residual network of like size that sees each hit alone, for comparison."""
    phi_octaves: int = 7
    """Sines and cosines of k phi for k = 1, 2, 4 ... 2^(octaves - 1); 0 for none. The same below."""
    eta_octaves: int = 5
    r_octaves: int = 3
    r_unit: float = 50.0
    """mm; r / r_unit is encoded."""
    z_octaves: int = 0
    z_unit: float = 200.0
    """mm; z / z_unit is encoded."""
    rotary: bool = False
    """Queries and keys of every layer are turned by phi and eta too, see `hepattn.encodings.Rotary`."""
    count: bool = False
    """Also estimate how many particles of an event are reconstructable, from its CLS tokens (`encoder.cls` >= 1)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.volumes is not None:
            object.__setattr__(self, "volumes", tuple(self.volumes))
        check_features(self.features)
        _ = self.selection  # refuses impossible cuts
        least = {"window": 1} | dict.fromkeys(("phi_octaves", "eta_octaves", "r_octaves", "z_octaves"), 0)
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if not (self.r_unit > 0 and self.z_unit > 0):
            raise ValueError(f"r_unit and z_unit are lengths > 0 in mm, not {self.r_unit} and {self.z_unit}")
        if self.rotary and not self.attention:
            raise ValueError("rotary turns queries and keys, and attention=False has none: leave one of them out")
        if self.rotary and self.encoder.dim // self.encoder.num_heads < 4:
            raise ValueError("rotary turns by phi and eta, two channels each: give heads of at least 4 channels")
        if self.count and not (self.attention and self.encoder.cls):
            raise ValueError("count reads the encoder's CLS tokens: give encoder.cls=1, and attention")

    @property
    def selection(self) -> Selection:
        """What a reconstructable particle is."""
        return Selection(self.pt_min, self.eta_max, self.min_hits, self.volumes)

    def to_json(self) -> str:
        """All settings as JSON; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that `to_json` wrote.

        Raises:
            ValueError: it has settings that this version doesn't know
        """
        saved = json.loads(text)
        unknown = sorted(set(saved) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"a hit filter of another version: it has the unknown settings {', '.join(unknown)}")
        return cls(**saved | {"encoder": EncoderConfig.of(saved["encoder"])})


class Octaves(nn.Module):
    """Sines and cosines of phi, eta, r and z at frequencies 1, 2, 4 ... of each; channels: twice the octaves of all.

    Low frequencies make a small data set enough: with k up to 512 a few events are learnt by heart.
    """

    def __init__(self, octaves: tuple[int, int, int, int], units: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.units = units
        made = {n: Sinusoidal(2 * n, alpha=2.0 ** (n - 1), base=2.0**n) for n in octaves if n}
        self.parts = nn.ModuleList([made[n] if n else nn.Identity() for n in octaves])
        self.octaves = octaves

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates (T, 4) float32, see `hepattn.data.dataset.COORDINATES` -> (T, channels) float32."""
        columns = []
        for i, (n, unit, part) in enumerate(zip(self.octaves, self.units, self.parts, strict=True)):
            if n:
                x = close_turn(coordinates[:, i]) if COORDINATES[i] == "phi" else coordinates[:, i] / unit
                columns.append(part(x))
        return torch.cat(columns, dim=1) if columns else coordinates.new_zeros(len(coordinates), 0)


def _turn_by_phi(channels: int) -> Rotary:
    """Fine enough for a window's phi differences: at most 512 turns of the channels in a turn of phi."""
    return Rotary(channels, alpha=512.0, periodic=True)


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
        values, layout = x.values, Layout.of(x.lengths, x.values.device)
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


class HitFilter(nn.Module):
    """Logit of each hit, from its features and from the hits around it in phi.

    Hits may come in any order: they are put into phi order inside (stable, float32) and come back in their own.

    Args:
        config: sizes, features and selection; None takes the defaults
        backend: attention kernel, see `hepattn.attend`
        **changes: single fields of `HitFilterConfig`, instead of a config

    Raises:
        ValueError: for an impossible configuration
    """

    def __init__(self, config: HitFilterConfig | None = None, *, backend: str = "auto", **changes: Any) -> None:
        super().__init__()
        if config is not None and changes:
            raise ValueError(f"give a config or single fields, not both ({', '.join(changes)})")
        self.config = c = HitFilterConfig(**changes) if config is None else config
        octaves = (c.phi_octaves, c.eta_octaves, c.r_octaves, c.z_octaves)
        self.encoding = Octaves(octaves, (1.0, 1.0, c.r_unit, c.z_unit))
        width, dim = len(c.features) + 2 * sum(octaves), c.encoder.dim
        self.input = nn.Sequential(nn.Linear(width, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.encoder: nn.Module
        if c.attention:
            self.encoder = Encoder(c.encoder, mask=Window(c.window, wrap=True), backend=backend)
        else:
            self.encoder = PerHit(c.encoder)
        self.output = nn.Linear(dim, 1)
        head_dim = dim // c.encoder.num_heads
        self.rotary = RotaryFields({"phi": _turn_by_phi, "eta": Rotary}, head_dim) if c.rotary else None
        self.count_head = nn.Linear(c.encoder.cls * dim + 1, 1) if c.count else None

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
            packed = Packed.from_nested(inputs)
            return packed.with_values(self.logits(packed)).to_nested()
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
        features = len(self.config.features)
        if inputs.values.ndim != 2 or inputs.values.shape[1] != features + len(COORDINATES):
            raise ValueError(
                f"this filter reads {features} features and {len(COORDINATES)} coordinates of each hit, "
                f"not an input of shape {tuple(inputs.values.shape)}"
            )
        if not len(inputs.values):
            zero = 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
            counts = None if self.count_head is None else zero.expand(len(inputs.lengths))
            return Judged(inputs.values.new_zeros(0, dtype=torch.float32) + zero, None, counts)
        hits = Packed(inputs.values, inputs.lengths).sort(inputs.values[:, features].float())
        named, coordinates = hits.values[:, :features], hits.values[:, features:].float()
        x = self.input(torch.cat([named, self.encoding(coordinates)], dim=1))
        losses = log_count = None
        if isinstance(self.encoder, Encoder):
            angles = None if self.rotary is None else self.rotary(coordinates[:, :2])
            encoded = self.encoder.encode(Packed(x, hits.lengths), rotation=angles)
            x, losses = encoded.tokens.values, encoded.losses
            log_count = self._log_count(encoded.cls, hits.lengths)
        else:
            x = self.encoder(Packed(x, hits.lengths)).values
        logit = self.output(x).squeeze(-1).float()
        return Judged(hits.with_values(logit).unsort().values, losses, log_count)

    def _log_count(self, cls: Tensor, lengths: Tensor) -> Tensor | None:
        """(B,) from the CLS tokens (B, C, dim) and the number of hits, which attention, an average, does not see."""
        if self.count_head is None:
            return None
        hits = lengths.to(cls.device, cls.dtype)[:, None].log1p()
        return self.count_head(torch.cat([cls.flatten(1), hits], dim=1)).squeeze(1).float()

    def set_backend(self, backend: str) -> None:
        """Another attention kernel; the same numbers."""
        if isinstance(self.encoder, Encoder):
            self.encoder.set_backend(backend)

    def inputs(self, event: Event) -> Packed:
        """What the filter sees of an event, on the filter's device: values (n_hits, F + 4)."""
        device = next(self.parameters()).device
        values = hit_inputs(event, self.config.features).to(device)
        return Packed(values, torch.tensor([len(values)]))

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

    def save(self, path: str | Path, note: str = "", *, dtype: torch.dtype = torch.float32) -> Path:
        """Weights and configuration as one safetensors file.

        Args:
            path: where to; folders are made
            note: one line on how these weights came to be, kept in the file
            dtype: of the numbers in the file; float16 halves it, and rounds each weight to 3 digits
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = self.state_dict()
        tensors = {name: x.detach().to("cpu", dtype).contiguous() for name, x in state.items()}
        save_file(tensors, path, metadata={"model": "HitFilter", "config": self.config.to_json(), "note": note})
        return path

    @classmethod
    def load(cls, path: str | Path, *, backend: str = "auto") -> Self:
        """A filter as `save` wrote it, in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: there is no such file
            ValueError: the file holds something else
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there are no weights at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error})") from error
        if metadata.get("model") != "HitFilter":
            raise ValueError(f"{path} holds no hit filter")
        model = cls(HitFilterConfig.from_json(metadata["config"]), backend=backend)
        model.load_state_dict(tensors)
        return model.eval()

    @classmethod
    def pretrained(cls, name: str = PRETRAINED, *, backend: str = "auto") -> Self:
        """A filter that ships with the project; `data/weights/README.md` says what each was trained on.

        Args:
            name: NAME of a file data/weights/hit_filter_NAME.safetensors
            backend: attention kernel

        Raises:
            FileNotFoundError: no such weights are there
        """
        folder = data_directory() / "weights"
        path = folder / f"hit_filter_{name}.safetensors"
        if not path.is_file():
            known = sorted(p.stem.removeprefix("hit_filter_") for p in folder.glob("hit_filter_*.safetensors"))
            raise FileNotFoundError(
                f"no hit filter {name!r} ships with this installation; there is {', '.join(known) or 'none'}"
            )
        return cls.load(path, backend=backend)
