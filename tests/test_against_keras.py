"""The same numbers as ``keras.layers.BatchNormalization`` and TensorFlow's automatic gradients."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from bnkit import BatchNormalization, batch_norm_double_backward, batch_norm_forward

SHAPES = [(6, 3), (4, 2, 3), (2, 3, 4, 2), (2, 2, 3, 2, 3)]
EVERY_AXIS = [(shape, axis) for shape in SHAPES for axis in range(-len(shape), len(shape))]

# By the dtype of inputs and results, what Keras calls it: the weights keep the wider dtype.
POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
DTYPES = ["float16", "bfloat16", "float32", "float64"]

MASK_TOLERANCE = 1e-6  # Keras divides a masked sum by the count plus 1e-7


def keras_layer(rng, shape, **settings):
    """Return a Keras layer for inputs of a shape, with random weights."""
    layer = keras.layers.BatchNormalization(**settings)
    layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.weights])
    return layer


def by_keras(layer, x, dy, **options):
    """Return y and the gradients of x, gamma and beta, as far as the layer has them."""
    x = tf.constant(x)
    weights = [weight.value for weight in (layer.gamma, layer.beta) if weight is not None]
    with tf.GradientTape() as tape:
        tape.watch([x, *weights])
        y = layer(x, **options)
    gradients = tape.gradient(y, [x, *weights], output_gradients=tf.constant(dy))
    return [part.numpy() for part in (y, *gradients)]


def by_bnkit(layer, x, dy, **options):
    """Return the same from bnkit's layer."""
    y, dx = layer(x, **options), layer.backward(dy)
    return [y, dx, *layer.gradients.values()]


def compare(assert_close, layer, x, dy, tolerance, **options):
    """Call a Keras layer and its twin on the same input, and hold all that comes out together."""
    twin = BatchNormalization.from_keras(layer)
    wanted = by_keras(layer, x, dy, **options)
    got = by_bnkit(twin, x, dy, **options)
    assert len(got) == len(wanted)
    for mine, theirs in zip(got + twin.get_weights(), wanted + layer.get_weights(), strict=True):
        assert mine.dtype == theirs.dtype
        assert_close(mine, theirs, tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), EVERY_AXIS)
def test_output_and_gradients_agree_on_every_axis(rng, assert_close, shape, axis, training):
    layer = keras_layer(rng, shape, axis=axis, dtype="float64")
    x, dy = rng.normal(3, 2, shape), rng.normal(size=shape)
    compare(assert_close, layer, x, dy, 1e-13, training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients_agree_in_every_dtype(rng, assert_close, dtype, training):
    layer = keras_layer(rng, (40, 5), dtype=POLICIES.get(dtype, dtype))
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, dy = (rng.normal(size=(40, 5)).astype(dtype) for _ in range(2))
    tolerance = {2: 4e-3 if dtype.kind == "V" else 5e-4, 4: 2e-6, 8: 1e-13}[dtype.itemsize]
    compare(assert_close, layer, x, dy, tolerance, training=training)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_become_float32(rng, assert_close, dtype):
    x = rng.integers(0, 2 if dtype == "bool" else 200, (40, 5)).astype(dtype)
    layer = keras_layer(rng, x.shape)
    got = BatchNormalization.from_keras(layer)(x, training=True)
    assert got.dtype == np.float32
    assert_close(got, layer(tf.constant(x), training=True).numpy(), 2e-6)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("renorm", [False, True])
def test_output_gradients_and_order_of_weights_agree_without_center_or_scale(
    rng, assert_close, center, scale, renorm
):
    layer = keras_layer(rng, (8, 3), center=center, scale=scale, renorm=renorm, dtype="float64")
    twin = BatchNormalization.from_keras(layer)
    assert twin.weight_names == [weight.name for weight in layer.weights]
    x, dy = rng.normal(size=(2, 8, 3))
    for training in (True, False):
        compare(assert_close, layer, x, dy, 1e-12, training=training)


@pytest.mark.parametrize("shape", [(12, 3), (4, 5, 3), (2, 3, 4, 3)])
@pytest.mark.parametrize("renorm", [False, True])
def test_output_and_gradients_agree_under_a_mask(rng, assert_close, shape, renorm):
    layer = keras_layer(rng, shape, dtype="float64", renorm=renorm)
    x, dy = rng.normal(3, 2, shape), rng.normal(size=shape)
    mask = rng.random(shape[:-1]) < 0.6
    compare(assert_close, layer, x, dy, MASK_TOLERANCE, training=True, mask=mask)


def test_a_frozen_layer_infers_even_in_training(rng, assert_close):
    layer = keras_layer(rng, (6, 3), trainable=False, dtype="float64")
    before = layer.get_weights()
    x, dy = rng.normal(size=(2, 6, 3))
    compare(assert_close, layer, x, dy, 1e-13, training=True)
    assert np.array_equal(BatchNormalization.from_keras(layer).get_weights(), before)


CLIPPINGS = {
    "unlimited": None,
    "clipped": {"rmin": 0.8, "rmax": 1.1, "dmax": 0.2},
    "one limit": {"rmax": 1.05, "dmax": None},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clipping", [False, *CLIPPINGS])
def test_many_training_steps_agree_in_statistics_and_gradients(rng, assert_close, clipping, dtype):
    settings = {"dtype": dtype, "momentum": 0.9}
    if clipping:
        settings |= {"renorm": True, "renorm_clipping": CLIPPINGS[clipping]}
        settings |= {"renorm_momentum": 0.8}
    layer = keras_layer(rng, (16, 3), **settings)
    twin = BatchNormalization.from_keras(layer)
    tolerance = 5e-6 if dtype == "float32" else 1e-12
    for step in range(60):
        # The distribution drifts, so that corrections are clipped at some steps and not at others.
        x = rng.normal(np.sin(step / 10), 1 + step / 60, (16, 3)).astype(dtype)
        dy = rng.normal(size=(16, 3)).astype(dtype)
        wanted, got = (
            call(it, x, dy, training=True) for call, it in ((by_keras, layer), (by_bnkit, twin))
        )
        for mine, theirs in zip(got, wanted, strict=True):
            assert_close(mine, theirs, tolerance)
    for mine, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
        assert_close(mine, theirs, tolerance)
    x = rng.normal(size=(16, 3)).astype(dtype)
    assert_close(twin(x), layer(tf.constant(x)).numpy(), tolerance)


@pytest.mark.parametrize("renorm", [False, True])
def test_weights_go_to_keras_and_back(rng, renorm):
    layer = keras_layer(rng, (4, 3), renorm=renorm)
    twin = BatchNormalization(renorm=renorm)
    twin.set_weights([2 * weight for weight in layer.get_weights()])
    layer.set_weights(twin.get_weights())
    for mine, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_twin_of_a_layer_that_was_never_called_starts_as_keras_does(dtype):
    layer = keras.layers.BatchNormalization(
        axis=1,
        momentum=0.7,
        epsilon=0.01,
        beta_initializer="ones",
        gamma_initializer=keras.initializers.Constant(3.0),
        moving_variance_initializer=keras.initializers.Constant(4.0),
        renorm=True,
        renorm_clipping={"rmax": 3.0},
        renorm_momentum=0.6,
        dtype=dtype,
    )
    twin = BatchNormalization.from_keras(layer)
    for name in ("axis", "momentum", "epsilon", "renorm", "renorm_clipping", "renorm_momentum"):
        assert getattr(twin, name) == getattr(layer, name)
    for it in (layer, twin):
        it.build((4, 3, 2))
    for mine, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)


def normalized(x, gamma, beta, axis, epsilon, mask):
    """Normalize in TensorFlow on any axis, with the exact count under a mask."""
    axes = [k for k in range(x.shape.rank) if k != axis % x.shape.rank]
    weights = tf.ones_like(x) if mask is None else tf.ones_like(x) * tf.expand_dims(mask, axis)
    count = tf.reduce_sum(weights, axes, keepdims=True)
    mean = tf.reduce_sum(weights * x, axes, keepdims=True) / count
    variance = tf.reduce_sum(weights * (x - mean) ** 2, axes, keepdims=True) / count
    gamma, beta = (tf.reshape(channels, count.shape) for channels in (gamma, beta))
    return gamma * (x - mean) * tf.math.rsqrt(variance + epsilon) + beta


def doubly_by_tapes(forward, x, gamma, beta, dy, upstream):
    """Differentiate the gradients of a forward pass once more, by a tape around a tape."""
    dy, x, gamma, beta = (tf.Variable(value) for value in (dy, x, gamma, beta))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            y = forward(x, gamma, beta)
        gradients = inner.gradient(y, [x, gamma, beta], output_gradients=dy)
        total = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(upstream, gradients, strict=True)])
    return [part.numpy() for part in outer.gradient(total, [dy, x, gamma])]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "axis"), EVERY_AXIS)
def test_double_backward_agrees_with_nested_tapes(rng, assert_close, shape, axis, masked):
    rest = np.delete(shape, axis)
    mask = rng.permutation(np.arange(np.prod(rest)) % 3 > 0).reshape(rest) if masked else None
    gamma, beta, ddgamma, ddbeta = rng.normal(size=(4, shape[axis]))
    x, dy, ddx = rng.normal(size=(3, *shape))
    weights = None if mask is None else mask.astype(float)
    wanted = doubly_by_tapes(
        lambda *values: normalized(*values, axis, 1e-3, weights),
        *(x, gamma, beta, dy, [ddx, ddgamma, ddbeta]),
    )
    _, cache = batch_norm_forward(x, gamma, beta, axis=axis, mask=mask)
    got = batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, cache)
    for mine, theirs in zip(got, wanted, strict=True):
        assert_close(mine, theirs, 1e-11)


def test_double_backward_agrees_with_nested_tapes_through_the_keras_layer(rng, assert_close):
    # With a mask: without one, Keras calls tf.nn.moments, which stops the gradient of the mean
    # inside the variance. The first derivative does not miss it, since it is zero; the second does.
    layer = keras_layer(rng, (8, 3), dtype="float64")
    gamma, beta = (weight.numpy() for weight in (layer.gamma, layer.beta))
    x, dy, ddx = rng.normal(size=(3, 8, 3))
    ddgamma, ddbeta = rng.normal(size=(2, 3))
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)

    def forward(x, gamma, beta):
        layer.gamma, layer.beta = gamma, beta
        return layer(x, training=True, mask=mask)

    wanted = doubly_by_tapes(forward, x, gamma, beta, dy, [ddx, ddgamma, ddbeta])
    _, cache = batch_norm_forward(x, gamma, beta, mask=mask)
    got = batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, cache)
    for mine, theirs in zip(got, wanted, strict=True):
        assert_close(mine, theirs, MASK_TOLERANCE)
