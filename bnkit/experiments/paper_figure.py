"""The paper's first figure: a small sigmoid net with and without batch normalization.

Ioffe and Szegedy 2015, section 4.1 and figure 1: MNIST, three hidden layers of 100 sigmoid units,
50,000 steps of batch size 60; test accuracy against steps, and the 15th, 50th and 85th percentiles
of a last-layer input. They do not state the learning rate, nor the scale of the initial weights:
"small random Gaussian values". So both are varied here, and the depth too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.sweep import Sweep
from bnkit.experiments.training import Data, draw_batches, fashion_mnist, log_steps

TITLE = "The paper's first figure"
QUESTION = "Does a sigmoid net train faster with batch normalization, and does it end up better?"
PUBLISHED = {
    "source": "Ioffe and Szegedy 2015, figure 1 (MNIST, one run)",
    "finding": "with BN the net trains faster, and ends at a higher test accuracy",
}

VARIANTS = {"plain": False, "bn": True}
LABELS = {"plain": "without BN", "bn": "with BN"}
RANKS = (15, 50, 85)
WARM_UP = 1000  # steps during which the moving statistics still hold what they began with


@dataclass(frozen=True)
class Config:
    """The grid, the nets and how long those of each depth train."""

    depths: tuple[int, ...] = (3, 5, 8)
    steps: tuple[int, ...] = (50_000, 10_000, 5_000)
    rates: tuple[float, ...] = (0.1, 0.5, 1.0)
    stddevs: tuple[float, ...] = (0.1, 0.01)
    width: int = 100
    batch_size: int = 60
    seeds: int = 3


PRESETS = {
    "quick": Config(depths=(3,), steps=(2000,), rates=(0.1, 1.0), stddevs=(0.1,)),
    "full": Config(),
}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """All rates and scales side by side, for each depth.

    No choice is made, so all training images train, and the test images are what is looked at.

    Returns:
        For each depth, for "plain" and "bn", lists over standard deviations and rates: "accuracy"
        at each observed step; "in_training_mode", the same up to step 1,000; "percentiles" of the
        first unit's input, by step and rank. And "units": percentiles of all units for the first
        cell, at the first observed step, at step 1,000 and at the last.
    """
    data = fashion_mnist(validation=0)
    return {
        str(depth): {
            name: _train(config, data, seed, depth, steps, batch_norm)
            for name, batch_norm in VARIANTS.items()
        }
        for depth, steps in zip(config.depths, config.steps, strict=True)
    }


def _train(
    config: Config, data: Data, seed: int, depth: int, last: int, batch_norm: bool
) -> dict[str, Array]:
    stddevs, rates = np.meshgrid(config.stddevs, config.rates, indexing="ij")
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=[config.width] * depth,
        rates=rates.ravel(),
        stddevs=stddevs.ravel(),
        activation="sigmoid",
        batch_norm=batch_norm,
        seed=seed,
    )
    batches = draw_batches(len(data.x_train), config.batch_size, last, seed)
    seen: dict[str, list[Array]] = {"accuracy": [], "in_training_mode": [], "percentiles": []}
    units = []
    steps = observed_until(last)
    starts = [0, *steps[:-1]]
    name = f"{depth} layers, {LABELS['bn' if batch_norm else 'plain']}"
    for start, step in bar(list(zip(starts, steps, strict=True)), desc=name):
        sweep.train(batches[start:step])
        inputs, logits = sweep.look(data.x_test)
        seen["accuracy"].append((logits.argmax(axis=-1) == data.y_test).mean(axis=1))
        seen["percentiles"].append(np.percentile(inputs[:, :, 0], RANKS, axis=1).T)
        if step <= WARM_UP:
            accuracy = sweep.accuracy(data.x_test, data.y_test, training=True)
            seen["in_training_mode"].append(accuracy)
        if step in (steps[0], WARM_UP, last):
            units.append(np.percentile(inputs[0], RANKS, axis=0))
    by_cell = {name: np.stack(values, axis=1) for name, values in seen.items()}
    cells = {name: each.reshape(*rates.shape, *each.shape[1:]) for name, each in by_cell.items()}
    return {**cells, "units": np.stack(units)}


def observed(result: Result, depth: int) -> Array:
    """The steps at which nets of this depth were looked at."""
    config = result.config
    return observed_until(config["steps"][config["depths"].index(depth)])


def observed_until(last: int) -> Array:
    """The steps at which a net is looked at that makes so many; step 1,000 is one of them."""
    return np.union1d(log_steps(last), min(WARM_UP, last))


def accuracy(result: Result, depth: int, variant: str, rate: float, stddev: float) -> Array:
    """Test accuracy of one cell, shape (seeds, observed steps)."""
    cell = result.config["stddevs"].index(stddev), result.config["rates"].index(rate)
    return result.values(str(depth), variant, "accuracy")[:, cell[0], cell[1]]


def steps_to(level: float, steps: Array, accuracies: Array) -> Array:
    """First observed step at or above the level, for each seed; inf where there is none.

    >>> steps_to(0.5, np.array([100, 200]), np.array([[0.2, 0.6], [0.1, 0.3]]))
    array([200.,  inf])
    """
    return np.array([min(steps[run >= level], default=np.inf) for run in accuracies], float)


def final_accuracy(result: Result, depth: int, variant: str, rate: float, stddev: float) -> Array:
    """Mean accuracy over the observations of the second half of the training, for each seed."""
    steps = observed(result, depth)
    late = steps >= steps[-1] / 2
    return accuracy(result, depth, variant, rate, stddev)[:, late].mean(axis=1)


def plot(result: Result, depth: int = 3) -> Any:
    """Test accuracy against steps, a panel for each rate and standard deviation."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    rates, stddevs = result.config["rates"], result.config["stddevs"]
    figure, axes = plt.subplots(
        len(rates),
        len(stddevs),
        figsize=(7.2, 0.6 + 2.2 * len(rates)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    steps = observed(result, depth)
    for (row, column), ax in np.ndenumerate(axes):
        rate, stddev = rates[row], stddevs[column]
        for index, variant in enumerate(VARIANTS):
            curves = 100 * accuracy(result, depth, variant, rate, stddev)
            plots.band(ax, steps, curves, LABELS[variant], index)
        ax.set(xscale="log", ylim=(0, 100), title=f"rate {rate:g}, σ = {stddev:g}")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.axhline(10, color=plots.GREY, lw=1, ls=":", label="_guessing")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    axes[0, 0].legend(loc="lower right")
    return figure
