"""The picture of the README, made anew by ``python -m hepattn.plotting.gallery``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hepattn.data.sample import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.masks import Mask, Window
from hepattn.plotting import style
from hepattn.plotting.events import attended, event
from hepattn.plotting.masks import mask

IMAGES = Path(__file__).resolve().parents[2] / "notebooks" / "images"
"""Where the pictures of a checkout lie."""


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


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures; with ``--out`` elsewhere than into the checkout's notebooks/images."""
    parser = argparse.ArgumentParser(
        prog="python -m hepattn.plotting.gallery", description="Draw the README's picture."
    )
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write event.png into")
    folder: Path = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "event.png"
    overview(sample_event(), Window(128, wrap=True), Selection()).savefig(file, dpi=90)
    sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
