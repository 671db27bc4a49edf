"""What the experiment on exploding gradients is said to show, on shallower and narrower nets."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import explosion as experiment
from bnkit.experiments.protocol import interval


@pytest.fixture(scope="module")
def result():
    small = {"depth": 16, "width": 150, "batch_sizes": (128,), "skipped": 4}
    return experiments.run("explosion", seeds=2, **small)


@pytest.mark.parametrize(("variant", "activation"), [("ReLU", "relu"), ("linear", "linear")])
def test_gradient_grows_by_the_predicted_factor(result, variant, activation):
    """Seeds differ by less than 0.02 at this width."""
    predicted = experiment.predicted_factor(activation)
    assert abs(experiment.factors(result, variant) - predicted).max() < 0.05


def test_gradient_grows_with_tanh_too_but_less_than_with_relu(result):
    tanh, relu = (experiment.factors(result, variant) for variant in ("tanh", "ReLU"))
    assert tanh.min() > 1.05
    assert (relu - tanh).min() > 0.05


@pytest.mark.parametrize("variant", ["ReLU, without BN", "ReLU, shortcuts"])
def test_gradient_hardly_grows_without_normalization_or_with_shortcuts(result, variant):
    relu = experiment.factors(result, "ReLU")
    assert (relu - experiment.factors(result, variant)).min() > 0.08


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_no_activation_is_predicted_to_shrink_the_gradient(activation):
    """The Gaussian Poincaré inequality, with equality for what is linear only."""
    assert experiment.predicted_factor(activation) > 1.01
    assert experiment.predicted_factor("linear") == pytest.approx(1)


@pytest.fixture(scope="module")
def full():
    return experiments.recorded("explosion")


def test_recorded_growth_through_all_layers_is_as_described(full):
    norms = {variant: full.values(variant)[:, -1] for variant in experiment.VARIANTS}
    ratio = {variant: np.median(each[:, 0] / each[:, -1]) for variant, each in norms.items()}
    assert 5000 < ratio["ReLU"] < 10_000
    assert 50 < ratio["tanh"] < 150
    assert 4 < ratio["ReLU, shortcuts"] < 6
    assert 1 < ratio["linear"] < 2
    assert 0.5 < ratio["ReLU, without BN"] < 1


def test_recorded_factors_come_near_the_predictions_and_miss_them(full):
    for variant in ("ReLU", "tanh", "linear"):
        found = interval(experiment.factors(full, variant)[:, -1])
        predicted = experiment.predicted_factor(experiment.VARIANTS[variant]["activation"])
        assert abs(found.mean - predicted) < 0.02
        assert not found.low < predicted < found.high
    relu = interval(experiment.factors(full, "ReLU")[:, -1])
    assert [f"{end:.3f}" for end in (relu.low, relu.high)] == ["1.194", "1.197"]


def test_recorded_factor_without_normalization_lies_below_one(full):
    found = interval(experiment.factors(full, "ReLU, without BN"))
    assert found.low[0] < 1 < found.high[0]
    assert 0.98 < found.low[-1] < found.high[-1] < 1


def test_recorded_factors_at_small_batches_are_as_described(full):
    first = {name: experiment.factors(full, name)[:, 0].mean() for name in experiment.VARIANTS}
    assert {name: round(each, 2) for name, each in first.items()} == {
        "ReLU": 1.33,
        "tanh": 1.17,
        "linear": 1.09,
        "ReLU, without BN": 1.0,
        "ReLU, shortcuts": 1.03,
    }
