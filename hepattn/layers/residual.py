"""How a branch joins the residual stream: norm placement, LayerScale and DropPath."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hepattn.layers.norm import make_norm
from hepattn.sequence import Layout

Placement = Literal["pre", "post", "none"]


class LayerScale(nn.Module):
    """`scale * x`, one learned factor a channel (arXiv:2103.17239).

    Args:
        dim: channels.
        initial: first value of every factor; small values make a deep network begin as the identity.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., dim) -> (..., dim)."""
        return x * self.scale


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training, a branch is left out for a whole event with probability `rate`.

    The unit is the event (one sequence of the layout), not the token: all hits of an event lose the branch together,
    as all pixels of an image do in the paper. Events that keep it get it divided by 1 - rate, so that the expectation
    is that of evaluation, where nothing is dropped. Randomness is torch's global generator, as for dropout.

    Args:
        rate: probability in [0, 1).

    Raises:
        ValueError: rate is outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"Got drop_path={rate}, expected a probability in [0, 1): give a smaller one.")
        self.rate = rate

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Maps x (T, dim), one row a token of the layout -> (T, dim)."""
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand(layout.batch, device=x.device) >= self.rate
        factor = keep.to(x.dtype) / (1 - self.rate)
        return x * factor[layout.event].unsqueeze(-1)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"rate={self.rate}"


class Residual(nn.Module):
    """One step of the residual stream around any branch f, with x and y (T, dim).

    | placement | y | where |
    |---|---|---|
    | "pre" | `x + drop(scale * f(norm(x)))` | usual (arXiv:2002.04745) |
    | "post" | `n + drop(scale * f(n))`, `n = norm(x)` | dense half of a HybridNorm layer |
    | "none" | `x + drop(scale * f(x))` | attention half of a HybridNorm layer, which norms q, k and v instead |

    "post" is the norm *after* the step before: the stream itself is normalised, and both the branch and the skip start
    from it, equation 7 of arXiv:2503.04598, rather than `norm(x + f(x))` of the first transformer.

    `split` and `join` are the halves of `forward`, for branches with a second output.

    Args:
        dim: channels.
        norm: "rms" or "layer".
        placement: see the table.
        layer_scale: first value of LayerScale, None: no LayerScale.
        drop_path: rate of DropPath.
    """

    def __init__(
        self,
        dim: int,
        *,
        norm: str = "rms",
        placement: Placement = "pre",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if placement not in {"pre", "post", "none"}:
            raise ValueError(f"Got placement={placement!r}, expected 'pre', 'post' or 'none': choose one of these.")
        self.placement = placement
        self.norm = nn.Identity() if placement == "none" else make_norm(norm, dim)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (T, dim) -> (what is kept, what the branch gets)."""
        normed = self.norm(x)
        return (normed if self.placement == "post" else x), normed

    def join(self, skip: Tensor, update: Tensor, layout: Layout) -> Tensor:
        """What was kept and what the branch gave -> the stream after it, (T, dim)."""
        return skip + self.drop_path(self.scale(update), layout)

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], layout: Layout) -> Tensor:
        """Maps x (T, dim) -> (T, dim); `branch` maps (T, dim) to (T, dim)."""
        skip, given = self.split(x)
        return self.join(skip, branch(given), layout)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"placement={self.placement}"
