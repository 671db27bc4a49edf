"""What the experiment on weight norms is said to show, on a small net and a short run."""

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import weight_norm as experiment

NONE, STRONG, PLAIN = "with BN, decay 0", "with BN, decay 0.01", "without BN, decay 0"


@pytest.fixture(scope="module")
def result():
    small = {"decays": (0.0, 0.01), "depth": 2, "width": 50, "steps": 600}
    return experiments.run("weight-norm", seeds=2, **small)


def test_norm_only_grows_without_decay(result):
    norms = result.values(NONE, "squared_norm")
    assert (np.diff(norms, axis=1) > 0).all()


def test_growth_is_that_of_pythagoras(result):
    norms = result.values(NONE, "squared_norm")
    grown = norms[:, -1] / norms[:, 0] - 1
    np.testing.assert_allclose(experiment.growth(result, NONE, "square")[:, -1], grown, rtol=1e-2)


def test_radial_part_is_nothing_with_and_much_without_normalization(result):
    radial = {
        name: np.abs(experiment.growth(result, name, "radial")[:, -1]) for name in (NONE, PLAIN)
    }
    assert radial[NONE].max() < 3e-4
    assert radial[PLAIN].min() > 3e-3


def test_book_balances_for_a_net_that_is_not_normalized_too(result):
    norms = result.values(PLAIN, "squared_norm")
    booked = sum(result.values(PLAIN, entry)[:, -1] for entry in ("radial", "square"))
    np.testing.assert_allclose(norms[:, -1] - norms[:, 0], booked, rtol=1e-3)


def test_decay_leads_to_the_predicted_angle(result):
    """The seeds lie within 4 % of it."""
    angle = experiment.angle(result, STRONG)[:, -1]
    np.testing.assert_allclose(angle, experiment.balanced_angle(result, 0.01), rtol=0.15)


def test_effective_rate_falls_without_decay_and_rises_with_it(result):
    for name, rises in ((NONE, False), (STRONG, True)):
        rate = experiment.effective_rate(result, name)
        assert ((rate[:, -1] > rate[:, 0]) == rises).all()
