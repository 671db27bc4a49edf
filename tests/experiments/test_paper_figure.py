"""E1: the direction of the effect in a small run, and what the chapter says of the recorded one."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import paper_figure


@pytest.fixture(scope="module")
def recorded():
    return experiments.recorded("paper-figure")


def test_batch_norm_is_ahead_after_few_steps():
    """Recorded after 500 steps: about 80 against 35 %."""
    small = {"depths": (3,), "steps": (500,), "rates": (0.1,), "stddevs": (0.1,)}
    result = experiments.run("paper-figure", seeds=1, **small)
    plain, bn = (
        paper_figure.accuracy(result, 3, name, 0.1, 0.1)[0, -1] for name in ("plain", "bn")
    )
    assert bn > plain + 0.2


def test_recorded_net_is_faster_with_batch_norm_at_every_rate_and_scale(recorded):
    steps = paper_figure.observed(recorded, 3)
    for rate in recorded.config["rates"]:
        for stddev in recorded.config["stddevs"]:
            plain, bn = (
                paper_figure.steps_to(
                    0.8, steps, paper_figure.accuracy(recorded, 3, name, rate, stddev)
                )
                for name in ("plain", "bn")
            )
            assert np.median(plain / bn) > 1.5


def test_recorded_ends_lie_together_unless_the_plain_net_has_not_arrived(recorded):
    for rate, stddev, arrived in [(0.1, 0.1, True), (1.0, 0.1, True), (0.1, 0.01, False)]:
        plain, bn = (
            paper_figure.final_accuracy(recorded, 3, name, rate, stddev) for name in ("plain", "bn")
        )
        assert (abs(bn - plain).max() < 0.02) == arrived


def test_recorded_plain_net_of_eight_layers_never_starts(recorded):
    for rate in recorded.config["rates"]:
        for stddev in recorded.config["stddevs"]:
            assert paper_figure.accuracy(recorded, 8, "plain", rate, stddev).max() < 0.2
    assert paper_figure.accuracy(recorded, 8, "bn", 0.1, 0.1)[:, -1].min() > 0.8


def test_units_are_seen_at_three_moments(recorded):
    assert recorded.values("3", "bn", "units").shape == (len(recorded.seeds), 3, 3, 100)
