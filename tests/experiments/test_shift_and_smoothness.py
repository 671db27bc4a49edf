"""Noise makes the inputs shift and leaves most of the gain; with BN gradients hold further."""

import re
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import gradients, protocol
from bnkit.experiments import shift_and_smoothness as shift
from bnkit.experiments.training import as_float, fashion_mnist
from bnkit.keras.probes import cross_entropy, moments

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "shift-and-smoothness.md"
CHANCE = 0.2  # what has learnt nothing lies below
EQUAL = 0.5  # points, the bound of equivalence
STEPS = (100, 300, 1000)
NOISY = ("noisy", "noisier")


@pytest.fixture(scope="module")
def result():
    return experiments.run("shift-and-smoothness", batches=1, seeds=1)


AT = {"step": 250}


def test_noise_moves_the_inputs_more_than_training_does(result):
    """Seen: drifts of 0.3 to 0.4 with noise, 0.01 to 0.06 without."""
    for activation in ("relu", "sigmoid"):
        calm, noisy = (shift.at_step(result, activation, v, "drift", **AT) for v in ("bn", "noisy"))
        assert noisy.min() > 3 * calm.max()


@pytest.mark.parametrize("noise_on", [False, True])
def test_noisy_normalization_still_trains_what_plain_cannot(result, noise_on):
    plain, noisy = (
        shift.tuned(result, "sigmoid", v, noise_on=noise_on).test for v in ("plain", "noisy")
    )
    assert plain.max() < 0.2
    assert noisy.min() > 0.5


def test_the_loss_ranges_less_along_the_gradient_with_batch_normalization(result):
    """Seen: highest less lowest loss above 0.2 without, below 0.4 of it with."""
    plain, bn = (np.ptp(shift.loss_range(result, "relu", v, **AT), axis=1) for v in ("plain", "bn"))
    assert plain.min() > bn.max()


def test_plain_sigmoid_net_that_learns_nothing_is_the_smoother_one_nearby(result):
    """Seen: gradients change by 2.9 a length walked without BN, by 7 with it, up to 0.1."""
    plain, bn = (shift.smoothness(result, "sigmoid", v, **AT) for v in ("plain", "bn"))
    assert plain.shape == (1, 4)
    assert (plain[:, :2] < 0.7 * bn[:, :2]).all()


def test_plot_has_four_panels_an_activation(result):
    figure = shift.plot(result)
    assert len(figure.axes) == 8
    plt.close(figure)


@pytest.fixture(scope="module")
def small():
    """Two copies of a small noisy net, and a batch for each."""
    config = shift.Config(
        rates=(0.1,), measured=(0.1,), depth=2, width=8, seeds=2, steps=100, batches=1
    )
    nets = shift.Nets(config, "relu", ("noisy",))
    nets.runs.restart(seeds=[3, 5], rates=nets.rates)
    data, rows = fashion_mnist(), np.arange(120).reshape(2, 60)
    return nets, as_float(data.x_train[rows]), data.y_train[rows]


def test_walks_are_those_that_the_tape_takes(small):
    tf = pytest.importorskip("tensorflow")
    nets, x, y = small
    found = nets.measuring.walks(nets.runs.stacked(), x, y, np.array([0.1, 0.2]))
    model = nets.runs.load(1)
    state = [variable.numpy() for variable in model.variables]

    def at(steps):
        """Loss and gradient after so many gradients, a number for each trained variable."""
        for variable, value in zip(model.variables, state, strict=True):
            variable.assign(value)
        for variable, step, each in zip(model.trainable_variables, steps, gradient, strict=True):
            variable.assign_sub(step * each)
        with tf.GradientTape() as tape:
            loss = cross_entropy(y[1], model(x[1], training=True))
        return float(loss), tape.gradient(loss, model.trainable_variables)

    count = len(model.trainable_variables)
    gradient = [np.zeros(each.shape, "float32") for each in model.trainable_variables]
    before, gradient = at(np.zeros(count))
    length = np.sqrt(sum(np.sum(each.numpy() ** 2) for each in gradient))
    walk, distance = nets.config.walk[2], nets.config.distances[3]
    np.testing.assert_allclose(found["walk_loss"][1, 0], before, rtol=1e-5)
    np.testing.assert_allclose(found["gradient_length"][1], length, rtol=1e-4)
    np.testing.assert_allclose(
        found["walk_loss"][1, 3], at(np.full(count, walk * 0.2))[0], rtol=1e-4
    )
    loss, later = at(np.full(count, distance / length))
    np.testing.assert_allclose(found["distance_loss"][1, 3], loss, rtol=1e-4)
    moved = np.sqrt(sum(np.sum((b - a) ** 2) for a, b in zip(gradient, later, strict=True)))
    np.testing.assert_allclose(found["distance_change"][1, 3], moved / length, rtol=1e-3)

    second = [each for each in model.layers if isinstance(each, keras.layers.Dense)][1].kernel
    kernel = [each is second for each in model.trainable_variables].index(True)
    _, later = at(0.2 * (np.arange(count) < kernel))
    one, other = gradient[kernel].numpy(), later[kernel].numpy()
    sizes = np.linalg.norm(one), np.linalg.norm(other)
    np.testing.assert_allclose(
        found["gradient_shift"][1, 0], np.linalg.norm(other - one) / sizes[0], rtol=1e-3
    )
    np.testing.assert_allclose(
        found["cosine"][1, 0], np.sum(one * other) / (sizes[0] * sizes[1]), rtol=1e-4
    )


def test_moments_are_those_of_the_model_in_training_mode(small):
    nets, _, _ = small
    means, variances = nets.moments()
    images = as_float(fashion_mnist().x_validation[: nets.config.images])
    model = nets.runs.load(1)
    names = [each.name for each in model.layers if isinstance(each, keras.layers.Activation)]
    for layer, (mean, variance) in enumerate(moments(model, images, names, training=True).values()):
        np.testing.assert_allclose(means[1, layer], mean, atol=1e-5)
        np.testing.assert_allclose(variances[1, layer], variance, atol=1e-4)


def test_measuring_leaves_the_runs_as_they_are(small):
    nets, x, y = small
    before = [np.array(each) for each in nets.runs.stacked()]
    nets.measuring.walks(nets.runs.stacked(), x, y, np.array([0.1, 0.2]))
    nets.moments()
    for got, want in zip(nets.runs.stacked(), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_each_thousand_images_has_noise_of_its_own(small):
    nets, _, _ = small
    x = as_float(fashion_mnist().x_test[:100])
    y = fashion_mnist().y_test[:100]
    first, again, other = (
        nets.measuring.as_trained(nets.variables(nets.noise, draw), x, y)[1] for draw in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(other - first).max() > 0.01
    quiet = np.full_like(nets.noise, shift.QUIET)
    first, other = (
        nets.measuring.as_trained(nets.variables(quiet, draw), x, y)[1] for draw in (0, 1)
    )
    np.testing.assert_array_equal(first, other)


def test_inner_products_by_variable():
    found = gradients.by_variable([keras.ops.ones(3)], [keras.ops.full((3,), 2.0)])
    assert keras.ops.convert_to_numpy(found).tolist() == [6.0]


def test_moving_target_moves_all_examples_alike_and_only_in_training():
    layer = shift.MovingTarget(1.0, 2.0)
    x = keras.ops.ones((4, 3))
    first, second = (keras.ops.convert_to_numpy(layer(x, training=True)) for _ in range(2))
    assert np.all(first == first[0])
    assert np.all(first[0] != second[0])
    np.testing.assert_array_equal(layer(x), x)


@pytest.fixture(scope="module")
def full():
    return experiments.recorded("shift-and-smoothness")


def _layers(full, activation, variant, name, step=300):
    """The median over the layers of what was measured at rate 0.1."""
    return np.median(shift.at_step(full, activation, variant, name, step=step), axis=1)


def _ratio(one, other):
    return protocol.Interval(*np.exp(protocol.interval(np.log(one / other))))


def _smoothness(full, activation, one, other, step=300):
    """Ratios of the change of the gradient per distance, at each distance."""
    return _ratio(*(shift.smoothness(full, activation, v, step=step) for v in (one, other)))


def test_record_is_of_the_full_preset(full):
    assert (full.preset, len(full.seeds)) == ("full", full.config["seeds"])
    assert full.config["measured_at"] == list(STEPS)
    seen = full.config["steps"] * full.config["batch_size"]
    assert seen / len(fashion_mnist().x_train) < 2


def test_recorded_rates_lie_inside_the_grid_where_a_net_learns(full):
    for activation in ("relu", "sigmoid"):
        for variant in full.config["variants"]:
            off, on = (
                shift.tuned(full, activation, variant, noise_on=noise_on)
                for noise_on in (False, True)
            )
            assert off.rate == on.rate
            assert off.inside == on.inside == (off.test.min() > CHANCE)
    assert full.values("sigmoid", "plain", "test").max() < CHANCE


def test_only_plain_relu_nets_diverge_in_the_record(full):
    lost = {
        (activation, variant): np.isnan(full.values(activation, variant, "loss")).sum(axis=0)
        for activation in ("relu", "sigmoid")
        for variant in full.config["variants"]
    }
    assert lost.pop(("relu", "plain")).tolist() == [0, 0, 1, 5, 5]
    assert not np.any(list(lost.values()))


def test_batch_norm_lowers_the_drift_of_recorded_relu_nets_in_every_layer(full):
    for step in STEPS:
        plain, bn = (shift.at_step(full, "relu", v, "drift", step=step) for v in ("plain", "bn"))
        assert (plain > 4 * bn).all()


def test_recorded_drift_of_sigmoid_nets_depends_on_the_layer(full):
    plain, bn = (
        np.median(shift.at_step(full, "sigmoid", v, "drift"), axis=0) for v in ("plain", "bn")
    )
    assert (plain[:3] < bn[:3]).all()
    assert (plain[4:] > 10 * bn[4:]).all()
    assert plain[-1] > 1000


def test_recorded_gradient_shifts_are_no_clean_verdict(full):
    found = [
        _ratio(*(_layers(full, "relu", v, "gradient_shift", step) for v in ("plain", "bn")))
        for step in STEPS
    ]
    assert [each.low > 1 for each in found] == [False, True, False]
    assert all(0.97 < each.low < each.high < 1.8 for each in found)
    for step in STEPS:
        plain, bn = (_layers(full, "sigmoid", v, "gradient_shift", step) for v in ("plain", "bn"))
        assert (1000 * plain < bn).all()


def test_noise_brings_the_drift_of_recorded_relu_nets_back(full):
    found = {
        (variant, step): _ratio(
            *(_layers(full, "relu", v, "drift", step) for v in (variant, "plain"))
        )
        for variant in NOISY
        for step in STEPS
    }
    for variant in NOISY:
        assert found[variant, 100].low < 1 < found[variant, 100].high
    for step in (300, 1000):
        assert found["noisy", step].low > 1
        assert 1.7 < found["noisier", step].low < found["noisier", step].high < 3.1
    plain = np.median([_layers(full, "relu", "plain", "drift", step) for step in STEPS], axis=1)
    assert plain.argmax() == 0


def test_noise_brings_the_recorded_drift_back_at_the_best_rates_too(full):
    for step in (300, 1000):
        plain, noisy, noisier = (
            np.median(
                shift.at_step(full, "relu", v, "drift", step, shift.tuned(full, "relu", v).rate),
                axis=1,
            )
            for v in ("plain", *NOISY)
        )
        assert _ratio(noisy, plain).low > 1
        assert 1.7 < _ratio(noisier, plain).low < _ratio(noisier, plain).high < 3.1


def test_smaller_noise_makes_no_difference_to_recorded_sigmoid_nets(full):
    for noise_on in (False, True):
        cost = shift.gain(full, "sigmoid", "noisy", "bn", noise_on=noise_on)
        assert -EQUAL < cost.low < 0 < cost.high < EQUAL
        larger = shift.gain(full, "sigmoid", "noisier", "bn", noise_on=noise_on)
        assert -0.7 < larger.low < larger.high < 0
        assert shift.gain(full, "sigmoid", "noisier", "plain", noise_on=noise_on).low > 74


def test_what_noise_costs_recorded_relu_nets(full):
    def mean(variant, than, noise_on=False):
        return shift.gain(full, "relu", variant, than, noise_on=noise_on).mean

    assert round(float(mean("bn", "plain")), 1) == 2.2
    for noise_on in (False, True):
        for variant in NOISY:
            assert shift.gain(full, "relu", variant, "bn", noise_on=noise_on).high < 0
        left = shift.gain(full, "relu", "noisy", "plain", noise_on=noise_on)
        assert 0.9 < left.low < left.high < 2.1
    assert shift.gain(full, "relu", "noisier", "bn").high < -1
    for variant in NOISY:
        assert 1.8 < mean(variant, "bn", noise_on=True) / mean(variant, "bn") < 2.2
    assert shift.gain(full, "relu", "noisier", "plain").low > 0
    assert shift.gain(full, "relu", "noisier", "plain", noise_on=True).high < 0
    assert -mean("noisier", "bn") > mean("bn", "plain") / 2


def test_recorded_moving_statistics_mislead_with_more_noise(full):
    best = full.config["rates"].index(shift.tuned(full, "relu", "noisier").rate)
    moving, precise = (
        full.values("relu", "noisier", name)[:, best].mean() for name in ("moving", "test")
    )
    assert (round(float(moving), 2), round(float(precise), 2)) == (0.24, 0.86)


def test_recorded_gains_at_equal_rates(full):
    plain, bn, noisier = (
        100 * full.values("relu", v, "test").mean(axis=0) for v in ("plain", "bn", "noisier")
    )
    gain = (bn - plain)[:2].round(1)
    assert (0.5 < gain[0] < 1, gain[1]) == (True, 2.0)
    assert noisier[-1] < bn[-1] - 40


def test_recorded_walks_in_learning_rates(full):
    walk = full.config["walk"]
    start, _, high = (
        np.median(values)
        for values in (
            shift.at_step(full, "relu", "plain", "walk_loss")[:, 0],
            *shift.loss_range(full, "relu", "plain").T,
        )
    )
    assert 2 < high / start < 2.2
    change = {v: shift.at_step(full, "relu", v, "walk_change") for v in full.config["variants"]}
    assert change["plain"][:, walk.index(4.0)].min() > 3
    assert change["plain"][:, walk.index(1.0)].min() > 0.95
    for variant in ("bn", *NOISY):
        losses = shift.at_step(full, "relu", variant, "walk_loss")
        assert (losses[:, 1:].max(axis=1) < losses[:, 0]).all()
        assert 1 < change[variant][:, walk.index(4.0)].mean() < 1.5
        assert change[variant][:, walk.index(1.0)].min() > 0.75
        assert (change[variant] < change["plain"])[:, walk.index(1.0)].all()


def test_recorded_relu_nets_are_smoother_with_batch_norm_beyond_a_step_alone(full):
    for step in STEPS:
        found = _smoothness(full, "relu", "plain", "bn", step)
        assert found.low[:2].max() < 1
        assert found.low[2:].min() > 1.15
        assert found.low[3] > 2.5
        assert found.high[1] > 1
    assert _smoothness(full, "relu", "plain", "bn").high[0] < 1
    for variant in full.config["variants"]:
        length = 0.1 * shift.at_step(full, "relu", variant, "gradient_length")
        assert 0.19 < np.median(length) < 0.25
        if variant in NOISY:
            assert all(_smoothness(full, "relu", variant, "plain", s).high[3] < 0.5 for s in STEPS)


def test_recorded_plain_sigmoid_net_is_the_smoother_one(full):
    for step in STEPS:
        assert _smoothness(full, "sigmoid", "plain", "bn", step).high[:3].max() < 0.7


def test_recorded_smoothness_follows_the_learning_rate(full):
    for activation in ("relu", "sigmoid"):
        found = [
            np.median(shift.smoothness(full, activation, "bn", rate=rate), axis=0)
            for rate in full.config["measured"]
        ]
        assert (np.diff(found, axis=0) < 0).all()
        after = [
            np.median(shift.at_step(full, activation, "bn", "walk_change", rate=rate)[:, 1])
            for rate in full.config["measured"]
        ]
        assert 0.65 < min(after) < max(after) < 1.15


def test_recorded_kernels_keep_their_length(full):
    for activation in ("relu", "sigmoid"):
        plain, bn = (
            np.median(shift.at_step(full, activation, v, "weight_length")) for v in ("plain", "bn")
        )
        scales = full.config["depth"] * full.config["width"]
        assert abs(np.sqrt(bn**2 - scales) / plain - 1) < 0.05


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    evidence = re.search(r"\*\*Claim W6\.\*\*.*?\*Evidence: (.*?)\*\n", text)[1]
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    said = re.findall(r"([−+][\d.]+) to ([−+][\d.]+)", evidence)
    asked = [
        (a, "noisy", than, on)
        for than, on in [("bn", False), ("bn", True), ("plain", False)]
        for a in ("relu", "sigmoid")
    ]
    assert len(said) == len(asked)
    for ends, (activation, variant, than, on) in zip(said, asked, strict=True):
        found = shift.gain(full, activation, variant, than, noise_on=on)
        for text, value in zip(ends, (found.low, found.high), strict=True):
            digits = len(text.partition(".")[2])
            assert float(text.replace("−", "-")) == round(float(value), digits)
    assert f"bound of equivalence ±{EQUAL}" in evidence
