"""What verdicts rest on: paired differences, their interval, a choice inside its grid.

The rules that every experiment follows stand in the chapter on what was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mpmath
import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array


class Interval(NamedTuple):
    """A mean and the ends of its interval of confidence, each a number or an array.

    >>> print(Interval(0.25, -0.1, 0.6))
    -0.1 to +0.6
    """

    mean: Array
    low: Array
    high: Array

    def __str__(self) -> str:
        return f"{self.low:+.2g} to {self.high:+.2g}"


def quantile(level: float, degrees: int) -> float:
    r"""The two-sided quantile of Student's t: :math:`P(|T| \le t) =` level.

    Args:
        level: between 0 and 1.
        degrees: degrees of freedom, at least 1.

    Returns:
        t.

    Raises:
        ValueError: a level or a number of degrees outside its range.

    >>> round(quantile(0.95, 4), 3)
    2.776
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")

    def missing(t: float) -> float:
        """P(|T| > t) less what it should be, by the incomplete beta function."""
        tail = mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True)
        return float(tail) - (1 - level)

    low, high = 0.0, 1.0
    while missing(high) > 0:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > 0 else (low, middle)
    return high


def interval(differences: ArrayLike, level: float = 0.95) -> Interval:
    r"""The mean over seeds and its interval by Student's t: mean ± t s / √n.

    Args:
        differences: one number for each seed, or an array whose first axis is the seed; usually
            the paired differences of two arms that share weights, order and images.
        level: how sure, between 0 and 1.

    Returns:
        ``Interval``: mean, low and high, of the shape of one seed.

    Raises:
        ValueError: fewer than two seeds.

    >>> print(interval([1.0, 2.0, 3.0, 4.0, 5.0]))
    +1 to +5
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        raise ValueError(f"an interval needs two seeds or more, got {len(values)}")
    mean = values.mean(axis=0)
    half = quantile(level, len(values) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def best_rate(rates: Sequence[float], scores: ArrayLike) -> tuple[int, bool]:
    """The place of the rate whose mean score over seeds is best, and whether it lies inside.

    Args:
        rates: in rising order.
        scores: shape (seeds, rates), the higher the better; nan counts as the worst.

    Returns:
        Its index, and False where it is the first or the last of the grid.

    >>> best_rate([0.1, 0.2, 0.4], [[0.7, 0.9, 0.8], [0.6, 0.8, 0.9]])
    (1, True)
    """
    means = np.nan_to_num(np.asarray(scores, float), nan=-np.inf).mean(axis=0)
    best = int(means.argmax())
    return best, 0 < best < len(rates) - 1
