"""Random Fourier features of one coordinate, or of several at once."""

import math

import torch
from torch import Tensor

from hepattn.encodings.base import Encoding, as_coordinate, close_turn, sine_cosine


class RandomFourier(Encoding):
    """`[sin(2 pi x B), cos(2 pi x B)]` with `B ~ N(0, scale^2)` (arXiv:2006.10739, arXiv:2304.02643).

    B, (coordinates, channels // 2), is a buffer, saved with the model. It comes from a generator of its own: equal
    seeds give equal B, and torch's global random state is neither read nor changed.

    With `periodic=True` x is an angle in radian and the frequencies are integers, `[sin(x B), cos(x B)]` with
    B = round(N(0, scale^2)) and, where that is zero for all coordinates, 1 for the first: so -pi and +pi agree bit for
    bit. Frequencies may then occur twice.

    Args:
        channels: outputs, d.
        scale: width of the frequencies: turns a unit of x, or, periodic, turns for each full turn of x. The default
            of 1 has many low frequencies; periodic wants about 8.
        coordinates: number of coordinates that are encoded together.
        periodic: integer frequencies, x in radian.
        seed: seed of B.

    Raises:
        ValueError: scale <= 0 or coordinates < 1.
    """

    B: Tensor

    def __init__(
        self, channels: int, *, scale: float = 1.0, coordinates: int = 1, periodic: bool = False, seed: int = 0
    ) -> None:
        super().__init__(channels)
        if scale <= 0 or coordinates < 1:
            raise ValueError(
                f"RandomFourier got scale={scale}, coordinates={coordinates}: give a positive scale and at least one "
                "coordinate."
            )
        self.coordinates = coordinates
        self.periodic = periodic
        generator = torch.Generator().manual_seed(seed)
        frequencies = scale * torch.randn(coordinates, self.pairs, generator=generator)
        if periodic:
            frequencies = frequencies.round()
            frequencies[0] += (frequencies == 0).all(dim=0)
        self.register_buffer("B", frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes x (T,), or (T, coordinates) where there are several -> (T, channels) float32.

        Raises:
            TypeError: x is half precision.
            ValueError: the number of coordinates is not the one that was announced.
        """
        x = as_coordinate(x, self)
        if x.ndim == 1:
            x = x.unsqueeze(-1)
        if x.ndim != 2 or x.shape[1] != self.coordinates:
            raise ValueError(
                f"RandomFourier got x of shape {tuple(x.shape)}, expected (T, {self.coordinates}): "
                "set coordinates= to the number of columns."
            )
        x = close_turn(x) if self.periodic else 2 * math.pi * x
        # a sum of products, not a matrix product: autocast would round the coordinate of a matrix product to bfloat16
        angle = sum((x[:, c, None] * self.B[c] for c in range(1, self.coordinates)), start=x[:, 0, None] * self.B[0])
        return sine_cosine(angle.sin(), angle.cos(), self.channels)
