"""At a usual rate the place does not matter; at a large one it does, for a reason of scale."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import placement


@pytest.fixture(scope="module")
def result():
    return experiments.run("placement", steps=150, seeds=2)


def trained(result, place, rate):
    column = result.config["rates"].index(rate)
    return result.values("relu", place, "validation")[:, column]


@pytest.mark.parametrize("place", ["before", "after", "input", "scaled"])
def test_every_place_trains_at_a_usual_rate(result, place):
    """Seeds lie within 0.66 and 0.82 after 150 steps; guessing is 0.1."""
    assert np.all(trained(result, place, 0.1) > 0.4)


def test_only_before_the_nonlinearity_survives_a_large_rate(result):
    assert np.all(trained(result, "before", 3.0) > 0.3)
    assert np.all(trained(result, "after", 3.0) < 0.2)
    assert np.all(trained(result, "input", 3.0) < 0.2)


def test_after_it_survives_too_when_the_output_layer_gets_as_little(result):
    assert np.all(trained(result, "scaled", 3.0) > 0.3)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", lambda z: np.maximum(z, 0)), ("sigmoid", lambda z: 1 / (1 + np.exp(-z)))],
)
def test_the_scale_is_the_root_mean_square_of_the_nonlinearity(activation, function):
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    mean_square = np.sum(weights * function(z) ** 2) / np.sum(weights)
    np.testing.assert_allclose(
        placement.ROOT_MEAN_SQUARE[activation], np.sqrt(mean_square), rtol=1e-3
    )
