"""Positional encodings: fixed functions of a coordinate, one a file.

They are added once to the inputs of a model, or to what queries and keys of cross-attention are made of. `Rotary` is
another kind: its angles turn queries and keys of every layer.
"""

from collections.abc import Callable
from typing import Any

from hepattn.encodings.base import Encoding
from hepattn.encodings.fields import Fields
from hepattn.encodings.fourier import RandomFourier
from hepattn.encodings.periodic import Periodic
from hepattn.encodings.rotary import Rotary, RotaryFields, rotary_of_hits
from hepattn.encodings.sinusoidal import Sinusoidal


def _periodic_fourier(channels: int, *, scale: float = 8.0, **options: Any) -> RandomFourier:
    return RandomFourier(channels, scale=scale, periodic=True, **options)


ENCODINGS: dict[str, Callable[..., Encoding]] = {
    "sinusoidal": Sinusoidal,
    "hepformer": Sinusoidal.hepformer,
    "periodic": Periodic,
    "fourier": RandomFourier,
    "periodic_fourier": _periodic_fourier,
}
"""Every encoding of one coordinate by the name that a configuration file uses."""


def make_encoding(name: str, channels: int, **options: Any) -> Encoding:
    """The encoding called `name` with that many channels; `options` go to its constructor.

    Raises:
        ValueError: no encoding has that name.
    """
    if name not in ENCODINGS:
        raise ValueError(f"Got the encoding {name!r}, expected one of {', '.join(ENCODINGS)}: choose one of these.")
    return ENCODINGS[name](channels, **options)


__all__ = [
    "ENCODINGS",
    "Encoding",
    "Fields",
    "Periodic",
    "RandomFourier",
    "Rotary",
    "RotaryFields",
    "Sinusoidal",
    "make_encoding",
    "rotary_of_hits",
]
