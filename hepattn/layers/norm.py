"""Normalisation by name, in the precision of its weights."""

from typing import Literal

from torch import Tensor, nn

NormName = Literal["rms", "layer"]

EPS = 1e-6


class RMSNorm(nn.RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension (arXiv:1910.07467), eps = 1e-6.

    Computed in the dtype of the weight (float32 under autocast), returned in the dtype of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., dim) -> (..., dim), dtype of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension (arXiv:1607.06450), eps = 1e-6.

    Computed in the dtype of the weight (float32 under autocast), returned in the dtype of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., dim) -> (..., dim), dtype of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(name: str, dim: int) -> RMSNorm | LayerNorm:
    """The norm called "rms" or "layer" over `dim` channels.

    Raises:
        ValueError: no norm has that name.
    """
    if name not in NORMS:
        raise ValueError(f"Got norm={name!r}, expected one of {', '.join(map(repr, NORMS))}: choose one of these.")
    return NORMS[name](dim)
