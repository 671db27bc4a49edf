"""Whitening: what the matrices do, and that scaled and whitened inputs train faster than raw."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import run, whitening


@pytest.fixture
def covariance(rng):
    rows = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    return np.cov(rows.T, ddof=0)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitened_rows_have_the_identity_as_covariance(covariance, kind):
    matrix = whitening.whitening_matrix(covariance, kind, epsilon=0.0)
    np.testing.assert_allclose(matrix.T @ covariance @ matrix, np.eye(4), atol=1e-10)


def test_zca_is_symmetric_and_pca_a_rotation_away_from_it(covariance):
    pca, zca = (whitening.whitening_matrix(covariance, k, epsilon=1e-3) for k in ("pca", "zca"))
    np.testing.assert_allclose(zca, zca.T, atol=1e-12)
    rotation = np.linalg.solve(zca, pca)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(4), atol=1e-10)


def test_normalizing_each_feature_leaves_the_correlations(covariance):
    matrix = whitening.whitening_matrix(covariance, "normalized", epsilon=0.0)
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(
        matrix.T @ covariance @ matrix, covariance / np.outer(std, std), atol=1e-12
    )


def test_epsilon_bounds_what_a_constant_feature_is_multiplied_by():
    matrix = whitening.whitening_matrix(np.zeros((2, 2)), "zca", epsilon=1e-4)
    np.testing.assert_allclose(matrix, 100 * np.eye(2))


@pytest.fixture(scope="module")
def result():
    changes = {"kinds": ("raw", "normalized", "zca"), "rates": (0.03, 0.1, 0.3), "steps": 200}
    return run("whitening", seeds=2, train=3000, hidden=(50,), last=60, **changes)


@pytest.mark.parametrize("net", whitening.NETS)
def test_normalized_inputs_train_faster_than_raw_ones(result, net):
    ratio = _ratio(result, net, "normalized", "raw")
    assert ratio.max() < 0.9  # four seeds lie between 0.5 and 0.77


def test_whitened_inputs_fit_the_training_images_fastest(result):
    ratio = _ratio(result, "deep", "zca", "normalized")
    assert ratio.max() < 0.5  # four seeds lie between 0.13 and 0.17


def _ratio(result, net, kind, other):
    return whitening.loss_at_end(result, net, kind) / whitening.loss_at_end(result, net, other)


def test_seeds_side_by_side_are_the_seeds_one_by_one():
    config = whitening.Config(
        ("zca",), (0.03, 0.1), hidden=(20,), train=1000, steps=100, last=50, seeds=2
    )
    together = whitening.run_seeds(config, [0, 1])
    for seed, record in enumerate(together):
        alone = whitening.run_seed(config, seed)
        for net in whitening.NETS:
            for name, values in alone[net]["zca"].items():
                np.testing.assert_allclose(record[net]["zca"][name], values, atol=2e-3)


def test_plot_shows_each_net(result):
    figure = whitening.plot(result)
    assert [ax.get_title() for ax in figure.axes] == list(whitening.NETS.values())
    plt.close(figure)
