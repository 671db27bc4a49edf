"""The second derivative: the gradient of the backward pass itself."""

import numpy as np
import pytest

from bnkit import batch_norm_backward, batch_norm_double_backward, batch_norm_forward
from bnkit.gradcheck import check_gradients

SHAPES = [(6, 3), (4, 2, 3), (2, 3, 4, 2)]
EVERY_AXIS = [(shape, axis) for shape in SHAPES for axis in range(-len(shape), len(shape))]


def problem(rng, shape, axis=-1, *, masked=False):
    """Return inputs of the backward pass, gradients of what it returns, and a mask or None."""
    axis %= len(shape)
    rest = shape[:axis] + shape[axis + 1 :]
    mask = rng.permutation(np.arange(np.prod(rest)) % 3 > 0).reshape(rest) if masked else None
    inputs = {"dy": rng.normal(size=shape), "x": rng.normal(1, 2, shape)}
    inputs["gamma"] = rng.normal(size=shape[axis])
    upstream = [rng.normal(size=shape), *rng.normal(size=(2, shape[axis]))]
    return inputs, upstream, mask


def backward(dy, x, gamma, **options):
    """All that the backward pass returns, in one vector."""
    _, cache = batch_norm_forward(x, gamma, np.zeros_like(gamma), **options)
    return np.concatenate([np.ravel(part) for part in batch_norm_backward(dy, cache)])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "axis"), EVERY_AXIS)
def test_double_backward_is_the_numerical_gradient_of_backward(rng, shape, axis, masked):
    inputs, upstream, mask = problem(rng, shape, axis, masked=masked)
    options = {"axis": axis, "epsilon": 0.1, "mask": mask}
    _, cache = batch_norm_forward(inputs["x"], inputs["gamma"], **options)
    gradients = batch_norm_double_backward(*upstream, inputs["dy"], cache)
    check_gradients(
        lambda **values: backward(**values, **options),
        inputs,
        np.concatenate([np.ravel(part) for part in upstream]),
        dict(zip(inputs, gradients, strict=True)),
    )


@pytest.mark.parametrize("masked", [False, True])
def test_double_backward_is_linear_in_what_reaches_it(rng, assert_close, masked):
    inputs, upstream, mask = problem(rng, (6, 3), masked=masked)
    _, cache = batch_norm_forward(inputs["x"], inputs["gamma"], mask=mask)

    def double(*parts):
        return np.vstack(batch_norm_double_backward(*parts, inputs["dy"], cache))

    zero = np.zeros((6, 3))
    apart = [
        double(upstream[0], None, None),
        double(zero, upstream[1], None),
        double(zero, None, upstream[2]),
    ]
    assert_close(sum(apart), double(*upstream), 1e-12)
    assert_close(double(*(3 * part for part in upstream)), 3 * double(*upstream), 1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_to_dy_is_the_transpose_of_backward(rng, masked):
    # Backward is linear in dy: <upstream, backward(dy)> = <transpose(upstream), dy>.
    inputs, upstream, mask = problem(rng, (6, 3), masked=masked)
    _, cache = batch_norm_forward(inputs["x"], inputs["gamma"], np.zeros(3), mask=mask)
    returned = batch_norm_backward(inputs["dy"], cache)
    d_dy, _, _ = batch_norm_double_backward(*upstream, inputs["dy"], cache)
    wanted = sum(np.sum(a * b) for a, b in zip(upstream, returned, strict=True))
    assert np.sum(d_dy * inputs["dy"]) == pytest.approx(wanted, rel=1e-12)


def test_gradient_to_x_does_not_see_a_shift_of_x(rng):
    inputs, upstream, _ = problem(rng, (6, 3))
    _, cache = batch_norm_forward(inputs["x"], inputs["gamma"])
    _, d_x, _ = batch_norm_double_backward(*upstream, inputs["dy"], cache)
    np.testing.assert_allclose(d_x.sum(0), 0, atol=1e-13)


def test_without_gamma_it_is_gamma_one_and_has_no_gradient(rng, assert_close):
    inputs, upstream, _ = problem(rng, (6, 3))
    _, plain = batch_norm_forward(inputs["x"])
    _, one = batch_norm_forward(inputs["x"], np.ones(3))
    *got, d_gamma = batch_norm_double_backward(*upstream, inputs["dy"], plain)
    *wanted, _ = batch_norm_double_backward(*upstream, inputs["dy"], one)
    assert_close(got, wanted)
    assert d_gamma is None
