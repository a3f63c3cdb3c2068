"""Kernels for packed events as operations that a traced graph can hold, with gradients of output and log-sum-exp."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["given_gradients", "like_inputs", "like_output", "packed_operation"]

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
    operation = torch.library.custom_op(f"hepattn::{name}", forward, mutates_args=())
    gradients = torch.library.custom_op(f"hepattn::{name}_backward", backward, mutates_args=())

    def save(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
        q, k, v, q_offsets, k_offsets, *ctx.numbers = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, *output, q_offsets, k_offsets)

    def back(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        grad, grad_lse, saved = given_gradients(ctx, grad, grad_lse)
        return (*gradients(grad, grad_lse, *saved, *ctx.numbers), *[None] * 7)

    operation.register_fake(like_output)
    gradients.register_fake(like_inputs)
    operation.register_autograd(back, setup_context=save)
    return operation


def like_output(q: Tensor, *_: Any) -> Pair:
    """What a graph knows of `(out, lse)`."""
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def like_inputs(grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Grads:  # noqa: ARG001
    """What a graph knows of the gradients of q, k and v."""
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def given_gradients(
    ctx: Any, grad: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Both gradients as kernels take them, and what was saved: first q, k, v, out and lse."""
    saved = list(ctx.saved_tensors)
    grad = torch.zeros_like(saved[3]) if grad is None else grad.contiguous()
    return grad, None if grad_lse is None else grad_lse.contiguous(), saved
