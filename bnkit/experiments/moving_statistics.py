"""Which statistics a net in use should have: moving averages, or a recomputation.

After training, every layer needs a fixed mean and variance. The paper (Ioffe and Szegedy 2015,
Algorithm 2) takes them from many training batches, with the weights held still; frameworks keep a
moving average instead. Wu and Johnson (2021, section 3) call the former precise statistics and
find them better early in training and at large learning rates. Averaged weights make a net that was
never trained, and for it Izmailov et al. (2018, section 3.2) recompute them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.sweep import Sweep, he_stddevs
from bnkit.experiments.training import as_float, cosine, draw_batches, fashion_mnist
from bnkit.functional import batch_norm_inference
from bnkit.moments import Moments, batch_moments, population_moments

TITLE = "Moving and precise statistics"
QUESTION = "What does a moving average cost, and when is it worth computing the statistics anew?"
PUBLISHED = None  # Wu and Johnson's numbers are for ImageNet, at another scale

BATCH, PRECISE, PAPER = "batch", "precise", "paper"  # kinds of statistics, beside the momenta
CONSTANT, COSINE = "constant", "cosine"  # schedules of the learning rate
EMA, SWA = "ema", "swa"  # averages of the weights: exponential, and of all late ones alike
LAST, ALONG = "last", "along"  # moving statistics of the last net, and averaged like the weights
TRAIN = 10_000  # training images whose accuracy is read
EQUAL = 0.5  # percentage points: a difference whose interval lies within them is none


@dataclass(frozen=True)
class Config:
    """The net, how it trains, when it is evaluated, and how its weights are averaged."""

    rates: tuple[float, ...] = (0.1, 1.0)
    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    schedules: tuple[str, ...] = (CONSTANT, COSINE)
    evaluations: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)  # after so many steps
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    precise_batches: int = 200
    usual: float = 0.99  # the momentum, of those above, of the nets whose weights are averaged
    average_every: int = 10  # steps
    ema_momentum: float = 0.9  # at every tenth step: close to 0.99, Keras's, at every step
    swa_share: float = 0.5  # of the steps, at the end, over which the weights are averaged alike
    seeds: int = 10


PRESETS = {
    "quick": Config(
        schedules=(CONSTANT,), evaluations=(10, 30, 100, 300, 1000), precise_batches=60, seeds=3
    ),
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


class Averages:
    """Averages of one net's weights on its way, moving statistics and all."""

    def __init__(self, config: Config, weights: list[Array]) -> None:
        self.momentum = config.ema_momentum
        self.begin = (1 - config.swa_share) * max(config.evaluations)
        self.by_kind = {EMA: weights, SWA: [np.zeros_like(each) for each in weights]}
        self.count = 0

    def add(self, step: int, weights: list[Array]) -> None:
        """Take in the weights that the net has after a step."""
        self._move(EMA, self.momentum, weights)
        if step > self.begin:
            self._move(SWA, self.count / (self.count + 1), weights)
            self.count += 1

    def _move(self, kind: str, kept: float, weights: list[Array]) -> None:
        pairs = zip(self.by_kind[kind], weights, strict=True)
        self.by_kind[kind] = [kept * old + (1 - kept) * new for old, new in pairs]


class Evaluation:
    """What the nets of one seed are evaluated on: the test part, and batches to recompute from."""

    def __init__(self, config: Config, seed: int) -> None:
        self.data = fashion_mnist()
        rows, size = len(self.data.x_train), config.batch_size
        chosen = draw_batches(rows, size, config.precise_batches, seed + 1000)
        self.batches = [as_float(self.data.x_train[each]) for each in chosen]
        self.test = as_float(self.data.x_test), self.data.y_test
        self.train = as_float(self.data.x_train[:TRAIN]), self.data.y_train[:TRAIN]

    def accuracy(
        self, weights: Sequence[Array], statistics: Sequence[Moments] | None, part: str = "test"
    ) -> float:
        """On the "test" or the "train" part; by the statistics of a thousand rows when None."""
        x, y = getattr(self, part)
        logits = [forward(weights, rows, statistics)[0] for rows in np.split(x, len(x) // 1000)]
        return float(np.mean(np.concatenate(logits).argmax(axis=1) == y))

    def recomputed(self, weights: Sequence[Array]) -> dict[str, Any]:
        """Accuracy by the statistics of the test batches and by both recomputations."""
        precise, paper = precise_statistics(weights, self.batches)
        found: dict[str, Any] = {
            name: self.accuracy(weights, statistics)
            for name, statistics in {BATCH: None, PRECISE: precise, PAPER: paper}.items()
        }
        found["train"] = self.accuracy(weights, precise, "train")
        found["variance ratio"] = float(np.median(paper[-1].variance / precise[-1].variance))
        return found

    def averaged(self, averages: Averages, last: Sequence[Array]) -> dict[str, dict[str, float]]:
        """Accuracy of averaged weights by what statistics they are given."""
        found = {}
        for kind, weights in averages.by_kind.items():
            given = {
                LAST: moving_statistics(last),
                ALONG: moving_statistics(weights),
                PRECISE: precise_statistics(weights, self.batches)[0],
            }
            found[kind] = {name: self.accuracy(weights, each) for name, each in given.items()}
        return found


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Train once for each schedule, rate and momentum; the momentum changes no weight.

    Returns:
        For each schedule and rate, lists over the evaluations: the test accuracy with each kind
        of statistics ("0.99" is a momentum), under "train" the accuracy on training images with
        precise ones, and under "variance ratio" how the paper's variance compares to the precise
        one: the median over the last layer's units. Under "ema" and "swa" the test accuracy of
        averaged weights at the end, by what statistics they are given.
    """
    evaluation, steps = Evaluation(config, seed), max(config.evaluations)
    data, cells = evaluation.data, list(product(config.schedules, config.rates, config.momenta))
    rates = [rate for _, rate, _ in cells]
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=config.hidden,
        rates=rates,
        stddevs=he_stddevs([data.x_train.shape[1], *config.hidden, 10], np.ones(len(rates))),
        batch_norm=True,
        seed=seed,
        momentum=[momentum for *_, momentum in cells],
    )
    order = draw_batches(len(data.x_train), config.batch_size, steps, seed)
    falls = np.array([schedule == COSINE for schedule, *_ in cells])
    factors = np.where(falls, cosine(steps)[:, None], 1)
    record: dict[str, Any] = {
        schedule: {str(rate): defaultdict(list) for rate in config.rates}
        for schedule in config.schedules
    }
    averages = {
        run: Averages(config, sweep.weights_of(run))
        for run, (*_, momentum) in enumerate(cells)
        if momentum == config.usual
    }
    made = 0
    for step in sorted(
        {*config.evaluations, *range(config.average_every, steps, config.average_every)}
    ):
        sweep.train(order[made:step], factors[made:step])
        made = step
        for run, each in averages.items():
            if step % config.average_every == 0:
                each.add(step, sweep.weights_of(run))
        if step in config.evaluations:
            evaluate(evaluation, sweep, cells, record)
    for run, each in averages.items():
        schedule, rate, _ = cells[run]
        record[schedule][str(rate)] |= evaluation.averaged(each, sweep.weights_of(run))
    return record


def evaluate(
    evaluation: Evaluation, sweep: Sweep, cells: Sequence[Any], record: dict[str, Any]
) -> None:
    """Add the accuracies of all nets to the record."""
    done = set()
    for run, (schedule, rate, momentum) in enumerate(cells):
        weights, lists = sweep.weights_of(run), record[schedule][str(rate)]
        found = {str(momentum): evaluation.accuracy(weights, moving_statistics(weights))}
        if (schedule, rate) not in done:  # the weights are the same for every momentum
            found |= evaluation.recomputed(weights)
            done.add((schedule, rate))
        for name, value in found.items():
            lists[name].append(value)


def accuracy_of(result: Result, rate: float, kind: str, schedule: str = CONSTANT) -> Array:
    """Test accuracy in percent with one kind of statistics, shape (seeds, evaluations)."""
    return 100 * result.values(schedule, str(rate), kind)


def gain(result: Result, rate: float, momentum: float, schedule: str = CONSTANT) -> Array:
    """Percentage points that precise statistics win over a moving average, (seeds, evaluations)."""
    precise = accuracy_of(result, rate, PRECISE, schedule)
    return precise - accuracy_of(result, rate, str(momentum), schedule)


def averaged(result: Result, rate: float, average: str, kind: str, schedule: str) -> Array:
    """Test accuracy in percent of averaged weights with one kind of statistics, shape (seeds,)."""
    return 100 * result.values(schedule, str(rate), average, kind)


def plot(result: Result) -> Any:
    """Test accuracy against steps by kind of statistics: a row a schedule, a column a rate."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    config = result.config
    schedules, rates = config["schedules"], config["rates"]
    names = {str(momentum): f"momentum {momentum}" for momentum in config["momenta"]}
    names |= {BATCH: "the test batch's own", PRECISE: "precise"}
    size = (7.2, 1.2 + 3 * len(schedules))
    figure, axes = plt.subplots(
        len(schedules), len(rates), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for row, schedule in zip(axes, schedules, strict=True):
        for ax, rate in zip(row, rates, strict=True):
            for index, (kind, name) in enumerate(names.items()):
                values = accuracy_of(result, rate, kind, schedule)
                plots.band(ax, config["evaluations"], values, name, index)
            falls = ", falling" if schedule == COSINE else ""
            ax.set(xscale="log", title=f"learning rate {rate:g}{falls}")
        row[0].set_ylabel("test accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure
