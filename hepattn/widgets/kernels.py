"""Change one call and see what each kernel makes of it: its error against float64, its time, or why it refuses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from html import escape

import ipywidgets
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hepattn.attention import attend
from hepattn.attention.agreement import Agreement, Deviation, Expected, expect
from hepattn.bench.measure import time_all
from hepattn.masks import Window
from hepattn.plotting import style
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["KernelExplorer"]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the control `dtype` can say."""

DIM, ROWS = 32, 64
"""Channels of a head; queries that are compared with the reference, spread over the event."""

DENSE, GLOBAL = "SDPA, dense mask", "sdpa, no window"
"""Sides beside the kernels: the same window as a matrix of True and False, and what it saves."""

SIDES = ("sdpa", "flash", DENSE, GLOBAL)
"""Rows of the picture, from above."""

NOT_COMPILED = "left out here, since it compiles a kernel for each kind of call, which takes longer than a slider may"
"""Why flex is not run, where it does not refuse anyway."""

LOWEST, SHORTEST = 1e-20, 0.02
"""Left ends of the axes: an error, and ms."""

KEPT = 64
"""Measurements that are kept for going back and forth."""


@dataclass(frozen=True)
class Measured:
    """One state: what the kernels answered, and ms of one call of each side that was run."""

    answers: tuple[Agreement, ...]
    milliseconds: dict[str, float]

    @property
    def sides(self) -> dict[str, Deviation]:
        """Side -> its error; of those that do the same call."""
        return {one.kernel: one.value for one in self.answers if one.value is not None}


class KernelExplorer(Explorer):
    """One call with a window on every kernel that can do it at once: error against float64, and time of one call.

    Left: largest error of each, with what the dtype costs the reference (grey) and what is allowed (black). Right: time
    of one call, with sdpa without a window beside it. Refusals stand below in the kernels' own words. State:

    - `tokens`: of one event;
    - `heads`: of 32 channels each;
    - `window`, `wrap`: of `Window`;
    - `dtype`: a key of `DTYPES`.

    Flex is asked whether it takes the call and never run: a slider must not compile. What was measured once is kept.

    Args:
        device: where the calls run; "cuda" adds flash.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.kept: dict[tuple[object, ...], Measured] = {}
        figure, (errors, times) = style.canvas(2, width=5.4, height=3.9)
        y = [len(SIDES) - 1 - i for i in range(len(SIDES))]
        with style.context():
            errors.set_xscale("log")
            errors.set_xlim(LOWEST, 10)
            errors.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
            errors.set_xlabel("largest difference from float64")
            errors.set_yticks(y, SIDES)
            times.set_xscale("log")
            times.set_xlim(SHORTEST, 50_000)
            times.set_xticks([0.1, 1, 10, 100, 1000, 10_000], ["0.1", "1", "10", "100", "1,000", "10,000"])
            times.set_xlabel("time of one call [ms]")
            times.set_yticks(y, [""] * len(y))
            for ax in (errors, times):
                ax.set_ylim(-0.6, len(SIDES) - 0.4)
                ax.minorticks_off()
                ax.tick_params(axis="y", length=0)
                ax.grid(axis="x", color=style.PAPER)
                ax.set_title(" ")  # room for words that change
            self.own = errors.axvline(1, color=style.GREY, linewidth=3, label="what the dtype costs")
            self.allowed = errors.axvline(1, color=style.BLACK, linewidth=2, label="allowed")
            (self.dots,) = errors.plot([], [], "o", color=style.BLUE, markersize=9, label="error")
            self.absent = [errors.text(3e-20, row, "", va="center", color=style.GREY, fontsize=11.5) for row in y]
            colours = (style.BLUE, style.BLUE, style.VERMILLION, style.GREY)
            self.bars = times.barh(y, [SHORTEST] * len(y), height=0.45, color=colours)
            self.words = [times.text(1, row, "", va="center", fontsize=12) for row in y]
            self.title = errors.text(0, 1.02, "", transform=errors.transAxes, va="bottom", fontsize=13)
            figure.legend(handles=[self.dots, self.own, self.allowed], loc="outside lower center", ncols=3)
        super().__init__(
            figure,
            {
                "tokens": slider("tokens", 1024, 64, 2048, 64),
                "heads": slider("heads", 4, 1, 8),
                "window": slider("window", 64, 1, 1024),
                "wrap": ipywidgets.Checkbox(value=True, description="wrap", indent=False),
                "dtype": choice("dtype", list(DTYPES), "float32"),
            },
            moving=[self.own, self.allowed, self.dots, *self.absent, *self.bars, *self.words, self.title],
        )

    @property
    def mask(self) -> Window:
        """Of the present state."""
        return Window(self.window, wrap=self.wrap)

    def measured(self) -> Measured:
        """Of the present state: looked up, or asked and timed now."""
        key = (self.tokens, self.heads, self.window, self.wrap, self.dtype)
        if key not in self.kept:
            if len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = self._measure()
        return self.kept[key]

    def update(self) -> str:
        """Moves dots, lines and bars to the state; returns what the kernels say."""
        found = self.measured()
        sides, first = found.sides, found.sides["sdpa"]
        y = {side: len(SIDES) - 1 - i for i, side in enumerate(SIDES)}
        drawn = [side for side in SIDES if side in sides]
        self.dots.set_data([max(sides[side].error, LOWEST) for side in drawn], [y[side] for side in drawn])
        for line, value in ((self.own, first.own), (self.allowed, first.allowed)):
            line.set_xdata([max(value, LOWEST)] * 2)
        for side, words, bar, absent in zip(SIDES, self.words, self.bars, self.absent, strict=True):
            spent = found.milliseconds.get(side)
            bar.set_width((spent or SHORTEST) - bar.get_x())
            words.set_text("" if spent is None else f"{spent:,.2f} ms")
            words.set_x(1.15 * (spent or SHORTEST))
            absent.set_text("" if side in sides else "another call" if side == GLOBAL else "not run")
        self.title.set_text(f"{self.mask}, {self.dtype}")
        lines = [f"<b>{escape(one.kernel)}</b>: {_words(one)}" for one in found.answers]
        return (
            "<br>".join(lines) + f"<br>Errors are those of {min(ROWS, self.tokens)} of the {self.tokens:,} queries; "
            f"each time is that of one call after another that warms up, on {self.device}."
        )

    def _measure(self) -> Measured:
        dtype, n, mask = DTYPES[self.dtype], self.tokens, self.mask
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(3, n, self.heads, DIM, generator=generator, dtype=torch.float64)
        q, k, v = drawn.to(self.device, dtype).unbind(0)
        rows = torch.linspace(0, n - 1, min(ROWS, n), device=self.device).long()
        asked = expect(q, k, v, mask=mask, rows=rows)
        answers = [asked.ask("sdpa"), asked.ask("flash"), asked.ask("flex", run=False)]
        pairs = mask.dense(n, device=self.device)
        work: dict[str, Callable[[], object]] = {
            one.kernel: partial(attend, q, k, v, mask=mask, backend=one.kernel) for one in answers if one.value
        }
        work |= {DENSE: partial(_dense, q, k, v, pairs), GLOBAL: partial(attend, q, k, v, backend="sdpa")}
        answers.append(_compare(asked, _dense(q, k, v, pairs)[rows]))
        return Measured(tuple(answers), time_all(work, rounds=1))


def _dense(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor) -> Tensor:
    """SDPA with the matrix of pairs, as it is called without this package."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=pairs)[0].transpose(0, 1)


def _compare(asked: Expected, out: Tensor) -> Agreement:
    return replace(asked.ask("sdpa", run=False), kernel=DENSE, value=asked.deviation(out))


def _words(one: Agreement) -> str:
    if one.refusal:
        return escape(one.refusal.removeprefix(f"{one.kernel}: "))
    if one.value is None:
        return NOT_COMPILED
    own = f", {one.value.error / one.value.own:.2g} times what the dtype costs the reference" if one.value.own else ""
    return f"error {one.value.error:.1e}{own}; {one.value.ratio:.2g} times what is allowed"
