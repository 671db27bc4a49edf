"""Five variants: a small run shows the claimed direction; levels and rates are told apart."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import five_variants, run
from bnkit.experiments.results import Result, Run

NET = "plain-4"


@pytest.fixture(scope="module")
def result():
    return run(
        "five-variants",
        seeds=1,
        nets=(NET,),
        filters=(8, 8),
        rates=(0.05, 0.1),
        bn_rates=(0.1, 0.2),
        steps=120,
        evaluations=4,
        images=200,
        final_images=500,
    )


def test_batch_norm_ends_above_the_baseline(result):
    """By several points after so few steps."""
    plain, bn = (
        five_variants.tuned(result, NET, name, "constant") for name in ("plain", "bn-best")
    )
    assert (bn - plain).min() > 0.03


def test_the_variants_rates_are_multiples_of_the_baselines(result):
    """BN at the baseline's rate is BN of the grid where the grid has that rate."""
    rate = result.values(NET, "rate")[0]
    assert rate in result.config["rates"]
    if rate in result.config["bn_rates"]:
        place = result.config["bn_rates"].index(rate)
        grid = result.values(NET, "bn-grid", "constant", "test")[0, place]
        assert result.values(NET, "bn", "test")[0] == pytest.approx(grid, abs=0.02)


def test_plot_shows_all_variants(result):
    figure = five_variants.plot(result)
    assert len(figure.axes[0].get_lines()) == len(five_variants.VARIANTS)
    plt.close(figure)


def made(plain, bn):
    """A result of one seed with these curves at two rates, of which the second is best."""

    def tried(curve):
        curves = {"test": [[0.1] * 3, curve], "validation": [[0.1] * 3, curve]}
        return {"constant": {"validation": [0.1, 0.9], "curves": curves, "loss": [None, 0.1]}}

    record = {
        "plain": tried(plain),
        "bn-grid": tried(bn),
        "bn-x5": {"curves": {"test": bn}, "loss": None},
    }
    config = {"steps": 1000, "evaluations": 3, "rates": [0.1, 0.2], "bn_rates": [0.1, 0.2]}
    return Result("five-variants", "full", config, {}, (Run(0, 1.0, {NET: record}),))


def test_steps_to_a_level_and_what_is_not_reached():
    some = made([0.2, 0.6, 0.8], [0.6, 0.7, 0.7])
    np.testing.assert_array_equal(five_variants.evaluated(some), [10, 100, 1000])
    assert five_variants.steps_to(some, NET, "plain", 0.6) == 100
    assert five_variants.steps_to(some, NET, "bn-x5", 0.6) == 10
    assert five_variants.speed_up(some, NET, "bn-best", 0.6) == 10
    assert five_variants.steps_to(some, NET, "bn-x5", 0.8) == np.inf
    assert five_variants.speed_up(some, NET, "bn-x5", 0.8) == 0
    assert np.isnan(five_variants.speed_up(some, NET, "bn-x5", 0.9))


def test_a_best_rate_at_the_edge_and_a_run_that_diverged_are_counted():
    some = made([0.2, 0.6, 0.8], [0.6, 0.7, 0.7])
    assert five_variants.chosen(some, NET, "plain")[1] == 0
    assert five_variants.diverged(some, NET, "bn-x5") == 1
    assert five_variants.diverged(some, NET, "plain") == 0
