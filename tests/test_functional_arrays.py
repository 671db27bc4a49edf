"""The same functions as seen by arrays: dtypes, digits, layouts, out, memory, NaN and inf."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from bnkit import (
    batch_norm_backward,
    batch_norm_double_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)

bfloat16 = np.dtype(ml_dtypes.bfloat16)
LARGE_MEANS = [(0, 1), (1e3, 1), (1e3, 1e-2), (1e4, 1), (3e5, 10)]


def everything(x, dy, **options):
    """Results of all five functions for one input, by name."""
    channels = x.shape[-1]
    gamma, beta = np.linspace(0.5, 2, channels), np.linspace(-1, 1, channels)
    y, cache = batch_norm_forward(x, gamma, beta, **options)
    moments = cache.moments
    gradients = batch_norm_backward(dy, cache)
    double = batch_norm_double_backward(dy[::-1], gamma, beta, dy, cache)
    inferred = batch_norm_inference(x, moments.mean, moments.variance, gamma, beta)
    inferred_gradients = batch_norm_inference_backward(dy, x, moments.mean, moments.variance, gamma)
    names = ["y", "dx", "dgamma", "dbeta", "d_dy", "d_x", "d_gamma", "inferred y"]
    names += [f"inferred {name}" for name in ("dx", "dgamma", "dbeta")]
    results = (y, *gradients, *double, inferred, *inferred_gradients)
    return dict(zip(names, results, strict=True))


@pytest.mark.parametrize(
    ("given", "computed", "returned"),
    [
        ("float16", "float32", "float16"),
        (bfloat16, "float32", bfloat16),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        (">f4", "float32", ">f4"),
        ("int64", "float32", "float32"),
        ("uint8", "float32", "float32"),
        ("bool", "float32", "float32"),
    ],
)
def test_results_have_the_dtype_of_x_and_parameters_the_compute_dtype(
    rng, assert_close, given, computed, returned
):
    x = (rng.normal(1, 3, (50, 3)) > 0.5) if given == "bool" else rng.normal(9, 3, (50, 3))
    x, dy = x.astype(given), rng.normal(size=(50, 3)).astype(returned)
    wanted = everything(x.astype(np.float64), dy.astype(np.float64))
    for name, got in everything(x, dy).items():
        per_channel = name.endswith(("gamma", "beta"))
        assert got.dtype == np.dtype(computed if per_channel else returned), name
        assert_close(got, wanted[name])
    cache = batch_norm_forward(x)[1]
    dtypes = {getattr(cache, name).dtype for name in ("mean", "variance", "inv_std", "x_hat")}
    assert dtypes == {np.dtype(computed)}


@pytest.mark.parametrize(("mean", "std"), LARGE_MEANS)
@pytest.mark.parametrize("shape", [(20000, 4), (8, 50, 50, 4)])
def test_float32_is_as_good_as_float64_at_a_large_mean(rng, assert_close, mean, std, shape):
    x, dy = rng.normal(mean, std, shape).astype(np.float32), rng.normal(size=shape)
    dy = dy.astype(np.float32)
    mask = rng.random(shape[:-1]) < 0.8
    for options in ({}, {"mask": mask}):
        wanted = everything(x.astype(np.float64), dy.astype(np.float64), **options)
        for name, got in everything(x, dy, **options).items():
            # In dgamma the terms cancel, and each was rounded to float32.
            assert_close(got, wanted[name], 2e-6 if name.endswith("gamma") else 2e-7)


def test_float16_sums_pass_its_largest_number(rng, assert_close):
    x = rng.uniform(2e4, 6e4, (4096, 2)).astype(np.float16)
    dy = (x / 30 + rng.uniform(0, 1e3, x.shape)).astype(np.float16)
    got, wanted = everything(x, dy), everything(x.astype(float), dy.astype(float))
    assert min(wanted["dbeta"].min(), wanted["dgamma"].min()) > 65504
    for name in ("y", "dx", "dgamma", "dbeta"):
        assert_close(got[name], wanted[name])


@pytest.mark.parametrize("scale", [1e37, 1e-30])
def test_float32_of_any_scale_normalizes_like_that_of_scale_one(rng, assert_close, scale):
    x, dy = rng.normal(2, 3, (2, 50, 3)).astype(np.float32)
    y, cache = batch_norm_forward(x, epsilon=0)
    scaled_y, scaled_cache = batch_norm_forward(x * np.float32(scale), epsilon=0)
    assert_close(scaled_y, y)
    # float32 cannot hold such a variance, and says so without a warning.
    assert np.all(scaled_cache.variance == (np.inf if scale > 1 else 0))
    dx = batch_norm_backward(dy * np.float32(scale), scaled_cache)[0]
    assert_close(dx, batch_norm_backward(dy, cache)[0])


def test_sums_beyond_float32_are_infinite_without_a_warning(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    results = everything(x, np.full((6, 2), 3e38, np.float32))
    assert np.all(np.isinf(results["dbeta"]))
    assert np.all(np.isinf(results["inferred dbeta"]))


def test_results_beyond_float32_are_infinite_without_a_warning(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    y, cache = batch_norm_forward(x, gamma=np.full(2, 1e60))
    assert np.array_equal(y, np.copysign(np.inf, cache.x_hat))
    infinite = np.full(2, np.inf)
    assert np.all(np.isnan(batch_norm_inference(x + infinite, infinite, infinite)))


LAYOUTS = {
    "column-major": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "every other": lambda x: np.repeat(x, 2, axis=0)[::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "nested lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_in_memory_does_not_matter(rng, assert_close, layout):
    x, dy = rng.normal(size=(2, 12, 5))
    y, cache = batch_norm_forward(x)
    got_y, got_cache = batch_norm_forward(layout(x))
    assert_close(got_y, y)
    assert_close(batch_norm_backward(layout(dy), got_cache)[0], batch_norm_backward(dy, cache)[0])


def test_zero_strides_and_read_only_arrays_are_read(rng):
    column = rng.normal(size=(12, 1))
    wide, dy = np.broadcast_to(column, (12, 5)), np.broadcast_to(rng.normal(size=5), (12, 5))
    assert not wide.flags.writeable
    wanted = everything(wide.copy(), dy.copy())
    for name, got in everything(wide, dy).items():
        # dy is constant, so that some of them are zero but for rounding.
        np.testing.assert_allclose(got, wanted[name], rtol=1e-13, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", bfloat16, "float32", "float64", ">f4", "int32"])
def test_out_receives_what_would_have_been_returned(rng, dtype):
    x = rng.normal(3, 9, (8, 4)).astype(dtype)
    gamma, beta, dy = rng.normal(size=4), rng.normal(size=4), rng.normal(size=(8, 4))
    y, cache = batch_norm_forward(x, gamma, beta)
    out = np.empty_like(y)
    for call, wanted in [
        (lambda: batch_norm_forward(x, gamma, beta, out=out)[0], y),
        (lambda: batch_norm_backward(dy, cache, out=out)[0], batch_norm_backward(dy, cache)[0]),
        (
            lambda: batch_norm_inference(x, cache.mean, cache.variance, gamma, beta, out=out),
            batch_norm_inference(x, cache.mean, cache.variance, gamma, beta),
        ),
    ]:
        assert call() is out
        assert np.array_equal(out, wanted)


def test_backward_may_overwrite_dy_and_inference_x(rng):
    x, dy = rng.normal(size=(2, 8, 4)).astype(np.float32)
    before = x.copy(), dy.copy()
    _, cache = batch_norm_forward(x)
    dx = batch_norm_backward(dy, cache)[0]
    y = batch_norm_inference(x, cache.mean, cache.variance)
    assert np.array_equal([x, dy], before)  # without out, no input is written on
    assert np.array_equal(batch_norm_backward(dy, cache, out=dy)[0], dx)
    assert np.array_equal(dy, dx)
    assert np.array_equal(batch_norm_inference(x, cache.mean, cache.variance, out=x), y)
    assert np.array_equal(x, y)


def test_out_may_share_a_buffer_with_x_where_they_do_not_overlap(rng):
    both = rng.normal(size=(8, 6))
    x, out = both[:, :3], both[:, 3:]
    wanted, _ = batch_norm_forward(x.copy())
    assert np.array_equal(batch_norm_forward(x, out=out)[0], wanted)


def peak(call):
    """Bytes that a call had allocated at most, and bytes that its result still holds."""
    tracemalloc.start()
    result = call()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return most, held


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_no_float64_copy_of_a_float32_input_is_made(axis, masked):
    x = np.ones((64, 128, 64), np.float32)
    mask = np.ones(np.delete(x.shape, axis), bool) if masked else None
    out, dy = np.empty_like(x), np.ones_like(x)
    _, cache = batch_norm_forward(x, axis=axis, mask=mask)
    assert cache.x is x
    most, held = peak(lambda: batch_norm_forward(x, axis=axis, mask=mask, out=out))
    assert most < 1.3 * x.nbytes  # x - mean, in float32
    assert held < 0.1 * x.nbytes  # the cache adds a mask and vectors of channels
    most, _ = peak(lambda: batch_norm_backward(dy, cache))
    assert most < (3.3 if masked else 2.3) * x.nbytes
    most, _ = peak(lambda: batch_norm_inference(x, cache.mean, cache.variance, axis=axis))
    assert most < 1.3 * x.nbytes


@pytest.mark.parametrize("options", [{}, {"mask": [1, 1, 0, 1, 1, 1]}], ids=["all", "masked"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e300])
def test_channels_do_not_meddle_with_each_other(rng, poison, options):
    x, dy = rng.normal(size=(2, 6, 4))
    wanted = everything(x, dy, **options)
    x[3, 1], dy[1, 2] = poison, poison
    for name, got in everything(x, dy, **options).items():
        assert np.array_equal(got[..., [0, 3]], wanted[name][..., [0, 3]]), name
    if not abs(poison) < np.inf:
        y, cache = batch_norm_forward(x)
        assert np.all(np.isnan(y[:, 1]))
        assert np.isfinite([cache.mean[2], cache.variance[2]]).all()


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_channel_becomes_beta_and_has_no_gradient_in_gamma(rng, m, dtype):
    x, dy = np.full((m, 2), 0.3, dtype), rng.normal(size=(m, 2)).astype(dtype)
    gamma, beta = np.array([[2.0, 3.0], [-0.5, 0.25]])
    y, cache = batch_norm_forward(x, gamma, beta)
    dx, dgamma, _ = batch_norm_backward(dy, cache)
    assert np.array_equal(y, np.broadcast_to(beta, x.shape))
    assert np.array_equal(dgamma, [0, 0])
    wanted = gamma / np.sqrt(1e-3) * (dy - dy.mean(0))
    np.testing.assert_allclose(dx, wanted, rtol=1e-5, atol=1e-5)


def test_no_channels_give_empty_results():
    for got in everything(np.ones((5, 0)), np.ones((5, 0))).values():
        assert got.size == 0


def test_inference_of_an_empty_batch_is_empty_and_its_gradients_are_zero():
    x, channels = np.ones((0, 3), np.float32), np.ones(3)
    assert batch_norm_inference(x, channels, channels, channels, channels).shape == (0, 3)
    dx, dgamma, dbeta = batch_norm_inference_backward(x, x, channels, channels, channels)
    assert dx.shape == (0, 3)
    assert np.array_equal([dgamma, dbeta], np.zeros((2, 3)))
