"""What every kernel receives, and how it refuses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hepattn.attention.bias import DistanceBias
from hepattn.masks.base import Mask
from hepattn.sequence import Layout

__all__ = ["Call", "KernelRefusal", "constant", "zero_of"]

F = TypeVar("F", bound=Callable[..., object])


def constant(function: F) -> F:
    """Marks what a traced graph takes as a constant, as `torch.compiler.assume_constant_result` does.

    That one would import the compiler, which takes seconds, before anything is compiled.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
    return function


class KernelRefusal(RuntimeError):  # noqa: N818  (a refusal is an answer)
    """A kernel can't do a call; the message says why in one sentence."""


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call on packed tokens.

    Attributes:
        q: `(Tq, H, D)`; k: `(Tk, H, D)`; v: `(Tk, H, Dv)`, one dtype and device.
        mask: who may attend to whom inside an event; None = all.
        queries, keys: layouts of q and of k, v; the same object in self-attention.
        scale: factor on `q . k`.
        return_lse: also return the natural log-sum-exp of the scaled scores, with its gradients.
        bias: what is added to the scaled scores; self-attention only.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask | None
    queries: Layout
    keys: Layout
    scale: float
    return_lse: bool = False
    bias: DistanceBias | None = None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """All that a gradient may be asked for: q, k, v, and the slopes of the bias where there is one."""
        return (self.q, self.k, self.v) if self.bias is None else (self.q, self.k, self.v, self.bias.slopes)

    @property
    def event_pairs(self) -> int:
        """Pairs of a query and a key of one event, in all events, whatever the mask says."""
        return sum(n * m for n, m in zip(self.queries.host_lengths, self.keys.host_lengths, strict=True))

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient will be asked of this call."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.leaves)


def zero_of(*tensors: Tensor) -> Tensor:
    """A zero (0-d) that depends on all of them with a gradient of zero, whatever they hold.

    Sums of no value: `0 * x.sum()` would be NaN where a value, or in float16 the sum, is infinite.
    """
    return torch.stack([x[:0].sum() for x in tensors]).sum()
