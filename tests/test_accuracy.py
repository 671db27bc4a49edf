"""The measure of digits: it finds bnkit right, and what is known to be wrong, wrong."""

import pytest

from bnkit import accuracy


@pytest.mark.parametrize(("mean", "std"), accuracy.CASES)
def test_bnkit_is_right_to_float32_rounding(mean, std):
    assert max(accuracy.errors("bnkit", mean, std).values()) <= 2e-7


def test_sums_in_float32_are_found_wrong_when_the_mean_is_large():
    assert accuracy.errors("textbook", 1e4, 1.0)["y"] > 1e-3


def test_peers_are_those_that_are_installed():
    assert {"bnkit", "textbook"} <= set(accuracy.installed())
    assert "copy" not in accuracy.installed()
