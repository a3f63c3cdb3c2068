"""Two finders of tracks on the same particles: what each finds, and what only one of them finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hepattn.metrics.intervals import Fraction, binned_fraction
from hepattn.metrics.track_matching import Kind
from hepattn.metrics.tracks import FoundTracks, Quantity

__all__ = ["PT_TOP", "Peers", "peer_edges"]

PT_TOP = 10.0
"""GeV, upper edge of the last bin, which holds all particles above it, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Peers:
    """Which particles each of two finders found; p particles, of one event or of several one after the other.

    Attributes:
        names: of the two finders
        wanted: (p,) bool, True = it counts: it should be found. All that is asked below is asked of these
        found: (2, p) bool, True = the finder has a track on the particle, by `kind`
        pt: (p,) GeV, true
        eta: (p,) true
        kind: the definition of found
    """

    names: tuple[str, str]
    wanted: npt.NDArray[np.bool_]
    found: npt.NDArray[np.bool_]
    pt: npt.NDArray[np.floating[Any]]
    eta: npt.NDArray[np.floating[Any]]
    kind: Kind = "double_majority"

    def __post_init__(self) -> None:
        shapes = {"found": (2, len(self.wanted)), "pt": self.wanted.shape, "eta": self.wanted.shape}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Peers.{name} has the shape {shape}, not {getattr(self, name).shape}")
        if self.names[0] == self.names[1]:
            raise ValueError(f"two finders need two names, not {self.names[0]!r} twice")

    @classmethod
    def of(
        cls, found: Mapping[str, Sequence[FoundTracks]], kind: Kind = "double_majority", *, min_hits: int = 3
    ) -> "Peers":
        """What two finders found in the same events.

        Each may be judged by other hits, as `FoundTracks.particle` says, but by the same particles: `reconstructable`
        of both is one array, decided on the whole event.

        Args:
            found: name -> found tracks of each event, with pT and eta; two names
            kind: definition of found
            min_hits: hits that a track needs

        Raises:
            ValueError: not two finders, no event or not the same number of events, other particles that count, or an
                event without pT and eta.
        """
        if len(found) != 2:
            raise ValueError(f"peers are two finders, not {len(found)}: {', '.join(found)}")
        first, second = found
        if not found[first]:
            raise ValueError("there is no event to compare finders on")
        wanted, verdicts, pt, eta = [], [], [], []
        for one, other in zip(found[first], found[second], strict=True):
            if not np.array_equal(one.reconstructable, other.reconstructable):
                raise ValueError("both finders are compared on the same particles: give both one `reconstructable`")
            if one.pt is None or one.eta is None:
                raise ValueError("FoundTracks.pt and eta are needed: FoundTracks.of takes them from the event")
            wanted.append(one.reconstructable)
            verdicts.append([side.matches().tracks_on(kind, min_hits) > 0 for side in (one, other)])
            pt.append(one.pt)
            eta.append(one.eta)
        return cls(
            (first, second),
            np.concatenate(wanted),
            np.concatenate([np.array(of) for of in verdicts], axis=1),
            np.concatenate(pt),
            np.concatenate(eta),
            kind,
        )

    def among(self, wanted: npt.NDArray[np.bool_]) -> "Peers":
        """The same tracks where other particles count: (p,) bool, True = counts."""
        return replace(self, wanted=wanted)

    def efficiency(self, side: int) -> Fraction:
        """Wanted particles that the finder `side` (0 or 1) found / wanted particles."""
        return Fraction(int(self.found[side][self.wanted].sum()), int(self.wanted.sum()))

    def efficiency_against(
        self, side: int, quantity: Quantity, edges: Sequence[float] | npt.NDArray[np.float64]
    ) -> list[Fraction]:
        """Efficiency of the finder `side` in bins of the true pT (GeV) or eta; the outer bins hold all beyond, too.

        Args:
            side: 0 or 1
            quantity: "pt" or "eta"
            edges: (b + 1,) rising

        Returns:
            b fractions; an empty bin is Fraction(0, 0), whose value is NaN: a gap

        Raises:
            ValueError: there is no such quantity.
        """
        if quantity not in {"pt", "eta"}:
            raise ValueError(f"quantity is pt or eta, not {quantity!r}")
        values = (self.pt if quantity == "pt" else self.eta)[self.wanted].astype(np.float64)
        return binned_fraction(np.clip(values, edges[0], edges[-1]), self.found[side][self.wanted], edges)

    def groups(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Who found what: four masks (p,) of wanted particles that have none in common.

        "both", "only NAME" for each of the two, and "neither", in this order.
        """
        one, other = self.found
        parts = {
            "both": one & other,
            f"only {self.names[0]}": one & ~other,
            f"only {self.names[1]}": other & ~one,
            "neither": ~one & ~other,
        }
        return {name: part & self.wanted for name, part in parts.items()}

    def shares(self) -> dict[str, Fraction]:
        """The same as shares of the wanted particles."""
        return {name: Fraction(int(part.sum()), int(self.wanted.sum())) for name, part in self.groups().items()}


def peer_edges(quantity: Quantity, pt_min: float, eta_max: float, bins: int = 10) -> npt.NDArray[np.float64]:
    """Edges of bins over particles above `pt_min` (GeV) and with |eta| < `eta_max`; pT in equal ratios.

    Args:
        quantity: "pt" (up to `PT_TOP`, or four times the cut if that is more) or "eta"
        pt_min: the cut, above 0
        eta_max: the cut, finite
        bins: how many

    Returns:
        (bins + 1,) rising

    Raises:
        ValueError: a cut that makes no bins, or no such quantity.
    """
    if quantity not in {"pt", "eta"}:
        raise ValueError(f"quantity is pt or eta, not {quantity!r}")
    if not (pt_min > 0 and 0 < eta_max < np.inf and bins >= 1):
        raise ValueError(f"bins need pt_min > 0, a finite eta_max > 0 and bins >= 1, got {pt_min}, {eta_max}, {bins}")
    if quantity == "pt":
        return np.geomspace(pt_min, max(PT_TOP, 4 * pt_min), bins + 1)
    return np.linspace(-eta_max, eta_max, bins + 1)
