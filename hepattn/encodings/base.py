"""What every positional encoding shares: one coordinate in, float32 channels out."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

_PI_FLOAT32 = 3.1415927410125732
"""float32's pi: larger than pi by 8.7e-8, which is why sin(pi) and sin(-pi) differ in float32."""


class Precise(nn.Module):
    """A module whose buffers keep their dtype: a frequency of 100 rounded to bfloat16 is a different frequency."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype != tensor.dtype else moved

        return super()._apply(keep_precision, recurse)


class Encoding(Precise):
    """A fixed function of a coordinate with `channels` outputs.

    `forward(x)` takes x (T,) and gives (T, channels), always float32: also under autocast, and also after
    `model.to(torch.bfloat16)`, because a frequency of 100 rad a unit rounded to bfloat16 is a different frequency.
    Coordinates are expected in units in which a detector is of order one (radian, pseudorapidity, metre): divide
    millimetres before. With an odd number of channels the last one is zero.

    Raises:
        ValueError: channels < 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(
                f"{type(self).__name__} got channels={channels}: a sine and a cosine need two, so give channels >= 2."
            )
        self.channels = channels

    @property
    def pairs(self) -> int:
        """Number of frequencies, channels // 2."""
        return self.channels // 2

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"channels={self.channels}"


def as_coordinate(x: Tensor, owner: nn.Module) -> Tensor:
    """The coordinate x (any shape) in float32.

    Raises:
        TypeError: x is float16, bfloat16 (57k hits around a full turn would share 11.6k float16 values) or complex.
    """
    if x.dtype in {torch.float16, torch.bfloat16} or x.is_complex():
        raise TypeError(
            f"{type(owner).__name__} got a coordinate in {x.dtype}, which cannot tell neighbouring hits apart: "
            "give float32 or float64."
        )
    return x.to(torch.float32)


def close_turn(phi: Tensor) -> Tensor:
    """Angles phi (float32, radian) with -pi replaced by +pi: `atan2` returns both names of that one direction."""
    return torch.where(phi <= -math.pi, phi + 2 * _PI_FLOAT32, phi)


def sine_cosine(sine: Tensor, cosine: Tensor, channels: int) -> Tensor:
    """[sine, cosine], (T, channels); the last channel is zero where channels is odd."""
    joined = torch.cat([sine, cosine], dim=-1)
    return nn.functional.pad(joined, (0, 1)) if channels % 2 else joined
