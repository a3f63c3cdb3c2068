"""Seconds an event of the simulator, and how its events compare with TrackML's: `python -m hepattn.bench simulate`.

Both are at a pile-up of 200 with noise, on one core; run it on an idle machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hepattn.data.schema import Event

# Means over nine events of the public TrackML data.
TRACKML = {
    "hits": 102_700.0,
    "particles with a hit": 8_628.0,
    "particles with 3 hits": 7_838.0,
    "noise, % of hits": 17.2,
}

GOAL = 3.0
"""Seconds an event and core."""

VOLUMES = (7, 8, 9, 12, 13, 14, 16, 17, 18)


def numbers(event: Event) -> dict[str, float]:
    """What the table compares, for one event."""
    hits = event.hits
    assert hits.particle is not None
    nhits = event.hits_per_particle
    noise = np.less(hits.particle, 0)
    counts = {f"hits in volume {volume}": float((hits.volume_id == volume).sum()) for volume in VOLUMES}
    return {
        "hits": float(len(hits)),
        "particles with a hit": float((nhits >= 1).sum()),
        "particles with 3 hits": float((nhits >= 3).sum()),
        "noise, % of hits": float(100 * noise.mean()),
        **counts,
    }


def real_volumes(directory: Path) -> dict[str, float]:
    """Mean hits by volume of the TrackML events of full size in a directory."""
    from hepattn.data.trackml import list_trackml, read_trackml

    events = [read_trackml(directory, index) for index in list_trackml(directory)]
    full = [event for event in events if len(event.hits) > 50_000]
    if not full:
        raise ValueError(f"no TrackML event of full size in {directory}")
    return {
        f"hits in volume {volume}": float(np.mean([(event.hits.volume_id == volume).sum() for event in full]))
        for volume in VOLUMES
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate some events, print the table; returns the exit status."""
    options = argparse.ArgumentParser(prog="python -m hepattn.bench simulate", description=__doc__)
    options.add_argument("--events", type=int, default=5, help="how many are timed (default %(default)s)")
    options.add_argument("--pileup", type=float, default=200.0)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--trackml", type=Path, help="folder of TrackML events, for hits by volume")
    options.add_argument("--json", type=Path, help="write the numbers here too")
    given = options.parse_args(argv)

    from hepattn.data.simulation.chain import EventSimulator
    from hepattn.data.simulation.files import versions
    from hepattn.data.simulation.recipe import Recipe

    try:
        real = {**TRACKML, **({} if given.trackml is None else real_volumes(given.trackml))}
        start = time.perf_counter()
        simulator = EventSimulator(Recipe(seed=given.seed, pileup=given.pileup))
        set_up = time.perf_counter() - start
    except (ImportError, ValueError, OSError) as error:
        print(f"hepattn.bench simulate: {error}", file=sys.stderr)
        return 1
    simulator.simulate(0)  # the first one imports and allocates
    wall, cpu, rows = [], [], []
    for index in range(1, given.events + 1):
        start, busy = time.perf_counter(), time.process_time()
        event = simulator.simulate(index)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
        rows.append(numbers(event))

    print(", ".join(f"{name} {value}" for name, value in versions().items()))
    print(f"{'mean of ' + str(given.events) + ' events':26}{'simulated':>12}{'TrackML':>12}{'ratio':>8}")
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    for key, ours in means.items():
        theirs = real.get(key)
        compared = "" if theirs is None else f"{theirs:12,.1f}{ours / theirs:8.2f}"
        print(f"{key:26}{ours:12,.1f}{compared}")
    print(
        f"set-up {set_up:.1f} s; one event: median {np.median(wall):.2f} s, fastest {min(wall):.2f} s,"
        f" CPU time {np.median(cpu):.2f} s (goal {GOAL} s)"
    )
    if given.json is not None:
        report = {
            "versions": versions(),
            "means": means,
            "trackml": real,
            "wall_s": wall,
            "cpu_s": cpu,
            "set_up_s": set_up,
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0
