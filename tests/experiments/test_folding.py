"""Folding: the folded nets answer alike, and have fewer layers. Times are not asserted."""

import keras
import matplotlib.pyplot as plt
import pytest

from bnkit.experiments import folding, run
from bnkit.keras import fold_batch_norms


@pytest.fixture(scope="module")
def result():
    return run("folding", seeds=1, batch_sizes=(1,), repeats=2)


@pytest.mark.parametrize("net", folding.NETS)
def test_folded_net_gives_the_same_answers(result, net):
    assert result.values(net, "error").max() < 1e-5


@pytest.mark.parametrize("net", folding.NETS)
def test_every_normalization_of_the_net_folds(net):
    folded = fold_batch_norms(folding.make_net(net))
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)


def test_times_are_there_for_each_net(result):
    for net in folding.NETS:
        assert folding.time_ratio(result, net, "graph", 1).min() > 0


def test_plot_shows_each_way(result):
    figure = folding.plot(result)
    assert [ax.get_title() for ax in figure.axes] == ["TensorFlow's graph"]
    plt.close(figure)
