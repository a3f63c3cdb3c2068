"""Score modifications: what is added to `scale * q . k` before the softmax."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hepattn.masks.base import PackedPairs
from hepattn.sequence import Layout

__all__ = ["DistanceBias", "ScoreMod"]


@dataclass(frozen=True, eq=False)
class DistanceBias:
    """`score_ij - slope_h |i - j|`: each head sees far tokens less, by a slope of its own (ALiBi, arXiv:2108.12409).

    With `wrap=True` the distance is circular, `min(d, n - d)` with n the event's own length. Positions count inside one
    event; for self-attention only. The slopes may be learned: their gradient flows on `sdpa`, and on `flex` where they
    are a leaf (a parameter), as torch demands.

    Args:
        slopes: `(H,)` per token, one a head; positive = far tokens weigh less.
        wrap: close the distance over the ends of each event.

    Raises:
        ValueError: the slopes are not a floating tensor of one dimension.
    """

    slopes: Tensor
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.slopes.ndim != 1 or not self.slopes.is_floating_point():
            raise ValueError(
                f"DistanceBias takes one slope a head, a floating tensor (H,); "
                f"got {self.slopes.dtype} {tuple(self.slopes.shape)}"
            )

    def distance(self, query: Tensor, key: Tensor, length: int | Tensor) -> Tensor:
        """Tokens between two positions of an event of `length` tokens, of their broadcast shape."""
        apart = (query - key).abs()
        return torch.minimum(apart, length - apart) if self.wrap else apart

    def added(self, query: Tensor, key: Tensor, length: int | Tensor) -> Tensor:
        """`(..., H, n, m)`, float32 or better: what is added to the scores of positions `query` (..., n, 1) and `key`
        (..., 1, m).
        """
        slopes = self.slopes.to(torch.promote_types(self.slopes.dtype, torch.float32))
        return -slopes[:, None, None] * self.distance(query, key, length).to(slopes.dtype).unsqueeze(-3)


class ScoreMod:
    """FlexAttention's `score_mod` of a `DistanceBias` on packed events."""

    def __init__(self, bias: DistanceBias, layout: Layout) -> None:
        self.bias = bias
        self.pairs = PackedPairs(layout, layout)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG002
        """The score of packed query q and packed key k in head h, with the bias."""
        i, j, place = self.pairs.positions(q, k)
        return score - self.bias.slopes[h] * self.bias.distance(i, j, place.keys)
