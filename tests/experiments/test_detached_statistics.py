"""What the experiment on detached statistics is said to show, on a small net and a short run."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import detached_statistics as experiment
from bnkit.experiments.protocol import interval


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


@pytest.fixture(scope="module")
def full():
    return experiments.recorded("detached-statistics")


def test_recorded_runs_diverge_only_where_a_centring_layer_has_its_mean_detached(full):
    lost = {
        variant: np.isfinite(experiment.breakdown(full, variant)).sum(axis=0).tolist()
        for variant in experiment.VARIANTS
    }
    assert lost.pop("centring, detached") == [2, 5, 5]
    assert not any(map(any, lost.values()))


def test_recorded_biases_run_where_the_mean_is_detached_alone(full):
    """By six orders of magnitude, at every rate, among the runs that survive."""
    attached, detached = (
        np.stack([experiment.largest_bias(full, variant) for variant in variants])
        for variants in (
            ("attached", "variance detached", "centring, attached"),
            ("mean detached", "both detached", "centring, detached"),
        )
    )
    assert (np.nanmin(detached, axis=(0, 1)) / attached.max(axis=(0, 1)) > 1e6).all()


@pytest.mark.parametrize("variant", ["mean detached", "both detached"])
def test_recorded_loss_is_higher_with_a_detached_mean_in_every_seed(full, variant):
    gap = experiment.final_loss(full, variant) - experiment.final_loss(full, "attached")
    assert gap.min() > 0.05


def test_recorded_gap_of_a_detached_variance_is_not_settled_at_the_middle_rate(full):
    gap = experiment.final_loss(full, "variance detached")
    found = interval(gap - experiment.final_loss(full, "attached"))
    assert (found.low > 0).tolist() == [True, False, True]
    assert found.high.max() < 0.015


def test_recorded_survivors_without_scaling_have_lower_loss_and_smaller_bias(full):
    """At the lowest rate, in the same seeds; the bias in all of them against one of the two."""
    loss, bias = (
        {
            variant: values(full, variant)[:, 0]
            for variant in ("mean detached", "both detached", "centring, detached")
        }
        for values in (experiment.final_loss, experiment.largest_bias)
    )
    alive = np.isfinite(loss["centring, detached"])
    smaller = {
        variant: (loss["centring, detached"] < loss[variant])[alive].sum()
        + 10 * (bias["centring, detached"] < bias[variant])[alive].sum()
        for variant in ("mean detached", "both detached")
    }
    assert smaller == {"mean detached": 33, "both detached": 23}
