"""Kernels for packed events as operations that a traced graph can hold, with gradients of output and log-sum-exp."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Grads", "Pair", "differentiable", "like_output", "packed_operation"]

Pair = tuple[Tensor, Tensor]
Grads = tuple[Tensor, Tensor, Tensor]


def packed_operation(name: str, forward: Callable[..., Pair], backward: Callable[..., Grads]) -> Callable[..., Pair]:
    """The operation `hepattn::name` from what a kernel does forward and backward, both with annotations of their own.

    Args:
        name: of the operation; that of its gradients ends in `_backward`.
        forward: from `(q (Tq, H, D), k, v (Tk, H, D), q_offsets, k_offsets, max_q, max_k, left, right, scale)` to
            `(out (Tq, H, D), lse (H, Tq) float32)`; a window of `left` and `right` tokens (-1: open), aligned at the
            last query and key of an event.
        backward: from `(grad, grad_lse or None, q, k, v, out, lse, q_offsets, ..., scale)` to those of q, k and v.
    """
    return differentiable(name, forward, backward, tensors=2)


def differentiable(
    name: str, forward: Callable[..., Pair], backward: Callable[..., Grads], *, tensors: int
) -> Callable[..., Pair]:
    """`hepattn::name` of `(q, k, v, tensors ..., numbers ...)`, with gradients of q, k and v; see `packed_operation`.

    Args:
        name: of the operation.
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
