"""What the experiment on exploding gradients is said to show, on shallower and narrower nets."""

import pytest

from bnkit import experiments
from bnkit.experiments import explosion as experiment


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
