"""Local window, optionally closed into a ring."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from hepattn.masks.base import Mask, Place, Span, check_size, turns

__all__ = ["Window"]


@dataclass(frozen=True)
class Window(Mask):
    """Token i attends to token j when `|i - j| <= size // 2`: `2 (size // 2) + 1` keys, the token itself among them.

    With `wrap=True` the distance is circular, `min(d, n - d)` with n the event's own length, because hits are ordered
    in phi and phi is an angle. `Window(2)` and `Window(2, wrap=True)` on six tokens::

        1 1 0 0 0 0        1 1 0 0 0 1
        1 1 1 0 0 0        1 1 1 0 0 0
        0 1 1 1 0 0        0 1 1 1 0 0
        0 0 1 1 1 0        0 0 1 1 1 0
        0 0 0 1 1 1        0 0 0 1 1 1
        0 0 0 0 1 1        1 0 0 0 1 1

    An event shorter than the window is attended to as a whole. Elsewhere: flash-attention's `(left, right)` is our
    `(size // 2, size // 2)`; a Hugging Face `sliding_window` counts all keys; attention-gym's w is our `size // 2`.

    Args:
        size: width in tokens, at least 1; an odd size and the even size below it are the same window.
        wrap: close the window over the ends of each event.
    """

    size: int
    wrap: bool = False

    def __post_init__(self) -> None:
        check_size("Window", self.size)

    @property
    def half(self) -> int:
        """Keys seen on each side, `size // 2`."""
        return self.size // 2

    @override
    def allowed(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        distance = (query - key).abs()
        near = distance <= self.half
        return near | (place.keys - distance <= self.half) if self.wrap else near

    @override
    def relate(self, query: Span, key: Span, place: Place) -> tuple[Tensor, Tensor]:
        lowest, highest = key.first - query.last, key.last - query.first
        if self.wrap:  # the same, and once around either way
            turn = turns(lowest.device) * place.keys
            lowest, highest = lowest + turn, highest + turn
        some = (lowest <= self.half) & (highest >= -self.half)
        every = (lowest >= -self.half) & (highest <= self.half)
        return (some.any(0), every.any(0)) if self.wrap else (some, every)
