"""Probes see what they say, and leave the model as it was."""

import keras
import numpy as np
import pytest

from bnkit.keras import probes


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, name="map"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Activation("sigmoid", name="sigmoid"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, name="out"),
        ]
    )


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 6))


def test_moments_are_those_of_what_the_layer_gives(model, x):
    mean, variance = probes.moments(model, x, ["norm"], training=True)["norm"]
    np.testing.assert_allclose(mean, 0, atol=1e-6)
    z = x @ model.get_layer("map").get_weights()[0]
    np.testing.assert_allclose(variance, z.var(0) / (z.var(0) + 1e-3), rtol=1e-5)


def test_percentiles_are_those_of_what_the_layer_gets(model, x):
    got = probes.percentiles(model, x, ["sigmoid"])["sigmoid"]
    z = x @ model.get_layer("map").get_weights()[0] / np.sqrt(1 + 1e-3)
    np.testing.assert_allclose(got, np.percentile(z, [15, 50, 85], axis=0), rtol=1e-4, atol=1e-6)


def test_saturated_fraction_counts_both_ends(model, x):
    model.get_layer("norm").set_weights([np.full(4, 1e6), *[np.zeros(4)] * 2, np.ones(4)])
    assert probes.saturated_fraction(model, x, ["sigmoid"]) == {"sigmoid": 1.0}
    model.get_layer("norm").set_weights([np.zeros(4), *[np.zeros(4)] * 2, np.ones(4)])
    assert probes.saturated_fraction(model, x, ["sigmoid"]) == {"sigmoid": 0.0}


def test_saturation_of_a_layer_without_a_range_is_an_error(model, x):
    with pytest.raises(ValueError, match="'map' with 'linear'"):
        probes.saturated_fraction(model, x, ["map"])


def test_gradient_norm_is_the_slope_along_the_gradient(model, x):
    """Without dropout at work: the loss falls by rate × norm² for a small step."""
    y = np.arange(64) % 3
    kernel = model.get_layer("out").kernel
    norm = probes.gradient_norms(model, x, y, ["map", "out"], training=False)["out"]
    logits = np.asarray(model(x))
    hidden = probes.inputs_of(model, x, ["out"])["out"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    want = hidden.T @ (shares - np.eye(3)[y]) / 64
    assert kernel.shape == want.shape
    np.testing.assert_allclose(norm, np.linalg.norm(want), rtol=1e-4)


def test_looking_in_training_mode_leaves_no_trace(model, x):
    before = [keras.ops.convert_to_numpy(keras.ops.copy(each)) for each in model.variables]
    probes.gradient_norms(model, x, np.zeros(64), ["map"])
    probes.outputs_of(model, x, ["out"], training=True)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.ops.copy(variable)), value)


def test_probe_looks_during_fit(model, x):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    probe = probes.Probe(lambda model: probes.moments(model, x, ["norm"]), every=3)
    model.fit(x, np.zeros(64), batch_size=8, epochs=1, callbacks=[probe], verbose=0)
    assert probe.steps == [0, 3, 6]
    assert all(seen["norm"][0].shape == (4,) for seen in probe.seen)
