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
        evaluations=(10, 150),
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
    ratio = result.values("constant", "0.3", "variance ratio")
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


def test_recorded_gains_at_the_end_are_those_of_the_verdict(full):
    found = {
        (schedule, rate): str(interval(moving_statistics.gain(full, rate, 0.99, schedule)[:, -1]))
        for schedule in full.config["schedules"]
        for rate in full.config["rates"]
    }
    assert found == {
        ("constant", 0.1): "+0.96 to +1.9",
        ("constant", 1.0): "+0.66 to +2.2",
        ("cosine", 0.1): "-0.0062 to +0.054",
        ("cosine", 1.0): "-0.068 to +0.026",
    }


def test_recorded_gains_are_none_when_the_rate_falls_and_some_when_it_does_not(full):
    assert moving_statistics.EQUAL == 0.5
    for rate in full.config["rates"]:
        for momentum in full.config["momenta"]:
            constant, falling = (
                interval(moving_statistics.gain(full, rate, momentum, schedule)[:, -1])
                for schedule in ("constant", "cosine")
            )
            assert constant.low > 0
            assert max(-falling.low, falling.high) < 0.2


@pytest.fixture(scope="module")
def averaged(full):
    """Intervals: recomputed less the last net, less its moving statistics, less averaged ones."""
    found = {}
    for schedule in full.config["schedules"]:
        for rate in full.config["rates"]:
            last = moving_statistics.accuracy_of(full, rate, "precise", schedule)[:, -1]
            for average in ("ema", "swa"):
                precise, *others = (
                    moving_statistics.averaged(full, rate, average, kind, schedule)
                    for kind in ("precise", "last", "along")
                )
                found[schedule, rate, average] = [
                    interval(precise - each) for each in (last, *others)
                ]
    return found


def test_recorded_averages_win_at_a_constant_rate_only(full, averaged):
    for (schedule, _, average), (gain, _, _) in averaged.items():
        if schedule == "constant":
            assert 0.4 < gain.mean < 1.2
            assert gain.low > 0
        else:
            assert gain.high < 0 if average == "swa" else gain.low < 0 < gain.high < 0.05
    for rate in full.config["rates"]:
        end = moving_statistics.accuracy_of(full, rate, "precise", "cosine")[:, -1].mean()
        for average in ("ema", "swa"):
            value = moving_statistics.averaged(full, rate, average, "precise", "constant").mean()
            assert abs(value - end) < 0.5


def test_recorded_mean_of_late_weights_needs_other_statistics_than_the_last_net_has(averaged):
    for rate in (0.1, 1.0):
        assert averaged["constant", rate, "swa"][1].low > 0.2
        assert 0.35 < averaged["constant", rate, "swa"][1].mean < 0.6
    gain, lost, _ = averaged["constant", 0.1, "swa"]
    assert abs(gain.mean - lost.mean) < 0.1


def test_recorded_statistics_that_are_averaged_along_lose_little(averaged):
    for (_, _, average), (_, last, along) in averaged.items():
        assert -0.2 < along.low < along.high < 0.3
        if average == "ema":
            assert -0.2 < last.low < last.high < 0.2


def test_averages_are_those_of_the_weights_on_the_way():
    config = moving_statistics.Config(evaluations=(40,), ema_momentum=0.5)
    averages = moving_statistics.Averages(config, [np.zeros(1)])
    for step, value in ((10, 8.0), (20, 8.0), (30, 2.0), (40, 4.0)):
        averages.add(step, [np.full(1, value)])
    assert averages.by_kind["swa"][0] == pytest.approx(3)
    assert averages.by_kind["ema"][0] == pytest.approx(4)
