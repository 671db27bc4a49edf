"""Batch size: a small run shows the claimed direction, by several times the seeds' range."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import batch_size, recorded, run


@pytest.fixture(scope="module")
def result():
    return run(
        "batch-size",
        seeds=1,
        batch_sizes=(2, 32),
        normalizations=("batch", "group"),
        rates=(0.3,),
        images=3200,
        looks=200,
    )


def test_small_batches_cost_batch_norm_more_than_group_norm(result):
    ahead = batch_size.accuracy(result, "group") - batch_size.accuracy(result, "batch")
    assert np.all(ahead[:, 0] > ahead[:, 1])


def test_recorded_order_at_batches_of_two_is_the_same_for_every_seed():
    full = recorded("batch-size")
    batch = batch_size.accuracy(full, "batch")[:, 0]
    for kind in ("renorm", "group"):
        assert np.all(batch_size.accuracy(full, kind)[:, 0] > batch)


def test_modes_differ_for_batch_norm_and_most_for_small_batches(result):
    loss = np.abs(batch_size.gap(result, "batch", "loss"))
    assert loss[:, 0].mean() > loss[:, 1].mean()
    assert np.all(batch_size.gap(result, "group", "loss") == 0)


def test_nets_with_shortcuts_run():
    result = run(
        "batch-size",
        seeds=1,
        batch_sizes=(8,),
        normalizations=("group",),
        filters=(8,),
        layers=2,
        residual=True,
        images=80,
        looks=8,
    )
    assert batch_size.accuracy(result, "group").shape == (1, 1)


def test_plot_shows_both_modes(result):
    figure = batch_size.plot(result)
    assert len(figure.axes) == 2
    plt.close(figure)
