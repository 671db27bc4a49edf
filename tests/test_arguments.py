"""Errors name the argument, what came and what was wanted."""

import re

import ml_dtypes
import numpy as np
import pytest

from bnkit import (
    batch_moments,
    batch_norm_backward,
    batch_norm_double_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from bnkit.arguments import compute_dtype, output_dtype, sum_dtype

X = np.arange(12.0).reshape(4, 3)
ONES = np.ones(3)
READ_ONLY = np.broadcast_to(1.0, (4, 3))
CACHE = batch_norm_forward(X, ONES, ONES)[1]

forward = batch_norm_forward


def inference(x=X, mean=ONES, variance=ONES, gamma=ONES, beta=ONES, **options):
    return batch_norm_inference(x, mean, variance, gamma, beta, **options)


def inference_backward(dy=X, x=X, mean=ONES, variance=ONES, gamma=ONES, **options):
    return batch_norm_inference_backward(dy, x, mean, variance, gamma, **options)


def double_backward(ddx=X, ddgamma=ONES, ddbeta=ONES, dy=X):
    return batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, CACHE)


def shift_x(by):
    """Run forward with an out that overlaps x by all rows but some."""
    buffer = np.ones((5, 3))
    return forward(buffer[:4], out=buffer[by : by + 4])


TAKE_X = {
    "forward": forward,
    "inference": lambda x, **options: inference(x, **options),
    "inference_backward": lambda x, **options: inference_backward(x=x, **options),
    "batch_moments": batch_moments,
}
TAKE_EPSILON = [name for name in TAKE_X if name != "batch_moments"]


@pytest.mark.parametrize("call", TAKE_X.values(), ids=TAKE_X)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_rank_below_two_is_refused(call, shape):
    with pytest.raises(ValueError, match=r"x must have rank 2 or more.*got shape ") as error:
        call(np.ones(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("call", TAKE_X.values(), ids=TAKE_X)
@pytest.mark.parametrize("axis", [2, -3, 100])
def test_axis_out_of_range_is_refused(call, axis):
    wanted = f"axis must lie in [-2, 2) for x of rank 2, got {axis}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        call(X, axis=axis)


@pytest.mark.parametrize("call", TAKE_X.values(), ids=TAKE_X)
@pytest.mark.parametrize("axis", [1.0, "1", None, (0, 1)])
def test_axis_that_is_no_integer_is_refused(call, axis):
    with pytest.raises(TypeError, match=re.escape(f"axis must be an integer, got {axis!r}")):
        call(X, axis=axis)


@pytest.mark.parametrize("name", TAKE_EPSILON)
@pytest.mark.parametrize("epsilon", [-1e-9, np.inf, -np.inf, np.nan])
def test_epsilon_that_is_negative_or_not_finite_is_refused(name, epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite and not negative, got ") as error:
        TAKE_X[name](X, epsilon=epsilon)
    assert str(epsilon) in str(error.value)


@pytest.mark.parametrize("name", TAKE_EPSILON)
@pytest.mark.parametrize("epsilon", ["0.1", None, 1j, [1e-3]])
def test_epsilon_that_is_no_number_is_refused(name, epsilon):
    wanted = re.escape(f"epsilon must be a number, got {epsilon!r}")
    with pytest.raises(TypeError, match=wanted):
        TAKE_X[name](X, epsilon=epsilon)


SHAPES = {
    "gamma": lambda value: forward(X, gamma=value),
    "beta": lambda value: forward(X, beta=value),
    "mean of inference": lambda value: inference(mean=value),
    "variance of inference": lambda value: inference(variance=value),
    "gamma of inference": lambda value: inference(gamma=value),
    "beta of inference": lambda value: inference(beta=value),
    "mean of inference_backward": lambda value: inference_backward(mean=value),
    "variance of inference_backward": lambda value: inference_backward(variance=value),
    "gamma of inference_backward": lambda value: inference_backward(gamma=value),
    "ddgamma of double_backward": lambda value: double_backward(ddgamma=value),
    "ddbeta of double_backward": lambda value: double_backward(ddbeta=value),
}


@pytest.mark.parametrize("argument", SHAPES)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 3), (0,)])
def test_a_vector_of_channels_must_have_their_shape(argument, shape):
    name = argument.split()[0]
    wanted = rf"^{name} must have shape \(3,\).* got {re.escape(str(shape))}$"
    with pytest.raises(ValueError, match=wanted):
        SHAPES[argument](np.ones(shape))


GRADIENTS = {
    "dy of backward": lambda value: batch_norm_backward(value, CACHE),
    "dy of inference_backward": lambda value: inference_backward(dy=value),
    "ddx of double_backward": lambda value: double_backward(ddx=value),
    "dy of double_backward": lambda value: double_backward(dy=value),
}


@pytest.mark.parametrize("argument", GRADIENTS)
@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (3, 4), (4, 3, 1)])
def test_an_upstream_gradient_must_have_the_shape_of_x(argument, shape):
    name = argument.split()[0]
    wanted = rf"^{name} must have the shape of x, \(4, 3\), got {re.escape(str(shape))}$"
    with pytest.raises(ValueError, match=wanted):
        GRADIENTS[argument](np.ones(shape))


REAL = {"x": forward} | SHAPES | GRADIENTS


@pytest.mark.parametrize("argument", REAL)
@pytest.mark.parametrize("dtype", ["complex128", "object", "<U4", "datetime64[s]", "V4"])
def test_values_that_are_not_real_numbers_are_refused(argument, dtype):
    name = argument.split()[0]
    value = np.zeros((4, 3) if argument == "x" or argument in GRADIENTS else 3, dtype)
    wanted = f"{name} must hold real numbers, got dtype {np.dtype(dtype)}"
    with pytest.raises(TypeError, match=f"^{re.escape(wanted)}$"):
        REAL[argument](value)


class Measured(np.ndarray):
    """An array with a unit, as astropy and unyt make them."""

    unit = "m"


class Tracked:
    """A tensor that a framework takes gradients of; NumPy would see its values only."""

    requires_grad = True

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        return self.value


ANNOTATED = {
    "mask": (lambda value: np.ma.masked_array(value, value == value.flat[0]), "masked entries"),
    "unit": (lambda value: value.view(Measured), "without a unit, got Measured"),
    "gradients": (Tracked, r"require gradients.*\.detach\(\)"),
}


@pytest.mark.parametrize("argument", [*REAL, "mask of forward"])
@pytest.mark.parametrize("kind", ANNOTATED)
def test_what_more_than_numbers_an_argument_carries_is_not_dropped_in_silence(argument, kind):
    """np.asarray leaves out masks and units; the result would be that of other values."""
    value = np.ones((4, 3) if argument == "x" or argument in GRADIENTS else 3)
    take = REAL.get(argument, lambda value: forward(X, mask=value))
    annotate, wanted = ANNOTATED[kind]
    if argument == "mask of forward":
        value = np.ones(4, bool)
    with pytest.raises(TypeError, match=f"^{argument.split()[0]} must .*{wanted}"):
        take(annotate(value))


def test_arrays_of_other_kinds_are_taken_for_their_numbers(tmp_path):
    """Without masked entries a masked array is nothing but its data."""
    stored = np.memmap(tmp_path / "x", "float64", "w+", shape=X.shape)
    stored[:] = X
    for x in (stored, np.ma.masked_array(X), X.tolist()):
        np.testing.assert_array_equal(forward(x)[0], forward(X)[0])


def test_what_numpy_makes_no_array_of_is_refused_by_name():
    """NumPy's own error does not say which argument it was."""
    with pytest.raises(ValueError, match=r"^x must hold an array of numbers: "):
        forward([[1.0], [2.0, 3.0]])

    class Symbolic:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no value yet")

    with pytest.raises(TypeError, match=r"^gamma must hold real numbers, got Symbolic: no value"):
        forward(X, gamma=Symbolic())


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4"])
def test_narrow_integers_give_float32(dtype):
    """[[0], [3]] as uint4 gave [0, 0]: the result was rounded back to integers."""
    x = np.array([[0], [1]], getattr(ml_dtypes, dtype))
    y, cache = forward(x, epsilon=0.0)
    assert y.dtype == cache.mean.dtype == np.float32
    np.testing.assert_allclose(y, [[-1], [1]], rtol=1e-6)
    assert inference(x, ONES[:1], ONES[:1], None, None).dtype == np.float32


@pytest.mark.parametrize("call", TAKE_X.values(), ids=TAKE_X)
@pytest.mark.parametrize("axis", [[1], (-1,)])
def test_a_list_of_one_axis_is_that_axis(call, axis):
    """Keras 2 writes the axis of its layer so."""
    call(X, axis=axis)
    with pytest.raises(TypeError, match="axis must be an integer, got"):
        call(X, axis=[0, 1])


TAKE_MASK = {"forward": forward, "batch_moments": batch_moments}


@pytest.mark.parametrize("call", TAKE_MASK.values(), ids=TAKE_MASK)
@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 3)])
def test_a_mask_has_the_shape_of_x_without_the_channels(call, shape):
    wanted = "mask must have the shape of x without the channel axis, (4,), got " + str(shape)
    with pytest.raises(ValueError, match=re.escape(wanted)):
        call(X, mask=np.ones(shape, bool))


@pytest.mark.parametrize("call", TAKE_MASK.values(), ids=TAKE_MASK)
@pytest.mark.parametrize("dtype", ["float64", "complex128", "object"])
def test_a_mask_holds_booleans(call, dtype):
    with pytest.raises(TypeError, match=f"mask must hold booleans, got dtype {dtype}"):
        call(X, mask=np.ones(4, dtype))


@pytest.mark.parametrize("call", TAKE_MASK.values(), ids=TAKE_MASK)
def test_nothing_to_average_is_refused(call):
    with pytest.raises(ValueError, match=r"nothing to average: got x of shape \(0, 3\)"):
        call(np.ones((0, 3)))
    with pytest.raises(ValueError, match=r"nothing to average: got x of shape \(4, 0, 3\)"):
        call(np.ones((4, 0, 3)))
    with pytest.raises(ValueError, match="nothing to average: got a mask that is False everywhere"):
        call(X, mask=np.zeros(4, bool))


@pytest.mark.parametrize("call", [inference, inference_backward])
def test_negative_variance_is_refused_but_zero_and_nan_are_not(call):
    with pytest.raises(ValueError, match=r"variance must not be negative, got a minimum of -0\.5"):
        call(variance=[1.0, -0.5, np.nan])
    call(variance=[1.0, 0.0, np.nan])


TAKE_OUT = {
    "forward": lambda out: forward(X, out=out),
    "backward": lambda out: batch_norm_backward(X, CACHE, out=out),
    "inference": lambda out: inference(out=out),
}


@pytest.mark.parametrize("call", TAKE_OUT.values(), ids=TAKE_OUT)
def test_out_must_fit_the_result(call):
    wanted = "out must have shape (4, 3) and dtype float64, got "
    with pytest.raises(ValueError, match=re.escape(wanted + "(3, 4) and float64")):
        call(np.empty((3, 4)))
    with pytest.raises(ValueError, match=re.escape(wanted + "(4, 3) and float32")):
        call(np.empty((4, 3), np.float32))
    with pytest.raises(ValueError, match="out must be writeable, got a read-only array"):
        call(READ_ONLY)
    with pytest.raises(TypeError, match="out must be a NumPy array, got list"):
        call(X.tolist())


def test_out_must_not_overlap_an_x_that_backward_still_reads():
    for by in (0, 1):
        with pytest.raises(ValueError, match="out must not overlap x"):
            shift_x(by)
    with pytest.raises(ValueError, match="out must not overlap x"):
        batch_norm_backward(np.ones((4, 3)), CACHE, out=X[::-1])


@pytest.mark.parametrize(
    ("dtype", "computed", "summed", "returned"),
    [
        ("bool", "float32", "float64", "float32"),
        ("int64", "float32", "float64", "float32"),
        ("float16", "float32", "float64", "float16"),
        ("float32", "float32", "float64", "float32"),
        ("float64", "float64", "float64", "float64"),
        ("longdouble", "longdouble", "longdouble", "longdouble"),
    ],
)
def test_dtypes_widen_to_compute_and_to_sum(dtype, computed, summed, returned):
    got = compute_dtype(dtype), sum_dtype(dtype), output_dtype(dtype)
    assert got == (np.dtype(computed), np.dtype(summed), np.dtype(returned))
