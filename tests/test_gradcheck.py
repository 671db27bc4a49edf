"""The judge itself: numerical gradients, relative error, and a check that names what fails."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit import batch_norm_backward, batch_norm_forward
from bnkit.gradcheck import check_gradients, numerical_gradient, relative_error


@given(degree=st.integers(0, 4), at=st.floats(-5, 5))
def test_numerical_gradient_is_exact_for_polynomials_of_degree_four(degree, at):
    got = numerical_gradient(lambda x: x**degree, [at], step=0.5)
    want = degree * at ** max(degree - 1, 0)
    np.testing.assert_allclose(got, [want], rtol=1e-11, atol=1e-11)


def test_numerical_gradient_converges_with_the_fourth_power_of_the_step():
    errors = [
        abs(numerical_gradient(np.sin, [0.3], step=h)[0] - np.cos(0.3)) for h in (0.4, 0.2, 0.1)
    ]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.05)


def test_numerical_gradient_of_a_linear_map_is_its_transpose(rng, assert_close):
    matrix, dy = rng.normal(size=(4, 6)), rng.normal(size=(4, 1))
    got = numerical_gradient(lambda x: matrix @ x, rng.normal(size=(6, 1)), dy)
    assert_close(got, matrix.T @ dy, 1e-11)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3), (0, 2)])
def test_numerical_gradient_has_the_shape_of_x_and_leaves_x_alone(rng, shape):
    x = rng.normal(size=shape)
    before = x.copy()
    got = numerical_gradient(np.square, x)
    assert got.shape == shape
    assert np.array_equal(x, before)
    np.testing.assert_allclose(got, 2 * x, rtol=1e-9, atol=1e-12)


def test_step_follows_the_size_of_large_entries():
    # A step of 1e-3 at 1e15 would not move the value at all.
    np.testing.assert_allclose(numerical_gradient(np.square, [1e15, 2.0]), [2e15, 4], rtol=1e-9)


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan])
def test_a_step_that_is_not_positive_is_refused(step):
    with pytest.raises(ValueError, match="step must be positive, got"):
        numerical_gradient(np.square, [1.0], step=step)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_relative_error_does_not_depend_on_scale(scale, seed):
    got, want = np.random.default_rng(seed).normal(size=(2, 3, 4))
    error = relative_error(got, want)
    assert error == pytest.approx(np.sqrt(np.sum((got - want) ** 2) / np.sum(want**2)), rel=1e-12)
    assert relative_error(scale * got, scale * want) == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([0.0, 0.0], [3.0, 4.0], 1),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([1e-30, 0.0], [0.0, 0.0], np.inf),
        ([np.nan, 0.0], [1.0, 0.0], np.nan),
        ([], [], 0),
    ],
)
def test_relative_error_at_its_corners(got, want, error):
    np.testing.assert_equal(relative_error(got, want), float(error))


def test_relative_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shape of want, \(2,\), got \(1,\)"):
        relative_error([1.0], [1.0, 2.0])


def product(a, b):
    return a * b


A, B, DY = np.array([1.0, 2.0, 3.0]), np.array([4.0, -5.0, 6.0]), np.array([1.0, 0.5, -2.0])


def test_right_gradients_pass_and_report_their_errors():
    errors = check_gradients(product, {"a": A, "b": B}, DY, {"a": DY * B, "b": DY * A})
    assert list(errors) == ["a", "b"]
    assert max(errors.values()) < 1e-11


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": DY * B, "b": DY * A + [0, 0, 0.1]}, r"gradient of b: .* worst at \(2,\): got -5.9"),
        ({"a": -DY * B}, r"gradient of a: relative error 2 is above 1e-08; .* got 12, want -12"),
        ({"a": DY * B * [1, np.nan, 1]}, r"gradient of a: .* worst at \(1,\): got nan, want -2.5"),
        ({"a": (DY * B)[:1]}, r"gradient of a: got shape \(1,\), want \(3,\)"),
    ],
    ids=["one entry", "sign", "not a number", "shape"],
)
def test_a_wrong_gradient_is_named(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_gradients(product, {"a": A, "b": B}, DY, wrong)


def test_tolerance_is_the_largest_error_that_passes():
    off = {"a": DY * B * (1 + 1e-5)}
    assert check_gradients(product, {"a": A, "b": B}, DY, off, tolerance=2e-5)["a"] > 9e-6
    with pytest.raises(AssertionError, match="above 5e-06"):
        check_gradients(product, {"a": A, "b": B}, DY, off, tolerance=5e-6)


@pytest.mark.parametrize("right", [True, False])
def test_an_upstream_that_tests_nothing_is_named(rng, right):
    """Of a constant dy a normalization passes nothing back: rounding was held against rounding."""
    x = rng.normal(size=(6, 2))
    dy = np.full_like(x, 3.0)
    _, cache = batch_norm_forward(x)
    dx = batch_norm_backward(dy, cache)[0] + (0 if right else 0.1)
    error, message = (
        (ValueError, "dy tests nothing about x: .* take one that varies")
        if right
        else (AssertionError, "gradient of x: relative error .* worst at")
    )
    with pytest.raises(error, match=message):
        check_gradients(lambda x: batch_norm_forward(x)[0], {"x": x}, dy, {"x": dx})


def test_a_gradient_without_an_input_is_refused():
    with pytest.raises(ValueError, match=r"gradients name 'c', .* \['a', 'b'\]"):
        check_gradients(product, {"a": A, "b": B}, DY, {"c": A})
