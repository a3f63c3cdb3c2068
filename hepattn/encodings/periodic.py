"""An encoding of an angle that closes: phi = -pi and phi = +pi give the same numbers, bit for bit."""

import torch
from torch import Tensor

from hepattn.encodings.base import Encoding, as_coordinate, close_turn, sine_cosine


class Periodic(Encoding):
    """`[sin(omega sin phi), sin(omega cos phi)]`, HEPFormer's symmetric encoding of an angle (arXiv:2411.07149).

    A plain sinusoidal encoding of phi jumps at +-pi. Each half alone is ambiguous (phi and pi - phi have one sine);
    together they are unique while some omega is below pi / 2. The frequencies are `alpha * base^(-2k/d)`,
    k = 0 .. d // 2 - 1; the defaults run from 64 down to 0.25 rad, plus a step.

    Args:
        channels: outputs, d.
        alpha: highest frequency, rad for each unit of sin phi.
        base: ratio of the highest to (almost) the lowest frequency.

    Raises:
        ValueError: alpha or base is not positive.
    """

    omega: Tensor

    def __init__(self, channels: int, *, alpha: float = 64.0, base: float = 256.0) -> None:
        super().__init__(channels)
        if alpha <= 0 or base <= 0:
            raise ValueError(f"Periodic got alpha={alpha}, base={base}: frequencies need both to be positive.")
        exponents = -2 * torch.arange(self.pairs, dtype=torch.float64) / channels
        self.register_buffer("omega", (alpha * base**exponents).to(torch.float32), persistent=False)

    def forward(self, phi: Tensor) -> Tensor:
        """Encodes phi (T,) in radian -> (T, channels) float32.

        Raises:
            TypeError: phi is half precision.
        """
        phi = close_turn(as_coordinate(phi, self)).unsqueeze(-1)
        return sine_cosine((self.omega * phi.sin()).sin(), (self.omega * phi.cos()).sin(), self.channels)
