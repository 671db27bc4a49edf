"""Mean and variance: of a batch, merged, moving, of a population."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit import Moments, batch_moments, merge_moments, moving_average, population_moments

LARGE_MEANS = [(0, 1), (1e3, 1), (1e3, 1e-2), (1e4, 1), (3e5, 10)]


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_moments_average_over_every_axis_but_the_channels(rng, assert_close, rank):
    x = rng.normal(3, 2, (3, 4, 5, 2, 6)[:rank])
    for axis in range(-rank, rank):
        rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        moments = batch_moments(x, axis)
        assert moments.count == len(rows)
        assert moments.mean.dtype == moments.variance.dtype == np.float64
        assert_close(moments.mean, rows.mean(0))
        assert_close(moments.variance, rows.var(0))


@pytest.mark.parametrize(("mean", "std"), LARGE_MEANS)
@pytest.mark.parametrize("axis", [0, 1])
def test_moments_of_float32_keep_their_digits_at_a_large_mean(rng, assert_close, mean, std, axis):
    x = rng.normal(mean, std, (4096, 8)).astype(np.float32)
    exact = x.astype(np.float64)
    moments = batch_moments(x.T if axis == 0 else x, axis)
    assert np.all(abs(moments.mean - exact.mean(0)) <= 3e-8 * exact.std(0))
    assert_close(moments.variance, exact.var(0), 1e-7)


def test_moments_outlive_the_rounding_of_their_own_sum(rng, assert_close):
    # Sums of 5000 values near 1e15 round by hundreds; the deviations are small integers.
    deviations = rng.integers(0, 9, (5000, 4)).astype(np.float64)
    moments = batch_moments(1e15 + deviations)
    assert_close(moments.mean - 1e15, deviations.mean(0), 0.05)  # 1e15 itself is known to 0.125
    assert_close(moments.variance, deviations.var(0), 1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4])
@pytest.mark.parametrize("m", [1, 3, 1000])
def test_variance_of_a_constant_is_exactly_zero(dtype, value, m):
    moments = batch_moments(np.full((m, 2), value, dtype))
    assert np.array_equal(moments.mean, np.full(2, dtype(value), np.float64))
    assert np.array_equal(moments.variance, [0, 0])


def test_sums_of_float16_pass_its_largest_number():
    moments = batch_moments(np.full((3, 2), [[60000.0], [61024.0], [62048.0]], np.float16))
    assert np.array_equal(moments.mean, np.float64(np.float16([61024, 61024])))
    assert np.all(np.isfinite(moments.variance))
    assert np.all(moments.variance > 1e5)


@given(seed=st.integers(0, 10**6), shift=st.floats(-1e3, 1e3), scale=st.floats(-100, 100))
def test_affine_map_moves_the_mean_and_scales_the_variance(seed, shift, scale):
    x = np.random.default_rng(seed).normal(size=(7, 3))
    before, after = batch_moments(x), batch_moments(scale * x + shift)
    np.testing.assert_allclose(after.mean, scale * before.mean + shift, rtol=0, atol=1e-10)
    np.testing.assert_allclose(after.variance, scale**2 * before.variance, rtol=1e-9, atol=1e-18)


@given(seed=st.integers(0, 10**6), axis=st.integers(-3, 2))
def test_masked_moments_are_those_of_the_positions_that_count(seed, axis):
    rng = np.random.default_rng(seed)
    x = rng.normal(5, 3, (4, 3, 2))
    rows = np.moveaxis(x, axis, -1)
    mask = rng.random(rows.shape[:-1]) < 0.5
    mask.flat[0] = True
    masked, subset = batch_moments(x, axis, mask), batch_moments(rows[mask])
    assert masked.count == subset.count == mask.sum()
    np.testing.assert_allclose(masked.mean, subset.mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(masked.variance, subset.variance, rtol=1e-13, atol=1e-14)


def test_masked_positions_may_hold_anything(rng):
    x = rng.normal(size=(4, 2))
    hidden = np.vstack([x, [[np.nan, np.inf]]])
    masked, plain = batch_moments(hidden, mask=[1, 1, 1, 1, 0]), batch_moments(x)
    np.testing.assert_allclose(masked.mean, plain.mean)
    np.testing.assert_allclose(masked.variance, plain.variance)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    mean=st.sampled_from([0.0, 1e3, 1e8]),
    seed=st.integers(0, 10**6),
)
def test_moments_merged_from_any_split_are_those_of_the_whole(sizes, mean, seed):
    x = np.random.default_rng(seed).normal(mean, 1, (sum(sizes), 3))
    parts = np.split(x, np.cumsum(sizes)[:-1])
    merged, whole = merge_moments(batch_moments(part) for part in parts), batch_moments(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-15, atol=1e-14)
    # x itself is rounded to 1e-8 of its spread at mean 1e8, and so is each part's mean.
    np.testing.assert_allclose(merged.variance, whole.variance, rtol=1e-6 if mean else 1e-12)


@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize("split", [(4,), (2, 2)])
def test_population_variance_is_unbiased_for_independent_rows(between, split):
    # Not a simulation: every sample of four values is drawn once, so the mean is the expectation.
    population = np.array([0.0, 1.0, 5.0])
    estimates = []
    for sample in product(population, repeat=4):
        rows = np.array(sample)[:, None]
        parts = [batch_moments(part) for part in np.split(rows, np.cumsum(split)[:-1])]
        estimates.append(population_moments(parts, between=between))
    mean = np.mean([estimate.mean for estimate in estimates])
    variance = np.mean([estimate.variance for estimate in estimates])
    np.testing.assert_allclose([mean, variance], [population.mean(), population.var()], rtol=1e-13)


def test_population_variance_by_simulation_is_within_five_standard_errors(rng):
    estimates = np.array(
        [
            population_moments(
                [batch_moments(rng.normal(2, 3, (m, 50))) for m in (2, 3, 7)], between=between
            ).variance
            for between in (True, False)
            for _ in range(40)
        ]
    ).reshape(2, -1)
    standard_error = estimates.std(axis=1) / np.sqrt(estimates.shape[1])
    assert np.all(abs(estimates.mean(axis=1) - 9) < 5 * standard_error)
    assert np.all(standard_error < 0.15)  # small enough to tell 9 from the biased 9 * 11 / 12


def test_only_the_variance_between_batches_sees_rows_that_agree_within_a_batch():
    batches = [batch_moments(np.full((4, 1), value)) for value in (0.0, 2.0)]
    assert population_moments(batches, between=False).variance == 0
    np.testing.assert_allclose(population_moments(batches).variance, 8 / 7)


def test_population_variance_of_the_paper_is_bessel_times_the_mean_of_variances(rng, assert_close):
    batches = [batch_moments(rng.normal(size=(6, 2))) for _ in range(5)]
    wanted = 6 / 5 * np.mean([batch.variance for batch in batches], axis=0)
    assert_close(population_moments(batches, between=False).variance, wanted)


def test_unbiased_variance_divides_by_one_less(rng, assert_close):
    x = rng.normal(size=(6, 3))
    assert_close(batch_moments(x).unbiased_variance, x.var(0, ddof=1))


@given(momentum=st.floats(0, 1), steps=st.integers(0, 200))
def test_moving_average_keeps_momentum_to_the_t_of_its_first_value(momentum, steps):
    moving = np.array([3.0, -1.0])
    for _ in range(steps):
        moving = moving_average(moving, [5.0, 5.0], momentum)
    wanted = 5 + momentum**steps * (np.array([3.0, -1.0]) - 5)
    np.testing.assert_allclose(moving, wanted, rtol=1e-12)


@pytest.mark.parametrize("momentum", [-0.01, 1.01, np.nan])
def test_momentum_outside_the_unit_interval_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got"):
        moving_average(0.0, 1.0, momentum)


def test_momentum_of_pytorchs_cumulative_average_is_refused_by_name():
    with pytest.raises(TypeError, match=r"momentum must be a number.*None.*population_moments"):
        moving_average(0.0, 1.0, None)


@pytest.mark.parametrize("between", [True, False])
def test_empty_parts_add_nothing(between):
    """As a device has them that got no examples; they made every mean NaN."""
    empty = Moments(0, np.full(1, np.nan), np.full(1, np.nan))
    parts = [batch_moments([[0.0], [2.0]]), batch_moments([[4.0], [9.0]])]
    for order in ([empty, *parts], [*parts, empty]):
        assert merge_moments(order).mean == merge_moments(parts).mean
        got, wanted = (population_moments(each, between=between) for each in (order, parts))
        assert (got.count, got.variance) == (wanted.count, wanted.variance)
    with pytest.raises(ValueError, match="parts must hold a count above 0"):
        merge_moments([empty])


@pytest.mark.parametrize("merge", [merge_moments, population_moments])
def test_parts_that_cannot_be_merged_are_refused(merge):
    with pytest.raises(ValueError, match="parts must hold at least one Moments, got none"):
        merge([])
    parts = [batch_moments(np.ones((2, channels))) for channels in (2, 3)]
    with pytest.raises(ValueError, match=r"equal shapes, got \[\(2,\), \(3,\)\]"):
        merge(parts)


def test_single_values_have_no_unbiased_variance():
    one = Moments(1, np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="count 2 or more, got 1"):
        _ = one.unbiased_variance
    with pytest.raises(ValueError, match="count 2 or more, got 1"):
        population_moments([one])
    with pytest.raises(ValueError, match="between=False needs a batch of 2 values or more"):
        population_moments([one, one], between=False)
