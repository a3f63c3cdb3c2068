"""Compose a mask with controls, and see it as pairs and in blocks: what is allowed, looked at in vain, and skipped."""

from collections.abc import Callable, Sequence
from html import escape

import ipywidgets
import torch

from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window
from hepattn.metrics.sparsity import Sparsity, sparsity
from hepattn.plotting import style
from hepattn.plotting.masks import FULL, BlockPanel, share, state_handles, title
from hepattn.sequence import Layout
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["MaskExplorer"]

SIZES = (8, 16, 32, 64, 128)
"""Block sizes to choose from."""

UNEVEN = (4, 3, 5)
"""Events are as long as these numbers, in turns: real ones are not alike either."""

ON_A_PARTICLE = 8
"""Tokens that share a particle in the mask `Dense`."""

KINDS: dict[str, Callable[["MaskExplorer"], Mask | None]] = {
    "Window": lambda at: at.window_mask(),
    "GlobalTokens": lambda at: at.global_mask(),
    "Window | GlobalTokens": lambda at: at.window_mask() | at.global_mask(),
    "Dense": lambda at: at.dense_mask(),
    "Window & Dense": lambda at: at.window_mask() & at.dense_mask(),
    "Strided": lambda at: Strided(at.window, at.wrap),
    "Strided, transposed": lambda at: Strided(at.window, at.wrap).transpose,
    "no mask": lambda _: None,
}
"""What the control `kind` can say -> the mask of a state; None: everything inside an event."""

CROSS = ("Strided", "Strided, transposed")
"""Kinds in which queries and keys are different tokens."""

NEEDS: dict[str, Callable[[str], bool]] = {
    "queries": lambda kind: kind in CROSS,
    "window": lambda kind: "Window" in kind or kind in CROSS,
    "wrap": lambda kind: "Window" in kind or kind in CROSS,
    "global_tokens": lambda kind: "Global" in kind,
    "spread": lambda kind: "Global" in kind,
}
"""Control -> whether it means anything for a kind of mask; where not, it is greyed out."""


class MaskExplorer(Explorer):
    """A mask over the packed tokens of some events, with the grid of blocks that a kernel works in.

    State, all to be set and read:

    - `kind`: a key of `KINDS`; `Dense` allows the pairs of tokens on one of some made-up particles;
    - `tokens`: of all events together (for the strided masks: the hits);
    - `queries`: of all events together, for the strided masks;
    - `window`, `wrap`: of `Window` and `Strided`;
    - `global_tokens`: how many each event has; `spread`: evenly over the longest event, or all at its start;
    - `events`: how many share the tokens; they are of uneven length;
    - `size`: of a block, tokens along its side.

    Args:
        kind: What to start with.

    Raises:
        ValueError: There is no such kind.
    """

    def __init__(self, kind: str = "Window") -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(map(repr, KINDS))}, not {kind!r}")
        with style.context():
            figure = style.Figure(figsize=(10.8, 6.4), layout="constrained")
            pairs, bars = figure.subplots(1, 2, width_ratios=[1.5, 1.0])
            self.panel = BlockPanel(pairs)
            pairs.set_box_aspect(1)
            pairs.set_title(" \n ")  # room for words that change, which the canvas draws on top
            bars.set_title(" \n ")
            self.title, self.waste = (
                ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom", fontsize=13) for ax in (pairs, bars)
            )
            colours = (style.BLUE, style.GREY, FULL)
            self.bars = bars.barh([2, 1, 0], [0, 0, 0], height=0.34, color=colours)
            self.words = [bars.text(0, y + 0.24, "", va="bottom", fontsize=12) for y in (2, 1, 0)]
            bars.set_xlim(0, 100)
            bars.set_ylim(-0.4, 2.9)
            bars.set_yticks([])
            bars.spines["left"].set_visible(False)
            bars.set_xlabel("share of the batch [%]")
            figure.legend(handles=state_handles(), loc="outside lower center", ncols=4)
        moving = [self.panel.image, self.panel.grid, self.panel.frames, self.title, self.waste, *self.bars, *self.words]
        self._events: dict[tuple[int, int], tuple[Layout, Dense]] = {}
        words = {"description_width": "initial"}
        super().__init__(
            figure,
            {
                "kind": choice("mask", list(KINDS), kind),
                "tokens": slider("tokens", 256, 16, 768, 16),
                "events": slider("events", 1, 1, 6),
                "window": slider("window", 64, 1, 512),
                "wrap": ipywidgets.Checkbox(value=True, description="wrap", style=words),
                "global_tokens": slider("global tokens", 2, 1, 16),
                "spread": ipywidgets.Checkbox(value=False, description="spread out", style=words),
                "queries": slider("queries", 64, 16, 256, 16),
                "size": choice("block size", list(SIZES), 32),
            },
            moving=moving,
            dpi=80,
        )

    def layouts(self) -> tuple[Layout, Layout]:
        """Of the queries and of the keys of the present state."""
        tokens = self._batch()[0]
        if self.kind not in CROSS:
            return tokens, tokens
        queries = Layout.of(uneven(self.queries, self.events), "cpu")
        return (queries, tokens) if self.kind == "Strided" else (tokens, queries)

    def mask(self) -> Mask | None:
        """Of the present state; None: everything inside an event."""
        return KINDS[self.kind](self)

    def window_mask(self) -> Window:
        """The window of the present state."""
        return Window(self.window, wrap=self.wrap)

    def global_mask(self) -> GlobalTokens:
        """The global tokens of the present state."""
        longest = self._batch()[0].max_length
        step = longest / self.global_tokens if self.spread else 1
        return GlobalTokens([int(i * step) for i in range(self.global_tokens)])

    def dense_mask(self) -> Dense:
        """Pairs of tokens on one made-up particle, whose tokens lie near each other in the order."""
        return self._batch()[1]

    def count(self) -> Sparsity:
        """Pairs and blocks of the present state."""
        queries, keys = self.layouts()
        return sparsity(self.mask(), queries, self.size, keys)

    def update(self) -> str:
        """Moves the artists to the state; returns the counts."""
        for name, needed in NEEDS.items():
            self.controls[name].disabled = not needed(self.kind)
        queries, keys = self.layouts()
        mask, found = self.mask(), self.count()
        self.panel.show(mask, queries, keys, self.size)
        code = title(mask)
        self.title.set_text(f"{_short(code)}\n{_lengths(queries, keys)}")
        shares = (
            ("pairs allowed", found.allowed, found.pairs),
            ("blocks looked into", found.active, found.blocks),
            ("blocks wholly allowed", found.full, found.blocks),
        )
        for bar, words, (what, part, whole) in zip(self.bars, self.words, shares, strict=True):
            bar.set_width(100 * part / whole)
            words.set_text(f"{what}: {share(part, whole)}")
        self.waste.set_text(
            f"scores computed / pairs allowed:\n{found.waste:.2f}" if found.allowed else "nothing allowed\n"
        )
        return (
            f"<code>{escape(code)}</code><br>{found.allowed:,} of {found.pairs:,} pairs allowed; "
            f"{found.active:,} of {found.blocks:,} blocks looked into, {found.full:,} of them wholly allowed; "
            f"{found.computed:,} scores computed."
        )

    def _batch(self) -> tuple[Layout, Dense]:
        """Layout and made-up particles of the present tokens; the last one is kept."""
        key = (self.tokens, self.events)
        if key not in self._events:
            lengths = uneven(*key)
            self._events = {key: (Layout.of(lengths, "cpu"), Dense([_particles(n) for n in lengths]))}
        return self._events[key]


def uneven(total: int, events: int) -> list[int]:
    """Lengths of events that sum to a total, as 4, 3, 5, 4, 3, 5 ... are to each other."""
    parts = [UNEVEN[i % len(UNEVEN)] for i in range(events)]
    ends = [round(total * sum(parts[: i + 1]) / sum(parts)) for i in range(events)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _particles(n: int) -> torch.Tensor:
    """`(n, n)` bool: both tokens on the same of some made-up particles."""
    scattered = torch.arange(n) + ON_A_PARTICLE * torch.randn(n, generator=torch.Generator().manual_seed(n))
    owner = scattered.argsort().argsort() // ON_A_PARTICLE
    return owner[:, None] == owner[None, :]


def _short(code: str, most: int = 50) -> str:
    return code if len(code) <= most else f"{code[: most - 2]} …"


def _lengths(queries: Layout, keys: Layout) -> str:
    """The lengths of the events in words."""
    each: Sequence[str] = [" + ".join(map(str, layout.host_lengths)) for layout in (queries, keys)]
    if keys is queries:
        return f"{each[0]} tokens"
    return f"{each[0]} queries, {each[1]} keys"
