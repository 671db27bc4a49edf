"""Dropout before a normalization moves its variance, as predicted; accuracy hardly notices."""

import numpy as np
import pytest

from bnkit import experiments

DROPPED = 1  # the place of 0.5 among the fractions


@pytest.fixture(scope="module")
def result():
    return experiments.run("dropout", steps=600, seeds=2)


def of(result, variant, name):
    """Shape (seeds, fractions dropped, …)."""
    return result.values(variant, name)[:, 0]


def test_variance_in_inference_is_smaller_behind_dropout(result):
    """Seen: 0.58 to 0.68 behind dropout; without it within 0.05 of 1."""
    behind = of(result, "bn", "ratio")[:, DROPPED, 1:]
    assert np.all(behind < 0.8)
    for variant in ("bn", "bn, dropout last"):
        np.testing.assert_allclose(of(result, variant, "ratio")[:, 0], 1, atol=0.15)


def test_variance_behind_dropout_is_the_predicted_one(result):
    found, predicted = of(result, "bn", "ratio")[:, DROPPED, 1], of(result, "bn", "predicted")
    np.testing.assert_allclose(found, predicted[:, DROPPED], atol=0.12)


def test_dropout_after_the_last_normalization_shifts_no_variance(result):
    np.testing.assert_allclose(of(result, "bn, dropout last", "ratio"), 1, atol=0.15)


def test_dropout_lowers_the_test_loss_but_hardly_moves_the_accuracy(result):
    """Seen: the loss falls by 0.2, the accuracy moves by less than 0.02."""
    change = {name: np.diff(of(result, "bn", name), axis=1) for name in ("loss", "accuracy")}
    assert np.all(change["loss"] < -0.05)
    assert np.all(np.abs(change["accuracy"]) < 0.06)
