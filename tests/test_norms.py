"""Layer, group, instance and RMS normalization: definition, symmetries, gradients, arguments."""

import warnings
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit import batch_norm_backward, batch_norm_forward
from bnkit.gradcheck import check_gradients
from bnkit.norms import (
    group_norm_forward,
    instance_norm_forward,
    layer_norm_forward,
    norm_backward,
    rms_norm_forward,
)

SHAPES = [(5, 6), (4, 3, 6), (2, 3, 2, 6)]

# Each normalization for inputs with six channels on the last axis.
CENTRED = {
    "layer": layer_norm_forward,
    "group": partial(group_norm_forward, groups=3),
    "instance": instance_norm_forward,
}
NORMS = CENTRED | {"rms": rms_norm_forward}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
every_centred = pytest.mark.parametrize("norm", CENTRED.values(), ids=CENTRED)


def standardized(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def close(got, want, atol=1e-9):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (2, 0), (-1, 1, -2)])
def test_layer_norm_is_its_definition_over_one_axis_or_several(rng, assert_close, axis):
    x = rng.normal(3, 2, (2, 3, 4, 5))
    axes = sorted(np.atleast_1d(axis) % x.ndim)
    shape = [x.shape[k] for k in axes]
    gamma, beta = rng.normal(size=(2, *shape))
    y, cache = layer_norm_forward(x, gamma, beta, axis=axis, epsilon=0.1)
    x_hat = standardized(x, tuple(axes), 0.1)
    wide = [x.shape[k] if k in axes else 1 for k in range(x.ndim)]
    assert_close(y, x_hat * gamma.reshape(wide) + beta.reshape(wide))
    assert_close(cache.x_hat, x_hat)
    assert_close(cache.inv_std.squeeze(), 1 / np.sqrt(x.var(tuple(axes)) + 0.1))


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm_is_its_definition_group_by_group(rng, assert_close, axis, groups):
    x = np.moveaxis(rng.normal(3, 2, (2, 4, 3, 6)), -1, axis)
    gamma, beta = rng.normal(size=(2, 6))
    y, _ = group_norm_forward(x, gamma, beta, groups=groups, axis=axis, epsilon=0.1)
    parts = np.split(np.moveaxis(x, axis, -1), groups, axis=-1)
    x_hat = np.concatenate([standardized(part, (1, 2, 3), 0.1) for part in parts], axis=-1)
    assert_close(np.moveaxis(y, axis, -1), gamma * x_hat + beta)


def test_one_group_is_layer_norm_over_all_but_the_samples(rng, assert_close):
    x = rng.normal(3, 2, (2, 4, 3, 6))
    assert_close(group_norm_forward(x, groups=1)[0], layer_norm_forward(x, axis=(1, 2, 3))[0])


def test_a_group_for_each_channel_is_instance_norm(rng):
    x, gamma = rng.normal(3, 2, (2, 4, 3, 6)), rng.normal(size=6)
    assert np.array_equal(
        group_norm_forward(x, gamma, groups=6)[0], instance_norm_forward(x, gamma)[0]
    )


def test_instance_norm_of_one_sample_is_batch_norm(rng, assert_close):
    x, dy = rng.normal(3, 2, (2, 1, 4, 3, 6))
    gamma, beta = rng.normal(size=(2, 6))
    y, cache = instance_norm_forward(x, gamma, beta)
    wanted, batch_cache = batch_norm_forward(x, gamma, beta)
    assert_close(y, wanted)
    for got, want in zip(
        norm_backward(dy, cache), batch_norm_backward(dy, batch_cache), strict=True
    ):
        assert_close(got, want)


def test_layer_norm_is_batch_norm_of_the_transpose(rng, assert_close):
    x, dy = rng.normal(3, 2, (2, 5, 6))
    y, cache = layer_norm_forward(x)
    wanted, batch_cache = batch_norm_forward(x.T)
    assert_close(y, wanted.T)
    assert_close(norm_backward(dy, cache)[0], batch_norm_backward(dy.T, batch_cache)[0].T)


def test_rms_norm_is_its_definition(rng, assert_close):
    x, gamma = rng.normal(3, 2, (4, 3, 6)), rng.normal(size=6)
    y, cache = rms_norm_forward(x, gamma, epsilon=0.1)
    root = np.sqrt(np.mean(x**2, -1, keepdims=True) + 0.1)
    assert_close(y, gamma * x / root)
    assert_close(cache.x_hat, x / root)
    assert_close(cache.inv_std, 1 / root[..., 0])


def test_rms_norm_is_batch_norm_of_x_beside_its_mirror_image(rng, assert_close):
    x, dy = rng.normal(3, 2, (2, 4, 6))
    y, cache = rms_norm_forward(x, epsilon=0.1)
    both, mirror_cache = batch_norm_forward(np.hstack([x, -x]), axis=0, epsilon=0.1)
    assert_close(y, both[:, :6])
    dboth = batch_norm_backward(np.hstack([dy, 0 * dy]), mirror_cache)[0]
    assert_close(norm_backward(dy, cache)[0], dboth[:, :6] - dboth[:, 6:], 1e-12)


def test_rms_norm_of_centred_values_is_layer_norm(rng, assert_close):
    x = rng.normal(3, 2, (4, 6))
    x -= x.mean(-1, keepdims=True)
    assert_close(rms_norm_forward(x, epsilon=0.1)[0], layer_norm_forward(x, epsilon=0.1)[0])


# -- Symmetries ------------------------------------------------------------------------------


positive = st.floats(0.01, 100)


@every_norm
@given(seed=st.integers(0, 10**6), scale=positive, sign=st.sampled_from([-1, 1]))
def test_without_epsilon_scale_of_a_sample_changes_nothing_but_the_sign(norm, seed, scale, sign):
    rng = np.random.default_rng(seed)
    x, scales = rng.normal(3, 2, (4, 5, 6)), sign * scale * rng.uniform(1, 2, (4, 1, 1))
    close(norm(scales * x, epsilon=0.0)[0], sign * norm(x, epsilon=0.0)[0])


@every_centred
@given(seed=st.integers(0, 10**6), shift=st.floats(-100, 100))
def test_shift_of_a_sample_changes_nothing(norm, seed, shift):
    rng = np.random.default_rng(seed)
    x, shifts = rng.normal(3, 2, (4, 5, 6)), shift * rng.uniform(1, 2, (4, 1, 1))
    close(norm(x + shifts)[0], norm(x)[0])


def test_rms_norm_sees_a_shift(rng):
    x = rng.normal(size=(4, 6))
    assert np.abs(rms_norm_forward(x + 3)[0] - rms_norm_forward(x)[0]).max() > 0.5


def test_only_instance_norm_is_blind_to_contrast_and_brightness_of_each_channel(rng):
    x = rng.normal(size=(4, 5, 6))
    scale, shift = rng.uniform(0.5, 2, (4, 1, 6)), rng.normal(size=(4, 1, 6))
    change = {
        name: np.abs(norm(scale * x + shift, epsilon=0.0)[0] - norm(x, epsilon=0.0)[0]).max()
        for name, norm in NORMS.items()
    }
    assert change.pop("instance") < 1e-12
    assert min(change.values()) > 0.1


@every_norm
def test_a_sample_does_not_depend_on_its_batch_mates(rng, assert_close, norm):
    x, dy, gamma = rng.normal(size=(4, 5, 6)), rng.normal(size=(4, 5, 6)), rng.normal(size=6)
    (y, cache), (alone, alone_cache) = norm(x, gamma), norm(x[:1], gamma)
    assert_close(y[:1], alone)
    assert_close(norm_backward(dy, cache)[0][:1], norm_backward(dy[:1], alone_cache)[0])


# -- Gradients -------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_numerical_ones(rng, norm, shape):
    inputs = {"x": rng.normal(1, 2, shape), "gamma": rng.normal(size=6)}
    if norm is not rms_norm_forward:
        inputs["beta"] = rng.normal(size=6)
    dy = rng.normal(size=shape)
    gradients = norm_backward(dy, norm(**inputs, epsilon=0.1)[1])
    check_gradients(
        lambda **values: norm(**values, epsilon=0.1)[0],
        inputs,
        dy,
        dict(zip(inputs, gradients, strict=False)),  # RMS normalization has no beta
    )


@pytest.mark.parametrize("norm", [layer_norm_forward, rms_norm_forward])
@pytest.mark.parametrize("axis", [1, (1, 3), (0, 2)])
def test_gradients_over_other_axes_are_the_numerical_ones(rng, norm, axis):
    x, dy = rng.normal(1, 2, (2, 2, 3, 2, 4))
    gamma = rng.normal(size=[x.shape[k] for k in np.atleast_1d(axis)])
    dx, dgamma, _ = norm_backward(dy, norm(x, gamma, axis=axis, epsilon=0.1)[1])
    check_gradients(
        lambda x, gamma: norm(x, gamma, axis=axis, epsilon=0.1)[0],
        {"x": x, "gamma": gamma},
        dy,
        {"x": dx, "gamma": dgamma},
    )


@every_centred
def test_backward_annihilates_constant_upstream(rng, norm):
    _, cache = norm(rng.normal(3, 2, (4, 5, 6)))
    close(norm_backward(np.full((4, 5, 6), 3.0), cache)[0], 0)


@every_norm
def test_without_epsilon_dx_is_orthogonal_to_x_within_each_sample(rng, norm):
    x, dy, gamma = *rng.normal(3, 2, (2, 4, 5, 6)), rng.normal(size=6)
    dx = norm_backward(dy, norm(x, gamma, epsilon=0.0)[1])[0]
    close(np.sum(dx * x, axis=(1, 2)), 0, atol=1e-11)


@every_norm
def test_parameters_left_out_are_one_and_zero_and_have_no_gradient(rng, norm):
    x, dy = rng.normal(size=(2, 4, 5, 6))
    y, cache = norm(x)
    dx, *none = norm_backward(dy, cache)
    assert none == [None, None]
    full, full_cache = norm(x, np.ones(6))
    assert np.array_equal(y, full)
    assert np.array_equal(dx, norm_backward(dy, full_cache)[0])


# -- Arrays ----------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtype_of_the_input_comes_back_and_parameters_get_the_compute_dtype(
    rng, assert_close, norm, dtype
):
    x, dy = (rng.normal(1, 2, (4, 5, 6)).astype(dtype) for _ in range(2))
    gamma = rng.normal(size=6)
    y, cache = norm(x, gamma)
    dx, dgamma, _ = norm_backward(dy, cache)
    assert y.dtype == dx.dtype == np.dtype(dtype)
    assert dgamma.dtype == np.result_type(dtype, np.float32)
    exact, exact_cache = norm(x.astype(np.float64), gamma)
    exact_dx, exact_dgamma, _ = norm_backward(dy.astype(np.float64), exact_cache)
    assert_close(y, exact)
    assert_close(dx, exact_dx)
    assert_close(dgamma, exact_dgamma)


@every_norm
def test_integers_become_float32(rng, assert_close, norm):
    x = rng.integers(0, 255, (4, 5, 6))
    y, _ = norm(x)
    assert y.dtype == np.float32
    assert_close(y, norm(x.astype(np.float64))[0])


def test_a_large_mean_costs_no_accuracy_in_float32(rng, assert_close):
    x = (1e4 + rng.normal(size=(8, 64))).astype(np.float32)
    assert_close(layer_norm_forward(x)[0], layer_norm_forward(x.astype(np.float64))[0])


@every_norm
@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_own_set_without_a_warning(rng, norm, wild):
    x, dy, gamma = *rng.normal(size=(2, 4, 5, 6)), rng.normal(size=6)
    calm_y, calm_cache = norm(x, gamma)
    calm_dx = norm_backward(dy, calm_cache)[0]
    x = x.copy()
    x[2, 1, 3] = wild
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, cache = norm(x, gamma)
        dx = norm_backward(dy, cache)[0]
    others = np.arange(4) != 2
    assert np.array_equal(y[others], calm_y[others])
    assert np.array_equal(dx[others], calm_dx[others])
    assert not np.all(np.isfinite(dx[2]))


@every_norm
def test_results_go_where_out_says_and_the_input_stays_as_it_was(rng, norm):
    x, dy, gamma = *rng.normal(size=(2, 4, 5, 6)), rng.normal(size=6)
    kept = x.copy()
    wanted, cache = norm(x, gamma)
    wanted_dx = norm_backward(dy, cache)[0]
    out = np.empty_like(x)
    y, cache = norm(x, gamma, out=out)
    assert y is out
    assert np.array_equal(y, wanted)
    assert norm_backward(dy, cache, out=dy)[0] is dy
    assert np.array_equal(dy, wanted_dx)
    assert np.array_equal(x, kept)


@every_norm
def test_any_layout_in_memory_gives_the_same_contiguous_result(rng, assert_close, norm):
    x = rng.normal(size=(4, 5, 6))
    wanted = norm(x)[0]
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        y, _ = norm(view)
        assert y.flags.c_contiguous
        assert_close(y, wanted)


@every_norm
def test_no_samples_give_no_results(norm):
    y, cache = norm(np.zeros((0, 5, 6)), np.ones(6))
    dx, dgamma, _ = norm_backward(np.zeros((0, 5, 6)), cache)
    assert y.shape == dx.shape == (0, 5, 6)
    assert np.array_equal(dgamma, np.zeros(6))


def test_the_cache_cannot_be_changed(rng):
    _, cache = layer_norm_forward(rng.normal(size=(4, 6)))
    with pytest.raises(AttributeError):
        cache.centred = False


# -- Errors ----------------------------------------------------------------------------------

X = np.ones((4, 5, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_norm_forward([1.0]), r"x must have rank 2 or more.*\(1,\)"),
        (lambda: layer_norm_forward(X, axis=3), r"axis must lie in \[-3, 3\).*got 3"),
        (lambda: layer_norm_forward(X, axis=(1, -2)), r"different axes, got \(1, -2\)"),
        (lambda: layer_norm_forward(X, axis=()), r"one or more different axes, got \(\)"),
        (lambda: layer_norm_forward(X, np.ones(5)), r"gamma must have shape \(6,\).*got \(5,\)"),
        (
            lambda: layer_norm_forward(X, None, np.ones((6, 5)), axis=(1, 2)),
            r"beta must have shape \(5, 6\).*axes \(1, 2\), got \(6, 5\)",
        ),
        (lambda: layer_norm_forward(X, epsilon=-1), "epsilon must be finite and not negative"),
        (lambda: layer_norm_forward(np.ones((4, 0))), r"nothing to average: got x .*\(4, 0\)"),
        (lambda: layer_norm_forward(X, out=np.ones((4, 5))), r"out must have shape \(4, 5, 6\)"),
        (lambda: layer_norm_forward(X, out=X), "out must not overlap x"),
        (lambda: group_norm_forward(X, groups=4), r"groups must divide the 6 channels.*got 4"),
        (lambda: group_norm_forward(X, groups=0), r"groups must divide the 6 channels.*got 0"),
        (lambda: group_norm_forward(X), r"groups must divide the 6 channels.*got 32"),
        (lambda: group_norm_forward(X, groups=3, axis=-3), "axis must not be the first.*got -3"),
        (lambda: instance_norm_forward(X, axis=0), "axis must not be the first.*got 0"),
        (lambda: rms_norm_forward(X, np.ones(4)), r"gamma must have shape \(6,\).*got \(4,\)"),
        (
            lambda: norm_backward(np.ones((4, 5)), rms_norm_forward(X)[1]),
            r"dy must have the shape of x, \(4, 5, 6\), got \(4, 5\)",
        ),
        (
            lambda: norm_backward(X, rms_norm_forward(X)[1], out=X),
            "out must not overlap x",
        ),
    ],
)
def test_values_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_norm_forward(X * 1j), "x must hold real numbers, got dtype complex128"),
        (lambda: layer_norm_forward(X, np.array(["a"] * 6)), "gamma must hold real numbers"),
        (lambda: layer_norm_forward(X, axis=1.0), "axis must be an integer, got 1.0"),
        (lambda: group_norm_forward(X, groups=2.0), "groups must be an integer, got 2.0"),
        (lambda: norm_backward(X * 1j, rms_norm_forward(X)[1]), "dy must hold real numbers"),
    ],
)
def test_types_that_do_not_fit_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()
