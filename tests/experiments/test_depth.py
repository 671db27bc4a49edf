"""Depth: a small run shows the claimed direction, by several times the seeds' range."""

import matplotlib.pyplot as plt
import pytest

from bnkit.experiments import depth, run

DEEP = 8


@pytest.fixture(scope="module")
def result():
    return run(
        "depth",
        seeds=2,
        depths=(DEEP,),
        activations=("sigmoid",),
        rates=(0.1,),
        steps=300,
        width=60,
    )


def test_deep_sigmoid_net_trains_only_with_batch_norm(result):
    plain = depth.accuracy(result, "sigmoid", "plain")
    bn = depth.accuracy(result, "sigmoid", "bn")
    assert plain.max() < 0.2  # seeds lie within 0.01 of guessing
    assert bn.min() > 0.4  # seeds lie above 0.55


def test_plain_sigmoid_gradient_vanishes_and_normalized_does_not(result):
    assert depth.gradient_ratio(result, "sigmoid", "plain", DEEP).max() < 1e-3
    assert depth.gradient_ratio(result, "sigmoid", "bn", DEEP).min() > 0.3


@pytest.mark.parametrize("when", ["start", "end"])
def test_plain_sigmoid_net_dies_without_saturating(result, when):
    assert depth.by_layer(result, "sigmoid", "plain", DEEP, "saturated", when).max() < 0.01


def test_plots_show_each_activation(result):
    for figure in (depth.plot(result), depth.plot_layers(result, DEEP, "gradient", "norm")):
        assert [ax.get_title() for ax in figure.axes] == ["sigmoid"]
        plt.close(figure)
