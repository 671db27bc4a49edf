"""The second derivative against nested gradient tapes, and what is wrong with one of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bnkit

EPSILON = 1e-3


def plain_formula(x, gamma, beta):
    mean = tf.reduce_mean(x, axis=0)
    variance = tf.reduce_mean((x - mean) ** 2, axis=0)
    return gamma * (x - mean) / tf.sqrt(variance + EPSILON) + beta


def keras_layer(x, gamma, beta):
    layer = keras.layers.BatchNormalization(
        epsilon=EPSILON, center=False, scale=False, dtype="float64"
    )
    return gamma * layer(x, training=True) + beta


def by_nested_tapes(forward, x, dy, gamma, reaching):
    x, dy, gamma = (tf.constant(value) for value in (x, dy, gamma))
    beta = tf.zeros_like(gamma)
    with tf.GradientTape() as outer:
        outer.watch([dy, x, gamma])
        with tf.GradientTape() as inner:
            inner.watch([x, gamma, beta])
            y = forward(x, gamma, beta)
        gradients = inner.gradient(y, [x, gamma, beta], output_gradients=dy)
        phi = sum(tf.reduce_sum(up * each) for up, each in zip(reaching, gradients, strict=True))
    return [each.numpy() for each in outer.gradient(phi, [dy, x, gamma])]


@pytest.fixture
def problem(rng):
    x, dy = rng.normal(2, 1.5, (8, 3)), rng.normal(size=(8, 3))
    reaching = [rng.normal(size=(8, 3)), *rng.normal(size=(2, 3))]
    return x, dy, rng.uniform(0.5, 2, 3), reaching


def by_bnkit(x, dy, gamma, reaching):
    _, cache = bnkit.batch_norm_forward(x, gamma, np.zeros(3), epsilon=EPSILON)
    return bnkit.batch_norm_double_backward(*reaching, dy, cache)


def test_double_backward_equals_nested_tapes_over_the_plain_formula(problem, assert_close):
    taped = by_nested_tapes(plain_formula, *problem)
    for mine, theirs in zip(by_bnkit(*problem), taped, strict=True):
        assert_close(mine, theirs, 1e-11)


def test_tapes_over_the_layer_of_keras_are_off_by_what_the_stopped_mean_leaves_out(problem):
    """Should this fail, TensorFlow has mended it, and the chapter has something to tell."""
    x, dy, gamma, reaching = problem
    taped, mine = by_nested_tapes(keras_layer, *problem), by_bnkit(*problem)
    deviations = x - x.mean(axis=0)
    dvariance = -0.5 * (gamma * dy * deviations).sum(axis=0) * (x.var(axis=0) + EPSILON) ** -1.5
    too_much = 2 / len(x) ** 2 * dvariance * reaching[0].sum(axis=0)
    np.testing.assert_allclose(taped[1] - mine[1], np.tile(too_much, (8, 1)), rtol=1e-9)
    np.testing.assert_allclose(taped[0], mine[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(taped[2], mine[2], rtol=1e-11, atol=1e-13)
