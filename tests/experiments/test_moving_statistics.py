"""Moving and precise statistics: the direction of the effect, several times the seeds' range."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import moving_statistics, recorded, run
from bnkit.experiments.moving_statistics import forward, precise_statistics
from bnkit.experiments.protocol import interval
from bnkit.experiments.sweep import Sweep
from bnkit.experiments.training import as_float, draw_batches, fashion_mnist


@pytest.fixture(scope="module")
def result():
    return run(
        "moving-statistics",
        seeds=2,
        rates=(0.3,),
        momenta=(0.9, 0.99),
        looks=(10, 150),
        hidden=(40, 40),
        precise_batches=20,
    )


def test_young_moving_statistics_cost_accuracy_that_precise_ones_do_not(result):
    after_10_steps, _ = moving_statistics.gain(result, 0.3, 0.99).T
    assert after_10_steps.min() > 5  # seeds lie above 15 points


def test_the_gap_closes_as_the_start_is_forgotten(result):
    after_10_steps, later = moving_statistics.gain(result, 0.3, 0.99).T
    assert np.all(later < after_10_steps / 2)


def test_the_paper_over_corrects_the_variance_behind_another_normalization(result):
    ratio = result.values("0.3", "variance ratio")
    assert 1.008 < ratio.min() <= ratio.max() < 60 / 59 + 1e-3


def test_plot_shows_each_rate(result):
    figure = moving_statistics.plot(result)
    assert [ax.get_title() for ax in figure.axes] == ["learning rate 0.3"]
    plt.close(figure)


@pytest.fixture(scope="module")
def sweep():
    data = fashion_mnist()
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=[20, 20],
        rates=[0.1, 0.1],
        stddevs=[0.1, 0.1],
        batch_norm=True,
        momentum=[0.5, 0.9],
        jit=False,
    )
    sweep.train(draw_batches(len(data.x_train), 60, 20, seed=0))
    return sweep


def test_momentum_moves_the_moving_statistics_and_nothing_else(sweep):
    pairs = zip(sweep.weights_of(0), sweep.weights_of(1), strict=True)
    differs = [not np.allclose(one, other, atol=1e-5) for one, other in pairs]
    assert differs == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("training", [True, False])
def test_numpy_net_is_the_trained_one(sweep, training):
    weights, x = sweep.weights_of(1), as_float(fashion_mnist().x_test[:50])
    given = None if training else moving_statistics.moving_statistics(weights)
    want = sweep.predict(x, training=training)[1]
    np.testing.assert_allclose(forward(weights, x, given)[0], want, rtol=1e-3, atol=1e-4)


def test_precise_statistics_of_the_first_layer_are_those_of_all_rows(sweep):
    weights = sweep.weights_of(0)
    x = as_float(fashion_mnist().x_train[:300])
    precise, _ = precise_statistics(weights, np.split(x, 10))
    z = (x @ weights[0]).astype(float)
    np.testing.assert_allclose(precise[0].mean, z.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(precise[0].variance, z.var(axis=0, ddof=1), rtol=1e-4)


@pytest.fixture(scope="module")
def full():
    return recorded("moving-statistics")


def test_recorded_moving_statistics_answer_half_as_well_after_ten_steps(full):
    for rate in full.config["rates"]:
        precise = moving_statistics.accuracy_of(full, rate, "precise")[:, 0].mean()
        gain = moving_statistics.gain(full, rate, 0.99)[:, 0].mean()
        assert 0.4 < 1 - gain / precise < 0.6


def test_recorded_estimators_differ_by_less_than_a_tenth_of_a_point(full):
    for rate in full.config["rates"]:
        paper, precise = (
            moving_statistics.accuracy_of(full, rate, kind)[:, [0, -1]]
            for kind in ("paper", "precise")
        )
        found = interval(paper - precise)
        assert (found.low < 0).all()
        assert (found.high > 0).all()
        assert max(-found.low.min(), found.high.max()) < 0.1
