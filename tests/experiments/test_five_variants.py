"""Five variants: a small run shows the claimed direction; nets with shortcuts run as well."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import five_variants, recorded, run

SMALL = {"seeds": 1, "rates": (0.1,), "filters": (8, 8)}


@pytest.fixture(scope="module")
def result():
    return run("five-variants", layers=(8,), steps=160, every=20, images=200, **SMALL)


def test_batch_norm_ends_above_the_baseline(result):
    """By several points after so few steps; the recorded run has twenty after more of them."""
    plain, bn = (five_variants.final_accuracy(result, 8, name) for name in ("plain", "bn"))
    assert (bn - plain).min() > 0.03


def test_batch_norm_needs_no_more_steps_than_the_baseline(result):
    assert five_variants.speed_up(result, 8, "bn").min() >= 1
    assert np.all(five_variants.speed_up(result, 8, "plain") == 1)


def test_plot_shows_all_variants(result):
    figure = five_variants.plot(result)
    assert len(figure.axes[0].get_lines()) == len(five_variants.VARIANTS)
    plt.close(figure)


def test_nets_with_shortcuts_run():
    tiny = run("five-variants", layers=(4,), residual=True, steps=10, every=2, images=50, **SMALL)
    assert five_variants.curves(tiny, 4, "bn-x5").shape == (1, 1)


def test_recorded_direction_exceeds_the_spread_of_the_seeds():
    full = recorded("five-variants")
    for layers in full.config["layers"]:
        assert five_variants.speed_up(full, layers, "bn").min() >= 1
        gain = five_variants.final_accuracy(full, layers, "bn")
        gain = gain - five_variants.final_accuracy(full, layers, "plain")
        assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain))
