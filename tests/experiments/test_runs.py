"""Copies of a Keras model, trained side by side, are what each would be alone."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest

from bnkit.experiments.runs import Runs
from bnkit.experiments.statistics import recompute_statistics

PROGRAM = """
import json
import keras
import numpy as np
from bnkit.experiments.runs import Runs
layers = keras.layers
rng = np.random.default_rng(0)
shape = SHAPE
x, y = rng.integers(0, 256, (200, *shape), dtype=np.uint8), rng.integers(0, 10, 200).astype("int32")
batches = rng.integers(0, 200, (110, 2, 16)).astype("int32")
rates = np.array([[0.1], [0.3]]) * np.linspace(1, 0, 110)
zeros = np.linspace(-1, 1, int(np.prod(shape)) * 8).reshape(-1, 8).astype("float32") / 10

def make_model():
    first = [layers.Dense(8, kernel_initializer=lambda *a, **k: zeros)] if len(shape) == 1 else [
        layers.Conv2D(8, 3, kernel_initializer="ones"), layers.Flatten()]
    return keras.Sequential([keras.Input(shape), *first, layers.BatchNormalization(momentum=0.9),
        layers.Activation("tanh"), layers.Dense(10, kernel_initializer="zeros",
        kernel_regularizer=keras.regularizers.L2(0.01))])

runs = Runs(make_model, lambda rate: keras.optimizers.SGD(rate, momentum=0.9, weight_decay=0.01),
            x, y, seeds=[0, 1], rates=rates, steps=110)
losses = np.concatenate([runs.train(batches[:60]), runs.train(batches[60:])], axis=1)
precise = runs.logits(x, states=runs.recomputed(x))
print(json.dumps([losses.tolist(), runs.logits(x).tolist(), precise.tolist()]))
"""


def curves(backend, shape):
    """Losses and logits of a fresh process, since Keras has one backend a process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("SHAPE", str(shape))],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.array(each) for each in json.loads(done.stdout)]


@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("shape", [(12,), (5, 5, 1)])
def test_jax_and_tensorflow_give_the_same_curves(shape):
    for got, want in zip(curves("jax", shape), curves("tensorflow", shape), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-3)


def make_model():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.Dense(10),
        ]
    )


def test_recomputed_statistics_are_those_of_all_rows_and_nothing_else_moves():
    model = make_model()
    x = np.random.default_rng(0).normal(3.0, 2.0, (500, 12)).astype("float32")
    before = [each.numpy() for each in model.trainable_variables]
    recompute_statistics(model, x)
    first, second = (each for each in model.layers if "batch_norm" in each.name)
    z = model.layers[0](x).numpy()
    np.testing.assert_allclose(first.moving_mean.numpy(), z.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.moving_variance.numpy(), z.var(0), rtol=1e-3)
    out = model.layers[3](first(z)).numpy()  # in inference mode, by the new statistics
    np.testing.assert_allclose(second.moving_mean.numpy(), out.mean(0), rtol=1e-3, atol=1e-3)
    assert first.momentum == 0.99
    assert model.layers[2].rate == 0.5
    for got, want in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


def test_runs_that_are_restarted_are_new_ones():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (64, 12)).astype("float32"), rng.integers(0, 10, 64).astype("int32")
    batches = rng.integers(0, 64, (5, 1, 16)).astype("int32")

    def make_runs(seed, rate):
        momentum = lambda rate: keras.optimizers.SGD(rate, momentum=0.9)  # noqa: E731
        return Runs(make_model, momentum, x, y, seeds=[seed], rates=[rate], steps=5)

    runs = make_runs(0, 0.1)
    runs.train(batches)
    runs.recomputed(x)
    runs.restart(seeds=[1], rates=[0.3])
    fresh = make_runs(1, 0.3)
    np.testing.assert_allclose(runs.train(batches), fresh.train(batches), rtol=1e-5)
    for got, want in zip(runs.recomputed(x)[0], fresh.recomputed(x)[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_rates_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) or \(2, 50\).*got \(1, 1\)"):
        Runs(
            make_model,
            keras.optimizers.SGD,
            np.zeros((5, 12)),
            np.zeros(5, int),
            seeds=[0, 1],
            rates=[0.1],
            steps=50,
        )


def test_statistics_of_rows_of_its_own_are_those_of_these_images():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 12)).astype("float32"), rng.integers(0, 10, 50)
    runs = Runs(make_model, keras.optimizers.SGD, x, y, seeds=[0, 0], rates=[0.1, 0.1], steps=1)
    rows = np.stack([rng.permutation(50)[:20], rng.permutation(50)[:20]])
    one, other = runs.recomputed(rows=rows)
    for state, own in ((one, rows[0]), (other, rows[1])):
        for got, want in zip(state, runs.recomputed(x[own])[0], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert any(np.any(a != b) for a, b in zip(one, other, strict=True))
