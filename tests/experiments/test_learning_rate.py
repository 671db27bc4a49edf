"""E2: the direction of the effect in a small run, and in the recorded one."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import learning_rate


@pytest.fixture(scope="module")
def recorded():
    return experiments.recorded("learning-rate")


def test_batch_norm_trains_where_the_plain_net_does_not():
    """In every seed of the quick preset the wrong scales are at 10 % plain, above 50 with BN."""
    result = experiments.run(
        "learning-rate", seeds=1, steps=150, rates=(0.3, 30.0), scales=(0.3, 3.0)
    )
    assert learning_rate.largest_rates(result, "plain").tolist() == [[0, 0]]
    assert learning_rate.largest_rates(result, "bn").tolist() == [[0.3, 0.3]]


def test_recorded_border_is_higher_with_batch_norm_and_still_there(recorded):
    plain, bn = (learning_rate.largest_rates(recorded, name) for name in ("plain", "bn"))
    assert (bn >= 5 * plain).all()
    assert (bn > 0).all()
    assert (bn < max(recorded.config["rates"])).all()


def test_recorded_accuracy_hardly_depends_on_the_scale_with_batch_norm(recorded):
    """A margin of 5 points; seeds differ by about 2."""
    accuracy = learning_rate.best_test_accuracy(recorded, "bn")
    assert np.ptp(accuracy.mean(axis=0)) < 0.05
    assert np.ptp(learning_rate.best_test_accuracy(recorded, "plain").mean(axis=0)) > 0.5


def test_outline_surrounds_what_trains(recorded):
    import matplotlib.pyplot as plt

    figure = learning_rate.plot(recorded)
    lines = [line.get_xydata() for line in figure.axes[1].get_lines()]
    assert lines
    plt.close(figure)
