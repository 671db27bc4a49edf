"""Folding: the folded nets answer alike, and have fewer layers. Times are not asserted."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import folding, recorded, run
from bnkit.experiments.protocol import interval
from bnkit.experiments.results import Result, Run
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


def test_time_ratio_is_that_of_the_net_over_the_folded_one():
    """Above 1 where folding helps; seeds are told apart."""
    records = [{"dense": {"graph": {"8": times}}} for times in ([6.0, 2.0], [1.0, 4.0])]
    runs = tuple(Run(seed, 1.0, record) for seed, record in enumerate(records))
    made = Result("folding", "full", {}, {}, runs)
    np.testing.assert_allclose(folding.time_ratio(made, "dense", "graph", 8), [3.0, 0.25])


def test_each_net_is_timed_both_ways(result):
    for net in folding.NETS:
        times = result.values(net, "graph", "1")
        assert times.shape == (1, 2)
        assert (times > 1e-6).all()  # seconds: no call into TensorFlow is shorter


def test_plot_shows_each_way(result):
    figure = folding.plot(result)
    assert [ax.get_title() for ax in figure.axes] == ["TensorFlow's graph"]
    plt.close(figure)


@pytest.fixture(scope="module")
def full():
    return recorded("folding")


def intervals(full, way):
    """The interval of the time ratio of each net and batch size."""
    sizes = full.config["batch_sizes"]
    cases = [(net, size) for net in folding.NETS for size in sizes]
    return {(net, size): interval(folding.time_ratio(full, net, way, size)) for net, size in cases}


def test_recorded_graph_is_faster_folded_in_every_case(full):
    found = intervals(full, "graph")
    assert min(each.low for each in found.values()) > 1
    assert max(found, key=lambda case: found[case].mean) == ("separable", 64)
    assert found["separable", 64].mean > 1.7


def test_recorded_xla_settles_three_of_six_cases(full):
    settled = [case for case, each in intervals(full, "xla").items() if each.low > 1]
    assert settled == [("dense", 1), ("dense", 64), ("separable", 1)]


def test_recorded_dense_net_gains_more_under_xla(full):
    graph, xla = (intervals(full, way)["dense", 64] for way in ("graph", "xla"))
    assert xla.low > graph.high


def test_recorded_separable_net_is_slow_under_xla(full):
    """Eight times as slow as in the graph, so that less than a millisecond does not show."""
    graph, xla = (full.values("separable", way, "64")[:, 0] for way in ("graph", "xla"))
    assert 7.5 < xla.mean() / graph.mean() < 8.8
    saved = interval(-np.diff(full.values("separable", "xla", "64"))[:, 0])
    assert saved.low < 0 < saved.high
    assert 0.05 < (saved.high - saved.low) / graph.mean() < 0.15
