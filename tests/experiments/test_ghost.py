"""Groups are normalized as batches of their own would be; patches make a convolution."""

import keras
import numpy as np
import pytest

from bnkit.experiments.ghost import GhostBatchNormalization, Patchwise, with_settings
from bnkit.experiments.networks import conv_net
from bnkit.experiments.statistics import recompute_statistics

CLIPPING = {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(1.0, 2.0, (8, 5, 5, 3)).astype("float32")


def values(layer):
    return [keras.ops.convert_to_numpy(keras.ops.copy(each)) for each in layer.variables[:4]]


def call(layer, x, training):
    return keras.ops.convert_to_numpy(layer(x, training=training))


def test_one_group_is_the_whole_batch(x):
    ghost, plain = GhostBatchNormalization(8), keras.layers.BatchNormalization()
    for training in (True, False):
        got, want = (call(layer, x, training) for layer in (ghost, plain))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for got, want in zip(values(ghost), values(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("group", [2, 4])
def test_each_group_is_a_batch_of_its_own_and_moving_statistics_take_their_mean(x, group):
    ghost = GhostBatchNormalization(group, momentum=0.0)
    got = call(ghost, x, True)
    means, variances = [], []
    for start in range(0, 8, group):
        plain = keras.layers.BatchNormalization(momentum=0.0)
        part = slice(start, start + group)
        np.testing.assert_allclose(got[part], call(plain, x[part], True), rtol=1e-4, atol=1e-5)
        means.append(values(plain)[2])
        variances.append(values(plain)[3])
    np.testing.assert_allclose(values(ghost)[2], np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values(ghost)[3], np.mean(variances, axis=0), rtol=1e-4)


def test_a_last_group_may_be_smaller(x):
    got = call(GhostBatchNormalization(3), x, True)
    want = call(keras.layers.BatchNormalization(), x[6:], True)
    np.testing.assert_allclose(got[6:], want, rtol=1e-4, atol=1e-5)


def test_gradient_is_that_of_each_group(x):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a tape is TensorFlow's")
    import tensorflow as tf

    def gradient(layer, x):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.sin(layer(x, training=True)))
        return tape.gradient(value, x).numpy()

    got = gradient(GhostBatchNormalization(4), x)
    for part in (slice(0, 4), slice(4, 8)):
        want = gradient(keras.layers.BatchNormalization(), x[part])
        np.testing.assert_allclose(got[part], want, rtol=1e-3, atol=1e-5)


def test_clipped_corrections_are_those_of_batch_renormalization(x):
    ghost = GhostBatchNormalization(8, rmax=3.0, dmax=5.0, momentum=0.9)
    plain = keras.layers.BatchNormalization(
        momentum=0.9, renorm=True, renorm_clipping=CLIPPING, renorm_momentum=0.9
    )
    for _ in range(2):
        got, want = (call(layer, x, True) for layer in (ghost, plain))
        # Keras averages the standard deviation, which after a step differs from the variance's.
        np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05)
    fresh = (
        GhostBatchNormalization(8, rmax=3.0, dmax=5.0),
        keras.layers.BatchNormalization(renorm=True, renorm_clipping=CLIPPING),
    )
    got, want = (call(layer, x, True) for layer in fresh)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "strides"), [(28, 2), (7, 2), (14, 1)])
def test_patches_make_the_same_convolution(size, strides):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
    how = {"strides": strides, "padding": "same"}
    patchwise, plain = Patchwise(4, 3, **how), keras.layers.Conv2D(4, 3, **how)
    got, want = call(patchwise, x, None), call(plain, x, None)
    assert got.shape == want.shape
    plain.set_weights(patchwise.get_weights())
    np.testing.assert_allclose(got, call(plain, x, None), rtol=1e-3, atol=1e-4)


def test_settings_of_a_state_replace_the_layers_own_and_precise_statistics_follow_them():
    model = conv_net((4,), 2, lambda: GhostBatchNormalization(2))
    x = np.random.default_rng(0).random((16, 28, 28, 1), np.float32)
    state = [keras.ops.convert_to_numpy(keras.ops.copy(each)) for each in model.variables]
    z = model.layers[1](x)

    def variance_with(group):
        (changed,) = with_settings(model, [state], [(group, 1.0, 0.0)])
        for variable, value in zip(model.variables, changed, strict=True):
            variable.assign(value)
        recompute_statistics(model, x)
        return values(model.layers[2])[3]

    whole = keras.ops.convert_to_numpy(z).reshape(-1, 4).var(axis=0)
    np.testing.assert_allclose(variance_with(16), whole, rtol=1e-3)
    assert np.all(variance_with(2) < whole)  # what lies between the groups is missing
