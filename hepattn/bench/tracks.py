"""Hits to tracks: this project's tracker against ACTS's Kalman filter, on the same events, with the same metrics.

`python -m hepattn.bench tracks --events sample:ttbar_mu200 --weights mu200`. Both sides begin with the arrays of an
event. The tracker runs its hit filter first, on the GPU where there is one; the Kalman filter (extra `sim`) runs on one
core. Particles that count are decided on the whole event, before any filter:

- tracker's: the selection that it was trained for (pT above --pt-min, where given), in its volumes;
- Kalman's: prompt (made within 2 mm of the beam), |eta| < 2.5, pT above the same cut, at least 7 hits anywhere.

Each side is judged on the hits that it may use: the tracker's volumes, or all.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hepattn.bench.peers import Side, Wanted, judge, kalman_side
from hepattn.data.schema import Event, Selection
from hepattn.data.simulation.kalman import KalmanConfig
from hepattn.data.sources import open_events
from hepattn.data.tracks import Tracks
from hepattn.models.maskformer import MaskFormer


def run(side: Side, events: Sequence[Event], rounds: int) -> tuple[list[Tracks], float]:
    """The tracks of each event, and the median of milliseconds an event; the first event warms up."""
    side.find(events[0])
    found, times = [], []
    for event in events:
        for _ in range(rounds):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            tracks = side.find(event)  # ends on the host, so nothing is under way
            times.append(1e3 * (time.perf_counter() - start))
        found.append(tracks)
    return found, statistics.median(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Finds tracks with both, prints the table; returns the exit status."""
    options = argparse.ArgumentParser(prog="python -m hepattn.bench tracks", description=__doc__)
    options.add_argument("--events", default="sample:ttbar_mu0", help="see hepattn.data.open_events")
    options.add_argument("--last", type=int, default=5, help="so many events, the last ones (default %(default)s)")
    options.add_argument("--weights", default="sample", help="NAME of shipped weights, or a file (default %(default)s)")
    options.add_argument("--rounds", type=int, default=3, help="of each event (default %(default)s)")
    options.add_argument("--seeds", type=int, nargs="*", default=[1, 3], help="of the Kalman filter, a space point")
    options.add_argument("--pt-min", type=float, help="GeV, of particles that count (default: the tracker's own cut)")
    given = options.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        source = open_events(given.events)
        events = [source[index] for index in range(max(0, len(source) - given.last), len(source))]
        file = Path(given.weights)
        tracker = (MaskFormer.load(file) if file.suffix else MaskFormer.pretrained(given.weights)).to(device)
        pt_min = tracker.config.pt_min if given.pt_min is None else given.pt_min
        ours = _ours(tracker, given.weights, device)
        sides = [*ours, *(_kalman(seeds, pt_min) for seeds in given.seeds)]
    except (ImportError, ValueError, OSError) as error:
        print(f"hepattn.bench tracks: {error}", file=sys.stderr)
        return 1
    own = Wanted("tracker's particles", replace(tracker.config.selection, pt_min=pt_min), prompt=False)
    theirs = Wanted("Kalman's particles", Selection(pt_min, 2.5, 7), prompt=True)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{len(events)} events of {given.events}, torch {torch.__version__}, {where}; intervals cover 68.3 %\n")
    milliseconds: list[float] = []
    for side in sides:
        found, spent = run(side, events, given.rounds if side in ours else 1)
        milliseconds.append(spent)
        print(f"{side.name}: {spent:,.1f} ms an event ({spent / milliseconds[0]:,.1f} x ours)")
        for wanted in (own, theirs) if side in ours else (theirs,):
            print(f"  {wanted}")
            print("".join(f"    {line}\n" for line in str(judge(side, events, found, wanted)).splitlines()), end="")
    return 0


def _ours(tracker: MaskFormer, weights: str, device: str) -> list[Side]:
    """The tracker, on a GPU also in bfloat16, as it was trained; the fastest first."""

    def mixed(event: Event) -> Tracks:
        with torch.autocast(device, torch.bfloat16):
            return tracker.reconstruct(event)

    plain = Side(f"hepattn {weights}, {device}", tracker.reconstruct, tracker.config.selection)
    return [replace(plain, name=f"{plain.name}, bfloat16", find=mixed), plain] if device == "cuda" else [plain]


def _kalman(seeds: int, pt_min: float) -> Side:
    config = KalmanConfig(pt_min=min(0.5, pt_min), seeds_per_space_point=seeds)
    return kalman_side(f"ACTS Kalman filter, {seeds} seed{'s' if seeds > 1 else ''}, 1 core", config)
