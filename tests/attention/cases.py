"""Calls drawn by hypothesis, and what they are compared with."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from hepattn.masks import GlobalTokens, Mask, Window

__all__ = ["CASES", "GPU_CASES", "WINDOWS", "Case"]


@dataclass(frozen=True)
class Case:
    """A self-attention call: lengths of the events, heads, head dimension, mask."""

    lengths: list[int]
    heads: int
    dim: int
    mask: Mask | None
    seed: int

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (sum(self.lengths), self.heads, self.dim)
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(4)]


WINDOWS = st.builds(Window, st.integers(1, 50), wrap=st.booleans())
MASKS = st.one_of(
    st.none(),
    WINDOWS,
    WINDOWS,
    WINDOWS,
    st.builds(lambda w, g: w | GlobalTokens(g), WINDOWS, st.sets(st.integers(0, 9), min_size=1, max_size=3)),
    st.builds(lambda a, b: a & b, WINDOWS, WINDOWS),
)
LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=4).filter(lambda lengths: sum(lengths) > 0)
CASES = st.builds(Case, LENGTHS, st.integers(1, 3), st.sampled_from([8, 16]), MASKS, st.integers(0, 2**31))

GPU_CASES = st.builds(  # each head dimension and kind of mask is compiled once
    Case,
    st.lists(st.integers(0, 400), min_size=1, max_size=4).filter(lambda lengths: sum(lengths) > 0),
    st.sampled_from([2, 3]),
    st.just(32),
    MASKS,
    st.integers(0, 2**31),
)
