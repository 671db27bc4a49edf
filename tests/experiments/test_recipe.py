"""The recipe: each part can be taken back, and is not inert by construction."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import recipe, run
from bnkit.experiments.recipe import Brightness, LocalResponseNormalization


@pytest.fixture(scope="module")
def result():
    return run("recipe", seeds=2, train=200, steps=60, filters=(8, 8), rates=(0.1, 0.4), images=300)


def test_every_part_can_be_taken_back_and_changes_the_result(result):
    whole = result.values("none", "test loss")
    for taken_back in recipe.TAKEN_BACK:
        assert 0.05 < result.values(taken_back, "test").min() <= 1
        if taken_back != "none":
            assert np.abs(result.values(taken_back, "test loss") - whole).min() > 1e-4
    figure = recipe.plot(result)
    plt.close(figure)


def test_a_fifth_of_the_rate_learns_less_in_so_few_steps(result):
    assert result.values("rate", "train").mean() < result.values("none", "train").mean() - 0.05


def test_differences_are_taken_at_the_rate_best_for_each(result):
    best, inside = recipe.chosen(result, "dropout")
    assert not inside  # a grid of two has no inside
    test = result.values("dropout", "test")[:, best]
    expected = test - result.values("none", "test")[:, recipe.chosen(result, "none")[0]]
    np.testing.assert_allclose(recipe.differences(result, "dropout"), expected)
    assert recipe.chosen(result, "rate") == recipe.chosen(result, "none")


def test_seeds_draw_their_images(result):
    first, second = result.values("none", "train")
    assert not np.array_equal(first, second)


def test_fixed_batches_keep_their_members():
    config = recipe.Config(train=64, batch_size=32, steps=6)
    members = [sorted(batch) for batch in recipe.batches(config, 0, "fixed-batches").tolist()]
    assert len({tuple(batch) for batch in members}) == 2
    fresh = [tuple(sorted(batch)) for batch in recipe.batches(config, 0, "none").tolist()]
    assert len(set(fresh)) == 6


def test_local_response_norm_equals_its_formula_and_is_no_constant_factor():
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 3, 17)).astype("float32")
    y = keras.ops.convert_to_numpy(LocalResponseNormalization()(x))
    channel = 8
    near = np.square(x[..., 3:14]).sum(axis=-1)
    np.testing.assert_allclose(y[..., channel], x[..., channel] / np.sqrt(1 + near), rtol=1e-5)
    assert np.std(y / x) > 0.05


def test_brightness_changes_training_only():
    x = np.random.default_rng(0).uniform(0, 1, (4, 5, 5, 1)).astype("float32")
    layer = Brightness()
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    assert np.abs(y - x).max() > 0.05
    assert y.min() >= 0
    assert y.max() <= 1
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x, training=False)), x)
