"""Explore how an order of hits makes attention sparse: where its parts lie, which blocks hold pairs, at what cost."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from matplotlib.lines import Line2D

from hepattn.data.ordering import ORDERS, Keys, Order, hit_order, ordered_owner
from hepattn.data.schema import Event, Selection
from hepattn.metrics.attention import BlockPairs, block_pairs, pair_recall, window_blocks
from hepattn.plotting import ordering as draw
from hepattn.plotting import style
from hepattn.plotting.ordering import COLOURS, NAMES, SIZES, WINDOWS
from hepattn.widgets.base import Explorer, choice, slider
from hepattn.widgets.events import samples

__all__ = ["OrderingExplorer"]

KEPT = 96
"""Results that are kept for going back and forth."""

LEAST = 3e-7
"""Left end of the axis of shares of blocks."""


class OrderingExplorer(Explorer):
    """What an order of hits does to the blocks of attention.

    Left: the hits by the eighth of the sequence that they stand in. Middle: blocks that hold a pair of hits on one
    particle. Right: pairs held against blocks computed for all orders, the chosen one thick: the fullest blocks first
    (solid) and circular windows (dots). State:

    - `event`: a name;
    - `order`: one of `hepattn.data.ORDERS` ("random" with seed 0);
    - `size`: hits along the side of a block;
    - `pt_min`: GeV, the cut of the particles that are meant.

    Args:
        events: name -> event with truth, or what reads it when it is first looked at; left out, one of each sample
        selection: the cuts other than pT, and where the pT slider starts
    """

    def __init__(
        self,
        events: Mapping[str, Event | Callable[[], Event]] | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.events = dict(samples() if events is None else events)
        if not self.events:
            raise ValueError("there is no event to explore")
        self.selection = selection or Selection()
        self.kept: dict[tuple[Any, ...], Any] = {}
        self._shown = ("", "")
        figure, (places, blocks, shares) = style.canvas(3, width=4.7, height=5.2, ratios=[0.85, 1.0, 1.1])
        self.lines: dict[Order, tuple[Line2D, Line2D]] = {}
        with style.context():
            self.places = draw.PlacePanel(places)
            self.blocks = draw.BlockMapPanel(blocks)
            for order in ORDERS:
                self.lines[order] = draw.recall_lines(shares, COLOURS[order])
            draw.share_axis(shares)
            shares.set_xlim(LEAST, 1)
            shares.set_xticks([1e-6, 1e-4, 1e-2, 1.0])
            draw.part_bar(figure, [places], location="bottom")
            figure.colorbar(self.blocks.image, ax=blocks, location="bottom", label="share of active blocks in a cell")
            figure.legend(handles=draw.order_handles(ORDERS), loc="outside lower center", ncols=6)
            self.title = figure.suptitle("one")
        controls = {
            "event": choice("event", list(self.events)),
            "order": choice("order", {label: name for name, label in NAMES.items()}),
            "size": choice("block size", list(SIZES), 128),
            "pt_min": slider("pT cut [GeV]", float(self.selection.pt_min), 0.3, 3.0, 0.1),
        }
        moving = [self.blocks.image, *(line for both in self.lines.values() for line in both), self.title]
        super().__init__(figure, controls, moving=moving)

    def cuts(self) -> Selection:
        """Which particles are meant in the present state."""
        return replace(self.selection, pt_min=float(self.pt_min))

    def shown(self) -> Event:
        """The event on show."""
        event = self.events[self.event]
        if not isinstance(event, Event):
            event = self.events[self.event] = event()
        return event

    def place(self, order: Order) -> Keys:
        """(n_hits,) an order of the event on show."""
        return self._keep(("place", self.event, order), lambda: hit_order(self.shown().hits, order))

    def found(self, order: Order) -> BlockPairs:
        """Blocks that hold pairs, for the present state but in any order."""

        def count() -> BlockPairs:
            return block_pairs(ordered_owner(self.shown(), self.place(order), self.cuts()), self.size)

        return self._keep(("blocks", self.event, order, self.size, self.pt_min), count)

    def update(self) -> str:
        """Moves dots, map and curves; returns the table."""
        event = self.shown()
        if self._shown != (self.event, self.order):
            self._shown = (self.event, self.order)
            self.places.show(event, self.place(self.order))
            # other words: the ground of these axes is drawn anew
            self.places.ax.set_title(f"{self.event}, {NAMES[self.order]}", loc="left")
        found = self.found(self.order)
        self.blocks.show(found)
        for order, (best, local) in self.lines.items():
            best.set_data(*draw.best_blocks(self.found(order)))
            local.set_data(*self._windows(order))
            thick = order == self.order
            for line in (best, local):
                line.set_linewidth(3.0 if thick else 1.2)
                line.set_alpha(1.0 if thick else 0.6)
                line.set_zorder(3 if thick else 2)
        self.title.set_text(
            f"{len(event.hits):,} hits in {NAMES[self.order]} order, "
            f"{found.blocks:,} x {found.blocks:,} blocks; {self.cuts()}"
        )
        return self._table()

    def _windows(self, order: Order) -> tuple[list[float], list[float]]:
        """Share of blocks that each of `WINDOWS` computes, and share of pairs that it holds."""
        n = len(self.shown().hits)

        def held() -> list[float]:
            owner = ordered_owner(self.shown(), self.place(order), self.cuts())
            return [one.value for one in pair_recall(owner, WINDOWS)]

        computed = [window_blocks(n, window, self.size).value for window in WINDOWS]
        return computed, self._keep(("recall", self.event, order, self.pt_min), held)

    def _table(self) -> str:
        shares = (0.5, 0.9, 0.99, 1.0)
        head = "".join(f"<th>{share:.0%} of pairs</th>" for share in shares)
        rows = []
        for order, label in NAMES.items():
            cells = [self.found(order).needed(share) for share in shares]
            words = "".join(f"<td>{one.passed:,} ({draw.percent(one)})</td>" for one in cells)
            name = f"<b>{label}</b>" if order == self.order else label
            rows.append(f"<tr><td>{name}</td>{words}</tr>")
        return (
            f"Blocks needed, the fullest first (share of all {self.found(self.order).blocks ** 2:,} blocks):"
            f"<table border=1 cellpadding=4><tr><th>order</th>{head}</tr>{''.join(rows)}</table>"
        )

    def _keep(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gave for this key; the oldest is forgotten."""
        if key not in self.kept:
            made = make()
            if len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = made
        return self.kept[key]
