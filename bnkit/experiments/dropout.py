"""Dropout and batch normalization: what each does for a net with few images, and both together.

The paper (sections 3.4 and 4.2.1) finds that batch normalization regularizes and removes dropout
from its ImageNet networks. Li et al. 2018 say why the two may disturb each other: dropout makes the
variance larger in training than in inference, and the moving variance is that of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.results import Result
from bnkit.experiments.runs import Runs
from bnkit.experiments.training import as_float, cosine, draw_batches, fashion_mnist

TITLE = "Dropout"
QUESTION = "Does batch normalization replace dropout, and do the two get along?"
PUBLISHED = "BN-Inception without dropout: 'does not suffer from increased overfitting' (4.2.1)"

LAST = "bn, dropout last"  # one of the variants
LABELS = {
    "plain": "without BN",
    "bn": "BN, dropout in each block",
    LAST: "BN, dropout after the last BN",
}
# Statistics in inference: recomputed with dropout dropping as in training, or without, or moving.
PRECISE, REPAIRED, MOVING = "precise", "repaired", "moving"
PROBED = 2000  # images, at most, over which variances in inference are taken


@dataclass(frozen=True)
class Config:
    """The net, how few images it has, how much is dropped, and the rates, which decay to zero."""

    images: tuple[int, ...] = (500, 2000, 10_000)  # each divides the last
    dropped: tuple[float, ...] = (0.0, 0.2, 0.5)
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    depth: int = 3
    width: int = 200
    batch_size: int = 60
    steps: int = 2000
    seeds: int = 5


PRESETS = {
    "quick": Config(images=(2000,), dropped=(0.0, 0.5), rates=(0.1,), steps=1000, seeds=3),
    "full": Config(),
}


def make_model(variant: str, dropped: float, depth: int, width: int) -> Any:
    """Blocks of Dense, BatchNormalization, ReLU and Dropout, or of those that the variant has."""
    linear = [  # made first, so that one seed gives all variants the same weights
        layers.Dense(width, use_bias=variant == "plain", kernel_initializer="he_normal")
        for _ in range(depth)
    ]
    output = layers.Dense(10)
    stack = [keras.Input((784,))]
    for number in range(depth):
        stack += [linear[number]]
        if variant != "plain":
            stack += [layers.BatchNormalization()]
        stack += [layers.Activation("relu")]
        if dropped and (variant != LAST or number == depth - 1):
            stack += [layers.Dropout(dropped)]
    return keras.Sequential([*stack, output])


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All numbers of images and rates of all seeds side by side, for each variant and fraction.

    A seed draws the images too, the fewer of them among the more.

    Returns:
        One record a seed: for each variant and fraction dropped (of "bn, dropout last" not 0, which
        is "bn" again) a dict of lists over numbers of images, of lists over rates. It has the mean
        "loss" of the last 100 steps, and for each kind of statistics the accuracy "validation" and
        "test" and the loss "validation loss" and "test loss", with the precise ones also "train"
        and "train loss". The statistics are those of the net's training images: "precise" with
        dropout dropping, "repaired" without it (where that is not the same), and "moving" as the
        training left them. With batch normalization also "ratio", by ``variance_ratios``, and where
        dropout stands before a normalization "predicted", by ``predicted_ratio``.
    """
    records: list[dict[str, Any]] = [{variant: {} for variant in LABELS} for _ in seeds]
    for variant, dropped in product(LABELS, config.dropped):
        if variant == LAST and not dropped:
            continue
        nets = Nets(config, seeds, variant, dropped)
        nets.train()
        shape = (len(seeds), len(config.images), len(config.rates))
        seen = nets.evaluate()
        for k, record in enumerate(records):
            record[variant][f"{dropped:g}"] = _part(seen, shape, k)
    return records


class Nets:
    """The nets of one variant and fraction dropped: by seed, number of images and rate."""

    def __init__(self, config: Config, seeds: Sequence[int], variant: str, dropped: float) -> None:
        self.config, self.variant, self.dropped = config, variant, dropped
        self.data = fashion_mnist()
        cells = list(product(seeds, config.images, config.rates))
        self.seed_of, self.images_of, rates = map(list, zip(*cells, strict=True))
        drawn = {seed: draw_images(len(self.data.x_train), seed) for seed in seeds}
        self.images = [drawn[seed][:count] for seed, count, _ in cells]
        self.runs = Runs(
            partial(make_model, variant, dropped, config.depth, config.width),
            keras.optimizers.SGD,
            self.data.x_train,
            self.data.y_train,
            seeds=self.seed_of,
            rates=np.outer(rates, cosine(config.steps)),
            steps=config.steps,
            jit=False,  # XLA's random numbers are slow on a CPU
        )

    def train(self) -> None:
        """Make all steps."""
        order = {
            (seed, count): draw_batches(count, self.config.batch_size, self.config.steps, seed)
            for seed, count in product(set(self.seed_of), self.config.images)
        }
        batches = [
            images[order[seed, count]]
            for images, seed, count in zip(self.images, self.seed_of, self.images_of, strict=True)
        ]
        self.losses = self.runs.train(np.stack(batches, axis=1))

    def evaluate(self) -> dict[str, Any]:
        """What ``run_seeds`` describes, each an array whose first axis is the run."""
        # All images of each net, repeated to be as many as those of the others.
        rows = np.stack([np.resize(images, max(self.config.images)) for images in self.images])
        seen: dict[str, Any] = {"loss": self.losses[:, -100:].mean(axis=1)}
        precise = self.runs.states
        if self.variant != "plain":
            seen[MOVING] = self.on_new_images(precise)
            seen |= self.variances()
            precise = self.runs.recomputed(rows=rows, drop=True)
        if self.variant == "bn" and self.dropped:
            seen[REPAIRED] = self.on_new_images(self.runs.recomputed(rows=rows))
        seen[PRECISE] = self.on_new_images(precise) | self.on_own_images(rows, precise)
        return seen

    def on_new_images(self, states: Any) -> dict[str, Array]:
        """Accuracy and loss on the validation and the test part."""
        seen = {}
        for part in ("validation", "test"):
            x, y = (getattr(self.data, f"{axis}_{part}") for axis in "xy")
            seen[part], seen[f"{part} loss"] = scores(self.runs.logits(x, states=states), y)
        return seen

    def on_own_images(self, rows: Array, states: Any) -> dict[str, Array]:
        """Accuracy and loss on the images that each net was trained on."""
        used, places = np.unique(rows, return_inverse=True)
        thousands = np.resize(used, -(-len(used) // 1000) * 1000)  # one shape compiles once
        logits = self.runs.logits(self.data.x_train[thousands], states=states)
        own = np.take_along_axis(logits, places.reshape(*rows.shape, 1), axis=1)
        accuracy, loss = scores(own, self.data.y_train[rows])
        return {"train": accuracy, "train loss": loss}

    def variances(self) -> dict[str, Array]:
        """The ratios of each net, and the predicted ones where they are not 1."""
        seen: dict[str, list[Any]] = {"ratio": [], "predicted": []}
        for run, images in enumerate(self.images):
            x = as_float(self.data.x_train[images[:PROBED]])
            layer_inputs = inputs_of_layers(self.runs.load(run), x)
            seen["ratio"].append(variance_ratios(layer_inputs))
            seen["predicted"].append(predicted_ratio(layer_inputs, self.dropped))
        if self.variant == LAST or not self.dropped:
            del seen["predicted"]
        return {name: np.array(values) for name, values in seen.items()}


def draw_images(rows: int, seed: int) -> Array:
    """Row numbers in a random order, another one than that of the batches."""
    return np.random.default_rng([seed, 1]).permutation(rows).astype("int32")


def scores(logits: Array, y: Array) -> tuple[Array, Array]:
    """Accuracy and mean cross-entropy of each run, from logits of shape (runs, rows, classes)."""
    labels = np.broadcast_to(y, logits.shape[:2])
    each = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    loss = ops.convert_to_numpy(ops.mean(each, axis=1))
    return (logits.argmax(axis=-1) == labels).mean(axis=1), loss


def inputs_of_layers(model: Any, x: Array) -> list[tuple[Any, Any]]:
    """Each layer of a Sequential model and what it gets in inference mode."""
    value, seen = ops.convert_to_tensor(x), []
    for layer in model.layers:
        seen.append((layer, value))
        value = layer(value, training=False)
    return seen


def variance_ratios(layer_inputs: list[tuple[Any, Any]]) -> list[float]:
    """The variance of each normalization's input in inference, over its moving variance.

    Returns:
        For each batch normalization the median over its channels.
    """
    ratios = [
        ops.var(value, axis=0) / layer.moving_variance
        for layer, value in layer_inputs
        if isinstance(layer, layers.BatchNormalization)
    ]
    return [float(np.median(ops.convert_to_numpy(each))) for each in ratios]


def predicted_ratio(layer_inputs: list[tuple[Any, Any]], dropped: float) -> float:
    """What ``variance_ratios`` should find at the second normalization, from the weights alone.

    A linear map W of inputs u of which the fraction p is dropped has the variance
    Var(W u) + p/(1 − p) Σ W² E[u²] in training, and Var(W u) in inference.
    """
    dense, u = [pair for pair in layer_inputs if isinstance(pair[0], layers.Dense)][1]
    inference = ops.var(ops.matmul(u, dense.kernel), axis=0)
    mean_square = ops.mean(ops.square(u), axis=0)
    extra = dropped / (1 - dropped) * ops.matmul(mean_square, ops.square(dense.kernel))
    return float(np.median(ops.convert_to_numpy(inference / (inference + extra))))


def _part(seen: Any, shape: tuple[int, ...], seed: int) -> Any:
    """The part of one seed, as arrays over numbers of images and rates."""
    if isinstance(seen, dict):
        return {name: _part(each, shape, seed) for name, each in seen.items()}
    return seen.reshape(*shape, *seen.shape[1:])[seed]


def values(result: Result, variant: str, dropped: float, *names: str) -> Array:
    """An entry of the records, of shape (seeds, numbers of images, rates, …)."""
    if variant == LAST and not dropped:
        variant = "bn"
    return result.values(variant, f"{dropped:g}", *names)


def best_rate(result: Result, variant: str, dropped: float, measure: str) -> list[tuple[int, bool]]:
    """For each number of images the place of the best rate, and whether it lies inside the grid.

    Args:
        result: the runs.
        variant: a key of ``LABELS``.
        dropped: the fraction dropped.
        measure: "accuracy" or "loss", of which the validation part decides, with precise
            statistics.
    """
    name, sign = {"accuracy": ("validation", 1), "loss": ("validation loss", -1)}[measure]
    found = sign * values(result, variant, dropped, PRECISE, name)
    rates = result.config["rates"]
    return [protocol.best_rate(rates, found[:, row]) for row in range(found.shape[1])]


def at_best_rate(
    result: Result,
    variant: str,
    dropped: float,
    measure: str,
    part: str = "test",
    statistics: str = PRECISE,
) -> Array:
    """Accuracy or loss at the rate of ``best_rate``, shape (seeds, numbers of images).

    All kinds of statistics are of the same nets.
    """
    found = values(
        result, variant, dropped, statistics, part if measure == "accuracy" else f"{part} loss"
    )
    best = best_rate(result, variant, dropped, measure)
    return np.stack([found[:, row, rate] for row, (rate, _) in enumerate(best)], axis=1)


def plot(result: Result) -> Any:
    """Test accuracy and test loss against the fraction dropped, for one number of images each."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    images, dropped = result.config["images"], result.config["dropped"]
    figure, axes = plt.subplots(
        len(images),
        2,
        figsize=(7.2, 0.8 + 2.5 * len(images)),
        sharex=True,
        squeeze=False,
    )
    for column, (measure, factor) in enumerate({"accuracy": 100, "loss": 1}.items()):
        for index, (variant, label) in enumerate(LABELS.items()):
            found = np.stack([at_best_rate(result, variant, p, measure) for p in dropped], axis=2)
            for row, count in enumerate(images):
                plots.band(axes[row, column], dropped, factor * found[:, row], label, index)
                axes[row, column].set_title(f"{count:,} training images")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    for ax in axes[:, 1]:
        ax.set_ylabel("test loss")
    for ax in axes[-1]:
        ax.set_xlabel("fraction dropped")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    return figure
