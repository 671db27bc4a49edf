"""The interval of the verdicts is Student's, and covers what it says."""

import numpy as np
import pytest

from bnkit.experiments.protocol import best_rate, interval, quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (200, 1.97190)],
)
def test_quantile_is_that_of_the_tables(degrees, expected):
    assert quantile(0.95, degrees) == pytest.approx(expected, rel=2e-5)


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(5, 4000))
    found = interval(draws, level=0.9)
    covered = np.mean((found.low < 3.0) & (found.high > 3.0))
    assert covered == pytest.approx(0.9, abs=0.02)


def test_interval_of_one_seed_is_refused():
    with pytest.raises(ValueError, match="two seeds or more, got 1"):
        interval([0.5])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_outside_its_range_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(level, 4)


def test_a_best_rate_at_an_end_of_the_grid_is_said_to_be():
    assert best_rate([1, 2, 4], [[3, 2, 1], [3, 2, 1]]) == (0, False)
    assert best_rate([1, 2, 4], [[1, 2, 3], [1, 2, np.nan]]) == (1, True)
