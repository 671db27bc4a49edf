"""What the experiment on weight norms is said to show, on a small net and a short run."""

import keras
import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import weight_norm as experiment
from bnkit.experiments.protocol import interval
from bnkit.experiments.statistics import recompute_statistics
from bnkit.keras.probes import inputs_of

NONE, WEAK, STRONG = (f"with BN, decay {decay}" for decay in ("0", "0.001", "0.01"))
PLAIN = "without BN, decay 0"


@pytest.fixture(scope="module")
def result():
    small = {
        "decays": (0.0, 0.01),
        "depth": 2,
        "width": 50,
        "steps": 600,
        "schedules": ("constant",),
    }
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


def test_totals_add_up_to_the_growth_of_a_net_that_is_not_normalized_too(result):
    norms = result.values(PLAIN, "squared_norm")
    added = sum(result.values(PLAIN, term)[:, -1] for term in ("radial", "square"))
    np.testing.assert_allclose(norms[:, -1] - norms[:, 0], added, rtol=1e-3)


def test_decay_leads_to_the_predicted_angle(result):
    """The seeds lie within 4 % of it."""
    angle = experiment.angle(result, STRONG)[:, -1]
    np.testing.assert_allclose(angle, experiment.balanced_angle(result, 0.01), rtol=0.15)


def test_effective_rate_falls_without_decay_and_rises_with_it(result):
    for name, rises in ((NONE, False), (STRONG, True)):
        rate = experiment.effective_rate(result, name)
        assert ((rate[:, -1] > rate[:, 0]) == rises).all()


@pytest.fixture(scope="module")
def full():
    return experiments.recorded("weight-norm")


def test_recorded_norms_end_where_they_end(full):
    """Chaos makes of rounding a few percent of what the seeds differ by."""
    for variant, times in {NONE: 2.17, WEAK: 0.249, STRONG: 0.0382, PLAIN: 1.18}.items():
        norms = full.values(variant, "squared_norm")
        assert np.mean(norms[:, -1] / norms[:, 0]) == pytest.approx(times, rel=0.03)


def test_recorded_radial_part_is_less_than_a_thousandth_and_sizeable_without_normalization(full):
    for variant in (NONE, WEAK, STRONG):
        assert np.abs(experiment.growth(full, variant, "radial")).max() < 1e-3
    radial, square = (experiment.growth(full, PLAIN, term)[:, -1] for term in ("radial", "square"))
    assert (radial > 0.15 * square).all()


def test_recorded_norm_grows_in_every_interval_without_decay(full):
    assert (np.diff(full.values(NONE, "squared_norm"), axis=1) > 0).all()


def test_recorded_angle_stays_where_it_is_predicted(full):
    for variant, decay in ((WEAK, 0.001), (STRONG, 0.01)):
        late = experiment.angle(full, variant)[:, -20:].mean(axis=1)
        np.testing.assert_allclose(late, experiment.balanced_angle(full, decay), rtol=0.05)


def test_recorded_falls_at_a_constant_rate_are_partly_stale_statistics(full):
    stale = {}
    for variant in (WEAK, STRONG):
        moving, precise = (
            np.mean(
                experiment.accuracy_of(full, NONE, "constant", kind)
                - experiment.accuracy_of(full, variant, "constant", kind)
            )
            for kind in ("moving", "precise")
        )
        stale[variant] = 1 - precise / moving
        against = experiment.accuracy_of(full, variant, "constant")
        assert interval(against - experiment.accuracy_of(full, NONE, "constant")).high < 0
    assert 0.5 < stale[WEAK] < 0.65
    assert 0.3 < stale[STRONG] < 0.4


def test_recorded_statistics_agree_when_the_rate_falls(full):
    for variant in (NONE, WEAK, STRONG):
        precise, moving = (
            experiment.accuracy_of(full, variant, "cosine", kind) for kind in ("precise", "moving")
        )
        found = interval(precise - moving)
        assert -0.15 < found.low < 0 < found.high < 0.15


def test_recorded_weak_decay_fits_less_and_predicts_better_when_the_rate_falls(full):
    def less(variant, part):
        both = (experiment.accuracy_of(full, each, "cosine", part=part) for each in (variant, NONE))
        return interval(next(both) - next(both))

    assert 0 < less(WEAK, "test").low < less(WEAK, "test").high < 0.3
    assert less(WEAK, "train").high < 0
    assert less(STRONG, "test").high < 0
    assert less(STRONG, "train").high < 0


def test_recomputed_statistics_are_those_of_what_each_layer_gets():
    """With the layers below normalized by theirs, too."""
    keras.utils.set_random_seed(0)
    model = experiment.make_model(True, depth=2, width=10)
    x = np.random.default_rng(0).random((500, 784), np.float32)
    recompute_statistics(model, x)
    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    for norm, values in zip(
        norms, inputs_of(model, x, [n.name for n in norms]).values(), strict=True
    ):
        np.testing.assert_allclose(norm.moving_mean, values.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(norm.moving_variance, values.var(axis=0), rtol=1e-4)
