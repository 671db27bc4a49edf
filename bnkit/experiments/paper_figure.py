"""The paper's first figure: a small sigmoid net with and without batch normalization.

Ioffe and Szegedy 2015, section 4.1 and figure 1: MNIST, three hidden layers of 100 sigmoid units,
50,000 steps of batch size 60; test accuracy against steps, and the 15th, 50th and 85th percentiles
of a last-layer input. They do not state the learning rate, nor the scale of the initial weights:
"small random Gaussian values". So both are varied here, the depth and the data set too, and each
net is trained a second time with a learning rate that decays to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.sweep import PRECISE, Sweep, batches_of
from bnkit.experiments.training import Data, cosine, draw_batches, log_steps, pictures

TITLE = "The paper's first figure"
QUESTION = "Does a sigmoid net train faster with batch normalization, and does it end up better?"
PUBLISHED = {
    "source": "Ioffe and Szegedy 2015, figure 1 (MNIST, one run)",
    "finding": "with BN the net trains faster, and ends at a higher test accuracy",
}

VARIANTS = {"plain": False, "bn": True}
LABELS = {"plain": "without BN", "bn": "with BN"}
DATA = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
SCHEDULES = ("constant", "cosine")
RANKS = (15, 50, 85)
WARM_UP = 1000  # steps during which the moving statistics still hold what they began with


@dataclass(frozen=True)
class Config:
    """The grid, the nets and how long those of each depth train."""

    data: tuple[str, ...] = tuple(DATA)
    depths: tuple[int, ...] = (3, 5, 8)
    steps: tuple[int, ...] = (50_000, 10_000, 5_000)
    rates: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    stddevs: tuple[float, ...] = (0.1, 0.01)
    schedules: tuple[str, ...] = SCHEDULES
    width: int = 100
    batch_size: int = 60
    seeds: int = 5


PRESETS = {
    "quick": Config(
        data=("fashion-mnist",),
        depths=(3,),
        steps=(2000,),
        rates=(0.1, 1.0),
        stddevs=(0.1,),
        schedules=("constant",),
        seeds=3,
    ),
    "full": Config(),
}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All schedules, scales and rates of all seeds side by side, for each data set and depth.

    Learning rates are chosen on the validation part; the test part reports.

    Returns:
        One record a seed: for each data set and depth, for "plain" and "bn", lists over standard
        deviations and rates. At the constant rate: test "accuracy" at each evaluated step, with
        precise statistics; "moving", the same with the moving ones; "own", up to step 1,000, with
        those of the test images themselves, a thousand at a time; "percentiles" of the first
        unit's input, by step and rank; and "units", percentiles of all units in the first cell, at
        the first evaluated step, at step 1,000 and at the last. And "end", for each schedule the
        "test", "validation" and "train" accuracy after the last step, and "test moving".
    """
    records: list[dict[str, Any]] = [{} for _ in seeds]
    for name, (depth, last) in product(config.data, zip(config.depths, config.steps, strict=True)):
        for variant, batch_norm in VARIANTS.items():
            data = pictures(name)
            title = f"{DATA[name]}, {depth} layers, {LABELS[variant]}"
            nets = Nets(config, data, seeds, depth, batch_norm)
            for record, seen in zip(records, nets.train(last, title), strict=True):
                record.setdefault(name, {}).setdefault(str(depth), {})[variant] = seen
    return records


class Nets:
    """The nets of one data set and depth: by seed, schedule, standard deviation and rate."""

    def __init__(
        self, config: Config, data: Data, seeds: Sequence[int], depth: int, batch_norm: bool
    ) -> None:
        self.config, self.data, self.seeds, self.batch_norm = config, data, seeds, batch_norm
        self.shape = (
            len(seeds),
            len(config.schedules),
            len(config.stddevs),
            len(config.rates),
        )
        cells = list(product(seeds, config.schedules, config.stddevs, config.rates))
        self.seed_of, self.schedule_of, stddevs, rates = map(list, zip(*cells, strict=True))
        self.sweep = Sweep(
            data.x_train,
            data.y_train,
            widths=[config.width] * depth,
            rates=rates,
            stddevs=stddevs,
            activation="sigmoid",
            batch_norm=batch_norm,
            seed=self.seed_of,
        )

    def train(self, last: int, title: str) -> list[dict[str, Any]]:
        """Train all nets, and evaluate them on the way: one record a seed."""
        factors = {"constant": np.ones(last), "cosine": cosine(last)}
        by_run = np.stack([factors[schedule] for schedule in self.schedule_of], axis=1)
        by_seed = {
            seed: draw_batches(len(self.data.x_train), self.config.batch_size, last, seed)
            for seed in self.seeds
        }
        steps = evaluated_until(last)
        seen: dict[str, list[Array]] = {"accuracy": [], "percentiles": []}
        seen |= {"moving": [], "own": []} if self.batch_norm else {}
        units = []
        for start, step in bar(list(zip([0, *steps[:-1]], steps, strict=True)), desc=title):
            part = {seed: each[start:step] for seed, each in by_seed.items()}
            self.sweep.train(batches_of(part, self.seed_of), by_run[start:step])
            for name, values in self.evaluate(step).items():
                seen[name].append(values)
            if step in (steps[0], WARM_UP, last):
                units.append(self.units())
        constant = {
            name: np.moveaxis(np.array([each[:, 0] for each in values]), 0, 3)
            for name, values in seen.items()
        }
        end = self.end()
        return [
            {
                **{name: values[k] for name, values in constant.items()},
                "units": np.stack([each[k] for each in units]),
                "end": {
                    schedule: {name: values[k, j] for name, values in end.items()}
                    for j, schedule in enumerate(self.config.schedules)
                },
            }
            for k in range(len(self.seeds))
        ]

    def evaluate(self, step: int) -> dict[str, Array]:
        """Accuracies on the test part and percentiles of the first unit, of ``self.shape``."""
        x, y = self.data.x_test, self.data.y_test
        statistics = self.precise()
        inputs, logits = self.sweep.evaluate(x, statistics=statistics, units=1)
        seen = {"accuracy": (logits.argmax(axis=-1) == y).mean(axis=1)}
        if self.batch_norm:
            seen["moving"] = self.sweep.accuracy(x, y)
            if step <= WARM_UP:
                seen["own"] = self.sweep.accuracy(x, y, training=True)
        seen = {name: each.reshape(self.shape) for name, each in seen.items()}
        ranks = np.percentile(inputs[:, :, 0], RANKS, axis=1).T
        return seen | {"percentiles": ranks.reshape(*self.shape, len(RANKS))}

    def precise(self) -> Any:
        """The statistics of training images, with the weights as they are."""
        return self.sweep.statistics(self.data.x_train[:PRECISE])

    def units(self) -> Array:
        """Percentiles of each unit of the last layer in the first cell, (seeds, ranks, units)."""
        parts = np.split(self.data.x_test, 10)
        per_seed = int(np.prod(self.shape[1:]))
        statistics = self.precise()
        first = [self.sweep.evaluate(x, statistics=statistics)[0][::per_seed] for x in parts]
        return np.moveaxis(np.percentile(np.concatenate(first, axis=1), RANKS, axis=1), 0, 1)

    def end(self) -> dict[str, Array]:
        """Accuracies after the last step, of ``self.shape``."""
        data, statistics = self.data, self.precise()
        parts = {
            "test": (data.x_test, data.y_test),
            "validation": (data.x_validation, data.y_validation),
            "train": (data.x_train[:PRECISE], data.y_train[:PRECISE]),
        }
        found = {
            name: self.sweep.accuracy(*part, statistics=statistics) for name, part in parts.items()
        }
        found["test moving"] = self.sweep.accuracy(*parts["test"])
        return {name: each.reshape(self.shape) for name, each in found.items()}


def evaluated(result: Result, depth: int) -> Array:
    """The steps at which nets of this depth were evaluated."""
    config = result.config
    return evaluated_until(config["steps"][config["depths"].index(depth)])


def evaluated_until(last: int) -> Array:
    """The steps at which a net is evaluated that makes so many; step 1,000 is one of them."""
    return np.union1d(log_steps(last), min(WARM_UP, last))


def accuracy(
    result: Result,
    depth: int,
    variant: str,
    rate: float,
    stddev: float,
    *,
    data: str = "mnist",
    kind: str = "accuracy",
) -> Array:
    """Test accuracy of one cell at the constant rate, shape (seeds, evaluated steps).

    Args:
        result: of this experiment.
        depth: hidden layers.
        variant: "plain" or "bn".
        rate: the learning rate.
        stddev: of the initial weights.
        data: "mnist" or "fashion-mnist".
        kind: "accuracy", with precise statistics; "moving" or "own", see ``run_seeds``.
    """
    cell = result.config["stddevs"].index(stddev), result.config["rates"].index(rate)
    return result.values(data, str(depth), variant, kind)[:, cell[0], cell[1]]


def steps_to(level: float, steps: Array, accuracies: Array) -> Array:
    """First evaluated step at or above the level, for each seed; inf where there is none.

    >>> steps_to(0.5, np.array([100, 200]), np.array([[0.2, 0.6], [0.1, 0.3]]))
    array([200.,  inf])
    """
    return np.array([min(steps[run >= level], default=np.inf) for run in accuracies], float)


def final_accuracy(
    result: Result,
    variant: str,
    stddev: float,
    *,
    data: str = "mnist",
    schedule: str = "cosine",
    part: str = "test",
    depth: int = 3,
) -> Array:
    """Accuracy after the last step at each rate, shape (seeds, rates); see ``run_seeds``."""
    values = result.values(data, str(depth), variant, "end", schedule, part)
    return values[:, result.config["stddevs"].index(stddev)]


def tuned(
    result: Result, variant: str, *, data: str = "mnist", schedule: str = "cosine"
) -> tuple[float, float, bool, Array]:
    """A net of three layers at the rate and scale that are best on the validation part.

    Returns:
        Standard deviation, learning rate, whether that rate lies inside its grid, and the test
        accuracy of each seed there.
    """
    how: dict[str, Any] = {"data": data, "schedule": schedule}
    rates = result.config["rates"]
    found = []
    for stddev in result.config["stddevs"]:
        scores = final_accuracy(result, variant, stddev, part="validation", **how)
        best, inside = protocol.best_rate(rates, scores)
        test = final_accuracy(result, variant, stddev, **how)[:, best]
        found.append((scores[:, best].mean(), (stddev, rates[best], inside, test)))
    return max(found, key=lambda each: each[0])[1]


def draw(
    ax: Any, result: Result, *, data: str, rate: float, stddev: float = 0.1, depth: int = 3
) -> None:
    """Draw test accuracy in percent against steps at the constant rate, with and without."""
    from bnkit import plots

    for index, variant in enumerate(VARIANTS):
        curves = 100 * accuracy(result, depth, variant, rate, stddev, data=data)
        plots.band(ax, evaluated(result, depth), curves, LABELS[variant], index)
    ax.set(xscale="log", ylim=(0, 100))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.axhline(10, color=plots.GREY, lw=1, ls=":", label="_guessing")


def plot(
    result: Result,
    depth: int = 3,
    data: str | None = None,
    rates: Sequence[float] | None = None,
) -> Any:
    """Test accuracy against steps, a panel for each scale and for each of the rates.

    Without `rates` they are the first of the grid and every third from there.
    """
    import matplotlib.pyplot as plt

    rates, stddevs = rates or result.config["rates"][::3], result.config["stddevs"]
    figure, axes = plt.subplots(
        len(rates),
        len(stddevs),
        figsize=(7.2, 0.6 + 2.2 * len(rates)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    data = data or result.config["data"][0]
    for (row, column), ax in np.ndenumerate(axes):
        rate, stddev = rates[row], stddevs[column]
        draw(ax, result, data=data, rate=rate, stddev=stddev, depth=depth)
        ax.set_title(f"rate {rate:g}, σ = {stddev:g}")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    return figure
