"""The fast path, Keras's own path and the sweep make the same steps."""

import keras
import numpy as np
import pytest

from bnkit.experiments import training
from bnkit.experiments.sweep import Sweep, he_stddevs
from bnkit.experiments.training import Trainer, draw_batches, fashion_mnist, fit


@pytest.fixture(scope="module")
def data():
    return fashion_mnist(train=2000)


def dense_net(batch_norm=True):
    layers = [keras.Input((784,))]
    for _ in range(2):
        layers += [keras.layers.Dense(16, use_bias=not batch_norm)]
        layers += [keras.layers.BatchNormalization()] if batch_norm else []
        layers += [keras.layers.Activation("sigmoid")]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def convolutional_net():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(4, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1e-3)),
        ]
    )


@pytest.mark.parametrize("make_model", [dense_net, convolutional_net])
def test_fast_path_and_fit_give_the_same_curve(make_model):
    data = fashion_mnist(flat=make_model is dense_net, train=2000)
    batches = draw_batches(2000, 32, 120, seed=1)
    curves, weights = [], []
    for path in ("fast", "plain"):
        keras.utils.set_random_seed(1)
        model, optimizer = make_model(), keras.optimizers.SGD(0.02, momentum=0.9)
        if path == "fast":
            losses = Trainer(model, optimizer, data.x_train, data.y_train).train(batches)
        else:
            losses = fit(model, optimizer, data.x_train, data.y_train, batches)
        curves.append(losses)
        weights.append(np.concatenate([each.ravel() for each in model.get_weights()]))
    assert curves[0].shape == (120,)
    assert curves[0][-20:].mean() < 0.8 * curves[0][0]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-3)
    assert np.linalg.norm(weights[0] - weights[1]) < 2e-4 * np.linalg.norm(weights[1])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_sweep_and_keras_give_the_same_curves(data, batch_norm, assert_close):
    rates, scales = [0.3, 0.03], [1.0, 2.0]
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=[16, 16],
        rates=rates,
        stddevs=he_stddevs([784, 16, 16, 10], scales),
        activation="sigmoid",
        batch_norm=batch_norm,
    )
    batches = draw_batches(2000, 32, 110, seed=2)
    initial = [sweep.weights_of(run) for run in range(2)]
    losses = sweep.train(batches)
    for run, rate in enumerate(rates):
        model = dense_net(batch_norm)
        model.set_weights(initial[run])
        trainer = Trainer(model, keras.optimizers.SGD(rate), data.x_train, data.y_train)
        np.testing.assert_allclose(losses[run], trainer.train(batches), rtol=1e-3)
        for got, want in zip(sweep.weights_of(run), model.get_weights(), strict=True):
            assert_close(got, want, tolerance=1e-3)
        want = trainer.predict(data.x_test[:500], batch_size=250)
        assert_close(sweep.predict(data.x_test[:500], batch_size=250)[run], want, tolerance=2e-3)


def test_looking_leaves_a_sweep_as_it_was(data):
    sweep = Sweep(
        data.x_train, data.y_train, widths=[8], rates=[0.1], stddevs=[0.1], batch_norm=True
    )
    sweep.train(draw_batches(2000, 32, 5, seed=0))
    before = sweep.weights_of(0)
    sweep.predict(data.x_test[:100], training=True)
    inputs, _ = sweep.evaluate(data.x_test[:100], training=True)
    assert inputs.shape == (1, 100, 8)
    assert abs(inputs.mean(axis=1) - sweep.weights_of(0)[2]).max() < 1e-5
    for got, want in zip(sweep.weights_of(0), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_two_runs_with_one_seed_are_bit_identical(data):
    def once():
        keras.utils.set_random_seed(3)
        model = dense_net()
        trainer = Trainer(model, keras.optimizers.SGD(0.5), data.x_train, data.y_train)
        return trainer.train(draw_batches(2000, 32, 50, seed=3)), model.get_weights()

    (first, weights), (second, others) = once(), once()
    np.testing.assert_array_equal(first, second)
    for got, want in zip(weights, others, strict=True):
        np.testing.assert_array_equal(got, want)


def test_training_mode_leaves_a_model_as_it_was(data):
    model = dense_net()
    trainer = Trainer(model, keras.optimizers.SGD(0.5), data.x_train, data.y_train)
    trainer.train(draw_batches(2000, 32, 5, seed=0))
    before = model.get_weights()
    in_training = trainer.predict(data.x_test[:100], training=True)
    assert abs(in_training - trainer.predict(data.x_test[:100])).max() > 0.01
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_parts_of_the_data_share_no_image():
    data = fashion_mnist(train=3000)
    parts = [{row.tobytes() for row in x} for x in (data.x_train, data.x_validation, data.x_test)]
    twins = len(parts[0] & parts[2]) + len(parts[1] & parts[2]) + len(parts[0] & parts[1])
    assert twins < 30  # Fashion-MNIST itself holds a few images twice
    assert fashion_mnist(validation=0).x_train.shape == (60_000, 784)
    whole = fashion_mnist(flat=False)
    assert whole.x_train.shape == (50_000, 28, 28, 1)


def test_batches_take_every_row_once_before_any_twice():
    batches = draw_batches(rows=10, batch_size=4, steps=5, seed=0).ravel()
    assert sorted(batches[:10]) == sorted(batches[10:]) == list(range(10))


@pytest.mark.parametrize("wrong", [{"train": 0}, {"train": 60_000}, {"validation": 60_000}])
def test_more_images_than_there_are_is_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fashion_mnist(**wrong)


def test_sweep_names_the_argument_that_is_wrong(data):
    with pytest.raises(ValueError, match="activation must be one of"):
        Sweep(data.x_train, data.y_train, widths=[4], rates=[1], stddevs=[1], activation="elu2")
    with pytest.raises(ValueError, match=r"stddevs \(runs,\) or \(runs, 2\)"):
        Sweep(data.x_train, data.y_train, widths=[4], rates=[1], stddevs=[1, 2])


def test_runs_of_two_seeds_side_by_side_are_those_of_each_seed(data):
    """Each with its own weights and its own batches."""
    seeds, own = (3, 4), np.stack([draw_batches(2000, 32, 20, seed=k) for k in (3, 4)], axis=1)

    def nets(seed, runs):
        return Sweep(
            data.x_train,
            data.y_train,
            widths=[8],
            rates=[0.3] * runs,
            stddevs=[0.1] * runs,
            batch_norm=True,
            seed=seed,
        )

    together = nets(seeds, 2).train(own)
    for run, seed in enumerate(seeds):
        alone = nets(seed, 1).train(own[:, run])
        np.testing.assert_allclose(together[run], alone[0], rtol=1e-4)


def test_a_rate_multiplied_by_zero_stands_still(data):
    sweep = Sweep(data.x_train, data.y_train, widths=[8], rates=[0.3, 0.3], stddevs=[0.1, 0.1])
    before = sweep.weights_of(1)
    sweep.train(draw_batches(2000, 32, 5, seed=0), factors=np.tile([1.0, 0.0], (5, 1)))
    np.testing.assert_array_equal(sweep.weights_of(1)[0], before[0])
    assert abs(sweep.weights_of(0)[0] - before[0]).max() > 0


def test_precise_statistics_are_those_of_the_rows_as_one_batch(data):
    sweep = Sweep(
        data.x_train, data.y_train, widths=[8, 8], rates=[0.1], stddevs=[0.1], batch_norm=True
    )
    sweep.train(draw_batches(2000, 32, 5, seed=0))
    x = data.x_test[:100]
    want = sweep.predict(x, training=True, batch_size=100)
    got = sweep.predict(x, statistics=sweep.statistics(x), batch_size=30)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_pictures_in_colour_keep_their_form_and_lose_the_labels_second_axis(monkeypatch):
    x, y = np.zeros((60, 32, 32, 3), np.uint8), np.arange(60, dtype=np.uint8)[:, None] % 10
    monkeypatch.setitem(training.LOADERS, "cifar10", lambda: ((x, y), (x[:20], y[:20])))
    training._parts.cache_clear()
    colour = training.pictures("cifar10", flat=False, validation=10)
    assert colour.x_train.shape == (50, 32, 32, 3)
    assert colour.y_test.shape == (20,)
    assert training.pictures("cifar10", validation=10).x_validation.shape == (10, 3072)
    with pytest.raises(ValueError, match=r"validation must lie in \[0, 60\), got 60"):
        training.pictures("cifar10", validation=60)
    training._parts.cache_clear()
