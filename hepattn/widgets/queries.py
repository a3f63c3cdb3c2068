"""Explore how queries become tracks: layers, masks, attention, weights of the matching cost, and thresholds."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hepattn.data.schema import Event
from hepattn.metrics.intervals import Fraction
from hepattn.metrics.tracks import track_metrics
from hepattn.models.maskformer import MaskFormer
from hepattn.models.track_losses import TrackWeights
from hepattn.plotting import style
from hepattn.plotting.queries import of_layer
from hepattn.plotting.query_numbers import (
    Decoding,
    assigned,
    attention_shares,
    costs,
    decode,
    found,
    innermost_chosen,
    window_share,
)
from hepattn.plotting.query_panels import CostPanel, HitMapPanel, Part, cost_handles, map_handles
from hepattn.plotting.track_panels import DetectorPanel, by_verdict
from hepattn.plotting.tracks import legend_handles
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["QueryExplorer"]

T = TypeVar("T")

VIEWS = {
    "mask probability": "masks",
    "mask above its threshold": "cut",
    "attention, over the row's largest": "attention",
    "truth": "truth",
}

DPI = 72


class QueryExplorer(Explorer):
    """One event in a tracker: what queries say after each layer, how they would be matched, and the tracks they make.

    Left: queries against the hits that they see. Middle: costs of matching queries to particles, the assignment of
    least cost (circles) and the queries' own targets (crosses). Right: tracks along the beam, and the mask of the
    chosen query (orange). Below: numbers of the event. State, all to be set and read:

    - `event`: place in the list of events;
    - `layer`: 0 before the first layer, 1 ... after each;
    - `query`: the chosen one, in φ order; the left map shows it and its neighbours;
    - `shown`: "masks", "cut", "attention" or "truth", what the left map shows;
    - `mask_threshold`, `object_threshold`: probabilities from which a hit is the query's, and a query a track;
    - `object`, `focal`, `dice`: weights of the matching cost;
    - `variant`: "as it is", "no encodings" in the decoder, or queries "shuffled" out of φ order.

    Args:
        net: a tracker with dynamic queries
        events: one event with truth, or a few to choose from

    Raises:
        ValueError: no event, or a tracker with learned queries
    """

    def __init__(self, net: MaskFormer, events: Event | Sequence[Event]) -> None:
        self.net = net
        self.events = [events] if isinstance(events, Event) else list(events)
        if not self.events:
            raise ValueError("an explorer of queries needs an event")
        self._kept: dict[tuple[Any, ...], Any] = {}
        first = self._decode(0, "as it is")
        variants = ["as it is", *(["no encodings"] if net.where_projection is not None else []), "shuffled"]
        names = {f"{e.event_id}: {len(e.hits):,} hits": i for i, e in enumerate(self.events)}
        weights = TrackWeights()
        controls = {
            "event": choice("event", names, 0),
            "variant": choice("queries", variants),
            "layer": slider("after layer", first.layers, 0, first.layers),
            "shown": choice("left", VIEWS, "masks"),
            "query": slider("query", len(first.place) // 2, 0, max(len(first.place) - 1, 0)),
            "mask_threshold": slider("mask threshold", 0.5, 0.02, 0.98, 0.02),
            "object_threshold": slider("object threshold", 0.5, 0.02, 0.98, 0.02),
            "object": slider("cost: object ×", weights.object, 0.0, 10.0, 0.5),
            "focal": slider("focal ×", weights.focal, 0.0, 10.0, 0.5),
            "dice": slider("dice ×", weights.dice, 0.0, 10.0, 0.5),
        }
        figure = self._figure()
        moving = [
            *self.map.moving,
            *self.cost.moving,
            *self.detector.artists,
            self.mask_hits,
            self.star,
            self.title,
        ]
        super().__init__(figure, controls, moving=moving, dpi=DPI)

    def decoding(self) -> Decoding:
        """The event on show in the tracker."""
        return self._decode(self.event, self.variant)

    def weights(self) -> TrackWeights:
        """Of the matching cost."""
        return TrackWeights(object=self.object, focal=self.focal, dice=self.dice)

    def update(self) -> str:
        """Moves the artists to the state; the numbers as a table."""
        of = self.decoding()
        self._fit_query(len(of.place))
        query, weights = min(self.query, len(of.place) - 1), self.weights()  # -1 where there is none
        mark = query if query >= 0 else None
        self.map.show(of, self._values(of), Part(of, max(query, 0)), mark)
        key = ("cost", self.event, self.variant, self.layer, weights)
        cost, given = self._keep(key, lambda: _matched(of, self.layer, weights))
        self.cost.show(of, cost, given, mark)
        tracks = found(of, self.layer, self.mask_threshold, self.object_threshold)
        self.detector.show(of.event, by_verdict(of.event, tracks, "double_majority", of.selection.min_hits, "all"))
        hits, mine = of.event.hits, np.zeros(0, dtype=np.int64)
        if query >= 0:
            mine = of.rows[of.mask(self.layer)[query] > self.mask_threshold]
        self.mask_hits.set_data(hits.x[mine], hits.y[mine])
        at = of.rows[of.place[query : query + 1]] if query >= 0 else mine
        self.star.set_data(hits.x[at], hits.y[at])
        words = {one: name for name, one in VIEWS.items()}[self.shown]
        self.title.set_text(
            f"{of_layer(of, self.layer)}; left: {words}"
            + (f" > {self.mask_threshold:.2f}" if self.shown == "cut" else "")
            + f"\nreconstructable: {of.selection}"
        )
        return self._table(of, given, tracks, query)

    def _figure(self) -> style.Figure:
        with style.context():
            figure = style.Figure(figsize=(17.0, 6.9), layout="constrained")
            axes = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.3, 1.0, 1.05]})
            self.map = HitMapPanel(axes[0], "queries and the hits that they see")
            self.cost = CostPanel(axes[1], "cost of matching; pale: fits")
            self.detector = DetectorPanel(axes[2], "xy")
            axes[2].set_title("tracks, and the mask of the chosen query")
            (self.mask_hits,) = axes[2].plot(
                [], [], linestyle="", marker="o", markersize=9, mfc="none", mec=style.ORANGE, markeredgewidth=1.8
            )
            (self.star,) = axes[2].plot(
                [], [], linestyle="", marker="*", markersize=14, color=style.ORANGE, mec=style.BLACK, mew=0.6
            )
            handles = [*map_handles(), *cost_handles(), *legend_handles()[:3]]
            figure.legend(handles=handles, loc="outside lower center", ncols=4, columnspacing=1.6)
            self.title = figure.suptitle("one\ntwo")
        return figure

    def _fit_query(self, count: int) -> None:
        """The slider of queries ends at the event's last one; a query beyond it becomes that one."""
        control, most = self.controls["query"], max(count - 1, 0)
        if control.max != most:
            # without drawing again: the picture under way reads what is set here
            control.unobserve(self._moved, names="value")
            control.max = most
            control.observe(self._moved, names="value")

    def _values(self, of: Decoding) -> NDArray[np.floating]:
        if self.shown == "truth":
            return of.truth.astype(np.float64)
        if self.shown == "attention":
            if not self.layer:  # nothing has attended yet
                return np.zeros(of.sees.shape)
            key = ("attention", self.event, self.variant, self.layer)
            pattern = of.attention[self.layer - 1]

            def make() -> NDArray[np.float64]:
                weights = pattern.rows(range(len(of.place))).double().numpy()
                return weights / np.maximum(weights.max(axis=1, initial=0.0), 1e-30)[:, None]

            return self._keep(key, make)
        mask = of.mask(self.layer)
        return mask if self.shown == "masks" else (mask > self.mask_threshold).astype(np.float64)

    def _decode(self, index: int, variant: str) -> Decoding:
        encoded, shuffled = variant != "no encodings", 0 if variant == "shuffled" else None
        return self._keep(
            ("decoding", index, variant),
            lambda: decode(self.net, self.events[index], encoded=encoded, shuffled=shuffled),
        )

    def _keep(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` gave for this key; of each kind the newest 24 are kept."""
        if key not in self._kept:
            same = [one for one in self._kept if one[0] == key[0]]
            if len(same) >= 24:
                del self._kept[same[0]]
            self._kept[key] = make()
        value: T = self._kept[key]
        return value

    def _table(self, of: Decoding, given: NDArray[np.int64], tracks: Any, query: int) -> str:
        has = of.own >= 0
        metrics = track_metrics([tracks], of.selection.min_hits)
        rows: Mapping[str, Fraction | str] = {
            "innermost hits that became queries": innermost_chosen(of),
            "queries that are matched to their own target": Fraction(int((given == of.own)[has].sum()), int(has.sum())),
            "hits of own targets inside the window": window_share(of),
            "efficiency (double majority)": metrics.efficiency,
            "fake tracks": metrics.fakes,
        }
        body = "".join(f"<tr><td>{words}</td><td>{escape(str(value))}</td></tr>" for words, value in rows.items())
        numbers = len(of.rows), len(of.place), len(of.targets)
        text = "{:,} hits went in, {:,} are queries, {:,} particles are to be found. ".format(*numbers)
        if self.layer and has.any():
            key = ("shares", self.event, self.variant, self.layer)
            share = self._keep(key, lambda: attention_shares(of, self.layer))
            text += (
                f"Attention of layer {self.layer} on hits of own targets: {100 * share.attention:.1f} %, all hits in "
                f"the mask alike {100 * share.in_mask:.1f} %, all in the window alike {100 * share.in_window:.1f} %. "
            )
        if query >= 0:
            target = int(of.own[query])
            on = "no track" if target < 0 else f"particle {target}"
            text += (
                f"Query {query}: innermost with {of.first[of.place[query]]:.2f}, a track with "
                f"{of.is_track(self.layer)[query]:.2f}, its own target is {on}."
            )
        return f"<table border=1 cellpadding=4>{body}</table>{text}"


def _matched(of: Decoding, layer: int, weights: TrackWeights) -> tuple[Any, NDArray[np.int64]]:
    cost = costs(of, layer, weights)
    return cost, assigned(cost)
