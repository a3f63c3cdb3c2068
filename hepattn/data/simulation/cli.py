"""`hepattn simulate`: fill a folder with simulated events."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(
        prog="hepattn simulate",
        description="Simulate proton collisions in a tracker like TrackML's. Run it again to go on after a stop.",
    )
    options.add_argument("--events", type=int, default=10, help="how many (default %(default)s)")
    options.add_argument("--pileup", type=float, default=200.0, help="mean number of collisions (default %(default)s)")
    options.add_argument("--seed", type=int, default=7, help="same seed, same events (default %(default)s)")
    options.add_argument("--first", type=int, default=0, help="index of the first event (default %(default)s)")
    options.add_argument("--out", type=Path, required=True, help="folder for the events")
    options.add_argument("--workers", type=int, help="processes (default: one a core)")
    options.add_argument("--hard", choices=("ttbar", "none"), default="ttbar", help="hard collision (default ttbar)")
    options.add_argument("--no-noise", action="store_true", help="no noise hits")
    options.add_argument("--csv", action="store_true", help="write TrackML's csv.gz files too")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where events failed, 130 when interrupted.

    Raises:
        ImportError, ValueError, OSError: a mistake of the user's, for the command `hepattn` to tell.
    """
    from hepattn.data.simulation.driver import SimulationError, simulate_to
    from hepattn.data.simulation.recipe import Recipe

    given = parser().parse_args(argv)
    try:
        recipe = Recipe(seed=given.seed, pileup=given.pileup, hard=given.hard, noise=not given.no_noise)
        made = simulate_to(
            given.out, recipe, given.events, given.workers, first=given.first, csv=given.csv, progress=True
        )
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except SimulationError as error:
        print(f"hepattn simulate: {error}", file=sys.stderr)
        print("run the same command again to make those that are missing", file=sys.stderr)
        return 1
    print(f"{made} events made, {given.events - made} were there already: {given.out}")
    return 0
