"""One layer in place of a linear layer and the normalization beside it, against Keras."""

import keras
import numpy as np
import pytest

from bnkit.folding import fold_into_next, fold_into_previous, scale_and_shift
from bnkit.functional import batch_norm_inference
from bnkit.gradcheck import relative_error
from bnkit.keras.folding import fold_batch_norms, foldable_pairs

layers = keras.layers

# For each kind of layer: its class, its settings, and the shape of an input.
LINEAR = {
    "dense": (layers.Dense, {"units": 5}, (4, 3)),
    "dense on sequences": (layers.Dense, {"units": 5}, (4, 6, 3)),
    "conv 1-D": (layers.Conv1D, {"filters": 5, "kernel_size": 3}, (2, 7, 3)),
    "conv 2-D": (layers.Conv2D, {"filters": 5, "kernel_size": (3, 2)}, (2, 7, 6, 3)),
    "conv 3-D": (layers.Conv3D, {"filters": 5, "kernel_size": 2}, (2, 4, 3, 3, 3)),
    "strided": (layers.Conv2D, {"filters": 5, "kernel_size": 3, "strides": 2}, (2, 7, 6, 3)),
    "depthwise": (layers.DepthwiseConv2D, {"kernel_size": 3}, (2, 7, 6, 3)),
    "multiplied": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2},
        (2, 7, 6, 3),
    ),
}
AFTER_ONLY = {
    "padded": (layers.Conv2D, {"filters": 5, "kernel_size": 3, "padding": "same"}, (2, 7, 6, 3)),
    "in groups": (layers.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 3}, (2, 7, 6, 3)),
}
EVERY = LINEAR | AFTER_ONLY

NORM = {
    "all": {},
    "renorm": {"renorm": True},
    "without center": {"center": False},
    "without scale": {"scale": False},
    "neither, epsilon of PyTorch": {"center": False, "scale": False, "epsilon": 1e-5},
}


def randomize(rng, layer):
    layer.set_weights([rng.uniform(-1, 2, weight.shape) for weight in layer.weights])
    if isinstance(layer, layers.BatchNormalization):
        layer.moving_variance.assign(rng.uniform(0.01, 3, layer.moving_variance.shape))


def build(rng, stack, shape):
    model = keras.Sequential([keras.Input(shape[1:]), *stack])
    for layer in model.layers:
        randomize(rng, layer)
    return model


def of_norm(norm):
    weights = [norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta]
    arrays = [None if weight is None else weight.numpy() for weight in weights]
    return scale_and_shift(*arrays, epsilon=norm.epsilon)


def outputs(model, x):
    return model(x, training=False).numpy()


def assert_equal_in_float32(got, want):
    assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORM.values(), ids=NORM)
@pytest.mark.parametrize("linear", EVERY.values(), ids=EVERY)
def test_normalization_folds_into_the_layer_before_it(rng, linear, norm, bias):
    kind, settings, shape = linear
    stack = [kind(use_bias=bias, **settings), layers.BatchNormalization(**norm)]
    model = build(rng, stack, shape)
    folded = keras.Sequential([keras.Input(shape[1:]), kind(**settings)])
    kernel, bias = stack[0].kernel.numpy(), stack[0].bias
    depthwise = isinstance(stack[0], layers.DepthwiseConv2D)
    weights = fold_into_previous(
        kernel, None if bias is None else bias.numpy(), *of_norm(stack[1]), depthwise=depthwise
    )
    folded.set_weights(weights)
    assert [weight.dtype for weight in weights] == [np.float32, np.float32]
    x = rng.normal(size=shape).astype(np.float32)
    assert_equal_in_float32(outputs(folded, x), outputs(model, x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("linear", LINEAR.values(), ids=LINEAR)
def test_normalization_folds_into_the_layer_after_it(rng, linear, bias):
    kind, settings, shape = linear
    stack = [layers.BatchNormalization(), kind(use_bias=bias, **settings)]
    model = build(rng, stack, shape)
    folded = keras.Sequential([keras.Input(shape[1:]), kind(**settings)])
    depthwise = isinstance(stack[1], layers.DepthwiseConv2D)
    bias = stack[1].bias
    folded.set_weights(
        fold_into_next(
            stack[1].kernel.numpy(),
            None if bias is None else bias.numpy(),
            *of_norm(stack[0]),
            depthwise=depthwise,
        )
    )
    x = rng.normal(size=shape).astype(np.float32)
    assert_equal_in_float32(outputs(folded, x), outputs(model, x))


def test_zero_padding_comes_between_a_normalization_and_the_layer_after_it(rng):
    stack = [layers.BatchNormalization(), layers.Conv2D(5, 3, padding="same")]
    model = build(rng, stack, (2, 7, 6, 3))
    folded = keras.Sequential([keras.Input((7, 6, 3)), layers.Conv2D(5, 3, padding="same")])
    kernel, bias = stack[1].get_weights()
    folded.set_weights(fold_into_next(kernel, bias, *of_norm(stack[0])))
    x = rng.normal(size=(2, 7, 6, 3)).astype(np.float32)
    got, want = outputs(folded, x), outputs(model, x)
    assert_equal_in_float32(got[:, 1:-1, 1:-1], want[:, 1:-1, 1:-1])
    assert relative_error(got, want) > 0.01


def test_scale_and_shift_are_the_normalization(rng, assert_close):
    x = rng.normal(3, 2, (8, 3))
    mean, gamma, beta = rng.normal(size=(3, 3))
    variance = rng.uniform(0.01, 3, 3)
    scale, shift = scale_and_shift(mean, variance, gamma, beta, epsilon=1e-5)
    want = batch_norm_inference(x, mean, variance, gamma, beta, epsilon=1e-5)
    assert_close(scale * x + shift, want, 1e-14)


@pytest.mark.parametrize(("dtype", "wanted"), [("float16", "float16"), ("int32", "float32")])
def test_folded_weights_have_the_dtype_of_the_kernel(dtype, wanted):
    kernel, bias = fold_into_previous(np.ones((2, 3), dtype), None, np.ones(3), np.ones(3))
    assert kernel.dtype == bias.dtype == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [-1.0]), "variance must not be negative"),
        (([0.0], [1.0, 1.0]), r"variance must have shape \(1,\).*got \(2,\)"),
        (([[0.0]], [1.0]), r"mean must have shape \(1,\).*got \(1, 1\)"),
        (([0.0], [1.0], [1.0, 2.0]), r"gamma must have shape \(1,\)"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scale_and_shift(*arguments)


def test_a_vanishing_denominator_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        scale_and_shift([0.0], [0.0], epsilon=0.0)


@pytest.mark.parametrize("fold", [fold_into_previous, fold_into_next])
def test_weights_that_do_not_fit_are_refused(fold):
    kernel = np.ones((3, 3))
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\)"):
        fold(kernel, None, np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\)"):
        fold(kernel, np.ones(2), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="kernel must have rank 2 or more"):
        fold(np.ones(3), None, np.ones(3), np.ones(3))


def residual_network():
    """Two blocks with a short cut each; the last normalization follows a sum and must stay."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for stride in (1, 2):
        short = layers.Conv2D(4, 1, strides=stride, use_bias=False)(x)
        x = layers.Conv2D(4, 3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.Add()([layers.BatchNormalization()(x), layers.BatchNormalization()(short)])
    x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(5)(x))


def norms_left(model):
    return sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def test_a_residual_network_folds_to_the_same_outputs(rng):
    model = residual_network()
    for layer in model.layers:
        randomize(rng, layer)
    weights = model.get_weights()
    folded = fold_batch_norms(model)
    x = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    assert_equal_in_float32(outputs(folded, x), outputs(model, x))
    assert (norms_left(model), norms_left(folded)) == (7, 1)
    assert all(map(np.array_equal, model.get_weights(), weights))


def test_a_folded_model_has_weights_of_its_own(rng):
    model = build(rng, [layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)], (1, 4))
    folded = fold_batch_norms(model)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    before = outputs(folded, x)
    for layer in model.layers:
        randomize(rng, layer)
    assert np.array_equal(outputs(folded, x), before)


def shared_layer():
    dense, inputs = layers.Dense(3), keras.Input((3,))
    x = layers.BatchNormalization()(dense(inputs))
    return keras.Model(inputs, dense(x))


def read_twice():
    inputs = keras.Input((3,))
    x = layers.Dense(3)(inputs)
    return keras.Model(inputs, layers.Add()([x, layers.BatchNormalization()(x)]))


def is_an_output():
    inputs = keras.Input((3,))
    x = layers.Dense(3)(inputs)
    return keras.Model(inputs, [x, layers.BatchNormalization()(x)])


def nonlinear():
    stack = [layers.Dense(3, activation="relu"), layers.BatchNormalization()]
    return keras.Sequential([keras.Input((3,)), *stack])


def other_axis():
    stack = [layers.Dense(3), layers.BatchNormalization(axis=1)]
    return keras.Sequential([keras.Input((3, 3)), *stack])


@pytest.mark.parametrize("make", [shared_layer, read_twice, is_an_output, nonlinear, other_axis])
def test_what_cannot_be_folded_stays(make):
    assert foldable_pairs(make()) == []


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="must be built"):
        fold_batch_norms(keras.Sequential([layers.Dense(3)]))
