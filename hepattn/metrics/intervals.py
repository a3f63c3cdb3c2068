"""Fractions with their counts and binomial intervals.

A fraction here never travels without its numerator and denominator, and its interval is Clopper and Pearson's
(Biometrika 26 (1934) 404): never of zero width at 0 or 1, never outside [0, 1]. A fraction of nothing (denominator 0)
is NaN, to be drawn as a gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

ONE_SIGMA = 0.683
"""Coverage of every interval unless another is asked for."""


def clopper_pearson(
    passed: ArrayLike, total: ArrayLike, level: float = ONE_SIGMA
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact central interval of a binomial fraction.

    Args:
        passed: successes, any shape, whole numbers with 0 <= passed <= total
        total: trials, the same shape
        level: coverage, at least this for every true fraction

    Returns:
        (low, high), arrays of that shape inside [0, 1]; NaN where total is 0

    Raises:
        ValueError: for passed outside [0, total], or a level outside (0, 1)
    """
    k, n = np.broadcast_arrays(np.asarray(passed, dtype=np.float64), np.asarray(total, dtype=np.float64))
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a coverage in (0, 1), not {level}")
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("an interval needs 0 <= passed <= total")
    tail = (1.0 - level) / 2.0
    with np.errstate(invalid="ignore"):
        low = np.where(k > 0, beta.ppf(tail, k, n - k + 1), 0.0)
        high = np.where(k < n, beta.ppf(1.0 - tail, k + 1, n - k), 1.0)
    empty = n == 0
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


@dataclass(frozen=True, slots=True)
class Fraction:
    """`passed` out of `total`, e.g. kept target hits out of all target hits.

    Attributes:
        passed: numerator, a count
        total: denominator, a count; 0 makes `value`, `low` and `high` NaN
    """

    passed: int
    total: int

    @property
    def value(self) -> float:
        """The value passed / total, NaN for 0 / 0."""
        return self.passed / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval of 68.3 % coverage, (NaN, NaN) for 0 / 0."""
        low, high = clopper_pearson(self.passed, self.total)
        return float(low), float(high)

    def __add__(self, other: "Fraction") -> "Fraction":
        return Fraction(self.passed + other.passed, self.total + other.total)

    def __str__(self) -> str:
        if not self.total:
            return "- (0 of 0)"
        low, high = self.interval
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}] ({self.passed} of {self.total})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with an interval that isn't binomial (an area under a curve, say).

    Attributes:
        value: the estimate itself
        low, high: ends of the interval; NaN where it can't be had
        method: how the interval was made, in words
    """

    value: float
    low: float
    high: float
    method: str

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] ({self.method})"


def binned_fraction(
    values: ArrayLike, passed: ArrayLike, edges: Sequence[float] | NDArray[np.float64]
) -> list[Fraction]:
    """Fraction that passed, for each bin of `values`.

    Args:
        values: (n,) the binned quantity, e.g. pT of every particle in the denominator
        passed: (n,) bool
        edges: (b + 1,) rising; a bin holds edges[i] <= value < edges[i + 1], the last its upper edge
            too (as numpy.histogram)

    Returns:
        b fractions; an empty bin is Fraction(0, 0), whose value is NaN: a gap
    """
    x, ok = np.asarray(values, dtype=np.float64), np.asarray(passed, dtype=bool)
    bins = np.asarray(edges, dtype=np.float64)
    total, _ = np.histogram(x, bins)
    good, _ = np.histogram(x[ok], bins)
    return [Fraction(int(k), int(n)) for k, n in zip(good, total, strict=True)]
