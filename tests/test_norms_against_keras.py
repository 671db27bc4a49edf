"""Layer, group, instance and RMS normalization against the layers of Keras."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
import tensorflow as tf

from bnkit.norms import (
    group_norm_forward,
    instance_norm_forward,
    layer_norm_forward,
    norm_backward,
    rms_norm_forward,
)

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
SHAPES = [(8, 12), (4, 5, 12), (2, 3, 4, 12)]


def compare(rng, assert_close, layer, norm, shape, dtype):
    """Hold output and gradients of a layer with random weights against those of a function."""
    layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.weights])
    x, dy = (tf.constant(rng.normal(3, 2, shape).astype(dtype)) for _ in range(2))
    weights = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch([x, *weights])
        y = layer(x)
    wanted = [y, *tape.gradient(y, [x, *weights], output_gradients=dy)]

    y, cache = norm(x.numpy(), *layer.get_weights(), epsilon=layer.epsilon)
    got = [part for part in (y, *norm_backward(dy.numpy(), cache)) if part is not None]
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.numpy().dtype
        assert_close(mine, theirs.numpy(), TOLERANCES[dtype])


every_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


@every_dtype
@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (1, 2, 3)])
def test_layer_norm_agrees(rng, assert_close, axis, dtype):
    layer = keras.layers.LayerNormalization(axis=axis, dtype=dtype)

    def norm(*arguments, epsilon):
        return layer_norm_forward(*arguments, axis=axis, epsilon=epsilon)

    compare(rng, assert_close, layer, norm, (3, 4, 5, 6), dtype)


@every_dtype
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_group_norm_agrees(rng, assert_close, shape, groups, axis, dtype):
    shape = shape if axis == -1 else (shape[0], shape[-1], *shape[1:-1])
    layer = keras.layers.GroupNormalization(groups=groups, axis=axis, dtype=dtype)

    def norm(*arguments, epsilon):
        return group_norm_forward(*arguments, groups=groups, axis=axis, epsilon=epsilon)

    compare(rng, assert_close, layer, norm, shape, dtype)


@every_dtype
@pytest.mark.parametrize("axis", [-1, 1])
def test_instance_norm_agrees_with_as_many_groups_as_channels(rng, assert_close, axis, dtype):
    layer = keras.layers.GroupNormalization(groups=-1, axis=axis, dtype=dtype)

    def norm(*arguments, epsilon):
        return instance_norm_forward(*arguments, axis=axis, epsilon=epsilon)

    compare(rng, assert_close, layer, norm, (2, 3, 4, 6), dtype)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_agrees(rng, assert_close, shape, dtype):
    layer = keras.layers.RMSNormalization(dtype=dtype)
    compare(rng, assert_close, layer, rms_norm_forward, shape, dtype)


def test_defaults_are_those_of_keras(rng, assert_close):
    x = rng.normal(size=(4, 64)).astype(np.float32)
    for layer, norm in [
        (keras.layers.LayerNormalization(), layer_norm_forward),
        (keras.layers.GroupNormalization(), group_norm_forward),
        (keras.layers.RMSNormalization(), rms_norm_forward),
    ]:
        # With inputs this small epsilon decides the output.
        assert_close(norm(0.01 * x)[0], layer(0.01 * x).numpy(), TOLERANCES["float32"])
