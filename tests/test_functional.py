"""What batch normalization is in mathematics: its output, its symmetries, its gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from bnkit.gradcheck import check_gradients

SHAPES = [(6, 3), (4, 2, 3), (2, 3, 4, 2), (2, 2, 3, 2, 3)]
EVERY_AXIS = [(shape, axis) for shape in SHAPES for axis in range(-len(shape), len(shape))]


def along(channels, axis, ndim):
    """One number a channel, shaped to broadcast along the axis."""
    return np.expand_dims(channels, [k for k in range(ndim) if k != axis % ndim])


@st.composite
def batches(draw):
    """A batch x of channels on its last axis, gamma, beta and an upstream gradient."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    m, channels = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    loc, scale = draw(st.floats(-50, 50)), draw(st.floats(0.1, 10))
    x, dy = rng.normal(loc, scale, (m, channels)), rng.normal(size=(m, channels))
    return x, rng.normal(size=channels), rng.normal(size=channels), dy


epsilons = st.sampled_from([0.0, 1e-5, 1e-3, 1.0])


def close(got, want, atol=1e-9):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=atol)


@pytest.mark.parametrize(("shape", "axis"), EVERY_AXIS)
def test_forward_is_its_definition_on_every_axis(rng, assert_close, shape, axis):
    x = rng.normal(3, 2, shape)
    gamma, beta = rng.normal(size=(2, shape[axis]))
    others = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    mean, variance = x.mean(others, keepdims=True), x.var(others, keepdims=True)
    x_hat = (x - mean) / np.sqrt(variance + 1e-3)
    y, cache = batch_norm_forward(x, gamma, beta, axis=axis)
    assert_close(y, x_hat * along(gamma, axis, x.ndim) + along(beta, axis, x.ndim))
    assert_close(cache.mean, mean.ravel())
    assert_close(cache.variance, variance.ravel())
    assert_close(cache.inv_std, 1 / np.sqrt(variance + 1e-3).ravel())
    assert_close(cache.x_hat, x_hat)


@given(batches(), epsilons)
def test_output_has_mean_beta_and_variance_gamma_squared_v_over_v_plus_epsilon(batch, epsilon):
    x, gamma, beta, _ = batch
    y, cache = batch_norm_forward(x, gamma, beta, epsilon=epsilon)
    close(y.mean(0), beta)
    close(y.var(0), gamma**2 * cache.variance / (cache.variance + epsilon))


@given(batches())
def test_gamma_of_the_standard_deviation_and_beta_of_the_mean_restore_the_input(batch):
    x, *_ = batch
    _, cache = batch_norm_forward(x)
    y, _ = batch_norm_forward(x, 1 / cache.inv_std, cache.mean)
    close(y, x)


@given(batches(), epsilons, st.floats(-100, 100))
def test_shift_of_the_input_changes_nothing(batch, epsilon, shift):
    x, gamma, beta, dy = batch
    y, cache = batch_norm_forward(x, gamma, beta, epsilon=epsilon)
    shifted_y, shifted_cache = batch_norm_forward(x + shift, gamma, beta, epsilon=epsilon)
    close(shifted_y, y)
    for got, want in zip(
        batch_norm_backward(dy, shifted_cache), batch_norm_backward(dy, cache), strict=True
    ):
        close(got, want, atol=1e-7)


@given(batches(), st.floats(0.01, 100), st.sampled_from([-1, 1]))
def test_without_epsilon_scale_changes_nothing_but_the_sign(batch, scale, sign):
    x, gamma, beta, dy = batch
    a = sign * scale
    y, cache = batch_norm_forward(x, gamma, beta, epsilon=0)
    scaled_y, scaled_cache = batch_norm_forward(a * x, gamma, beta, epsilon=0)
    close(scaled_y - beta, sign * (y - beta), atol=1e-8)
    dx, scaled_dx = batch_norm_backward(dy, cache)[0], batch_norm_backward(dy, scaled_cache)[0]
    close(scale * scaled_dx, dx, atol=1e-7)


@given(batches())
def test_order_of_the_rows_passes_through(batch):
    x, gamma, beta, dy = batch
    order = np.random.default_rng(len(x)).permutation(len(x))
    y, cache = batch_norm_forward(x, gamma, beta)
    permuted_y, permuted_cache = batch_norm_forward(x[order], gamma, beta)
    close(permuted_y, y[order])
    dx, dgamma, dbeta = batch_norm_backward(dy, cache)
    permuted_dx, *same = batch_norm_backward(dy[order], permuted_cache)
    close(permuted_dx, dx[order])
    close(same, [dgamma, dbeta])


def test_feature_maps_normalize_as_rows_of_all_their_positions(rng, assert_close):
    x, dy = rng.normal(2, 3, (2, 4, 5, 6, 3))
    gamma, beta = rng.normal(size=(2, 3))
    y, cache = batch_norm_forward(x, gamma, beta)
    dx, *dparameters = batch_norm_backward(dy, cache)
    row_y, row_cache = batch_norm_forward(x.reshape(-1, 3), gamma, beta)
    row_dx, *row_dparameters = batch_norm_backward(dy.reshape(-1, 3), row_cache)
    assert_close(y, row_y.reshape(x.shape))
    assert_close(dx, row_dx.reshape(x.shape))
    assert_close(dparameters, row_dparameters)

    to_nchw, to_nhwc = (0, 3, 1, 2), (0, 2, 3, 1)
    nchw_y, nchw_cache = batch_norm_forward(x.transpose(to_nchw), gamma, beta, axis=1)
    nchw_dx, *nchw_dparameters = batch_norm_backward(dy.transpose(to_nchw), nchw_cache)
    assert_close(nchw_y.transpose(to_nhwc), y)
    assert_close(nchw_dx.transpose(to_nhwc), dx)
    assert_close(nchw_dparameters, dparameters)


@given(batches(), st.integers(0, 10**6))
def test_mask_leaves_the_statistics_to_the_positions_that_count(batch, seed):
    x, gamma, beta, dy = batch
    mask = np.random.default_rng(seed).random(len(x)) < 0.6
    mask[0] = True
    y, cache = batch_norm_forward(x, gamma, beta, mask=mask)
    subset_y, subset_cache = batch_norm_forward(x[mask], gamma, beta)
    close(y[mask], subset_y)
    # The others are normalized by the same statistics.
    close(y, batch_norm_inference(x, subset_cache.mean, subset_cache.variance, gamma, beta))
    # Where only counted positions have an upstream gradient, the others get none.
    dx, dgamma, dbeta = batch_norm_backward(dy * mask[:, None], cache)
    subset_dx, *wanted = batch_norm_backward(dy[mask], subset_cache)
    close(dx[mask], subset_dx)
    close(dx[~mask], 0)
    close([dgamma, dbeta], wanted)


@given(batches())
def test_a_mask_that_is_true_everywhere_is_no_mask(batch):
    x, gamma, beta, dy = batch
    (y, cache), (masked_y, masked_cache) = (
        batch_norm_forward(x, gamma, beta, mask=mask) for mask in (None, np.ones(len(x), bool))
    )
    close(masked_y, y)
    for got, want in zip(
        batch_norm_backward(dy, masked_cache), batch_norm_backward(dy, cache), strict=True
    ):
        close(got, want)


@given(batches(), epsilons)
def test_backward_annihilates_constant_upstream(batch, epsilon):
    x, gamma, beta, _ = batch
    _, cache = batch_norm_forward(x, gamma, beta, epsilon=epsilon)
    dx, _, dbeta = batch_norm_backward(np.full_like(x, 3.0), cache)
    # x_hat is off by the rounding of the mean over the standard deviation, which dx is divided by.
    size = np.abs(x).max(0) * np.abs(gamma) * cache.inv_std**2 + 1
    close(dx / size, 0)
    close(dbeta, 3.0 * len(x))


@given(batches(), epsilons)
def test_dx_is_orthogonal_to_ones_and_to_x_hat_up_to_epsilon(batch, epsilon):
    x, gamma, beta, dy = batch
    _, cache = batch_norm_forward(x, gamma, beta, epsilon=epsilon)
    dx, dgamma, _ = batch_norm_backward(dy, cache)
    size = np.abs(dx).max() + 1
    close(dx.sum(0) / size, 0)
    remainder = gamma * cache.inv_std * dgamma * epsilon / (cache.variance + epsilon)
    close((dx * cache.x_hat).sum(0) / size, remainder / size)


def test_two_rows_without_epsilon_get_no_gradient(rng):
    _, cache = batch_norm_forward(rng.normal(size=(2, 4)), epsilon=0)
    close(batch_norm_backward(rng.normal(size=(2, 4)), cache)[0], 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "axis"), EVERY_AXIS)
def test_gradients_are_the_numerical_ones(rng, shape, axis, masked):
    inputs = {"x": rng.normal(1, 2, shape), "gamma": rng.normal(size=shape[axis])}
    inputs["beta"] = rng.normal(size=shape[axis])
    dy = rng.normal(size=shape)
    rest = shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :]
    mask = rng.permutation(np.arange(np.prod(rest)) % 3 > 0).reshape(rest) if masked else None

    def forward(x, gamma, beta):
        return batch_norm_forward(x, gamma, beta, axis=axis, epsilon=0.1, mask=mask)

    gradients = batch_norm_backward(dy, forward(**inputs)[1])
    check_gradients(
        lambda **values: forward(**values)[0],
        inputs,
        dy,
        dict(zip(inputs, gradients, strict=True)),
    )


@pytest.mark.parametrize(("shape", "axis"), EVERY_AXIS)
def test_inference_is_affine_and_its_gradients_are_the_numerical_ones(
    rng, assert_close, shape, axis
):
    mean, gamma, beta = rng.normal(size=(3, shape[axis]))
    variance, x, dy = rng.random(shape[axis]), rng.normal(size=shape), rng.normal(size=shape)

    def inference(x, gamma, beta):
        return batch_norm_inference(x, mean, variance, gamma, beta, axis=axis, epsilon=0.1)

    slope = gamma / np.sqrt(variance + 0.1)
    intercept = beta - mean * slope
    wanted = x * along(slope, axis, x.ndim) + along(intercept, axis, x.ndim)
    assert_close(inference(x, gamma, beta), wanted, 1e-12)
    gradients = batch_norm_inference_backward(dy, x, mean, variance, gamma, axis=axis, epsilon=0.1)
    inputs = {"x": x, "gamma": gamma, "beta": beta}
    check_gradients(inference, inputs, dy, dict(zip(inputs, gradients, strict=True)))


@given(batches(), epsilons)
def test_inference_with_the_moments_of_the_batch_is_the_forward_pass(batch, epsilon):
    x, gamma, beta, _ = batch
    y, cache = batch_norm_forward(x, gamma, beta, epsilon=epsilon)
    moments = cache.moments
    got = batch_norm_inference(x, moments.mean, moments.variance, gamma, beta, epsilon=epsilon)
    close(got, y)


def test_parameters_left_out_are_one_and_zero_and_have_no_gradient(rng):
    x, dy, ones, zeros = *rng.normal(size=(2, 6, 3)), np.ones(3), np.zeros(3)
    wanted, full = batch_norm_forward(x, ones, zeros)
    want_dx, *_ = batch_norm_backward(dy, full)
    for gamma, beta in [(None, None), (ones, None), (None, zeros)]:
        y, cache = batch_norm_forward(x, gamma, beta)
        dx, dgamma, dbeta = batch_norm_backward(dy, cache)
        close(y, wanted)
        close(dx, want_dx)
        assert (dgamma is None, dbeta is None) == (gamma is None, beta is None)
    dx, dgamma, _ = batch_norm_inference_backward(dy, x, zeros, ones)
    close(dx, batch_norm_inference_backward(dy, x, zeros, ones, ones)[0])
    assert dgamma is None
