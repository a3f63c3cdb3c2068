"""Collisions from Pythia: the hard one and Poisson(pileup) inelastic ones, as particles for the detector simulation."""

from functools import cache
from typing import Any

from hepattn.data.simulation.packages import require
from hepattn.data.simulation.recipe import Recipe

INIT_SEED = 4711
"""Pythia's own set-up draws random numbers too (maxima of cross-sections): always the same, in every worker and run."""

PHOTON = 22
MAX_TRIES = 100

COMMON = ("Print:quiet = on", "Random:setSeed = on", f"Random:seed = {INIT_SEED}", "ParticleDecays:limitTau0 = on")
PROCESSES = {"ttbar": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on"), "pileup": ("SoftQCD:all = on",)}


def pythia(process: str, recipe: Recipe) -> Any:
    """An initialised Pythia for `process`, a key of `PROCESSES` (seconds for "pileup": multiparton interactions).

    Raises:
        RuntimeError: Pythia can't be initialised.
    """
    generator = require("pythia8mc").Pythia("", False)
    beams = (f"Beams:eCM = {recipe.energy}", f"ParticleDecays:tau0Max = {recipe.decay_length}")
    for setting in (*COMMON, *beams, *PROCESSES[process]):
        if not generator.readString(setting):
            raise RuntimeError(f"Pythia does not know the setting {setting!r}")
    if not generator.init():
        raise RuntimeError(f"Pythia can't be initialised for the process {process!r}")
    return generator


class Collisions:
    """Makes the particles of event `index`. Each event re-seeds the generators: it depends on (seed, index) alone."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.hard = None if recipe.hard == "none" else pythia(recipe.hard, recipe)
        self.soft = pythia("pileup", recipe) if recipe.pileup > 0 else None
        acts, examples = require("acts"), require("acts.examples")
        self._made_of = (
            examples.SimBarcode,
            examples.SimParticle,
            cache(acts.PdgParticle),
            acts.Vector4,
            acts.Vector3,
        )

    def fill(self, index: int, container: Any) -> int:
        """Insert the particles of event `index` into an ACTS `SimParticleContainer`; returns the number of collisions.

        Charged particles and photons (which may convert) of the final state inside the recipe's cuts. `vertexPrimary`
        counts collisions from 1, the hard one first.
        """
        recipe = self.recipe
        rng = recipe.rng(index, 0)
        n_soft = int(rng.poisson(recipe.pileup))
        generators = ([] if self.hard is None else [self.hard]) + [self.soft] * n_soft
        for generator in (self.hard, self.soft):
            if generator is not None:
                generator.rndm.init(recipe.pythia_seed(index))
        vertices = rng.normal(size=(len(generators), 3)) * recipe.beam_spot
        for number, (generator, vertex) in enumerate(zip(generators, vertices.tolist(), strict=True), start=1):
            if not any(generator.next() for _ in range(MAX_TRIES)):
                raise RuntimeError(f"Pythia failed {MAX_TRIES} times in a row on collision {number} of event {index}")
            self._insert(generator.event, number, vertex, container)
        return len(generators)

    def _insert(self, collision: Any, number: int, vertex: list[float], container: Any) -> None:
        # The only loop over particles in Python, and a fifth of an event's time: names are bound outside of it.
        recipe = self.recipe
        barcode_of, particle_of, code_of, point, direction = self._made_of
        pt_min, eta_max, z_max, r2_max = recipe.pt_min, recipe.eta_max, recipe.vertex_z_max, recipe.vertex_r_max**2
        x0, y0, z0 = vertex
        accepted = 0
        for particle in collision:
            if not particle.isFinal() or particle.pT() < pt_min:
                continue
            pdg = particle.id()
            if pdg != PHOTON and not particle.isCharged():  # neutrinos, too
                continue
            if abs(particle.eta()) > eta_max:
                continue
            x, y, z = x0 + particle.xProd(), y0 + particle.yProd(), z0 + particle.zProd()
            if x * x + y * y > r2_max or abs(z) > z_max:
                continue
            accepted += 1
            barcode = barcode_of()
            barcode.vertexPrimary = number
            barcode.particle = accepted
            made = particle_of(barcode, code_of(pdg), particle.charge(), particle.m())
            made.fourPosition = point(x, y, z, particle.tProd())
            made.direction = direction(particle.px(), particle.py(), particle.pz())
            made.absoluteMomentum = particle.pAbs()
            container.insert(made)
