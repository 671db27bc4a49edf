"""Batch size: normalization by 2 to 128 examples, while the gradient always has 128.

A small batch is two things: few examples for the statistics, and few for the gradient. Here only
the first changes: the statistics are those of groups of the batch ("ghost batches", Hoffer et
al. 2017). After the Group Normalization paper (Wu and He 2018), whose figure 1 shows ImageNet error
by batch size for ResNet-50, where both change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.ghost import GhostBatchNormalization, Patchwise, with_settings
from bnkit.experiments.networks import conv_net
from bnkit.experiments.results import Result
from bnkit.experiments.runs import Runs
from bnkit.experiments.training import cosine, draw_batches, fashion_mnist, loss_of

TITLE = "Batch size"
QUESTION = "From how few examples may the statistics come before batch normalization breaks down?"
# Wu and He 2018, figure 1 and table 2: ResNet-50, ImageNet validation error in percent.
PUBLISHED = {
    "batch_sizes": (32, 16, 8, 4, 2),
    "batch": (23.6, 23.7, 24.8, 27.3, 34.7),
    "group": (24.1, 24.2, 24.0, 24.2, 24.1),
}

CLIPPING = (3.0, 5.0)  # largest r and d, the values of Ioffe 2017, section 4
NO_CLIPPING = (1.0, 0.0)  # by which batch renormalization is batch normalization
LABELS = {
    "batch": "batch norm",
    "renorm": "batch renorm",
    "group": "group norm",
    "layer": "layer norm",
}
LEVELS: dict[str, Callable[[], keras.layers.Layer]] = {
    "group": lambda: keras.layers.GroupNormalization(groups=4),
    "layer": lambda: keras.layers.GroupNormalization(groups=1),  # over all of a picture
}
Settings = tuple[float, ...]
STATISTICS = ("precise", "groups", "moving")
BATCHES_AT_ONCE = 13  # so many batches of 128 go six times into 9,984 images


@dataclass(frozen=True)
class Config:
    """The net, the sizes of the groups, and how long it trains."""

    groups: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    renorm: tuple[int, ...] = (2, 8)  # sizes at which batch renormalization runs as well
    levels: tuple[str, ...] = ("group", "layer")
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    batch_size: int = 128
    steps: int = 800
    momentum: float = 0.9
    filters: tuple[int, ...] = (8, 16, 32)
    layers: int = 3
    precise: int = 4992  # training images from which the precise statistics are
    tested: int = 9984  # images of the validation and of the test part
    seeds: int = 5


PRESETS = {
    "quick": Config(
        groups=(2, 8, 128),
        renorm=(),
        levels=("group",),
        rates=(0.5,),
        steps=200,
        precise=1664,
        tested=1664,
        seeds=3,
    ),
    "full": Config(),
}


def arms(config: Config) -> dict[str, Settings]:
    """What the layers of batch normalization are set to, by arm: group, rmax and dmax.

    >>> list(arms(PRESETS["quick"]))
    ['batch 2', 'batch 8', 'batch 128']
    """
    found: dict[str, Settings] = {f"batch {size}": (size, *NO_CLIPPING) for size in config.groups}
    return found | {f"renorm {size}": (size, *CLIPPING) for size in config.renorm}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Every size of the groups, and the levels beside them, each with every learning rate.

    Returns:
        For each arm, such as "batch 2", "renorm 2" or "group", lists over the rates: "loss", the
        mean over the last 50 steps; for the "precise" statistics (of many images as one batch),
        for the average of "groups" of the arm's size in them, and for the "moving" ones,
        "validation", "test" and "train" accuracy and the test "loss" in inference mode; and
        "training", "test" accuracy and "loss" in training mode on groups of the arm's size. The
        arms of group and layer normalization have no statistics, and the same under all names.
    """
    record = train_and_test(config, seed, "batch", arms(config))
    for kind in config.levels:
        record |= train_and_test(config, seed, kind, {kind: ()})
    return record


@lru_cache(maxsize=3)
def copies(config: Config, kind: str, count: int) -> Runs:
    """So many copies of one net, whose programs are compiled once for all seeds."""
    if kind == "batch":

        def normalize() -> keras.layers.Layer:
            return GhostBatchNormalization(momentum=config.momentum)
    else:
        normalize = LEVELS[kind]
    data = fashion_mnist(flat=False)
    together = keras.backend.backend() == "jax"  # elsewhere patches would only cost time
    convolution = Patchwise if together else keras.layers.Conv2D
    return Runs(
        lambda: conv_net(config.filters, config.layers, normalize, convolution=convolution),
        keras.optimizers.SGD,
        data.x_train,
        data.y_train,
        seeds=[0] * count,
        rates=np.zeros((count, config.steps)),
        steps=config.steps,
    )


def train_and_test(
    config: Config, seed: int, kind: str, settings: dict[str, Settings]
) -> dict[str, Any]:
    """Train one net for each arm and rate, from the same weights and on the same batches.

    Args:
        config: the net, the rates and the number of steps.
        seed: of the initial weights and of the batches.
        kind: "batch" or a key of ``LEVELS``.
        settings: for each arm those of its layers, where the kind is "batch".

    Returns:
        For each arm what ``run_seed`` says.
    """
    cells = list(product(settings.values(), config.rates))
    runs = copies(config, kind, len(cells))
    rates = np.outer([rate for _, rate in cells], cosine(config.steps))
    runs.restart(seeds=[seed] * len(cells), rates=rates)
    if kind == "batch":
        runs.states = with_settings(runs.model, runs.states, [each for each, _ in cells])
    rows = len(fashion_mnist().x_train)
    batches = draw_batches(rows, config.batch_size, config.steps, seed)
    shape = (config.steps, len(cells), config.batch_size)
    losses = runs.train(np.broadcast_to(batches[:, None], shape))
    seen: dict[str, Any] = {"loss": losses[:, -50:].mean(axis=1)}
    seen |= _inference(config, runs, with_statistics(config, runs, kind, cells))
    if kind == "batch":
        seen["training"] = _training(config, runs)
    else:  # which has one mode
        seen["training"] = {name: seen["precise"][name] for name in ("test", "loss")}
    return {name: _part(seen, k, len(config.rates)) for k, name in enumerate(settings)}


def with_statistics(config: Config, runs: Runs, kind: str, cells: list[Any]) -> dict[str, Any]:
    """The trained nets with each of the ``STATISTICS``.

    Those of groups are what the moving ones estimate: in one pass in training mode over many
    images, each layer normalizes group by group, and keeps the mean over groups of the means and of
    the variances. The precise ones are of the same images as one single group.
    """
    if kind != "batch":
        return {"precise": runs.states}
    x = fashion_mnist(flat=False).x_train[: config.precise]
    trained = runs.states
    found = {"groups": runs.recomputed(x), "moving": trained}
    whole = [(config.precise, *NO_CLIPPING) for _ in cells]
    runs.states = with_settings(runs.model, list(trained), whole)
    found["precise"] = runs.recomputed(x)
    runs.states = trained
    return found


def _inference(config: Config, runs: Runs, states: dict[str, Any]) -> dict[str, Any]:
    """Accuracies and the test loss in inference mode, for all statistics."""
    data, found = fashion_mnist(flat=False), {}
    parts = {
        "validation": (data.x_validation[: config.tested], data.y_validation[: config.tested]),
        "test": (data.x_test[: config.tested], data.y_test[: config.tested]),
        "train": (data.x_train[: config.precise], data.y_train[: config.precise]),
    }
    for name, each in states.items():
        seen = {}
        for part, (x, y) in parts.items():
            logits = runs.logits(x, states=each, batch_size=_at_once(config))
            seen[part] = (logits.argmax(axis=-1) == y).mean(axis=1)
            if part == "test":
                seen["loss"] = _losses(logits, y)
        found[name] = seen
    return {name: found.get(name, found["precise"]) for name in STATISTICS}


def _training(config: Config, runs: Runs) -> dict[str, Array]:
    """Accuracy and loss on the test images in training mode, in groups of each arm's size."""
    data = fashion_mnist(flat=False)
    x, y = data.x_test[: config.tested], data.y_test[: config.tested]
    logits = runs.logits(x, training=True, batch_size=_at_once(config))
    return {"test": (logits.argmax(axis=-1) == y).mean(axis=1), "loss": _losses(logits, y)}


def _at_once(config: Config) -> int:
    return config.batch_size * BATCHES_AT_ONCE


def _losses(logits: Array, y: Array) -> Array:
    return np.array([loss_of(each, y) for each in logits])


def _part(seen: Any, arm: int, rates: int) -> Any:
    """Of arrays over arms and rates those of one arm."""
    if isinstance(seen, dict):
        return {name: _part(each, arm, rates) for name, each in seen.items()}
    return seen[arm * rates : (arm + 1) * rates]


def best_rate(result: Result, arm: str, statistics: str = "precise") -> tuple[float, bool]:
    """The rate that is best on the validation part, and whether it lies inside the grid."""
    rates = result.config["rates"]
    place, inside = protocol.best_rate(rates, result.values(arm, statistics, "validation"))
    return rates[place], inside


def at_best_rate(result: Result, arm: str, *keys: str, statistics: str = "precise") -> Array:
    """What stands under the keys, shape (seeds,), at the arm's best rate by these statistics."""
    rate, _ = best_rate(result, arm, statistics)
    return result.values(arm, *keys)[:, result.config["rates"].index(rate)]


def accuracy(result: Result, arm: str, *, statistics: str = "precise", part: str = "test") -> Array:
    """Accuracy in inference mode at the arm's best rate, shape (seeds,)."""
    return at_best_rate(result, arm, statistics, part, statistics=statistics)


def gap(result: Result, arm: str, quantity: str = "test", *, statistics: str = "precise") -> Array:
    """Training mode less inference mode on the same test images, shape (seeds,).

    Args:
        result: of this experiment.
        arm: such as "batch 2".
        quantity: "test", the accuracy, or "loss".
        statistics: those of inference mode; the rate is the best one by them.
    """
    training, inference = (
        at_best_rate(result, arm, mode, quantity, statistics=statistics)
        for mode in ("training", statistics)
    )
    return training - inference


def diverged(result: Result, arm: str) -> Array:
    """Which runs have a loss that is not finite, or above that of guessing: (seeds, rates)."""
    return ~(result.values(arm, "loss") <= np.log(10))


def plot(result: Result) -> Any:
    """Test accuracy and the gap between the modes against the size of the groups."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.2, 6.4), sharex=True)
    config = result.config
    for k, kind in enumerate(("batch", "renorm")):
        sizes = config["groups"] if kind == "batch" else config["renorm"]
        names = [f"{kind} {size}" for size in sizes]
        for ax, measure in ((upper, accuracy), (lower, gap)):
            values = [100 * measure(result, name) for name in names]
            if values:
                plots.band(ax, sizes, np.stack(values, axis=1), LABELS[kind], k)
    for k, kind in enumerate(config["levels"], start=2):
        ends = config["groups"][0], config["groups"][-1]
        level = np.stack([accuracy(result, kind)] * 2, axis=1)
        plots.band(upper, ends, 100 * level, LABELS[kind], k)
    lower.axhline(0, color=plots.GREY, lw=1, ls=":")
    lower.set_xscale("log", base=2)
    lower.set_xticks(config["groups"], config["groups"])
    lower.set(
        xlabel="examples of a group",
        ylabel="points of accuracy",
        title="Training mode less inference mode",
    )
    upper.set(ylabel="test accuracy (%)", title="Inference mode, precise statistics")
    for ax in (upper, lower):
        plots.label_lines(ax, gap=0.085)
    return figure
