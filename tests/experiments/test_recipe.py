"""The recipe: each part can be taken back, and what it is about shows on a small run."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import recipe, run
from bnkit.experiments.recipe import LocalResponseNormalization


@pytest.fixture(scope="module")
def result():
    return run("recipe", seeds=1, train=320, steps=20)


def test_every_part_can_be_taken_back(result):
    for taken_back in recipe.TAKEN_BACK:
        assert 0.05 < result.values(taken_back, "test").min() <= 1
    figure = recipe.plot(result)
    plt.close(figure)


def test_fixed_batches_keep_their_members():
    config = recipe.Config(train=64, batch_size=32, steps=6)
    members = [sorted(batch) for batch in recipe.batches(config, 0, "fixed-batches").tolist()]
    assert len({tuple(batch) for batch in members}) == 2
    fresh = [tuple(sorted(batch)) for batch in recipe.batches(config, 0, "none").tolist()]
    assert len(set(fresh)) == 6


def test_local_response_norm_equals_its_formula():
    x = np.random.default_rng(0).normal(0, 100, (2, 3, 3, 7)).astype("float32")
    y = np.asarray(LocalResponseNormalization()(x))
    channel = 5
    near = np.square(x[..., 3:7]).sum(axis=-1)
    expected = x[..., channel] / (2 + 1e-4 * near) ** 0.75
    np.testing.assert_allclose(y[..., channel], expected, rtol=1e-5)
