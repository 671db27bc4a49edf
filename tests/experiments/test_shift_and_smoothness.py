"""Noise makes the inputs shift and leaves the gain in place; with BN gradients hold further."""

import keras
import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import shift_and_smoothness as shift
from bnkit.experiments.training import fashion_mnist
from bnkit.keras.probes import cross_entropy


@pytest.fixture(scope="module")
def result():
    return experiments.run("shift-and-smoothness", steps=400, batches=1, seeds=1)


def test_noise_moves_the_inputs_more_than_training_does(result):
    """Seen: drifts of 0.3 to 0.4 with noise, 0.01 to 0.06 without."""
    for activation in ("relu", "sigmoid"):
        calm, noisy = (shift.at_look(result, activation, v, "drift") for v in ("bn", "noisy"))
        assert noisy.min() > 3 * calm.max()


def test_noisy_normalization_still_trains_what_plain_cannot(result):
    plain, noisy = (shift.best_test_accuracy(result, "sigmoid", v) for v in ("plain", "noisy"))
    assert plain.max() < 0.2
    assert noisy.min() > 0.5


def test_the_loss_ranges_less_along_the_gradient_with_batch_normalization(result):
    """Seen: highest over lowest loss 3.2 and 4.9 without, 1.4 to 1.8 with."""
    plain, bn = (np.ptp(shift.loss_range(result, "relu", v), axis=1) for v in ("plain", "bn"))
    assert plain.min() > 2 * bn.max()


def test_a_gradient_is_seen_as_keras_and_the_tape_take_it():
    tf = pytest.importorskip("tensorflow")
    config = shift.Config(depth=2, width=8)
    machine = shift.trainer(config, "relu", "bn")
    data, rows = fashion_mnist(), np.arange(60, dtype=np.int32)
    x, y = data.x_train[rows].astype("float32") / 255, data.y_train[rows]
    state = [variable.numpy() for variable in machine.model.variables]
    loss, gradient = shift.loss_and_gradient(machine, state, rows)

    shift._set(machine.model, state)
    with tf.GradientTape() as tape:
        expected = cross_entropy(y, machine.model(x, training=True))
    trained = machine.model.trainable_variables
    places = {id(variable): k for k, variable in enumerate(machine.model.variables)}
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for variable, want in zip(trained, tape.gradient(expected, trained), strict=True):
        np.testing.assert_allclose(gradient[places[id(variable)]], want, atol=1e-6)


def test_looking_leaves_the_model_as_it_is():
    config = shift.Config(depth=2, width=8)
    machine = shift.trainer(config, "relu", "noisy")
    before = [variable.numpy() for variable in machine.model.variables]
    shift.look(config, machine, np.zeros((2, 60), np.int32))
    for variable, value in zip(machine.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_moving_target_moves_all_examples_alike_and_only_in_training():
    layer = shift.MovingTarget(1.0, 2.0)
    x = keras.ops.ones((4, 3))
    first, second = (keras.ops.convert_to_numpy(layer(x, training=True)) for _ in range(2))
    assert np.all(first == first[0])
    assert np.all(first[0] != second[0])
    np.testing.assert_array_equal(layer(x), x)
