"""What every model of hits begins with: features and positional encodings of each hit, and an encoder over all of them.

Hits are put into phi order (stable, float32), so that a window of the encoder is a wedge of the detector. Weights and
configuration are one file.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hepattn.data.dataset import COORDINATES, hit_inputs
from hepattn.data.features import DEFAULT_FEATURES, check_features
from hepattn.data.sample import data_directory
from hepattn.data.schema import Event, Selection
from hepattn.encodings import Encoding, Sinusoidal, make_encoding, rotary_of_hits
from hepattn.encodings.base import close_turn
from hepattn.masks import Window
from hepattn.models.encoder import Encoded, Encoder
from hepattn.models.encoder_config import EncoderConfig
from hepattn.sequence import Packed

HitEncoding = Literal["octaves", "none", "hepformer", "periodic", "fourier"]
"""How a model of hits encodes coordinates, see `HitModelConfig.encoding`."""


@dataclass(frozen=True)
class HitModelConfig:
    """What a model reads of hits, and its encoder; saved with its weights."""

    features: tuple[str, ...] = DEFAULT_FEATURES
    """Names in `hepattn.data.features`."""
    pt_min: float = 0.9
    """GeV; this and the next three are the `Selection`: which particles are reconstructable."""
    eta_max: float = 4.0
    min_hits: int = 3
    volumes: tuple[int, ...] | None = None
    """TrackML volume ids; the model reads only hits of these. None for all."""
    window: int = 128
    """Hits in phi order that a hit may attend to: window // 2 on either side, around the full turn; >= 1."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Sizes and switches of the encoder."""
    phi_octaves: int = 7
    """Sines and cosines of k phi for k = 1, 2, 4 ... 2^(octaves - 1); 0 for none. The same below."""
    eta_octaves: int = 5
    r_octaves: int = 3
    r_unit: float = 50.0
    """mm; r / r_unit is encoded."""
    z_octaves: int = 0
    z_unit: float = 200.0
    """mm; z / z_unit is encoded."""
    encoding: HitEncoding = "octaves"
    """"none" encodes no coordinate. The others are `hepattn.encodings` by name, at that encoding's own frequencies, two
    channels for each octave above; "periodic" is for phi, beside "sinusoidal" for the rest. All but octaves want units
    in which a detector is of order one: r_unit = z_unit = 1000."""
    rotary: bool = False
    """Queries and keys of every layer are turned by phi and eta too, see `hepattn.encodings.Rotary`: attention then
    sees how far apart two hits are."""
    title: ClassVar[str] = "model of hits"
    """What a model with such a configuration is called in messages."""

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
        if self.encoding not in get_args(HitEncoding):
            raise ValueError(f"encoding is one of {', '.join(get_args(HitEncoding))}, not {self.encoding!r}")
        if not (self.r_unit > 0 and self.z_unit > 0):
            raise ValueError(f"r_unit and z_unit are lengths > 0 in mm, not {self.r_unit} and {self.z_unit}")
        if self.rotary:
            rotary_of_hits(self.encoder.dim // self.encoder.num_heads)  # refuses small heads

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
            raise ValueError(f"a {cls.title} of another version: it has the unknown settings {', '.join(unknown)}")
        return cls(**saved | cls.parts(saved))

    @classmethod
    def parts(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """The settings that are configurations of their own, made of what `to_json` wrote."""
        return {"encoder": EncoderConfig.of(saved["encoder"])}


class Octaves(nn.Module):
    """Sines and cosines of phi, eta, r and z at frequencies 1, 2, 4 ... of each; `channels`: twice the octaves of all.

    Low frequencies make a small data set enough: with k up to 512 a few events are learnt by heart. Another `kind` has
    as many channels of other frequencies, or none, see `HitModelConfig.encoding`.
    """

    def __init__(
        self,
        octaves: tuple[int, int, int, int],
        units: tuple[float, float, float, float],
        kind: HitEncoding = "octaves",
    ) -> None:
        super().__init__()
        self.units = units
        self.octaves = octaves if kind != "none" else (0, 0, 0, 0)
        self.channels = 2 * sum(self.octaves)
        made = [_encoding(kind, i, n) if n else nn.Identity() for i, n in enumerate(self.octaves)]
        self.parts = nn.ModuleList(made)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates (T, 4) float32, see `hepattn.data.dataset.COORDINATES` -> (T, channels) float32."""
        columns = []
        for i, (n, unit, part) in enumerate(zip(self.octaves, self.units, self.parts, strict=True)):
            if n:
                x = close_turn(coordinates[:, i]) if COORDINATES[i] == "phi" else coordinates[:, i] / unit
                columns.append(part(x))
        return torch.cat(columns, dim=1) if columns else coordinates.new_zeros(len(coordinates), 0)


def _encoding(kind: HitEncoding, column: int, octaves: int) -> Encoding:
    """Of one of the `COORDINATES`; random frequencies are others in each."""
    if kind == "octaves":
        return Sinusoidal(2 * octaves, alpha=2.0 ** (octaves - 1), base=2.0**octaves)
    if kind == "periodic" and COORDINATES[column] != "phi":
        return make_encoding("sinusoidal", 2 * octaves)
    return make_encoding(kind, 2 * octaves, **({"seed": column} if kind == "fourier" else {}))


class CountHead(nn.Module):
    """Estimates log(1 + number of reconstructable particles) of an event from its CLS tokens.

    Args:
        cls: CLS tokens of an event
        dim: channels of each
    """

    def __init__(self, cls: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cls * dim + 1, 1)

    def forward(self, cls: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, dim) and the number of hits (B,), which attention, an average, does not see -> (B,) float32."""
        hits = lengths.to(cls.device, cls.dtype)[:, None].log1p()
        return self.linear(torch.cat([cls.flatten(1), hits], dim=1)).squeeze(1).float()


class HitModel(nn.Module):
    """Base of models that read hits: how hits enter, where weights live.

    Args:
        config: of a class derived from `HitModelConfig`
        backend: attention kernel, see `hepattn.attend`
    """

    KIND: ClassVar[str]
    """First part of the names of its weight files."""
    CONFIG: ClassVar[type[HitModelConfig]]
    PRETRAINED: ClassVar[str]
    """Name of the weights that `pretrained()` takes unless another one is given."""
    config: HitModelConfig

    def __init__(self, config: HitModelConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = c = config
        octaves = (c.phi_octaves, c.eta_octaves, c.r_octaves, c.z_octaves)
        self.encoding = Octaves(octaves, (1.0, 1.0, c.r_unit, c.z_unit), c.encoding)
        width, dim = len(c.features) + self.encoding.channels, c.encoder.dim
        self.input = nn.Sequential(nn.Linear(width, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.encoder: nn.Module = self.make_encoder(backend)
        self.rotary = rotary_of_hits(dim // c.encoder.num_heads) if c.rotary else None

    def make_encoder(self, backend: str) -> nn.Module:
        """The encoder over embedded hits, with a circular window."""
        return Encoder(self.config.encoder, mask=Window(self.config.window, wrap=True), backend=backend)

    def embed(self, inputs: Packed) -> tuple[Packed, Tensor]:
        """Hits in phi order as tokens (T, dim), with `order`; and their coordinates (T, 4) float32 in that order.

        Args:
            inputs: values (T, F + 4), see `hepattn.data.dataset.hit_inputs`, in any order

        Raises:
            ValueError: the number of columns is not F + 4
        """
        features = len(self.config.features)
        if inputs.values.ndim != 2 or inputs.values.shape[1] != features + len(COORDINATES):
            raise ValueError(
                f"this {self.config.title} reads {features} features and {len(COORDINATES)} coordinates of each hit, "
                f"not an input of shape {tuple(inputs.values.shape)}"
            )
        hits = Packed(inputs.values, inputs.lengths).sort(inputs.values[:, features].float())
        named, coordinates = hits.values[:, :features], hits.values[:, features:].float()
        return hits.with_values(self.input(torch.cat([named, self.encoding(coordinates)], dim=1))), coordinates

    def encode(self, hits: Packed, coordinates: Tensor) -> Encoded:
        """Embedded hits through the encoder, which turns queries and keys where the configuration says so.

        Args:
            hits: as `embed` gives them
            coordinates: likewise
        """
        assert isinstance(self.encoder, Encoder)
        return self.encoder.encode(hits, rotation=None if self.rotary is None else self.rotary(coordinates[:, :2]))

    def set_backend(self, backend: str) -> None:
        """Another attention kernel; the same numbers."""
        if isinstance(self.encoder, Encoder):
            self.encoder.set_backend(backend)

    def change(self, *, window: int | None = None, pt_min: float | None = None) -> None:
        """Another window or pT cut (GeV) from now on, in its configuration too; the weights stay, None is as it was.

        Raises:
            ValueError: an impossible value, or a window that the encoder refuses; nothing is changed then
        """
        asked = {name: x for name, x in (("window", window), ("pt_min", pt_min)) if x is not None}
        config = replace(self.config, **asked)  # type: ignore[arg-type]
        if isinstance(self.encoder, Encoder):
            self.encoder.set_mask(Window(config.window, wrap=True))
        self.config = config

    @torch.no_grad()
    def take_encoder(self, other: "HitModel") -> None:
        """Copies the weights with which another model embeds and encodes hits, to begin a training with.

        Raises:
            ValueError: it reads or encodes hits in another way; the settings that differ are named
        """
        sizes = ("phi_octaves", "eta_octaves", "r_octaves", "z_octaves", "r_unit", "z_unit")
        names = ("features", *sizes, "encoding", "rotary", "encoder")
        differing = [name for name in names if getattr(self.config, name) != getattr(other.config, name)]
        if differing or type(self.encoder) is not type(other.encoder):
            what = ", ".join(differing) or "attention"
            raise ValueError(
                f"the {self.config.title} can't begin with the encoder of the {other.config.title}: they differ in "
                f"{what}; make these settings the same"
            )
        for part in ("encoding", "input", "encoder"):
            getattr(self, part).load_state_dict(getattr(other, part).state_dict())

    def inputs(self, event: Event) -> Packed:
        """What the model sees of an event, on the model's device: values (n_hits, F + 4)."""
        device = next(self.parameters()).device
        values = hit_inputs(event, self.config.features).to(device)
        return Packed(values, torch.tensor([len(values)]))

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
        save_file(tensors, path, metadata={"model": type(self).__name__, "config": self.config.to_json(), "note": note})
        return path

    @classmethod
    def load(cls, path: str | Path, *, backend: str = "auto") -> Self:
        """A model as `save` wrote it, in evaluation mode, on the CPU.

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
        if metadata.get("model") != cls.__name__:
            raise ValueError(f"{path} holds no {cls.CONFIG.title}")
        model = cls(cls.CONFIG.from_json(metadata["config"]), backend=backend)
        model.load_state_dict(tensors)
        return model.eval()

    @classmethod
    def pretrained(cls, name: str | None = None, *, backend: str = "auto") -> Self:
        """A model that ships with the project; `data/weights/README.md` says what each was trained on.

        Args:
            name: NAME of a file data/weights/KIND_NAME.safetensors, KIND being hit_filter or the like; None takes the
                largest that there is
            backend: attention kernel

        Raises:
            FileNotFoundError: no such weights are there
        """
        folder = data_directory() / "weights"
        kind, name = cls.KIND, cls.PRETRAINED if name is None else name
        path = folder / f"{kind}_{name}.safetensors"
        if not path.is_file():
            known = sorted(p.stem.removeprefix(f"{kind}_") for p in folder.glob(f"{kind}_*.safetensors"))
            raise FileNotFoundError(
                f"no {cls.CONFIG.title} {name!r} ships with this installation; there is {', '.join(known) or 'none'}"
            )
        return cls.load(path, backend=backend)
