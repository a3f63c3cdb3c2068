"""The per-token network of a layer, plain or gated."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
GATED: dict[str, Activation] = {"swiglu": F.silu, "geglu": F.gelu}
"""Gated networks by name, with the activation of their gate (arXiv:2002.05202)."""


class Dense(nn.Module):
    """`W_2 act(W_1 x)`, or, gated, `W_2 (act(W_g x) * W_1 x)` (arXiv:2002.05202; SwiGLU: act = silu).

    The hidden width is the same for both, so that a gated network has half as many weights again. W_g and W_1 are one
    matrix.

    Args:
        dim: inputs.
        ratio: hidden width as a multiple of dim.
        activation: "relu", "gelu", "silu", or gated "swiglu", "geglu".
        out_dim: outputs; None: dim.
        bias: whether the linear maps add one.

    Raises:
        ValueError: no activation has that name, or the hidden width would be zero.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 2.0,
        activation: str = "swiglu",
        out_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        known = ACTIVATIONS | GATED
        if activation not in known:
            raise ValueError(f"Got activation={activation!r}, expected one of {', '.join(known)}: choose one of these.")
        hidden = round(dim * ratio)
        if hidden < 1:
            raise ValueError(f"Dense got dim={dim}, ratio={ratio}, which is a hidden width of {hidden}: give more.")
        self.activation = activation
        self.gated = activation in GATED
        self._act = known[activation]
        self.input = nn.Linear(dim, hidden * (1 + self.gated), bias=bias)
        self.output = nn.Linear(hidden, dim if out_dim is None else out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., dim) -> (..., out_dim)."""
        hidden = self.input(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return self.output(self._act(gate) * value)
        return self.output(self._act(hidden))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"activation={self.activation}"
