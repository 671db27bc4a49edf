"""Each cell of the table of conventions says what the framework does, found by running it."""

import dataclasses

import numpy as np
import pytest

from bnkit.conventions import Convention

pytestmark = [
    pytest.mark.peers,
    # What frameworks warn of while they are imported and built is their own affair.
    pytest.mark.filterwarnings("ignore"),
]


def shape_of_rank(rank, axis, channels=3):
    shape = [2] * rank
    shape[axis] = channels
    return tuple(shape)


def batch(rng, rank, axis):
    return rng.normal(0.5, 3.0, shape_of_rank(rank, axis)).astype(np.float32)


def other_axes(x, axis):
    return tuple(k for k in range(x.ndim) if k != axis % x.ndim)


# One function a cell: found_epsilon finds the cell "epsilon", and so on.


def found_epsilon(convention, adapter, rng):
    """From y² = x² / (v + ε), of values ±0.01, for which v = x²."""
    x = np.array([[0.01], [-0.01]], np.float32)
    epsilon = float(((x / adapter()(x, training=True).y) ** 2 - x**2)[0, 0])
    return pytest.approx(epsilon, rel=1e-3)


def found_momentum(convention, adapter, rng):
    return adapter().momentum


def found_momentum_weighs(convention, adapter, rng):
    """A batch of mean 1 moves a moving mean of 0 to the weight of the new value."""
    layer = adapter()
    x = np.array([[0.0], [2.0]], np.float32)
    moved = layer(x, training=True).mean[0]
    assert min(abs(moved - layer.momentum), abs(1 - moved - layer.momentum)) < 1e-6
    return "new" if abs(moved - layer.momentum) < 1e-6 else "old"


def found_unbiased_ranks(convention, adapter, rng):
    """Which of the two variances moves the moving variance away from its start, rank by rank."""
    new = 1 - convention.weight_of_old(convention.momentum)
    unbiased = []
    for rank in (2, 3, 4, 5):
        x = batch(rng, rank, convention.axis)
        stored = (adapter()(x, training=True).variance - (1 - new)) / new
        axes = other_axes(x, convention.axis)
        biased, corrected = (x.astype(float).var(axes, ddof=ddof) for ddof in (0, 1))
        is_biased, is_corrected = (np.allclose(stored, v, rtol=1e-4) for v in (biased, corrected))
        assert is_biased != is_corrected
        unbiased += [rank] * is_corrected
    return tuple(unbiased)


def found_initial_variance(convention, adapter, rng):
    if "input_var" in adapter().arguments:
        return None
    mode = None if convention.default_mode == "inference" else False
    return adapter()(np.ones((2, 3), np.float32), training=mode).variance.min()


def found_axis(convention, adapter, rng):
    length = len(adapter()(np.ones((2, 3, 4, 5), np.float32), training=True).mean)
    return {3: 1, 5: -1}[length]


def half(adapter):
    """The output for ±300, whose squares are more than float16 holds."""
    return adapter()(np.array([[300], [-300]], np.float16), training=True).y


def found_half_computed_in(convention, adapter, rng):
    return "float32" if abs(half(adapter)[0, 0] - 1) < 1e-2 else "float16"


def found_half_returned_as(convention, adapter, rng):
    return half(adapter).dtype.name


def found_mask(convention, adapter, rng):
    return "mask" in adapter().arguments


def found_freezing(convention, adapter, rng):
    layer = adapter()
    if not hasattr(layer, "freeze"):
        return None
    layer.freeze()
    moved = layer(batch(rng, 2, convention.axis), training=True).mean.any()
    return "gradients only" if moved else "inference mode"


def found_default_mode(convention, adapter, rng):
    x = batch(rng, 2, convention.axis)
    try:
        y = adapter()(x).y
    except ValueError:
        return "must be said"
    by_batch, by_start = (adapter()(x, training=mode).y for mode in (True, False))
    assert not np.allclose(by_batch, by_start)
    return "training" if np.array_equal(y, by_batch) else "inference"


def found_one_value(convention, adapter, rng):
    x = np.full((1, 2), 5.0, np.float32)
    try:
        y = adapter()(x, training=True).y
    except ValueError:
        return "error"
    assert np.array_equal(y, np.zeros_like(x))  # beta starts at 0
    return "beta"


CELLS = [field.name for field in dataclasses.fields(Convention) if field.name != "name"]


@pytest.mark.parametrize("cell", CELLS)
def test_cell_is_what_the_framework_does(peer, rng, cell):
    convention, adapter = peer
    assert globals()[f"found_{cell}"](convention, adapter, rng) == getattr(convention, cell)


@pytest.mark.parametrize("rank", [2, 4])
def test_layer_of_a_convention_is_the_layer_of_the_framework(peer, rng, assert_close, rank):
    convention, adapter = peer
    layer, twin = adapter(), convention.layer(3)
    for _ in range(3):
        x = batch(rng, rank, convention.axis)
        run = layer(x, training=True)
        assert_close(run.y, twin(x, training=True), 1e-4)
    assert_close(run.mean, twin.moving_mean, 1e-4)
    assert_close(run.variance, twin.moving_variance, 1e-4)
    assert_close(layer(x, training=False).y, twin(x), 1e-4)
