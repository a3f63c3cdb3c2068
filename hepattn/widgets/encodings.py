"""Explore encodings of φ: how alike two directions are, and the waves that make them so."""

import math
from typing import Any

import numpy as np

from hepattn.encodings import Encoding, Rotary
from hepattn.plotting import style
from hepattn.plotting.attention_tokens import turn
from hepattn.plotting.encoding_numbers import KINDS, Likeness, around, encode, encoding, measure, similarity
from hepattn.plotting.encodings import POINTS, angle_axis, wave_image
from hepattn.widgets.base import Explorer, choice, log_slider, slider

__all__ = ["EncodingExplorer"]

OWN: dict[str, dict[str, float]] = {
    "sinusoidal": {"alpha": 64.0, "base": 256.0},
    "hepformer": {"alpha": 1000.0, "base": 100.0},
    "periodic": {"alpha": 64.0, "base": 256.0},
    "fourier": {"scale": 1.0},
    "periodic_fourier": {"scale": 8.0},
    "rotary": {"alpha": 64.0, "base": 256.0},
    "rotary_phi": {"alpha": 64.0, "base": 64.0},
}
"""What each kind has by default; choosing a kind sets its sliders to these."""


class EncodingExplorer(Explorer):
    """Similarity of one direction and all others under an encoding of φ, and its channels as waves.

    The mean over directions is grey, the seam φ = ±π a dashed line. State, all to be set and read:

    - `kind`: one of `KINDS`; `rotary` turns queries and keys by any frequencies, `rotary_phi` by whole ones;
    - `channels`: d;
    - `alpha`: highest frequency, rad a rad; `base`: ratio of the highest to the lowest;
    - `scale`, `seed`: of random Fourier features, which have neither; choosing a kind sets all of these to its own;
    - `reference`: the direction that others are compared with, rad;
    - `half`: Δφ runs from -half to half, rad.

    Args:
        kind: What to start with.

    Raises:
        ValueError: There is no such kind.
    """

    def __init__(self, kind: str = "sinusoidal") -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(map(repr, KINDS))}, not {kind!r}")
        figure, (curve, waves) = style.canvas(2, width=5.6, height=4.6, ratios=[1.2, 1.0])
        with style.context():
            (self.mean,) = curve.plot([], [], color=style.FAINT, linewidth=5.0, label="mean of 24 directions")
            (self.line,) = curve.plot([], [], color=style.BLUE, linewidth=1.4, label="from the reference φ")
            self.seam = curve.axvline(0, color=style.VERMILLION, linestyle="--", linewidth=1.4, label="φ = ±π")
            curve.set_ylabel("similarity")
            curve.set_ylim(-1.05, 1.05)
            curve.grid(axis="y", color=style.PAPER)
            self.image = wave_image(waves, np.zeros((POINTS, 2)))
            angle_axis(waves, "φ [rad]")
            waves.set_ylabel("channel")
            (self.mark,) = waves.plot([], [], marker="v", color=style.BLUE, markersize=11, clip_on=False, linestyle="")
            (self.at,) = waves.plot([], [], color="white", linewidth=1.0, linestyle=":")
            figure.colorbar(self.image, ax=waves, label="value", ticks=[-1, 0, 1])
            figure.legend(handles=[self.line, self.mean, self.seam], loc="outside lower center", ncols=3)
            self.title = figure.suptitle("one")
        self.curve, self.waves = curve, waves
        self._setting, self._kind = False, kind
        self._known: tuple[tuple[float | str, ...], Likeness] | None = None
        own = {"alpha": 64.0, "base": 256.0, "scale": 1.0} | OWN[kind]
        super().__init__(
            figure,
            {
                "kind": choice("encoding", list(KINDS), kind),
                "channels": slider("channels d", 64, 4, 128, 2),
                "alpha": log_slider("α [rad/rad]", own["alpha"], 1.0, 1000.0),
                "base": log_slider("base", own["base"], 1.0, 1000.0),
                "scale": log_slider("scale", own["scale"], 0.1, 100.0),
                "seed": slider("seed", 0, 0, 9),
                "reference": slider("reference φ [rad]", 2.6, -3.14, 3.14, 0.01),
                "half": slider("|Δφ| up to [rad]", 3.14, 0.02, 3.14, 0.01),
            },
            moving=[self.mean, self.line, self.seam, self.image, self.at, self.mark, self.title],
            dpi=80,
        )

    def encoding(self) -> Encoding | Rotary:
        """The encoding of the present state."""
        return encoding(self.kind, self.channels, alpha=self.alpha, base=self.base, scale=self.scale, seed=self.seed)

    def likeness(self) -> Likeness:
        """The numbers of the present encoding; waves and mean are moved where it is another than before."""
        key = (self.kind, self.channels, self.alpha, self.base, self.scale, self.seed)
        if self._known is None or self._known[0] != key:
            of = self.encoding()
            away, alike = known = around(of)
            self.mean.set_data(away, alike.mean(axis=0))
            values = encode(of, np.linspace(-math.pi, math.pi, POINTS))
            bottom = self.channels - 0.5
            self.image.set_data(values.T)
            self.image.set_extent((-math.pi, math.pi, bottom, -0.5))
            self.waves.set_ylim(bottom, -0.5)
            self._known = key, measure(of, known=known)
        return self._known[1]

    def _follow(self) -> None:
        """A kind that was just chosen brings its own numbers, and only the sliders that it reads are open."""
        if self.kind != self._kind:
            self._kind = self.kind
            self._setting = True
            try:
                for name, value in OWN[self.kind].items():
                    setattr(self, name, value)
            finally:
                self._setting = False
        read = {*OWN[self.kind], "seed"} if "scale" in OWN[self.kind] else {*OWN[self.kind]}
        for name in ("alpha", "base", "scale", "seed"):
            self.controls[name].disabled = name not in read

    def _moved(self, change: Any) -> None:
        if not self._setting:
            super()._moved(change)

    def update(self) -> str:
        """Moves the artists to the state; returns the numbers."""
        self._follow()
        of = self.encoding()
        found = self.likeness()
        half = math.pi if self.half > 3.139 else self.half
        away = np.linspace(-half, half, POINTS)
        self.line.set_data(away, similarity(of, [self.reference], turn(self.reference + away))[0])
        seam = float(turn(np.asarray(math.pi - self.reference)))
        self.seam.set_xdata([seam, seam])
        self.seam.set_visible(abs(seam) <= half)
        with style.context():
            angle_axis(self.curve, "Δφ [rad]", half)
        self.title.set_text(f"{self.kind}, d = {self.channels}, from φ = {self.reference:.2f} rad")
        bottom = self.channels - 0.5
        self.at.set_data([self.reference] * 2, [bottom, -0.5])
        self.mark.set_data([self.reference], [-0.5])
        return (
            f"frequencies {found.low:.2f} to {found.high:.0f} rad/rad; half-width {found.width:.4f} rad; "
            f"the nearer of two is the more alike in {100 * found.ordered:.0f} % of cases (50 % by chance); "
            f"largest similarity beyond 0.5 rad {found.alias:.2f}; "
            f"step at the seam {round(found.seam, 2) + 0.0:+.2f}."
        )
