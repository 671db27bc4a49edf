"""Which statistics a net in use should have: moving averages, or a recomputation.

After training, every layer needs a fixed mean and variance. The paper (Ioffe and Szegedy 2015,
Algorithm 2) takes them from many training batches, with the weights held still; frameworks keep a
moving average instead. Wu and Johnson (2021, section 3) call the former precise statistics and
find them better early in training and at large learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.sweep import Sweep, he_stddevs
from bnkit.experiments.training import as_float, draw_batches, fashion_mnist
from bnkit.functional import batch_norm_inference
from bnkit.moments import Moments, batch_moments, population_moments

TITLE = "Moving and precise statistics"
QUESTION = "What does a moving average cost, and when is it worth computing the statistics anew?"
PUBLISHED = None  # Wu and Johnson's numbers are for ImageNet, at another scale

BATCH, PRECISE, PAPER = "batch", "precise", "paper"  # kinds of statistics, beside the momenta


@dataclass(frozen=True)
class Config:
    """The net, how it trains, and when and how it is looked at."""

    rates: tuple[float, ...] = (0.1, 1.0)
    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    looks: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    precise_batches: int = 200
    seeds: int = 5


PRESETS = {
    "quick": Config(looks=(10, 30, 100, 300, 1000), precise_batches=60, seeds=3),
    "full": Config(),
}


def forward(weights: Sequence[Array], x: Array, given: Sequence[Moments] | None = None) -> Any:
    """Run a dense ReLU net in NumPy.

    Args:
        weights: kernel, gamma, beta, moving mean and moving variance of each hidden layer, then
            kernel and bias of the last, as ``Sweep.weights_of`` gives them.
        x: rows.
        given: the moments to normalize by, one a layer; those of the rows themselves when None.

    Returns:
        Logits, and the moments that each layer used.
    """
    used = []
    for k in range(0, len(weights) - 2, 5):
        kernel, gamma, beta = weights[k : k + 3]
        z = x @ kernel
        by = batch_moments(z) if given is None else given[k // 5]
        x = np.maximum(batch_norm_inference(z, by.mean, by.variance, gamma, beta), 0)
        used.append(by)
    return x @ weights[-2] + weights[-1], used


def moving_statistics(weights: Sequence[Array]) -> list[Moments]:
    """The moving statistics that are among the weights, one ``Moments`` a layer."""
    layers = range(0, len(weights) - 2, 5)
    return [Moments(1, weights[k + 3], weights[k + 4]) for k in layers]


def precise_statistics(
    weights: Sequence[Array], batches: Sequence[Array]
) -> tuple[list[Moments], list[Moments]]:
    """Population moments of each layer, from batches that are each run in training mode.

    Returns:
        One ``Moments`` a layer by each estimator: with the variance of the batch means, and
        without it, as the paper has it.
    """
    by_layer = list(zip(*(forward(weights, batch)[1] for batch in batches), strict=True))
    with_means, without = (
        [population_moments(layer, between=between) for layer in by_layer]
        for between in (True, False)
    )
    return with_means, without


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Train once for each rate and momentum; the momentum changes the moving statistics only.

    Returns:
        For each rate the test accuracy with each kind of statistics ("0.99" is a momentum), a list
        over the looks, and under "variance ratio" how the paper's variance compares to the precise
        one: the median over the last layer's units.
    """
    data = fashion_mnist()
    rates, momenta = (each.ravel() for each in np.meshgrid(config.rates, config.momenta))
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=config.hidden,
        rates=rates,
        stddevs=he_stddevs([data.x_train.shape[1], *config.hidden, 10], np.ones(len(rates))),
        batch_norm=True,
        seed=seed,
        momentum=momenta,
    )
    order = draw_batches(len(data.x_train), config.batch_size, max(config.looks), seed)
    rows = draw_batches(len(data.x_train), config.batch_size, config.precise_batches, seed + 1000)
    batches = [as_float(data.x_train[each]) for each in rows]
    x_test = as_float(data.x_test)
    names = [*map(str, config.momenta), BATCH, PRECISE, PAPER]
    record: dict[str, Any] = {
        str(rate): {name: [] for name in [*names, "variance ratio"]} for rate in config.rates
    }

    def accuracy(weights: Sequence[Array], statistics: Sequence[Moments] | None) -> float:
        parts = np.split(x_test, 10)
        logits = np.concatenate([forward(weights, part, statistics)[0] for part in parts])
        return float(np.mean(logits.argmax(axis=1) == data.y_test))

    made = 0
    for look in config.looks:
        sweep.train(order[made:look])
        made = look
        for run, (rate, momentum) in enumerate(zip(rates, momenta, strict=True)):
            weights, seen = sweep.weights_of(run), record[str(rate)]
            seen[str(momentum)].append(accuracy(weights, moving_statistics(weights)))
            if momentum != config.momenta[0]:
                continue  # the weights are the same for every momentum
            precise, paper = precise_statistics(weights, batches)
            for name, statistics in {BATCH: None, PRECISE: precise, PAPER: paper}.items():
                seen[name].append(accuracy(weights, statistics))
            seen["variance ratio"].append(np.median(paper[-1].variance / precise[-1].variance))
    return record


def accuracy_of(result: Result, rate: float, kind: str) -> Array:
    """Test accuracy in percent with one kind of statistics, shape (seeds, looks)."""
    return 100 * result.values(str(rate), kind)


def gain(result: Result, rate: float, momentum: float) -> Array:
    """Percentage points that precise statistics win over a moving average, (seeds, looks)."""
    return accuracy_of(result, rate, PRECISE) - accuracy_of(result, rate, str(momentum))


def plot(result: Result) -> Any:
    """Test accuracy against steps by kind of statistics, one panel a rate."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    config = result.config
    names = {str(momentum): f"momentum {momentum}" for momentum in config["momenta"]}
    names |= {BATCH: "the test batch's own", PRECISE: "precise"}
    figure, axes = plt.subplots(1, len(config["rates"]), figsize=(7.2, 4.2), sharey=True)
    for ax, rate in zip(np.atleast_1d(axes), config["rates"], strict=True):
        for index, (kind, name) in enumerate(names.items()):
            plots.band(ax, config["looks"], accuracy_of(result, rate, kind), name, index)
        ax.set(xscale="log", xlabel="training steps", title=f"learning rate {rate:g}")
    np.atleast_1d(axes)[0].set_ylabel("test accuracy (%)")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure
