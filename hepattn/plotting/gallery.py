"""The picture of the README and a thumbnail a notebook, made anew by ``python -m hepattn.plotting.gallery``.

A new notebook gets its thumbnail by a function here that draws one (`small` gives it bare panels) and a line in
`THUMBNAILS`; the command then writes ``images/NN.png``, and the row of ``notebooks/README.md`` shows it.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hepattn.attention.agreement import expect
from hepattn.bench.peers import Side, Wanted, found_by, kalman_side
from hepattn.data.ordering import Order, hit_order, ordered_owner
from hepattn.data.sample import sample_event, sample_events
from hepattn.data.schema import Event, Selection
from hepattn.data.toy_tracks import Damage, damage_tracks, toy_event, true_tracks
from hepattn.masks import GlobalTokens, Mask, Strided, Window
from hepattn.metrics.attention import block_pairs, pair_recall
from hepattn.metrics.by_particle import JudgedEvents, Quantity
from hepattn.metrics.peers import Peers, peer_edges
from hepattn.metrics.track_matching import KINDS
from hepattn.metrics.tracks import FoundTracks
from hepattn.models.hit_filter import HitFilter
from hepattn.models.maskformer import MaskFormer
from hepattn.plotting import style
from hepattn.plotting.attention_numbers import change, preference
from hepattn.plotting.attention_panels import MapPanel, UnrolledPanel
from hepattn.plotting.attention_pattern import filter_patterns, layer_pattern
from hepattn.plotting.attention_tokens import turn
from hepattn.plotting.encoding_numbers import encode, encoding, similarity
from hepattn.plotting.encodings import wave_image
from hepattn.plotting.events import View, attended, event
from hepattn.plotting.head_numbers import head_table
from hepattn.plotting.heads import draw_against_chance
from hepattn.plotting.masks import blocks, mask
from hepattn.plotting.ordering import WINDOWS, BlockMapPanel
from hepattn.plotting.peers import EfficiencyPanel, groups_of_hits
from hepattn.plotting.performance import kept, scores
from hepattn.plotting.query_numbers import assigned, costs, decode
from hepattn.plotting.query_panels import CostPanel, HitMapPanel, Part
from hepattn.plotting.track_panels import DetectorPanel
from hepattn.plotting.tracks import found_tracks

IMAGES = Path(__file__).resolve().parents[2] / "notebooks" / "images"
"""Where the pictures of a checkout lie."""

WIDTH, DPI = 320, 100
"""Of a thumbnail: pixels, and dots an inch."""


def overview(of: Event, window: Mask, selection: Selection) -> Figure:
    """The project in one picture: a window as rows of 1 and 0, the same on the detector, and the particles to find.

    Args:
        of: An event with truth.
        window: Over the event's hits in φ order.
        selection: Which particles are coloured.

    Returns:
        The figure, three panels.

    Raises:
        ValueError: The event has no truth, or no particle is selected.
    """
    figure, (drawn, around, particles) = style.canvas(3, width=5.0, height=6.4)
    mask(Window(4, wrap=True), 8, ax=drawn)
    attended(of, window, middle_hit(of, selection), views=("xy",), ax=around)
    event(of, "particle", views=("etaphi",), selection=selection, ax=particles)
    with style.context():
        drawn.set_title("who may look at whom, as data:\nWindow(4, wrap=True); 1 = may attend")
        around.set_title("on the detector:\n" + around.get_title(loc="left"))
        particles.set_title(f"what is to be found:\n{selection}")
    return figure


def middle_hit(of: Event, selection: Selection) -> int:
    """A hit half-way along the selected particle that has the most hits: its index in the event.

    Raises:
        ValueError: No particle is selected.
    """
    chosen = np.where(selection.particles(of), of.hits_per_particle, 0)
    if not chosen.any():
        raise ValueError(f"no particle of event {of.event_id} is reconstructable: {selection}")
    along = np.flatnonzero(of.hits.particle == chosen.argmax())
    return int(along[np.argsort(of.hits.s[along])][len(along) // 2])


def outer_direction(of: Event, selection: Selection, default: float = 1.0) -> float:
    """φ (rad) of the outermost hit of the selected particle that has the most hits; `default` where there is none."""
    if of.hits.particle is None or of.particles is None or not selection.particles(of).any():
        return default
    along = np.flatnonzero(of.hits.particle == of.hits.particle[middle_hit(of, selection)])
    return float(of.hits.phi[along[of.hits.r[along].argmax()]])


def small(columns: int = 1, *, aspect: float = 0.5, ratios: list[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of a thumbnail's size and its panels side by side, without ticks and spines: draw shapes, not words.

    Args:
        columns: How many panels.
        aspect: Height over width of the figure.
        ratios: Relative widths of the panels.
    """
    inches = WIDTH / DPI
    figure, panels = style.canvas(columns, width=inches / columns, height=inches * aspect, ratios=ratios)
    for panel in panels:
        panel.set_axis_off()
    return figure, panels


def quickstart() -> Figure:
    """Thumbnail 00: a window as rows of 1 and 0, and the particles of an event along the beam."""
    figure, (drawn, along) = small(2)
    mask(Window(4, wrap=True), 8, ax=drawn)
    _bare(drawn)
    for text in drawn.texts:
        text.set_fontsize(8)
    _dots(along, sample_event(index=-1), Selection())
    return figure


def event_and_hits() -> Figure:
    """Thumbnail 01: an event with 40 collisions on top, along the beam and from the side, by part of detector."""
    figure, panels = small(2, ratios=[1.0, 1.4])
    views: tuple[View, ...] = ("xy", "rz")
    of = sample_event("ttbar_mu40")
    for view, panel in zip(views, panels, strict=True):
        event(of, "volume", views=(view,), ax=panel)
        _bare(panel)
    return figure


def kernels_agree() -> Figure:
    """Thumbnail 02: errors of sdpa in float64, float32 and bfloat16 for four masks, each below what is allowed."""
    figure, (panel,) = small(aspect=0.36)
    window, n = Window(64, wrap=True), 256
    drawn = torch.randn(3, n, 2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, colour in zip((torch.float64, torch.float32, torch.bfloat16), style.CYCLE, strict=False):
        for row, one in enumerate((None, window, window | GlobalTokens([0]), Strided(32, wrap=True))):
            value = expect(*drawn.to(dtype).unbind(0), mask=one).ask("sdpa").value
            assert value is not None
            panel.semilogx([value.error, value.allowed], [row, row], color=style.FAINT, linewidth=1)
            panel.semilogx(value.error, row, "o", color=colour, markersize=6)
            panel.semilogx(value.allowed, row, "|", color=style.BLACK, markersize=10, markeredgewidth=2)
    panel.set_ylim(-0.6, 3.6)
    return figure


def before_and_after() -> Figure:
    """Thumbnail 03: maps of attention without an encoding, with one, and their difference."""
    figure, panels = small(3, aspect=0.36)
    patterns = [layer_pattern(sample_event(), name, tied=True) for name in ("none", "periodic")]
    before, after = (preference(pattern, 32, 0) for pattern in patterns)
    for panel, values, last in zip(panels, (before, after, change(before, after)), (False, False, True), strict=True):
        MapPanel(panel, "", bins=32, change=last).show(values)
        panel.set_axis_off()
    return figure


def positional_encodings() -> Figure:
    """Thumbnail 04: waves of a plain and a periodic encoding, and how alike they make directions across φ = ±π."""
    figure, (plain, closed, across) = small(3, aspect=0.36)
    away = np.linspace(-0.5, 0.5, 401)
    for panel, kind, colour in ((plain, "sinusoidal", style.VERMILLION), (closed, "periodic_fourier", style.BLUE)):
        of = encoding(kind, 32)
        wave_image(panel, encode(of, np.linspace(-np.pi, np.pi, 2001)))
        across.plot(away, similarity(of, [3.08], turn(3.08 + away))[0], color=colour)
    across.axvline(np.pi - 3.08, color=style.BLACK, linestyle="--", linewidth=1)
    return figure


def masks() -> Figure:
    """Thumbnail 05: a wrapped window in blocks, alone, with a global token, and of several events."""
    figure, panels = small(3, aspect=0.36)
    window = Window(16, wrap=True)
    batches = ((window, [96]), (window | GlobalTokens([0]), [96]), (window, [40, 24, 32]))
    for panel, (one, lengths) in zip(panels, batches, strict=True):
        blocks(one, lengths, size=8, ax=panel)
        _bare(panel)
    return figure


def local_against_global() -> Figure:
    """Thumbnail 06: the hits that one hit sees through a window, and pairs held against the size of the window."""
    figure, (around, curve) = small(2)
    of, selection = sample_event("ttbar_mu40"), Selection()
    attended(of, Window(256, wrap=True), middle_hit(of, selection), views=("xy",), ax=around)
    _bare(around)
    for name, colour in zip(("ttbar_mu0", "ttbar_mu40", "ttbar_mu200"), style.CYCLE, strict=False):
        one = sample_event(name)
        shares = pair_recall(ordered_owner(one, hit_order(one.hits), selection), WINDOWS)
        curve.semilogx(WINDOWS, [share.value for share in shares], color=colour)
    return figure


def ordering() -> Figure:
    """Thumbnail 07: blocks that hold a pair of hits on one particle, in φ order, along a Hilbert curve, at random."""
    figure, panels = small(3, aspect=0.36)
    of = sample_event("ttbar_mu40")
    orders: tuple[Order, ...] = ("phi", "hilbert", "random")
    for order, panel in zip(orders, panels, strict=True):
        found = block_pairs(ordered_owner(of, hit_order(of.hits, order), Selection()), 256)
        BlockMapPanel(panel).show(found)
        panel.set_axis_off()
    return figure


def train_hit_filter() -> Figure:
    """Thumbnail 08: hits that the lesson's filter keeps and loses, and its scores of both kinds."""
    figure, (along, judged) = small(2)
    of, net = sample_event(index=-1), HitFilter.pretrained("sample")
    score, selection = net.score(of).numpy(), net.config.selection
    kept(of, score, 0.5, selection, views=("xy",), ax=along)
    scores(score, selection.hits(of), threshold=0.5, ax=judged)
    _bare(along)
    _bare(judged)
    return figure


def hit_filter_performance() -> Figure:
    """Thumbnail 09: hits that the lesson's filter keeps on both sides of the cut on pT, and efficiency in bins of η."""
    figure, (turned, binned) = small(2)
    net = HitFilter.pretrained("sample")
    events = sample_events()[-10:]
    judged = JudgedEvents.of(events, [net.score(of) for of in events], net.config.selection)
    cut = judged.threshold_at(0.98)
    both: tuple[Quantity, ...] = ("pt", "eta")
    edges = {by: judged.edges(by, 10, everyone=True) for by in both}
    kept_of = judged.kept("pt", edges["pt"], cut)
    centre = np.sqrt(edges["pt"][1:] * edges["pt"][:-1])
    turned.semilogx(centre, [share.value for share in kept_of], "o-", color=style.BLUE, markersize=3)
    turned.axvline(judged.selection.pt_min, color=style.BLACK, linestyle="--", linewidth=1)
    found = judged.efficiency("eta", edges["eta"], cut)
    low, high = np.transpose([share.interval for share in found])
    middle = (edges["eta"][1:] + edges["eta"][:-1]) / 2
    binned.vlines(middle, low, high, color=style.VERMILLION)
    binned.hlines([share.value for share in found], edges["eta"][:-1], edges["eta"][1:], color=style.VERMILLION)
    binned.set_ylim(0.85, 1.01)
    return figure


def trained_attention() -> Figure:
    """Thumbnail 10: what two heads look at from one hit of a track, and heads against chance and distance."""
    figure, panels = small(3)
    net, of = HitFilter.pretrained("sample"), sample_events()[-40]
    patterns = filter_patterns(net, of)
    row = patterns[0].nearest(outer_direction(of, net.config.selection))
    for ax, (layer, head) in zip(panels, ((2, 0), (3, 1)), strict=False):
        UnrolledPanel(ax, "").show(patterns[layer], row, head, count=20)
        ax.set_ylim(0, 500)
    draw_against_chance(panels[2], head_table(net, of, every=10), scale=0.45)
    return figure


def maskformer() -> Figure:
    """Thumbnail 11: costs of matching queries to particles with the assignment, and masks after the last layer."""
    figure, (matching, last) = small(2, ratios=[1.0, 1.4])
    of = decode(MaskFormer.pretrained("sample"), sample_event(index=211))
    cost = CostPanel(matching)
    values = costs(of)
    cost.show(of, values, assigned(values))
    cost.own.set_visible(False)
    cost.matched.set(markersize=2.5, markeredgewidth=0.7)
    masks_of = HitMapPanel(last)
    masks_of.show(of, of.mask(-1), Part(of, len(of.place) // 2))
    masks_of.stands.set_visible(False)
    for panel in (matching, last):
        panel.set_axis_off()
    return figure


def tracking_metrics() -> Figure:
    """Thumbnail 12: tracks of a toy as rows of hits, each with its three verdicts, and tracks along the beam."""
    figure, (rows, along) = small(2, ratios=[1.35, 1.0])
    of = toy_event(8, noise=0, seed=3)
    tracks, all_hits = damage_tracks(of, true_tracks(of), Damage(split=0.5, merge=0.3, drop=0.1))
    found = FoundTracks.of(of, tracks, Selection(), all_hits)
    verdict = found.matches()
    for row, track in enumerate(found.tracks):
        ordered = track.hits[np.argsort(of.hits.s[track.hits])]
        owner = found.particle[ordered]
        colours = [style.CYCLE[k % len(style.CYCLE)] for k in owner]
        rows.scatter(np.arange(len(owner)), np.full(len(owner), row), 14, colours, marker="s")
        for column, kind in enumerate(KINDS):
            good = bool(verdict.verdict(kind, 3)[row])
            rows.plot(18 + 2 * column, row, "o" if good else "x", color=style.BLUE if good else style.VERMILLION, ms=4)
    rows.invert_yaxis()
    found_tracks(of, found, views=("xy",), ax=along)
    _bare(along)
    return figure


def tracks_against_kalman() -> Figure:
    """Thumbnail 13: particles that the lesson's tracker or the Kalman filter alone finds, and efficiency against η."""
    figure, (along, binned) = small(2)
    net = MaskFormer.pretrained("sample")
    sides = [Side("ours", net.reconstruct, net.config.selection), kalman_side()]
    events = [sample_event(index=index) for index in range(210, 216)]
    wanted = Wanted("", Selection(net.config.pt_min, 2.5, 7), prompt=True)
    found = found_by(sides, events, {side.name: [side.find(of) for of in events] for side in sides}, wanted)
    one = Peers.of({name: of[:1] for name, of in found.items()})
    DetectorPanel(along, "xy").show(events[0], groups_of_hits(events[0], one))
    EfficiencyPanel(binned, "eta").show(Peers.of(found), peer_edges("eta", net.config.pt_min, 2.5, 8))
    for panel in (along, binned):
        panel.set_axis_off()
    return figure


def _dots(panel: Axes, of: Event, selection: Selection) -> None:
    """The event along the beam, its reconstructable particles in colours, without legend and words."""
    event(of, "particle", views=("xy",), selection=selection, ax=panel)
    _bare(panel)


def _bare(panel: Axes) -> None:
    """No title, legend, ticks and spines."""
    panel.set_title("", loc="left")
    panel.set_axis_off()
    legend = panel.get_legend()
    if legend is not None:
        legend.remove()


THUMBNAILS: dict[str, Callable[[], Figure]] = {
    "00": quickstart,
    "01": event_and_hits,
    "02": kernels_agree,
    "03": before_and_after,
    "04": positional_encodings,
    "05": masks,
    "06": local_against_global,
    "07": ordering,
    "08": train_hit_filter,
    "09": hit_filter_performance,
    "10": trained_attention,
    "11": maskformer,
    "12": tracking_metrics,
    "13": tracks_against_kalman,
}
"""Number of a finished notebook -> what draws its thumbnail."""


def save_small(figure: Figure, file: Path) -> None:
    """Write a thumbnail: `WIDTH` pixels wide, 64 colours, so that it stays a few kB."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=WIDTH / figure.get_figwidth())
    Image.open(buffer).convert("RGB").quantize(64).save(file, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures; with ``--out`` elsewhere than into the checkout's notebooks/images."""
    parser = argparse.ArgumentParser(
        prog="python -m hepattn.plotting.gallery",
        description="Draw the README's picture and the notebooks' thumbnails.",
    )
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write event.png and NN.png into")
    folder: Path = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "event.png"
    overview(sample_event(), Window(128, wrap=True), Selection()).savefig(file, dpi=90)
    sys.stdout.write(f"{file}\n")
    for number, drawn in THUMBNAILS.items():
        file = folder / f"{number}.png"
        save_small(drawn(), file)
        sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
