"""Conventions and converters, as far as NumPy alone can hold them to account."""

import numpy as np
import pytest

from bnkit.conventions import (
    CONVENTIONS,
    CS231N,
    KERAS,
    TORCH,
    convert,
    to_biased,
    to_unbiased,
)

FORMATS = ["keras", "torch", "flax", "onnx"]


@pytest.fixture
def weights(rng):
    """Weights in Keras's format, in float32."""
    return [*rng.uniform(0.5, 2.0, (4, 3)).astype(np.float32)]


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_there_and_back_gives_the_same_bits(weights, source, target):
    first = convert(weights, "keras", source)
    back = convert(convert(first, source, target), target, source)
    assert str(back) == str(first)
    again = convert(back, source, "keras")
    assert all(np.array_equal(a, b) for a, b in zip(again, weights, strict=True))
    assert {array.dtype for array in again} == {np.dtype(np.float32)}


def test_what_is_converted_is_a_copy(weights):
    before = weights[0].copy()
    convert(weights, "keras", "keras")[0][:] = 7
    assert np.array_equal(weights[0], before)


@pytest.mark.parametrize("steps", [1, 5, 300])
def test_variance_is_corrected_exactly_for_a_known_count(rng, assert_close, steps):
    """Two layers that differ in the variance they store, trained on the same batches."""
    biased = KERAS.layer(3, dtype="float64")
    unbiased = KERAS.layer(3, dtype="float64", unbiased_ranks=(2,))
    for x in rng.normal(2.0, 3.0, (steps, 5, 3)):
        biased(x, training=True)
        unbiased(x, training=True)
    start = biased.momentum**steps
    corrected = convert(biased.get_weights(), "keras", "torch", count=5, start=start)
    assert_close(corrected["running_var"], unbiased.moving_variance, 1e-12)
    back = convert(corrected, "torch", "keras", count=5, start=start)
    assert_close(back[3], biased.moving_variance, 1e-12)
    assert not np.allclose(biased.moving_variance, unbiased.moving_variance, rtol=1e-3)


def test_without_a_count_the_variance_stays(weights):
    assert np.array_equal(convert(weights, "keras", "torch")["running_var"], weights[3])


@pytest.mark.parametrize("target", ["keras", "flax", "onnx"])
def test_biased_frameworks_exchange_the_variance_as_it_is(weights, target):
    there = convert(weights, "keras", target, count=2)
    assert np.array_equal(convert(there, target, "keras", count=2)[3], weights[3])


def test_corrections_undo_each_other(rng, assert_close):
    values, start = rng.uniform(0.5, 2.0, (2, 4))
    assert_close(to_biased(to_unbiased(values, 7, start), 7, start), values)


@pytest.mark.parametrize("source", FORMATS)
def test_absent_gamma_and_beta_become_one_and_zero(weights, source):
    bare = {
        "keras": weights[2:],
        "torch": {"running_mean": weights[2], "running_var": weights[3]},
        "flax": {"batch_stats": {"mean": weights[2], "var": weights[3]}},
        "onnx": {"input_mean": weights[2], "input_var": weights[3]},
    }[source]
    gamma, beta, *moving = convert(bare, source, "keras")
    assert (gamma == 1).all()
    assert (beta == 0).all()
    assert np.array_equal(moving, weights[2:])


def test_layer_takes_what_was_converted(rng, weights):
    layer, twin = KERAS.layer(3), KERAS.layer(3)
    layer.set_weights(weights)
    twin.set_weights(convert(convert(weights, "keras", "torch"), "torch", "keras"))
    x = rng.normal(size=(4, 3))
    assert np.array_equal(layer(x), twin(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "caffe"}, "source must be one of"),
        ({"target": "caffe"}, "target must be one of"),
        ({"weights": [[1.0]] * 3}, "weights must hold .* got 3"),
        ({"weights": [[1.0], [1.0], [1.0, 2.0], [1.0]]}, r"one shape \(C,\)"),
        ({"weights": {"weight": [1.0]}, "source": "torch"}, "lack .*moving_mean"),
        ({"target": "torch", "count": 1}, "count must be 2 or more, got 1"),
    ],
)
def test_errors_name_what_is_wrong(arguments, message):
    good = {"weights": [[1.0]] * 4, "source": "keras", "target": "keras"}
    with pytest.raises(ValueError, match=message):
        convert(**(good | arguments))


def test_momentum_is_turned_round_for_pytorch_alone():
    turned = [c for c in CONVENTIONS if c.weight_of_old(0.1) != 0.1]
    assert turned == [TORCH]
    assert all(c.weight_of_old(c.momentum) >= 0.9 for c in CONVENTIONS)


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.name)
def test_layer_has_the_constants_of_its_convention(convention):
    layer = convention.layer(4)
    assert layer.epsilon == convention.epsilon
    assert layer.axis == convention.axis
    assert layer.momentum == pytest.approx(convention.weight_of_old(convention.momentum))
    assert (layer.moving_variance == (0 if convention is CS231N else 1)).all()
    assert layer.moving_mean.shape == (4,)


def test_layer_takes_changes():
    assert TORCH.layer(4, axis=-1, momentum=0.5).momentum == 0.5


def test_unbiased_variance_is_stored_for_the_ranks_named(rng, assert_close):
    layer = KERAS.layer(2, momentum=0.0, unbiased_ranks=(4,), dtype="float64")
    rows, maps = rng.normal(size=(3, 2)), rng.normal(size=(2, 2, 1, 2))
    layer(rows, training=True)
    assert_close(layer.moving_variance, rows.var(0))
    layer(maps, training=True)
    assert_close(layer.moving_variance, maps.var((0, 1, 2), ddof=1))


def test_one_value_a_channel_has_no_unbiased_variance_and_changes_nothing():
    layer = TORCH.layer(2)
    with pytest.raises(ValueError, match="count 2 or more"):
        layer(np.ones((1, 2)), training=True)
    assert (layer.moving_mean == 0).all()
