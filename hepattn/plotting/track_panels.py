"""Panels of tracks whose artists are made once and moved: rows of hits with verdicts, and tracks in the detector."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event
from hepattn.metrics.track_matching import KINDS, Kind
from hepattn.metrics.tracks import FoundTracks, Sizes
from hepattn.plotting import style
from hepattn.plotting.events import VIEWS, View

NAMES: dict[Kind, str] = {"perfect": "perfect", "double_majority": "double majority", "lhc": "LHC"}
"""What figures call the definitions."""

LETTERS = "ABCDEFGHIJKLMNOP"
"""Names of the particles of a toy, one a row; their colours come back after seven."""

COLUMNS = 15
"""Hits that a row has room for; the last cell of a longer one says how many more there are."""

FOUND, FAKE, MISSED, ELSE = style.BLUE, style.VERMILLION, style.BLACK, style.FAINT

Where = list[tuple[float, float]]


class RowsPanel:
    """Rows of hits as squares, each in the colour and with the letter of its particle.

    Grey squares are noise, dark grey ones hits on particles without a row; an open square is a hit that the filter
    lost. With `verdicts`, a circle or a cross for each definition stands on the right of each row.

    Args:
        ax: where to draw
        rows: how many there is room for
        verdicts: whether there are columns of verdicts
    """

    def __init__(self, ax: Axes, rows: int, *, verdicts: bool = False) -> None:
        self.ax, self.rows = ax, rows
        ax.set_xticks([])
        ax.set_yticks([])
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        self.cells: dict[tuple[int, bool], Line2D] = {}
        size = 13.0
        for k in (-2, -1, *range(len(LETTERS))):
            colour = style.FAINT if k == -1 else style.GREY if k == -2 else style.CYCLE[k % len(style.CYCLE)]
            for there in (True, False):
                (square,) = ax.plot([], [], linestyle="", marker="s", markersize=size, color=colour)
                square.set_markerfacecolor(colour if there else "white")
                self.cells[k, there] = square
        self.letters: dict[tuple[int, bool], Line2D] = {}
        for k, letter in enumerate(LETTERS):
            for there in (True, False):
                colour = "white" if there else style.CYCLE[k % len(style.CYCLE)]
                (self.letters[k, there],) = ax.plot(
                    [], [], linestyle="", marker=f"${letter}$", markersize=7, color=colour, markeredgewidth=0.3
                )
        self.places = {kind: COLUMNS + 0.3 + 2.7 * i for i, kind in enumerate(KINDS)} if verdicts else {}
        looks = ({"marker": "o", "color": FOUND}, {"marker": "x", "color": FAKE, "markeredgewidth": 2.2})
        self.marks = [ax.plot([], [], linestyle="", markersize=9, **look)[0] for look in looks]  # type: ignore[arg-type]
        for kind, x in self.places.items():
            ax.text(x, -0.75, NAMES[kind].replace(" ", "\n"), ha="center", va="bottom", fontsize=10.5)
        self.words = [ax.text(-0.9, row, "", ha="right", va="center", fontsize=11) for row in range(rows)]
        ax.set_xlim(-3.6, COLUMNS + (6.6 if verdicts else -0.2))
        ax.set_ylim(rows - 0.4, -2.1)

    @property
    def artists(self) -> list[Line2D | Text]:
        """All that moves."""
        return [*self.cells.values(), *self.letters.values(), *self.marks, *self.words]

    def show(
        self,
        words: Sequence[str],
        hits: Sequence[Sequence[tuple[int, bool]]],
        verdicts: Sequence[dict[Kind, bool]] = (),
    ) -> None:
        """Moves all to the first `rows` rows.

        Args:
            words: what stands on the left of each row
            hits: of each row, (number of the particle; -1 noise, -2 another; whether the tracker was given the hit)
            verdicts: of each row, where there are columns for them
        """
        where: dict[tuple[int, bool], Where] = {key: [] for key in self.cells}
        marks: dict[bool, Where] = {True: [], False: []}
        for row, text in enumerate(self.words):
            if row >= len(hits):
                text.set_text("")
                continue
            spare = len(hits[row]) - COLUMNS
            text.set_text(words[row] + (f" (+{spare})" if spare > 0 else ""))
            for column, key in enumerate(hits[row][:COLUMNS]):
                where[key].append((column, row))
            if self.places and row < len(verdicts):
                for kind, good in verdicts[row].items():
                    marks[good].append((self.places[kind], row))
        for key, line in self.cells.items():
            _move(line, where[key])
        for key, line in self.letters.items():
            _move(line, where[key])
        for line, good in zip(self.marks, (True, False), strict=True):
            _move(line, marks[good])


class ToyPanels:
    """Particles and tracks as rows of hits, side by side; see `RowsPanel` and `hepattn.plotting.toy_matching`."""

    def __init__(self, particles: Axes, tracks: Axes, rows: int = 10, track_rows: int = 14) -> None:
        self.particles = RowsPanel(particles, max(rows, track_rows))
        self.tracks = RowsPanel(tracks, max(rows, track_rows), verdicts=True)
        self.shown = rows, track_rows
        particles.set_title("particles: all hits, from the inside")
        tracks.set_title("tracks, and who calls them found")

    @property
    def artists(self) -> list[Line2D | Text]:
        """All that moves."""
        return [*self.particles.artists, *self.tracks.artists]

    def show(
        self,
        found: FoundTracks,
        rows: ArrayLike,
        along: ArrayLike | None = None,
        *,
        min_hits: int = 3,
        sizes: Sizes = "all",
    ) -> int:
        """Moves the rows; returns how many tracks on these particles there was no room for.

        Args:
            found: tracks with truth
            rows: which particles, at most as many as there is room for
            along: (N,) by which hits are sorted, such as the distance from the origin; left out, their row
            min_hits: hits that a track needs to be found
            sizes: which hits of a particle count
        """
        chosen = np.asarray(rows, dtype=np.int64)[: min(self.shown[0], len(LETTERS))]
        owner, kept = np.asarray(found.particle), found.kept
        order = np.arange(len(owner)) if along is None else np.argsort(np.asarray(along), kind="stable")
        rank = np.empty(len(owner), dtype=np.int64)
        rank[order] = np.arange(len(owner))
        number = np.full(len(found.reconstructable) + 1, -2)
        number[-1] = -1
        number[chosen] = np.arange(len(chosen))
        given = np.ones(len(owner), dtype=np.bool_) if kept is None else kept

        def cells(hits: NDArray[np.int64]) -> list[tuple[int, bool]]:
            ordered = hits[np.argsort(rank[hits])]
            return [(int(number[owner[hit]]), bool(given[hit])) for hit in ordered]

        names = [
            f"{LETTERS[k]}" + ("" if found.reconstructable[row] else " (not to find)") for k, row in enumerate(chosen)
        ]
        self.particles.show(names, [cells(np.flatnonzero(owner == row)) for row in chosen])

        matches = found.matches(sizes)
        of_hit = number[owner[found.tracks.hits]]
        touched = np.unique(found.tracks.owner[of_hit >= 0])
        rank_of = np.where(matches.majority[touched] >= 0, number[matches.majority[touched]], len(LETTERS))
        rank_of[rank_of < 0] = len(LETTERS)
        touched = touched[np.lexsort((-matches.size[touched], rank_of))]
        fits = touched[: self.shown[1]]
        verdict = {kind: matches.verdict(kind, min_hits) for kind in KINDS}
        self.tracks.show(
            [f"{track + 1}" for track in range(len(fits))],
            [cells(found.tracks[int(track)].hits) for track in fits],
            [{kind: bool(verdict[kind][track]) for kind in KINDS} for track in fits],
        )
        return len(touched) - len(fits)


class DetectorPanel:
    """Found tracks in one view of the detector: lines through their hits from the inside out.

    Blue circles: tracks matched to a particle; vermillion triangles: fakes; black crosses: reconstructable particles
    that no track is matched to, all their hits. All other hits are faint dots, which `show` draws only when the event
    changes.
    """

    def __init__(self, ax: Axes, view: View) -> None:
        self.ax, self.view = ax, view
        across, up, self._across, self._up = VIEWS[view]
        ax.set_xlabel(across)
        ax.set_ylabel(up)
        ax.locator_params(nbins=5)
        if view == "xy":
            ax.set_aspect("equal", adjustable="box")
        (self.dots,) = ax.plot([], [], linestyle="", marker="o", markersize=1.5, color=ELSE, markeredgewidth=0)
        looks = [(MISSED, "x", ":", 5.5), (FOUND, "o", "-", 3.2), (FAKE, "^", "--", 4.5)]
        self.lines = [
            ax.plot([], [], color=colour, marker=marker, linestyle=line, markersize=size, linewidth=0.9)[0]
            for colour, marker, line, size in looks
        ]
        self._sizes = [size for *_, size in looks]
        self._event: Event | None = None

    @property
    def artists(self) -> list[Line2D]:
        """All that moves but for the dots, which lie below."""
        return list(self.lines)

    def show(self, event: Event, groups: Sequence[Sequence[NDArray[np.int64]]]) -> None:
        """Moves the lines.

        Args:
            event: whose hits are drawn
            groups: rows of hits of each missed particle, of each matched track, and of each fake, from the inside out
        """
        x, y = self._across(event.hits).astype(np.float64), self._up(event.hits).astype(np.float64)
        if self._event is not event:
            self._event = event
            self.dots.set_data(x, y)
            self.dots.set_markersize(float(np.clip(120 / np.sqrt(max(len(x), 1)), 1.0, 4.0)))
            self._limits(x, y)
        small = float(np.clip(np.sqrt(80 / max(sum(map(len, groups)), 1)), 0.35, 1.0))
        for line, size, sets in zip(self.lines, self._sizes, groups, strict=True):
            line.set_markersize(size * small)
            line.set_linewidth(0.9 * np.sqrt(small))
            # a row more, of NaN, parts one track from the next
            rows = np.concatenate([np.zeros(0, dtype=np.int64), *(np.append(one, len(x)) for one in sets if len(one))])
            line.set_data(np.append(x, np.nan)[rows], np.append(y, np.nan)[rows])

    def _limits(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        if not len(x):
            return
        wide, high = 1.04 * float(np.abs(x).max()), 1.04 * float(np.abs(y).max())
        if self.view == "xy":
            wide = high = max(wide, high)
        self.ax.set(xlim=(-wide, wide), ylim=(0.0 if self.view == "rz" else -high, high))


def by_verdict(
    event: Event, found: FoundTracks, kind: Kind, min_hits: int, sizes: Sizes
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Hits, from the inside out, of each missed reconstructable particle, each matched track and each fake."""
    matches = found.matches(sizes)
    good = matches.verdict(kind, min_hits)
    s = event.hits.s
    missed = np.flatnonzero(found.reconstructable & (matches.tracks_on(kind, min_hits) == 0))
    lost = np.full(len(found.reconstructable) + 1, -1)
    lost[missed] = np.arange(len(missed))
    label = lost[found.particle]
    tracks = [track.hits[np.argsort(s[track.hits])] for track in found.tracks]
    judged = matches.size >= min_hits
    return (
        grouped(label, s, len(missed)),
        [rows for rows, one in zip(tracks, good, strict=True) if one],
        [rows for rows, one in zip(tracks, judged & ~good, strict=True) if one],
    )


def grouped(label: NDArray[np.int64], s: NDArray[np.floating], count: int) -> list[NDArray[np.int64]]:
    """Rows of each label 0 ... count - 1, by rising s; `label` and `s` (N,), -1 = in no group."""
    rows = np.flatnonzero(label >= 0)
    rows = rows[np.lexsort((s[rows], label[rows]))]
    return np.split(rows, np.cumsum(np.bincount(label[rows], minlength=count))[:-1]) if count else []


def _move(line: Line2D, where: Where) -> None:
    line.set_data([x for x, _ in where], [y for _, y in where])
