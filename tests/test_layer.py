"""The layer with state: what it remembers, when, and what it gives back."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from bnkit import (
    BatchNormalization,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from bnkit.gradcheck import check_gradients

PLAIN = ["gamma", "beta", "moving_mean", "moving_variance"]
RENORM = ["moving_stddev", "renorm_mean", "renorm_stddev"]


def random_layer(rng, **settings):
    """Return a layer of three channels in float64 with random weights."""
    layer = BatchNormalization(dtype="float64", **settings)
    layer.set_weights(rng.uniform(0.5, 2, (len(layer.weight_names), 3)))
    return layer


def test_defaults_are_those_of_keras():
    layer = BatchNormalization()
    assert (layer.axis, layer.momentum, layer.epsilon) == (-1, 0.99, 1e-3)
    assert (layer.center, layer.scale, layer.trainable, layer.renorm) == (True, True, True, False)
    layer.build((None, 2))
    assert np.array_equal(layer.get_weights(), [[1, 1], [0, 0], [0, 0], [1, 1]])
    assert {weight.dtype for weight in layer.get_weights()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("axis", [1, -1])
def test_training_is_the_forward_pass_and_its_backward(rng, axis):
    layer = random_layer(rng, axis=axis, epsilon=0.1)
    x, dy = rng.normal(size=(2, 4, 3, 3))
    mask = rng.random((4, 3)) < 0.7
    wanted, cache = batch_norm_forward(
        x, layer.gamma, layer.beta, axis=axis, epsilon=0.1, mask=mask
    )
    assert np.array_equal(layer(x, training=True, mask=mask), wanted)
    dx, dgamma, dbeta = batch_norm_backward(dy, cache)
    assert np.array_equal(layer.backward(dy), dx)
    assert np.array_equal(layer.gradients["gamma"], dgamma)
    assert np.array_equal(layer.gradients["beta"], dbeta)


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_and_a_frozen_layer_use_the_moving_statistics_and_keep_them(rng, frozen):
    layer = random_layer(rng, trainable=not frozen)
    before = layer.get_weights()
    x, dy = rng.normal(size=(2, 6, 3))
    gamma, beta, mean, variance = before
    y = layer(x, training=frozen)
    assert np.array_equal(y, batch_norm_inference(x, mean, variance, gamma, beta))
    wanted = batch_norm_inference_backward(dy, x, mean, variance, gamma)
    got = layer.backward(dy), layer.gradients["gamma"], layer.gradients["beta"]
    for gradient, reference in zip(got, wanted, strict=True):
        assert np.array_equal(gradient, reference)
    assert np.array_equal(layer.get_weights(), before)


def test_moving_statistics_warm_up_as_momentum_to_the_t(rng, assert_close):
    layer, x = BatchNormalization(momentum=0.9, dtype="float64"), rng.normal(3, 2, (50, 4))
    for _ in range(30):
        layer(x, training=True)
    left = 0.9**30
    assert_close(layer.moving_mean, (1 - left) * x.mean(0), 1e-13)
    assert_close(layer.moving_variance, left + (1 - left) * x.var(0), 1e-13)


def test_moving_statistics_see_only_what_the_mask_lets_through(rng, assert_close):
    layer, x = BatchNormalization(momentum=0.0, dtype="float64"), rng.normal(3, 2, (6, 4))
    mask = np.array([1, 1, 0, 1, 0, 1], bool)
    layer(x, training=True, mask=mask)
    assert_close(layer.moving_mean, x[mask].mean(0))
    assert_close(layer.moving_variance, x[mask].var(0))


def test_a_refused_batch_leaves_the_layer_as_it_was(rng):
    layer = random_layer(rng)
    before = layer.get_weights()
    with pytest.raises(ValueError, match="nothing to average"):
        layer(np.ones((4, 3)), training=True, mask=np.zeros(4, bool))
    with pytest.raises(
        ValueError, match=r"x must have 3 channels on axis -1.* got 4 in .*\(5, 4\)"
    ):
        layer(np.ones((5, 4)), training=True)
    assert np.array_equal(layer.get_weights(), before)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("renorm", [False, True])
def test_weights_and_gradients_exist_as_center_and_scale_say(rng, center, scale, renorm):
    layer = BatchNormalization(center=center, scale=scale, renorm=renorm)
    wanted = [name for name, kept in zip(PLAIN, (scale, center, 1, 1), strict=True) if kept]
    assert layer.weight_names == wanted + RENORM * renorm
    assert layer.get_weights() == []
    x, dy = rng.normal(size=(2, 5, 3)).astype(np.float32)
    for training in (True, False):
        layer(x, training=training)
        layer.backward(dy)
        assert list(layer.gradients) == ["gamma"] * scale + ["beta"] * center
        assert all(value.dtype == np.float32 for value in layer.gradients.values())
    assert len(layer.get_weights()) == len(layer.weight_names)


@pytest.mark.parametrize("renorm", [False, True])
def test_weights_survive_a_round_trip_and_are_copies(rng, renorm):
    layer, twin = random_layer(rng, renorm=renorm), BatchNormalization(renorm=renorm)
    weights = layer.get_weights()
    twin.set_weights(weights)
    for name, weight in zip(twin.weight_names, weights, strict=True):
        assert np.array_equal(getattr(twin, name), np.float32(weight))
    for weight in weights:
        weight[:] = -1
    assert np.all(np.array(layer.get_weights()) > 0)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copied_layer_has_gradients_of_its_own(rng, training, renorm, again):
    """Copies wrote their gradients into the original, and pickle refused the closures."""
    layer = random_layer(rng, renorm=renorm)
    x, dy = rng.normal(size=(2, 5, 3))
    layer(x, training=training)
    other = again(layer)
    dx = other.backward(dy)
    assert layer.gradients == {}
    np.testing.assert_array_equal(layer.backward(dy), dx)
    for name in ("gamma", "beta"):
        np.testing.assert_array_equal(other.gradients[name], layer.gradients[name])
    np.testing.assert_array_equal(other(x), layer(x))


@pytest.mark.parametrize("training", [False, True])
def test_weights_changed_after_a_call_do_not_change_its_gradient(rng, training):
    """In inference the gradient took the scale as it was later, changed in place."""
    x, dy = rng.normal(size=(2, 5, 3))
    layer = random_layer(rng)
    layer(x, training=training)
    dx = layer.backward(dy)
    for name in PLAIN:
        getattr(layer, name)[:] = 7.0
    np.testing.assert_array_equal(layer.backward(dy), dx)


def test_swapped_mean_and_variance_are_refused_when_they_are_set(rng):
    """And not at the first call, where nobody knows any more where they came from."""
    layer = random_layer(rng)
    gamma, beta, mean, variance = layer.get_weights()
    wanted = "moving_variance must not be negative.*the order of the weights is"
    with pytest.raises(ValueError, match=wanted):
        layer.set_weights([gamma, beta, variance, mean - 3])
    np.testing.assert_array_equal(layer.moving_variance, variance)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1.0]] * 3, r"weights must hold 4 arrays \['gamma', .*\], got 3"),
        ([[1.0, 1.0]] * 4, r"weights must all have shape \(3,\), got \[\(2,\)"),
        ([[1.0] * 3] * 3 + [1.0], r"weights must all have shape \(3,\), got .*\(\)\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(rng, weights, message):
    with pytest.raises(ValueError, match=message):
        random_layer(rng).set_weights(weights)


def test_initializers_are_names_or_functions_of_a_shape():
    layer = BatchNormalization(
        gamma_initializer="zeros",
        beta_initializer=lambda shape: np.full(shape, 2.0),
        moving_variance_initializer=lambda shape: np.full(shape, 9.0),
        renorm=True,
    )
    layer.build((None, 2))
    got = [float(weight[0]) for weight in layer.get_weights()]
    assert got == [0, 2, 0, 9, 3, 0, 3]  # standard deviations start at the root of the variance


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"renorm_momentum": -1}, r"renorm_momentum must lie in \[0, 1\], got -1"),
        ({"epsilon": -1e-3}, "epsilon must be finite and not negative, got -0.001"),
        ({"renorm_clipping": {"max": 1}}, r"takes rmin, rmax and dmax, got \['max'\]"),
        ({"renorm_clipping": {"rmin": 3, "rmax": 2}}, "rmin <= rmax, got .*3.*2"),
        ({"renorm_clipping": {"dmax": -1}}, "dmax >= 0, got -1"),
        ({"gamma_initializer": "twos"}, "gamma_initializer must be 'zeros', .*, got 'twos'"),
        ({"beta_initializer": lambda shape: 1.0}, r"shape \(3,\), got \(\)"),
        ({"axis": 2}, r"axis must lie in \[-2, 2\).* got 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchNormalization(**settings).build((None, 3))


def test_backward_needs_a_call_and_the_shape_of_its_input(rng):
    layer = random_layer(rng)
    with pytest.raises(RuntimeError, match="call the layer on an input"):
        layer.backward(np.ones((4, 3)))
    layer(np.ones((4, 3)))
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        layer.backward(np.ones((3, 3)))


@pytest.mark.parametrize("renorm", [False, True])
def test_values_beyond_the_dtype_of_the_weights_pass_without_a_warning(rng, renorm):
    layer = BatchNormalization(renorm=renorm)
    y = layer(rng.normal(size=(50, 3)).astype(np.float32) * np.float32(1e30), training=True)
    assert np.all(np.isfinite(y))
    assert np.all(np.isinf(layer.moving_variance))
    layer(np.array([[np.nan, np.inf, 1.0]] * 2), training=True)


def test_renorm_without_limits_is_inference_with_the_renorm_statistics(rng, assert_close):
    layer, x = random_layer(rng, renorm=True, epsilon=0.0), rng.normal(5, 2, (8, 3))
    gamma, beta, *_, mean, stddev = layer.get_weights()
    y = layer(x, training=True)
    assert_close(y, batch_norm_inference(x, mean, stddev**2, gamma, beta, epsilon=0))


def test_renorm_held_at_one_and_zero_is_batch_normalization(rng, assert_close):
    clipping = {"rmin": 1, "rmax": 1, "dmax": 0}
    layer = random_layer(rng, renorm=True, renorm_clipping=clipping)
    x, dy = rng.normal(5, 2, (2, 8, 3))
    wanted, cache = batch_norm_forward(x, layer.gamma, layer.beta)
    assert_close(layer(x, training=True), wanted)
    assert_close(layer.backward(dy), batch_norm_backward(dy, cache)[0])


def test_renorm_corrections_take_no_part_in_the_gradient(rng):
    layer, x = random_layer(rng, renorm=True), rng.normal(2, 3, (6, 3))
    dy = rng.normal(size=(6, 3))
    gamma, beta, *_, mean, stddev = layer.get_weights()
    r, d = np.sqrt(x.var(0) + 1e-3) / stddev, (x.mean(0) - mean) / stddev

    def renormalized(x, gamma, beta):
        return (batch_norm_forward(x)[0] * r + d) * gamma + beta

    np.testing.assert_allclose(layer(x, training=True), renormalized(x, gamma, beta), rtol=1e-12)
    gradients = {"x": layer.backward(dy)} | layer.gradients
    check_gradients(renormalized, {"x": x, "gamma": gamma, "beta": beta}, dy, gradients)


def test_renorm_statistics_follow_the_batches_by_their_own_momentum(rng, assert_close):
    layer = random_layer(rng, renorm=True, momentum=0.9, renorm_momentum=0.5)
    _, _, mean, _, stddev, renorm_mean, renorm_stddev = layer.get_weights()
    x = rng.normal(5, 2, (8, 3))
    layer(x, training=True)
    batch_mean, batch_stddev = x.mean(0), np.sqrt(x.var(0) + layer.epsilon)
    assert_close(layer.renorm_mean, 0.5 * renorm_mean + 0.5 * batch_mean)
    assert_close(layer.renorm_stddev, 0.5 * renorm_stddev + 0.5 * batch_stddev)
    assert_close(layer.moving_mean, 0.9 * mean + 0.1 * batch_mean)
    assert_close(layer.moving_stddev, 0.9 * stddev + 0.1 * batch_stddev)
    assert_close(layer.moving_variance, layer.moving_stddev**2 - layer.epsilon)


def test_renorm_statistics_never_fall_below_epsilon(rng, assert_close):
    layer = BatchNormalization(renorm=True, moving_variance_initializer="zeros", dtype="float64")
    x = rng.normal(5, 2, (8, 3))
    y = layer(x, training=True)
    assert_close(y, x / np.sqrt(layer.epsilon))  # the standard deviation began at zero
    layer = BatchNormalization(renorm=True, moving_variance_initializer="zeros")
    layer(np.ones((8, 3)), training=True)
    assert np.all(layer.moving_stddev**2 < layer.epsilon)
    assert np.array_equal(layer.moving_variance, [0, 0, 0])


def test_twin_of_a_keras_layer_from_a_release_without_renorm():
    # Keras 3 has the attribute renorm from 3.14 on.
    weights = dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), np.ones(2))
    layer = SimpleNamespace(axis=1, momentum=0.9, epsilon=0.1, center=True, scale=True)
    layer.trainable, layer.built, layer.variable_dtype = False, True, "float32"
    layer.get_weights = lambda: list(weights.values())
    for name in weights:
        setattr(layer, f"{name}_initializer", np.ones)
    twin = BatchNormalization.from_keras(layer)
    assert (twin.axis, twin.momentum, twin.epsilon, twin.trainable) == (1, 0.9, 0.1, False)
    assert not twin.renorm
    assert np.array_equal(twin.get_weights(), np.ones((4, 2)))
