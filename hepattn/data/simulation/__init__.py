"""The simulator: Pythia collisions in ACTS's generic tracker, the chain that made TrackML. Needs the extra `sim`.

`simulate` gives events in memory, `simulate_to` fills a folder and resumes after a stop, `main` is `hepattn simulate`.
"""

from hepattn.data.simulation.cli import main
from hepattn.data.simulation.driver import SimulationError, simulate, simulate_to
from hepattn.data.simulation.recipe import Recipe

__all__ = ["Recipe", "SimulationError", "main", "simulate", "simulate_to"]
