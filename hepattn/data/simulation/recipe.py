"""What is simulated: the numbers of the recipe, and the random streams of one event."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

PYTHIA_SEEDS = 900_000_000
"""Pythia takes seeds from 1 to this number."""

Hard = Literal["ttbar", "none"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the content of an event depends on, besides its index; lengths in mm, energies in GeV.

    The defaults are the recipe that comes nearest to the public TrackML events.
    """

    seed: int = 7
    pileup: float = 200.0
    """Mean number of inelastic collisions beside the hard one (Poisson)."""
    hard: Hard = "ttbar"
    """The hard collision: a pair of top quarks, or none."""
    noise: bool = True
    """Noise hits, `noise_per_module` on average (Poisson)."""
    losses: bool = True
    """Hadrons lose the rest of their hits with probability `loss_per_hit` at each hit (nuclear interactions)."""
    energy: float = 14_000.0
    beam_spot: tuple[float, float, float] = (0.015, 0.015, 5.5)
    """Standard deviations of the collisions' places in x, y, z."""
    pt_min: float = 0.15
    eta_max: float = 4.0
    momentum_stop: float = 0.1
    """Particles are followed down to this momentum."""
    decay_length: float = 1000.0
    """Particles with a proper decay length c tau0 up to this are decayed by the generator; the others are stable."""
    vertex_r_max: float = 1000.0
    vertex_z_max: float = 2900.0
    """Particles that are born farther out are dropped: there is no tracker."""
    field: float = 2.0
    """Tesla, constant along z."""
    loss_per_hit: float = 0.023
    noise_per_module: float = 0.942
    cell_spread: float = 0.10
    """Relative standard deviation of the charge of one pixel, independent from cell to cell, as in TrackML's events."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "beam_spot", tuple(self.beam_spot))
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.pileup <= 1000:
            raise ValueError(f"pileup must lie between 0 and 1000, got {self.pileup}")
        if self.hard not in {"ttbar", "none"}:
            raise ValueError(f"hard must be 'ttbar' or 'none', got {self.hard!r}")
        if not 0 <= self.cell_spread < 0.2:
            raise ValueError(f"cell_spread must lie between 0 and 0.2 (charges stay positive), got {self.cell_spread}")
        if self.hard == "none" and self.pileup == 0:
            raise ValueError("nothing to simulate: hard is 'none' and pileup is 0")

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def rng(self, index: int, purpose: int) -> np.random.Generator:
        """The random stream of event `index` for one purpose (0 collisions, 1 losses, 2 noise, 3 charges)."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index, purpose)))

    def pythia_seed(self, index: int) -> int:
        """Pythia's seed for event `index`: different for all events of a run (Pythia has `PYTHIA_SEEDS` seeds)."""
        start = int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0])
        return (start + index) % PYTHIA_SEEDS + 1

    def acts_seed(self) -> int:
        """Seed of the detector simulation, which combines it with the number of the event by itself."""
        return int(np.random.SeedSequence(self.seed, spawn_key=(0,)).generate_state(1, np.uint32)[0])
