"""The kernels against the readable definition: every layout, dtype and hard input."""

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bnkit
from bnkit import batch_moments, batch_norm_backward, batch_norm_forward, merge_moments
from bnkit.gradcheck import relative_error

FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(x, dy, gamma, beta, axis=-1, epsilon=1e-3):
    y, cache = batch_norm_forward(x, gamma, beta, axis=axis, epsilon=epsilon)
    dx, dgamma, dbeta = batch_norm_backward(dy, cache)
    arguments = cache.moments.mean, cache.moments.variance, gamma
    inferred = bnkit.batch_norm_inference(x, *arguments, beta, axis=axis, epsilon=epsilon)
    others = bnkit.batch_norm_inference_backward(dy, x, *arguments, axis=axis, epsilon=epsilon)
    names = ["y", "dx", "dgamma", "dbeta", "inferred", "idx", "idgamma", "idbeta"]
    return dict(zip(names, (y, dx, dgamma, dbeta, inferred, *others), strict=True))


# Rows that do and do not fill blocks; one channel, many, a wide row; short and long planes.
LAYOUTS = [
    ((9, 1), -1),
    ((33, 3), -1),
    ((60, 100), -1),
    ((1001, 7), -1),
    ((70001, 5), -1),
    ((300, 999), -1),
    ((40, 20000), -1),
    ((3, 200000), -1),
    ((7, 9, 11, 64), -1),
    ((30, 12, 13, 17), 1),
    ((5, 48, 30, 31), 1),
    ((3, 2, 700, 701), 1),
    ((2, 300, 9, 8), 1),
    ((64, 33, 2), 1),
    ((17, 5000), 0),
    ((3, 5, 7, 11, 13), 2),
]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_kernels_are_the_definition_on_every_layout(
    rng, backend, by_definition, assert_close, shape, axis, dtype
):
    x, dy = rng.normal(1, 2, shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, shape[axis]))
    got, want = (f(x, dy, gamma, beta, axis) for f in (run, by_definition))
    for name, value in got.items():
        assert_close(value, want[name], 1e-6 if value.dtype == np.float32 else None)


@given(
    st.integers(0, 10**9),
    st.sampled_from([0.0, 1.0, 1e2, 1e4, 3e5]),
    st.sampled_from([1e-2, 0.1, 0.6, 1.0, 10.0]),
    st.sampled_from([(257, 3), (4096, 5), (40, 3, 100), (4, 2, 5000), (30000, 5), (8, 3, 7000)]),
    st.sampled_from(["normal", "relu", "coarse", "two values", "outlier", "sorted"]),
)
@settings(FIXTURES, max_examples=150)
def test_no_float32_input_makes_an_error_above_the_rounding(
    backend, by_definition, seed, mean, std, shape, kind
):
    rng = np.random.default_rng(seed)
    x = rng.normal(mean, std, shape)
    if kind == "relu":
        x = np.maximum(x, mean)
    elif kind == "coarse":
        x = np.round(x, 1)
    elif kind == "two values":
        x = mean + std * (rng.random(shape) < 0.1)
    elif kind == "outlier":
        x.flat[0] += 1000 * std
    elif kind == "sorted":
        x = np.sort(x, axis=0)
    x, dy = x.astype(np.float32), rng.normal(size=shape).astype(np.float32)
    channels = shape[1]
    gamma, beta = rng.normal(size=(2, channels))
    got, want = (f(x, dy, gamma, beta, 1) for f in (run, by_definition))
    # The constants of a channel are rounded once, by up to 6e-8 each, and nothing averages that out
    # where one channel, or one value, outweighs the others: 3.4e-7 was the most in 6,400 examples.
    assert relative_error(got["y"], want["y"]) <= 4e-7
    # A dy that the statistics absorb leaves nothing but rounding: it is judged against dy.
    size = np.linalg.norm(want["dx"]) + 1e-2 * np.linalg.norm(want["idx"])
    assert np.linalg.norm(got["dx"] - want["dx"]) <= 4e-7 * size


TABLE = [(0, 1), (1e3, 1), (1e3, 1e-2), (1e4, 1), (1e4, 1e-1), (3e5, 10)]


@pytest.mark.parametrize(("mean", "std"), TABLE)
@pytest.mark.parametrize("count", [4096, 262144])
@pytest.mark.parametrize("axis", [1, -1])
def test_float32_is_right_to_2e_7_whatever_the_mean(
    rng, backend, by_definition, mean, std, count, axis
):
    shape = (count // 64, 4, 64) if axis == 1 else (count, 4)
    x = rng.normal(mean, std, shape).astype(np.float32)
    dy = rng.normal(size=shape).astype(np.float32)
    ones = np.ones(4)
    got, want = (f(x, dy, ones, 0 * ones, axis) for f in (run, by_definition))
    for name in ("y", "dx", "inferred", "idx"):
        assert relative_error(got[name], want[name]) <= 2e-7, name


def test_float16_sums_pass_65504(rng, backend, by_definition, assert_close):
    x = rng.uniform(2e4, 6e4, (40000, 3)).astype(np.float16)
    dy = rng.uniform(1e3, 2e3, x.shape).astype(np.float16)
    ones = np.ones(3)
    got, want = (f(x, dy, ones, ones) for f in (run, by_definition))
    assert want["dbeta"].min() > 65504
    assert all(np.isfinite(value).all() for value in got.values())
    for name, value in got.items():
        # In dgamma nearly all of a dy with a large mean cancels.
        assert_close(value, want[name], 2e-5 if value.dtype == np.float32 else None)


def ulps(got, want):
    return abs(got - want) / np.spacing(abs(float(want)))


ADVERSARIAL = {
    "large mean": lambda rng, n: 1e8 + rng.normal(size=n),
    "coarse": lambda rng, n: 1e6 + rng.integers(0, 9, n) / 8,
    "growing": lambda rng, n: np.exp(rng.normal(0, 8, n)),
    "one outlier": lambda rng, n: np.append(rng.normal(5, 1, n - 1), 1e9),
    "tenths": lambda rng, n: 0.1 * (1 + (np.arange(n) % 3)),
    "falling": lambda rng, n: 1 / np.arange(1, n + 1),
    "tiny spread": lambda rng, n: 1 + 1e-12 * rng.normal(size=n),
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("count", [100, 4096, 50001])
@pytest.mark.parametrize("axis", [-1, 0])
def test_float64_moments_are_right_to_4_ulp(rng, backend, kind, count, axis):
    values = ADVERSARIAL[kind](rng, count)
    columns = np.stack([values, values[::-1], rng.permutation(values)], axis=1)
    moments = batch_moments(columns if axis == -1 else np.ascontiguousarray(columns.T), axis)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(float(v)) for v in values]
        mean = mpmath.fsum(exact) / count
        variance = mpmath.fsum((v - mean) ** 2 for v in exact) / count
        mean_ulps = [ulps(m, mean) for m in moments.mean]
        variance_ulps = [ulps(v, variance) for v in moments.variance]
    assert max(mean_ulps) <= 4
    assert max(variance_ulps) <= 4


@given(st.integers(0, 10**9), st.lists(st.integers(1, 3000), min_size=1, max_size=6))
@settings(FIXTURES)
def test_merged_moments_of_any_split_are_those_of_one_shot(backend, seed, sizes):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(0, 100), 1, (sum(sizes), 3))
    parts = np.split(x, np.cumsum(sizes)[:-1])
    merged, whole = merge_moments(map(batch_moments, parts)), batch_moments(x)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=8 * np.spacing(100))
    np.testing.assert_allclose(merged.variance, whole.variance, rtol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize(
    ("shape", "axis"), [((50000, 6), -1), ((40, 6, 300), 1), ((60, 6), -1), ((2000, 6), -1)]
)
def test_a_poisoned_channel_keeps_to_itself_to_the_last_bit(rng, backend, poison, shape, axis):
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    ones = np.ones(6)
    clean = run(x, dy, ones, ones, axis)
    index = [3] * len(shape)
    index[axis] = 1
    x[tuple(index)] = poison
    got = run(x, dy, ones, ones, axis)
    keep = [0, 2, 3, 4, 5]
    for name in got:
        channels = 0 if got[name].ndim == 1 else axis
        same = [np.take(values[name], keep, channels) for values in (got, clean)]
        if np.isfinite(poison):  # its constants do not fit into float32: all is float64 then
            np.testing.assert_allclose(*same, rtol=1e-5, atol=1e-6)
        else:
            assert np.array_equal(*same), name


def test_dead_and_constant_channels_become_beta(backend):
    x = np.zeros((5000, 4), np.float32)
    x[:, 1], x[:, 2] = 0.1, -1e4
    x[:, 3] = np.arange(5000)
    beta = np.array([0.5, -2.0, 3.0, 0.0])
    y, cache = batch_norm_forward(x, None, beta)
    assert np.array_equal(cache.moments.variance[:3], [0, 0, 0])
    assert np.array_equal(y[:, :3], np.broadcast_to(beta[:3], (5000, 3)).astype(np.float32))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e36])
def test_squares_beyond_float32_do_no_harm(rng, backend, by_definition, scale):
    x = (rng.normal(size=(3000, 3)) * scale).astype(np.float32)
    dy, ones = rng.normal(size=x.shape).astype(np.float32), np.ones(3)
    got, want = (f(x, dy, ones, ones, -1, 0.0) for f in (run, by_definition))
    for name in ("y", "dx", "inferred"):
        assert relative_error(got[name], want[name]) <= 2e-7, name
