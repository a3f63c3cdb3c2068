"""A mixture of experts: each token is computed by the k networks that a router chose for it, and no token is dropped.

Tokens differ in which network serves them, so the (token, choice) pairs are put in order of expert; each expert's rows
then lie together, and two *grouped* matrix products serve all experts at once.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepattn.layers.dense import ACTIVATIONS, GATED

ALIGNED = 8
"""Widths of which torch's grouped product takes multiples: 16 bytes of bfloat16."""


# -- grouped matrix products -------------------------------------------------------------------------------------------
def grouped_matmul(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """`out[i] = x[i] @ weight[e]`, where the rows of expert e are `offsets[e - 1] <= i < offsets[e]`.

    torch's `grouped_mm` computes it for bfloat16 with both widths multiples of 8. Any other dtype or width takes one
    matrix product an expert, which reads the offsets on the host: exact, no padding, but a GPU waits for it. Both work
    in eager and in `torch.compile`, where they are one operator, so that no graph depends on the sizes of the groups;
    both can be differentiated any number of times.

    Args:
        x: (N, D), rows in order of their expert.
        weight: (E, D, F), dtype of x.
        offsets: (E,) int32, where the rows of each expert end: never falling, the last is N. An expert may have none.

    Returns:
        (N, F), dtype of x.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[1] or offsets.shape != weight.shape[:1]:
        got = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, offsets {tuple(offsets.shape)}"
        raise ValueError(f"Got {got}, expected (N, D), (E, D, F), (E,): give one matrix and one offset an expert.")
    if x.dtype != weight.dtype or offsets.dtype != torch.int32:
        got = f"x {x.dtype}, weight {weight.dtype}, offsets {offsets.dtype}"
        raise ValueError(f"Got {got}, expected one dtype for x and weight and int32 offsets: convert one of them.")
    return _product(x, weight, offsets)


def _library(a: Tensor, widths: Sequence[int]) -> bool:
    """Whether torch's grouped product takes it. Without rows its strides are refused."""
    return a.dtype == torch.bfloat16 and a.shape[0] > 0 and all(width % ALIGNED == 0 for width in widths)


def _aligned(a: Tensor) -> Tensor:
    """`a` in row order from an address that is a multiple of 16 bytes; a copy only where it is not."""
    a = a.contiguous()
    return a.clone() if a.data_ptr() % 16 else a


def _groups(rows: int, offsets: Tensor) -> list[tuple[int, slice]]:
    """(expert, its rows) of each expert that has any."""
    ends = offsets.tolist()
    if ends[-1] != rows or ends != sorted(ends) or ends[0] < 0:
        raise ValueError(f"Got offsets {ends} for {rows} rows, expected them never to fall and to end in {rows}.")
    return [(e, slice(a, b)) for e, (a, b) in enumerate(zip([0, *ends[:-1]], ends, strict=True)) if b > a]


@torch.library.custom_op("hepattn::grouped_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """(N, D), (E, D, F) -> (N, F)."""
    if _library(x, weight.shape[1:]):
        turned = weight.transpose(1, 2)  # either order of the widths is taken, so the backward pass copies no weights
        weight = _aligned(turned).transpose(1, 2) if turned.is_contiguous() else _aligned(weight)
        return F.grouped_mm(_aligned(x), weight, offs=offsets)
    out = x.new_empty(x.shape[0], weight.shape[2])
    for expert, rows in _groups(x.shape[0], offsets):
        torch.mm(x[rows], weight[expert], out=out[rows])
    return out


@torch.library.custom_op("hepattn::grouped_outer", mutates_args=())
def _outer(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """(N, D), (N, F) -> (E, D, F), `x[rows of e].T @ y[rows of e]`: zero for an expert without rows."""
    if _library(x, (x.shape[1], y.shape[1])):
        return F.grouped_mm(_aligned(x).t(), _aligned(y), offs=offsets)
    out = x.new_zeros(offsets.shape[0], x.shape[1], y.shape[1])
    for expert, rows in _groups(x.shape[0], offsets):
        torch.mm(x[rows].t(), y[rows], out=out[expert])
    return out


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, offsets = ctx.saved_tensors
    wants_x, wants_weight, _ = ctx.needs_input_grad
    return (
        _product(grad, weight.transpose(1, 2), offsets) if wants_x else None,
        _outer(x, grad, offsets) if wants_weight else None,
        None,
    )


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, y, offsets = ctx.saved_tensors
    wants_x, wants_y, _ = ctx.needs_input_grad
    return (
        _product(y, grad.transpose(1, 2), offsets) if wants_x else None,
        _product(x, grad, offsets) if wants_y else None,
        None,
    )


_product.register_fake(lambda x, weight, offsets: x.new_empty(x.shape[0], weight.shape[2]))  # noqa: ARG005
_outer.register_fake(lambda x, y, offsets: x.new_empty(offsets.shape[0], x.shape[1], y.shape[1]))
_product.register_autograd(_product_backward, setup_context=_save)
_outer.register_autograd(_outer_backward, setup_context=_save)


@torch.library.custom_op("hepattn::rows", mutates_args=())
def _rows(x: Tensor, index: Tensor, back: Tensor) -> Tensor:  # noqa: ARG001
    """`x[index]`, whose gradient is gathered, too, not scattered: no atomics, so the same sums at every run.

    `back` (rows of x, k) says which rows of the result each row of x became.
    """
    return x.index_select(0, index)


def _rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (back,) = ctx.saved_tensors
    rows = grad.index_select(0, back.flatten())
    return (rows if back.shape[1] == 1 else rows.unflatten(0, back.shape).sum(1)), None, None


def _save_back(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[2])


_rows.register_fake(lambda x, index, back: x.new_empty(index.shape[0], x.shape[1]))  # noqa: ARG005
_rows.register_autograd(_rows_backward, setup_context=_save_back)


# -- the layer ---------------------------------------------------------------------------------------------------------
class RouterLosses(NamedTuple):
    """What a router adds to the training loss, each to be multiplied by a small factor (papers: 0.01 and 0.001).

    Both are means over tokens, zero where there is no token; float32 (float64 in a float64 module), with gradients to
    the router and its inputs.

    Attributes:
        balance: `E * sum_e f_e p_e`, f_e the fraction of the k T choices that went to expert e, p_e the mean of its
            probability; 1 when both are even, E when all choose one. Gradients flow through p. Equations 4 to 6 of
            arXiv:2101.03961, with k choices a token where Switch has one.
        z: mean over tokens of `logsumexp(logits)^2`, equation 5 of arXiv:2202.08906: keeps the logits small.
    """

    balance: Tensor
    z: Tensor

    def __add__(self, other: "RouterLosses") -> "RouterLosses":  # type: ignore[override]
        """Term by term, not the longer tuple."""
        return RouterLosses(self.balance + other.balance, self.z + other.z)


def mean_losses(losses: Sequence[RouterLosses]) -> RouterLosses:
    """The mean over layers, term by term.

    Raises:
        ValueError: there is none.
    """
    if not losses:
        raise ValueError("Got no router losses, expected those of one layer or more: has the model experts?")
    balance, z = zip(*losses, strict=True)
    return RouterLosses(torch.stack(balance).mean(), torch.stack(z).mean())


class Routing(NamedTuple):
    """What a router decided for T tokens, with k experts for each.

    Attributes:
        weights: (T, k) float32, largest first; they sum to one over k (for k = 1 see `Experts`).
        chosen: (T, k) int64, experts in order of `weights`.
        losses: scalars.
    """

    weights: Tensor
    chosen: Tensor
    losses: RouterLosses


class Experts(nn.Module):
    """`y = sum_{e in top k} g_e(x) f_e(x)`: of E dense networks f_e, each token uses the k that its router prefers.

    Router: `p = softmax(W_r x)` over all E, in float32 also under autocast, because rounded logits choose other
    experts (section 2.4 of arXiv:2101.03961). The k largest are kept (torch's `topk`, also in the choice among
    equals; no noise) and renormalised to sum to one over them, `g_e = p_e / sum_{top k} p` (arXiv:1701.06538, equation
    3; arXiv:2006.16668). The router learns through g. For k = 1 that would always be one and teach it nothing, so
    there `g_e = p_e` (arXiv:2101.03961, equation 2).

    No expert has a capacity: none of the k T choices is dropped, however unevenly they fall.

    Experts f_e are networks like `Dense`, gated or plain, computed in the dtype of autocast; `ratio` is the hidden
    width of *one*. A token passes through `top_k * ratio * dim` hidden channels, as in `Dense(dim, ratio=top_k *
    ratio)`, the dense network of the same active width; the layer holds `experts / top_k` times its weights.

    Args:
        dim: inputs and outputs.
        experts: E, networks to choose from.
        top_k: k, networks a token uses, 1 to `experts`.
        ratio: hidden width of one expert as a multiple of dim.
        activation: "relu", "gelu", "silu", or gated "swiglu", "geglu".
        bias: whether the linear maps of the experts add one; the router never does.

    Raises:
        ValueError: a number is out of its range, or no activation has that name.
    """

    def __init__(
        self,
        dim: int,
        *,
        experts: int,
        top_k: int = 2,
        ratio: float = 2.0,
        activation: str = "swiglu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        known = ACTIVATIONS | GATED
        if activation not in known:
            raise ValueError(f"Got activation={activation!r}, expected one of {', '.join(known)}: choose one of these.")
        if experts < 1:
            raise ValueError(f"Got experts={experts}, expected 1 or more: give the number of networks to choose from.")
        if not 1 <= top_k <= experts:
            raise ValueError(f"Got top_k={top_k}, expected 1 to experts={experts}: a token uses some of the experts.")
        hidden = round(dim * ratio)
        if hidden < 1:
            raise ValueError(f"Experts got dim={dim}, ratio={ratio}, which is a hidden width of {hidden}: give more.")
        self.dim, self.experts, self.top_k = dim, experts, top_k
        self.activation = activation
        self.gated = activation in GATED
        self._act = known[activation]
        width = hidden * (1 + self.gated)
        self.router = nn.Linear(dim, experts, bias=False)
        self.input = nn.Parameter(torch.empty(experts, dim, width))
        self.output = nn.Parameter(torch.empty(experts, hidden, dim))
        # one dimension, (E * width), because optimisers leave biases, known by that, without weight decay
        self.input_bias = nn.Parameter(torch.empty(experts * width)) if bias else None
        self.output_bias = nn.Parameter(torch.empty(experts * dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every expert as `nn.Linear` draws its weights: uniform within `1 / sqrt(inputs)`."""
        self.router.reset_parameters()
        for weight, bias in ((self.input, self.input_bias), (self.output, self.output_bias)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def route(self, x: Tensor) -> Routing:
        """Who computes each token of x (T, dim), with what weight.

        Raises:
            ValueError: x has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"Got x {tuple(x.shape)}, expected (T, {self.dim}): give packed tokens.")
        weight = self.router.weight
        precise = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(precise), weight.to(precise))
            probabilities = logits.softmax(-1)
            weights, chosen = probabilities.topk(self.top_k)
            if self.top_k > 1:
                weights = weights / weights.sum(-1, keepdim=True)
            tokens = max(x.shape[0], 1)
            share = self._member(chosen.flatten()).sum(0).to(precise) / (tokens * self.top_k)
            balance = self.experts * (share * probabilities.sum(0) / tokens).sum()
            z = logits.logsumexp(-1).square().sum() / tokens
        return Routing(weights, chosen, RouterLosses(balance, z))

    def _member(self, expert: Tensor) -> Tensor:
        """Experts (N,) -> (N, E), True where a row is an expert's."""
        return expert.unsqueeze(1) == torch.arange(self.experts, device=expert.device)

    @torch.no_grad()
    def load(self, x: Tensor) -> Tensor:
        """How many of the k T choices of x (T, dim) each expert gets, (E,) int64: they sum to k T."""
        return self._member(self.route(x).chosen.flatten()).sum(0)

    def forward(self, x: Tensor) -> tuple[Tensor, RouterLosses]:
        """Maps x (T, dim) -> ((T, dim), losses); T may be 0. The first has the dtype of the products.

        Raises:
            ValueError: x has another shape, or, outside autocast, another dtype than the weights.
        """
        weights, chosen, losses = self.route(x)
        dtype = self.input.dtype
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # autocast leaves float64 alone, too
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
        expert, order = chosen.flatten().sort(stable=True)
        back = torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
        every = torch.arange(self.experts, device=order.device)
        offsets = torch.searchsorted(expert, every, right=True, out_int32=True)
        member = None if self.input_bias is None else self._member(expert).to(dtype)

        rows = _rows(x, order // self.top_k, back.view(chosen.shape))
        rows = self._activate(_linear(rows, self.input.to(dtype), self.input_bias, offsets, member))
        rows = _linear(rows, self.output.to(dtype), self.output_bias, offsets, member)
        found = _rows(rows, back, order.unsqueeze(1)).unflatten(0, chosen.shape)
        terms = [weight * term for weight, term in zip(weights.unsqueeze(-1).unbind(1), found.unbind(1), strict=True)]
        return reduce(torch.add, terms).to(dtype), losses

    def _activate(self, hidden: Tensor) -> Tensor:
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return self._act(gate) * value
        return self._act(hidden)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"experts={self.experts}, top_k={self.top_k}, activation={self.activation}"


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, member: Tensor | None) -> Tensor:
    """Each row through its expert's map; `member` (N, E) is one where a row is an expert's.

    With it, biases and their gradients are matrix products: a gather's gradient would add all rows to a few.
    """
    out = grouped_matmul(x, weight, offsets)
    if bias is None or member is None:
        return out
    return torch.addmm(out, member, bias.to(x.dtype).view(weight.shape[0], -1))
