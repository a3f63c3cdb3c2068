"""Sines and cosines of a coordinate at geometrically spaced frequencies."""

from typing import Self

import torch
from torch import Tensor

from hepattn.encodings.base import Encoding, as_coordinate, sine_cosine


class Sinusoidal(Encoding):
    """`[sin(omega x), cos(omega x)]` with `omega_k = alpha * base^(-2k/d)`, k = 0 .. d // 2 - 1 (arXiv:1706.03762).

    The defaults run from 64 down to 0.25 rad a unit, plus a step: for eta in [-4, 4] the lowest turns less than half a
    turn over the detector, so that the whole range is ordered, and the highest resolves 0.02. Few events learn better
    from low frequencies (lower alpha); high ones let a model know single events by heart.

    Args:
        channels: outputs, d.
        alpha: highest frequency, rad a unit of x.
        base: ratio of the highest to (almost) the lowest frequency.

    Raises:
        ValueError: alpha or base is not positive.
    """

    omega: Tensor

    def __init__(self, channels: int, *, alpha: float = 64.0, base: float = 256.0) -> None:
        super().__init__(channels)
        if alpha <= 0 or base <= 0:
            raise ValueError(f"Sinusoidal got alpha={alpha}, base={base}: frequencies need both to be positive.")
        exponents = -2 * torch.arange(self.pairs, dtype=torch.float64) / channels
        self._set_frequencies(alpha * base**exponents)

    @classmethod
    def hepformer(cls, channels: int, *, alpha: float = 1000.0, base: float = 100.0) -> Self:
        """HEPFormer's parametrisation: `omega = alpha * base^linspace(0, 2/d - 1, d // 2)` (arXiv:2411.07149).

        It has no low frequencies: for d = 84 none below 11 rad a unit.
        """
        encoding = cls(channels)
        exponents = torch.linspace(0, 2 / channels - 1, encoding.pairs, dtype=torch.float64)
        encoding._set_frequencies(alpha * base**exponents)
        return encoding

    def _set_frequencies(self, omega: Tensor) -> None:
        self.register_buffer("omega", omega.to(torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes x (T,) -> (T, channels) float32.

        Raises:
            TypeError: x is half precision.
        """
        angle = as_coordinate(x, self).unsqueeze(-1) * self.omega
        return sine_cosine(angle.sin(), angle.cos(), self.channels)
