"""Events of sets of hits, and how tracks are judged by loops over them: slow and obvious."""

from dataclasses import dataclass

from hypothesis import strategies as st

from hepattn.data.tracks import Tracks
from hepattn.metrics.track_matching import Kind

EMPTY: set[int] = set()


@dataclass
class Toy:
    """`particle`: one row (or -1) a hit; `tracks`: rows of hits each; a hit may lie on several tracks."""

    particle: list[int]
    tracks: list[list[int]]
    count: int
    wanted: list[bool]
    kept: list[bool]

    @property
    def found(self) -> Tracks:
        return Tracks.from_hits(self.tracks, len(self.particle))

    def owned(self, *, kept: bool = False) -> list[set[int]]:
        """Hits of each particle, all of them or those kept."""
        return [
            {hit for hit, owner in enumerate(self.particle) if owner == row and (self.kept[hit] or not kept)}
            for row in range(self.count)
        ]


@st.composite
def toys(draw: st.DrawFn, *, shared: bool = True) -> Toy:
    """Tracks made from particles by losing, swapping and adding hits, so that every verdict comes up."""
    count = draw(st.integers(0, 5))
    particle = draw(st.lists(st.integers(-1, count - 1), min_size=0, max_size=30))
    kept = [draw(st.booleans()) or draw(st.booleans()) for _ in particle]
    rows = [hit for hit in range(len(particle)) if kept[hit]]
    tracks: list[list[int]] = []
    if rows:
        for _ in range(draw(st.integers(0, 6))):
            base = draw(st.integers(-1, count - 1))
            lost = draw(st.sets(st.sampled_from(rows), max_size=3))
            extra = draw(st.sets(st.sampled_from(rows), max_size=3))
            hits = ({hit for hit in rows if particle[hit] == base and base >= 0} - lost) | extra
            taken = EMPTY if shared else {hit for track in tracks for hit in track}
            tracks.append(draw(st.permutations(sorted(hits - taken))))
    return Toy(particle, tracks, count, [draw(st.booleans()) for _ in range(count)], kept)


def judged(track: set[int], particles: list[set[int]]) -> dict[Kind, int]:
    """Definition -> the particle that the track is matched to (-1: none); the first that qualifies."""
    verdict: dict[Kind, int] = {"double_majority": -1, "perfect": -1, "lhc": -1}
    for row, particle in reversed(list(enumerate(particles))):
        both = len(track & particle)
        if both > 0.5 * len(track) and both > 0.5 * len(particle):
            verdict["double_majority"] = row
        if track and track == particle:
            verdict["perfect"] = row
        if both > 0.75 * len(track):
            verdict["lhc"] = row
    return verdict
