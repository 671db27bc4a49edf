"""Learning rate and initial scale: where a deep ReLU net trains, with and without normalization.

The paper (section 3.3) says that batch normalization lets one use higher learning rates "without
the risk of divergence", and makes training less dependent on the scale of the parameters. It
shows no figure of it. Here is the map: every learning rate with every scale of He's initialization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.protocol import best_rate
from bnkit.experiments.results import Result
from bnkit.experiments.sweep import PRECISE, Sweep, batches_of, he_stddevs
from bnkit.experiments.training import draw_batches, fashion_mnist

TITLE = "Learning rate and initial scale"
QUESTION = "How large may the learning rate be, and how much does the initial scale matter?"
PUBLISHED = None  # the paper states it in section 3.3 and shows no numbers

VARIANTS = {"plain": False, "bn": True}
MANY = 10  # with more columns than this a scale of colours stands beside the map, not numbers in it
LABELS = {"plain": "without BN", "bn": "with BN"}


@dataclass(frozen=True)
class Config:
    """The grid, the net and how long it trains."""

    rates: tuple[float, ...] = tuple(0.001 * 2**k for k in range(16))
    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    depth: int = 5
    width: int = 100
    batch_size: int = 60
    steps: int = 1500
    trained_above: float = 0.5  # accuracy that counts as having learnt something; guessing is 0.1
    seeds: int = 5


PRESETS = {
    "quick": Config(rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), steps=200, seeds=3),
    "full": Config(),
}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All cells of the grid and all seeds, as one program for each variant.

    Returns:
        One record a seed: for "plain" and "bn", "validation" and "test" accuracy with precise
        statistics, "moving", the validation accuracy with the moving ones, and the mean "loss" of
        the last 100 steps, each a list over scales of lists over rates. The learning rate is
        chosen by the validation part.
    """
    found = {variant: run_variant(config, variant, seeds) for variant in VARIANTS}
    return [{variant: found[variant][k] for variant in VARIANTS} for k in range(len(seeds))]


def run_variant(config: Config, variant: str, seeds: Sequence[int]) -> list[dict[str, Array]]:
    """All cells of the grid and all seeds of "plain" or "bn": one program; a record a seed."""
    data = fashion_mnist()
    cells = list(product(seeds, config.scales, config.rates))
    seed_of, scales, rates = map(list, zip(*cells, strict=True))
    shape = (len(seeds), len(config.scales), len(config.rates))
    order = {
        seed: draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
        for seed in seeds
    }
    widths = [config.width] * config.depth
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=widths,
        rates=rates,
        stddevs=he_stddevs([data.x_train.shape[1], *widths, 10], scales),
        batch_norm=VARIANTS[variant],
        seed=seed_of,
    )
    losses = sweep.train(batches_of(order, seed_of))
    precise = sweep.statistics(data.x_train[:PRECISE])
    seen = {
        "loss": losses[:, -100:].mean(axis=1),
        "validation": sweep.accuracy(data.x_validation, data.y_validation, statistics=precise),
        "test": sweep.accuracy(data.x_test, data.y_test, statistics=precise),
        "moving": sweep.accuracy(data.x_validation, data.y_validation),
    }
    return [
        {key: values.reshape(shape)[k] for key, values in seen.items()} for k in range(len(seeds))
    ]


def trained(result: Result, variant: str) -> Array:
    """Which cells have learnt something: bool of shape (seeds, scales, rates)."""
    return result.values(variant, "validation") > result.config["trained_above"]


def largest_rates(result: Result, variant: str) -> Array:
    """The largest rate that trains, for each seed and scale; 0 where none does."""
    return (trained(result, variant) * np.array(result.config["rates"])).max(axis=2)


def best_rates(result: Result, variant: str) -> list[tuple[int, bool]]:
    """For each scale the place of the best rate on the validation part, and if it is inside."""
    scores = result.values(variant, "validation")
    return [
        best_rate(result.config["rates"], scores[:, k]) for k in range(len(result.config["scales"]))
    ]


def best_test_accuracy(result: Result, variant: str) -> Array:
    """Test accuracy at each scale's best rate, shape (seeds, scales)."""
    test = result.values(variant, "test")
    best = best_rates(result, variant)
    return np.stack([test[:, k, place] for k, (place, _) in enumerate(best)], axis=1)


def plot(result: Result) -> Any:
    """Two maps of the validation accuracy, median over seeds; a frame around what trains."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(7.2, 6.2), sharex=True, layout="constrained")
    rates, scales = result.config["rates"], result.config["scales"]
    many = len(rates) > MANY
    for ax, variant in zip(axes, VARIANTS, strict=True):
        median = 100 * np.median(result.values(variant, "validation"), axis=0)
        image = ax.imshow(median, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=100)
        if not many:
            _write_values(ax, median)
        _outline(ax, trained(result, variant).mean(axis=0) > 0.5)
        ticks = range(0, len(rates), 2 if many else 1)
        ax.set_xticks(ticks, [f"{rates[k]:g}" for k in ticks])
        ax.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        ax.grid(False)
        ax.set(ylabel="initial scale (1: He)", title=f"{LABELS[variant]}: validation accuracy (%)")
    axes[-1].set_xlabel("learning rate")
    if many:
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    return figure


def _write_values(ax: Any, values: Array) -> None:
    """Write each cell's number into it."""
    for (row, column), value in np.ndenumerate(values):
        color = "#111111" if value > 50 else "#eeeeee"
        ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)


def _outline(ax: Any, inside: Array) -> None:
    """Draw the border between the cells that are inside and those that are not."""
    padded = np.pad(inside, 1)
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        ax.plot([column - 0.5, column + 0.5], [row - 0.5] * 2, color="red", ls="-", lw=2)
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        ax.plot([column - 0.5] * 2, [row - 0.5, row + 0.5], color="red", ls="-", lw=2)
