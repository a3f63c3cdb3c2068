"""Whether kernels agree: one call on a kernel against the dense reference in float64.

The yardstick is what the dtype itself costs: the reference, written out in the kernel's own dtype, also misses the
reference in float64. A kernel may err twice as much, and by two roundings beside: of the largest value in the dtype of
the call, and, in the dtype in which kernels add up (float32 or better), of the largest sum of absolute terms (`Terms`).
The second is for results in which the reference happens to err little or not at all: in float64, its own yardstick,
where terms cancel, and where there is one term only. In bfloat16 it is nothing beside the first, so that a window of
one token more on each side is found there too, in values and in gradients.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hepattn.attention.backends.base import Call, KernelRefusal
from hepattn.attention.backends.registry import choose
from hepattn.attention.bias import DistanceBias
from hepattn.attention.functional import attend, make_call
from hepattn.attention.reference import allowed_pairs, attend_reference
from hepattn.attention.terms import Terms, largest_terms
from hepattn.masks.base import Mask
from hepattn.masks.dense import Dense
from hepattn.sequence import Lengths

__all__ = ["Agreement", "Deviation", "Expected", "deviation", "expect", "tolerance"]

SLOPES = 3
"""The place of a bias's slopes among the leaves of a call."""

ROUNDINGS = 2
"""Of the largest value, and of the largest sum of terms: a term is rounded where it is made, and where it is added."""


def tolerance(dtype: torch.dtype, exact: Tensor, same_dtype: Tensor, terms: float) -> float:
    """Twice what the dtype itself costs the reference, and two roundings of the largest value and of `terms`.

    Args:
        dtype: of the result; sums are taken in float32 or better.
        exact: in float64.
        same_dtype: what the reference gave in the dtype of the call.
        terms: the largest sum of the absolute values of what was added up.
    """
    exact, same_dtype = exact.detach(), same_dtype.detach()
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    sums = torch.promote_types(dtype, torch.float32)
    floor = ROUNDINGS * (torch.finfo(dtype).eps * largest + torch.finfo(sums).eps * terms)
    return 2 * _farthest(same_dtype, exact) + floor


def _farthest(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max()) if exact.numel() else 0.0


@dataclass(frozen=True)
class Deviation:
    """How far a result lies from the reference in float64: largest differences, in the result's own unit.

    Attributes:
        error: of the kernel; infinite where one of the two is finite and the other is not.
        own: of the reference in the kernel's dtype: what that dtype costs.
        allowed: what `tolerance` grants.
    """

    error: float
    own: float
    allowed: float

    @property
    def ratio(self) -> float:
        """The error as a multiple of what is allowed; at most 1 is right."""
        if self.allowed == 0:
            return math.inf if self.error else 0.0
        return self.error / self.allowed


def deviation(found: Tensor, exact: Tensor, same: Tensor, dtype: torch.dtype, terms: float) -> Deviation:
    """The deviation of `found` from `exact` (float64), where the reference in `dtype` gave `same`; all of one shape.

    `terms`: see `tolerance`. `Expected.deviation` knows all but `found`.
    """
    finite = exact.isfinite()
    agree = torch.equal(finite, found.isfinite())
    found, exact, same = (torch.where(finite, x.detach().double(), 0.0) for x in (found, exact, same))
    error = _farthest(found, exact) if agree else float("inf")
    return Deviation(error, _farthest(same, exact), tolerance(dtype, exact, same, terms))


@dataclass(frozen=True)
class Agreement:
    """What a kernel made of one call.

    Attributes:
        kernel, dtype: names, such as "sdpa" and "float32".
        mask: in words.
        refusal: the kernel's sentence where it does not do the call, else empty.
        value: of the output; None where the kernel refused, or takes the call and was not run.
        lse: of the log-sum-exp, where it was asked for.
        gradient: of the worst of the gradients, where they were asked for.
    """

    kernel: str
    dtype: str
    mask: str
    refusal: str = ""
    value: Deviation | None = None
    lse: Deviation | None = None
    gradient: Deviation | None = None

    @property
    def worst(self) -> float:
        """The largest error as a multiple of what is allowed; 0 where nothing was run."""
        return max((one.ratio for one in (self.value, self.lse, self.gradient) if one is not None), default=0.0)

    @property
    def agrees(self) -> bool:
        """The kernel was run, and every error is within what is allowed."""
        return self.value is not None and self.worst <= 1


class Answer(NamedTuple):
    """What the reference gave: output, log-sum-exp, and gradients of q, k, v and the slopes of a bias."""

    out: Tensor
    lse: Tensor
    grads: tuple[Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class Expected:
    """One call with its right answer, made once and asked of every kernel; see `expect`.

    Attributes:
        leaves: q, k, v, and the slopes of the bias where there is one; detached.
        mask, lengths, kv_lengths, bias: as given to `attend`.
        upstream: `(Tq, H, Dv)` gradient of the output; None = no gradients.
        upstream_lse: `(Tq, H)` gradient of the log-sum-exp, beside it; None = of the output alone.
        rows: `(R,)` the queries that are compared; None = all.
        name: of the mask, in words.
    """

    leaves: tuple[Tensor, ...]
    mask: Mask | None
    lengths: Lengths
    kv_lengths: Lengths
    bias: DistanceBias | None
    upstream: Tensor | None
    upstream_lse: Tensor | None
    rows: Tensor | None
    name: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the call."""
        return self.leaves[0].dtype

    @cached_property
    def exact(self) -> Answer:
        """The reference in float64."""
        return self._reference(torch.float64)

    @cached_property
    def same(self) -> Answer:
        """The reference in the dtype of the call."""
        return self._reference(self.dtype)

    @cached_property
    def single(self) -> Answer:
        """The reference in float32, the dtype of every kernel's log-sum-exp."""
        return self._reference(torch.float32)

    @cached_property
    def terms(self) -> Terms:
        """What the sums of the call add up, for the floor of what is allowed."""
        q, k, v, bias = self._arguments(self.leaves, torch.float64, grad=False)
        chosen, given = self._given(q, k, bias)
        return largest_terms(chosen, k, v, **given, upstream=self.upstream, upstream_lse=self.upstream_lse)

    def deviation(self, out: Tensor) -> Deviation:
        """Of an output (Tq, H, Dv), whoever computed it: of the rows that are compared, where not all are."""
        return deviation(out, self.exact.out, self.same.out, self.dtype, self.terms.out)

    @property
    def call(self) -> Call:
        """As kernels receive it."""
        q, k, v, bias = self._arguments(self.leaves, grad=self.upstream is not None)
        asks_lse = self.upstream_lse is not None
        return make_call(q, k, v, self.mask, self.lengths, self.kv_lengths, None, bias=bias, return_lse=asks_lse)

    def refusal(self, kernel: str) -> str:
        """Why the kernel does not do this call, or nothing where it does; nothing is run or compiled."""
        try:
            choose(self.call, kernel)
        except KernelRefusal as refusal:
            return str(refusal)
        return ""

    def ask(self, kernel: str, *, lse: bool = False, run: bool = True) -> Agreement:
        """The call on a kernel, compared.

        Args:
            kernel: "sdpa", "flex", "flash" or "auto".
            lse: compare the log-sum-exp, too (it is where its gradient is).
            run: False = only ask whether the kernel takes the call (a first run of flex compiles for a while).
        """
        found = Agreement(kernel, str(self.dtype).removeprefix("torch."), self.name)
        if not run:
            return replace(found, refusal=self.refusal(kernel))
        q, k, v, bias = arguments = self._arguments(self.leaves, grad=self.upstream is not None)
        given: dict[str, Any] = {
            "mask": self.mask,
            "lengths": self.lengths,
            "kv_lengths": self.kv_lengths,
            "bias": bias,
            "backend": kernel,
        }
        try:
            if lse or self.upstream_lse is not None:
                out, sums = attend(q, k, v, **given, return_lse=True)
            else:
                out, sums = attend(q, k, v, **given), None
        except KernelRefusal as refusal:
            return replace(found, refusal=str(refusal))
        if self.rows is not None:
            out, sums = out[self.rows], None if sums is None else sums[self.rows]
        single = torch.float32
        return replace(
            found,
            value=self.deviation(out),
            lse=None if sums is None else deviation(sums, self.exact.lse, self.single.lse, single, self.terms.score),
            gradient=self._worst_gradient(self._gradients(out, sums, arguments)),
        )

    def _worst_gradient(self, found: tuple[Tensor | None, ...]) -> Deviation | None:
        worst = None
        for place, (mine, exact, same) in enumerate(zip(found, self.exact.grads, self.same.grads, strict=True)):
            assert mine is not None
            right, plain = (torch.zeros_like(mine) if grad is None else grad for grad in (exact, same))
            terms = (self.terms.q, self.terms.k, self.terms.v, self._slope_terms)[place]
            one = deviation(mine, right.double(), plain, self.dtype, terms)
            worst = one if worst is None or not one.ratio <= worst.ratio else worst
        return worst

    @property
    def _slope_terms(self) -> float:
        """Kernels round each term of this sum to the dtype of the call, and may add them up one by one, in any order.

        Of n additions, each rounded, the errors add up to about sqrt(n) roundings of the sum.
        """
        sums = torch.promote_types(self.dtype, torch.float32)
        of_terms = torch.finfo(self.dtype).eps / torch.finfo(sums).eps
        return self.terms.slopes * (of_terms + math.sqrt(self.call.event_pairs))

    def _arguments(
        self, leaves: tuple[Tensor, ...], dtype: torch.dtype | None = None, *, grad: bool
    ) -> tuple[Tensor, Tensor, Tensor, DistanceBias | None]:
        again = [x.detach().to(dtype or x.dtype).requires_grad_(grad) for x in leaves]
        bias = None if self.bias is None else replace(self.bias, slopes=again[SLOPES])
        return again[0], again[1], again[2], bias

    def _gradients(
        self, out: Tensor, lse: Tensor | None, arguments: tuple[Tensor, Tensor, Tensor, DistanceBias | None]
    ) -> tuple[Tensor | None, ...]:
        if self.upstream is None:
            return ()
        *given, bias = arguments
        leaves: list[Tensor] = [x for x in (*given, None if bias is None else bias.slopes) if isinstance(x, Tensor)]
        outs, upstreams = [out], [self.upstream.to(out.dtype)]
        if self.upstream_lse is not None and lse is not None and lse.requires_grad:  # else it is -inf everywhere
            outs, upstreams = [*outs, lse], [*upstreams, self.upstream_lse.to(lse.dtype)]
        grads = torch.autograd.grad(outs, leaves, upstreams, allow_unused=True)
        return tuple(torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True))

    def _given(self, q: Tensor, k: Tensor, bias: DistanceBias | None) -> tuple[Tensor, dict[str, Any]]:
        """The queries that are compared, and what else a call of theirs is given beside keys and values."""
        if self.rows is None:
            return q, {"mask": self.mask, "lengths": self.lengths, "kv_lengths": self.kv_lengths, "bias": bias}
        pairs = Dense(allowed_pairs(self.mask, len(q), len(k), 0, q.device, rows=self.rows))
        return q[self.rows], {"mask": pairs, "kv_lengths": [len(k)]}

    def _reference(self, dtype: torch.dtype) -> Answer:
        q, k, v, bias = arguments = self._arguments(self.leaves, dtype, grad=self.upstream is not None)
        chosen, given = self._given(q, k, bias)
        out, lse = attend_reference(chosen, k, v, **given)
        return Answer(out.detach(), lse.detach(), self._gradients(out, lse, arguments))


def expect(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    bias: DistanceBias | None = None,
    upstream: Tensor | None = None,
    upstream_lse: Tensor | None = None,
    rows: Tensor | None = None,
    name: str | None = None,
) -> Expected:
    """One call to compare kernels on: `expect(q, k, v, mask=...).ask("sdpa")`. The reference is dense: keep it small.

    Args:
        q: `(Tq, H, D)`, as given to `attend`.
        k: `(Tk, H, D)`, as given to `attend`.
        v: `(Tk, H, Dv)`, as given to `attend`.
        mask: who may attend to whom inside an event.
        lengths: tokens of each event, summing to Tq.
        kv_lengths: the same for k and v.
        bias: added to the scores.
        upstream: `(Tq, H, Dv)` gradient of the output: gradients are compared, too. None = values only.
        upstream_lse: `(Tq, H)` gradient of the log-sum-exp, which adds to them. None = of the output alone.
        rows: compare these queries of a single event only, so that the reference is small; values, no gradients.
        name: of the mask, in words; left out, as it is written.

    Raises:
        ValueError: the arguments do not fit, as in `attend`, or rows go with several events, a bias or gradients,
            or a gradient of the log-sum-exp comes without one of the output.
    """
    call = make_call(q, k, v, mask, lengths, kv_lengths, None, bias=bias)
    if rows is not None and (call.queries.batch != 1 or bias is not None or upstream is not None):
        raise ValueError("rows are compared for a single event, without a bias and gradients")
    if upstream is None and upstream_lse is not None:
        raise ValueError("a gradient of the log-sum-exp goes with one of the output: give upstream, too")
    leaves = tuple(leaf.detach() for leaf in ((q, k, v) if bias is None else (q, k, v, bias.slopes)))
    words = ("no mask" if mask is None else str(mask)) if name is None else name
    return Expected(leaves, mask, lengths, kv_lengths, bias, upstream, upstream_lse, rows, words)
