"""Kernels for packed events as operations that a traced graph can hold, with gradients of output and log-sum-exp."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Backward", "Forward", "Grads", "Pair", "Varlen", "differentiable", "like_output", "packed_operation"]

Pair = tuple[Tensor, Tensor]
Grads = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Varlen:
    """What a flash kernel is given: packed q (Tq, H, D), k, v (Tk, H, D), int32 offsets, longest lengths, an inclusive
    window (-1 = open), aligned at the last query and key of an event, and the factor on scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_offsets: Tensor
    k_offsets: Tensor
    max_q: int
    max_k: int
    window: tuple[int, int]
    scale: float


Forward = Callable[[Varlen], Pair]
"""To `(out (Tq, H, D), lse (H, Tq) float32)`."""
Backward = Callable[[Tensor, Tensor | None, Varlen, Tensor, Tensor], Grads]
"""From gradients of output and, or None, of log-sum-exp, the call, its output and its lse, to those of q, k and v."""


def packed_operation(name: str, forward: Forward, backward: Backward) -> Forward:
    """The operation `hepattn::name` from what a kernel does forward and backward."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int, left: int,
        right: int, scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return forward(Varlen(q, k, v, q_offsets, k_offsets, max_q, max_k, (left, right), scale))

    def run_backward(
        grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int, left: int, right: int, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        call = Varlen(q, k, v, q_offsets, k_offsets, max_q, max_k, (left, right), scale)
        return backward(grad, grad_lse, call, out, lse)

    operation = differentiable(name, run, run_backward, tensors=2)
    return lambda x: operation(x.q, x.k, x.v, x.q_offsets, x.k_offsets, x.max_q, x.max_k, *x.window, x.scale)


def differentiable(
    name: str, forward: Callable[..., Pair], backward: Callable[..., Grads], *, tensors: int
) -> Callable[..., Pair]:
    """`hepattn::name` of `(q, k, v, tensors ..., numbers ...)`, with gradients of q, k and v; torch reads annotations.

    Args:
        name: of the operation; that of its gradients ends in `_backward`.
        forward: from these arguments to `(out, lse)`.
        backward: from `(grad, grad_lse or None, q, k, v, out, lse, tensors ..., numbers ...)` to three gradients.
        tensors: how many arguments after q, k and v are tensors.
    """
    operation = torch.library.custom_op(f"hepattn::{name}", forward, mutates_args=())
    gradients = torch.library.custom_op(f"hepattn::{name}_backward", backward, mutates_args=())

    def save(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
        (q, k, v, *given), ctx.numbers = inputs[: 3 + tensors], inputs[3 + tensors :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, *output, *given)

    def back(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse, *given = ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else grad.contiguous()
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        found = gradients(grad, grad_lse, q, k, v, out, lse, *given, *ctx.numbers)
        return (*found, *[None] * (len(given) + len(ctx.numbers)))

    operation.register_fake(like_output)
    gradients.register_fake(_like_inputs)
    operation.register_autograd(back, setup_context=save)
    return operation


def like_output(q: Tensor, *_: Any) -> Pair:
    """What a graph knows of `(out, lse)`."""
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def _like_inputs(grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Grads:  # noqa: ARG001
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
