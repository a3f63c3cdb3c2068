"""Turning queries and keys by an angle that depends on where a token is (rotary encoding, arXiv:2104.09864)."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which the channels of each head are turned, computed once for all layers.

    Pair p of a head's D channels is (p, p + P), P = D // 2; the paper's pairs are (2p, 2p + 1), which is the same for
    learned projections. With an odd D the last channel stays as it is, and so does a pair whose angle is 0.
    """

    cos: Tensor
    """(T, P) float32."""
    sin: Tensor
    """(T, P) float32."""

    @classmethod
    def of(cls, angles: Tensor) -> Self:
        """The rotation by angles (T, P) in radian; `hepattn.encodings.Rotary` makes them from coordinates."""
        return cls(angles.cos(), angles.sin())

    def of_rows(self, rows: Tensor) -> "Rotation":
        """The rotation of tokens that stand where those in `rows` (N,) int64 do."""
        return Rotation(self.cos[rows], self.sin[rows])

    def turn(self, x: Tensor) -> Tensor:
        """Turns each pair of channels of x (T, H, D), in float32 or finer; same dtype out.

        Raises:
            ValueError: there are not D // 2 angles for each of T tokens.
        """
        pairs = x.shape[-1] // 2
        if self.cos.shape != (x.shape[0], pairs):
            raise ValueError(
                f"Attention got a rotation {tuple(self.cos.shape)} for {x.shape[0]} tokens with heads of "
                f"{x.shape[-1]} channels, expected ({x.shape[0]}, {pairs}): one angle for every two channels."
            )
        cos, sin = self.cos.unsqueeze(1), self.sin.unsqueeze(1)
        first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
        turned = (first * cos - second * sin, first * sin + second * cos, x[..., 2 * pairs :])
        return torch.cat(turned, dim=-1).to(x.dtype)
