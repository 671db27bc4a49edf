"""What the experiment on detached statistics is said to show, on a small net and a short run."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import detached_statistics as experiment


@pytest.fixture(scope="module")
def result():
    small = {"rates": (1.0,), "depth": 3, "width": 50, "steps": 200}
    return experiments.run("detached-statistics", seeds=2, **small)


@pytest.mark.parametrize("variant", ["attached", "variance detached", "centring, attached"])
def test_biases_stay_where_they_are_while_the_mean_takes_part(result, variant):
    assert experiment.largest_bias(result, variant).max() < 1e-6


@pytest.mark.parametrize("variant", ["mean detached", "both detached"])
def test_biases_run_away_when_the_mean_is_detached(result, variant):
    """All seeds end above 0.4 here, and the biases of an attached layer near 1e-7."""
    assert experiment.largest_bias(result, variant).min() > 0.05


def test_training_is_worse_without_the_gradient_of_the_mean(result):
    """For each seed by 0.11 or more; the differences of three seeds lie within 0.03."""
    attached, detached = (
        experiment.final_loss(result, variant) for variant in ("attached", "both detached")
    )
    assert (detached - attached).min() > 0.04


def test_only_centring_with_a_detached_mean_breaks_down(result):
    broken = {
        variant: np.isfinite(experiment.breakdown(result, variant)).all()
        for variant in experiment.VARIANTS
    }
    assert [variant for variant, is_broken in broken.items() if is_broken] == ["centring, detached"]
