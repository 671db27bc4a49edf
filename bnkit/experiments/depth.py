"""Depth: how deep a net of sigmoid, tanh or ReLU units still trains, with and without BN.

The paper (sections 3.2 and 4.2.2) says that batch normalization makes it possible to use saturating
nonlinearities, by keeping the net from getting stuck in the saturated modes. It trains Inception
with sigmoids to 69.8 % where the plain one stays at chance. Here dense nets of two to twenty layers
are trained at several learning rates and initial scales, and measured before and after: is it
saturation?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.layerwise import measure, rounded
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.sweep import PRECISE, Sweep, batches_of
from bnkit.experiments.training import as_float, cooldown, draw_batches, fashion_mnist

TITLE = "Depth"
QUESTION = "How deep can a net of sigmoid, tanh or ReLU units be and still train?"
PUBLISHED = {"Inception, ×5 sigmoid, with BN": 0.698, "without BN": 0.001}  # section 4.2.2, chance

VARIANTS = {"plain": False, "bn": True}
LABELS = {"plain": "without BN", "bn": "with BN"}
SCALES = {"glorot": "Glorot", "he": "He", "4 glorot": "4 × Glorot"}
BEST = "without BN, best scale"
SHALLOW = 8  # nets up to so many layers are one program
PART = 500  # steps whose batches are laid out at once


@dataclass(frozen=True)
class Config:
    """The nets, and the scales and learning rates among which the validation part chooses."""

    depths: tuple[int, ...] = (2, 4, 6, 8, 20)
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    steps: tuple[int, ...] = (10_000, 3_000, 3_000)  # for each activation
    deep_steps: int = 3_000  # of nets deeper than SHALLOW
    evaluated: tuple[int, ...] = (300, 1_000, 3_000)  # and after the last step
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    scales: tuple[str, ...] = tuple(SCALES)  # with BN the first alone, since the rest differ little
    width: int = 100
    batch_size: int = 60
    images: int = 1000  # of the validation part, to measure the nets with
    seeds: int = 5


PRESETS = {
    "quick": Config(
        depths=(2, 8),
        activations=("sigmoid",),
        steps=(300,),
        evaluated=(),
        rates=(0.1, 1.0),
        scales=("glorot",),
        seeds=3,
    ),
    "full": Config(),
}


def build_model(depth: int, width: int, activation: str, batch_norm: bool) -> keras.Sequential:
    """A dense net of equal layers: Dense, normalization, activation, and again."""
    layers = [keras.Input((784,))]
    for k in range(1, depth + 1):
        layers.append(keras.layers.Dense(width, use_bias=not batch_norm, name=f"dense_{k}"))
        if batch_norm:
            layers.append(keras.layers.BatchNormalization())
        layers.append(keras.layers.Activation(activation, name=f"activation_{k}"))
    return keras.Sequential([*layers, keras.layers.Dense(10, name="logits")])


def initial_stddevs(scale: str, sizes: Sequence[int]) -> Array:
    """Standard deviations of the initial weights of each layer.

    >>> initial_stddevs("glorot", [8, 8, 4]).round(3), initial_stddevs("he", [8, 8, 4])
    (array([0.354, 0.408]), array([0.5, 0.5]))
    """
    inputs, outputs = np.asarray(sizes[:-1], float), np.asarray(sizes[1:], float)
    if scale == "he":
        return np.sqrt(2 / inputs)
    return {"glorot": 1, "4 glorot": 4}[scale] * np.sqrt(2 / (inputs + outputs))


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All scales and rates of all seeds side by side, and the nets that make as many steps.

    The learning rate is constant for four fifths of the steps, then decays to zero. Accuracies
    have precise statistics; the validation part chooses the rate, the test part reports.

    Returns:
        One record a seed: for each activation, variant and depth the evaluated "steps"; "test"
        accuracy, a list over these of lists over scales of lists over rates; after the last step,
        for each scale and rate, "validation" and "train" accuracy, with BN "moving", the test
        accuracy with the moving statistics, and the mean "loss" of the last 100 steps. And the
        "rate" of the first scale that is best in the mean over the seeds, with what ``measure``
        finds at the "start" and, at this rate, at the "end".
    """
    records: list[dict[str, Any]] = [
        {activation: {variant: {} for variant in VARIANTS} for activation in config.activations}
        for _ in seeds
    ]
    for steps, kinds in programs(config):
        for variant, batch_norm in VARIANTS.items():
            nets = Nets(config, seeds, kinds, batch_norm)
            found = nets.train_and_measure(steps, f"{steps:,} steps, {LABELS[variant]}")
            for (record, by_kind), k in product(
                zip(records, found, strict=True), range(len(kinds))
            ):
                activation, depth = kinds[k]
                record[activation][variant][str(depth)] = by_kind[k]
    return records


def programs(config: Config) -> list[tuple[int, list[tuple[str, int]]]]:
    """Which nets, each an activation and a depth, train side by side, and how many steps."""
    found: dict[tuple[int, bool], list[tuple[str, int]]] = {}
    for activation, steps in zip(config.activations, config.steps, strict=True):
        for depth in config.depths:
            is_deep = depth > SHALLOW
            key = (min(steps, config.deep_steps) if is_deep else steps, is_deep)
            found.setdefault(key, []).append((activation, depth))
    return [(steps, kinds) for (steps, _), kinds in found.items()]


class Nets(Sweep):
    """Nets of several activations and depths in one program.

    All have as many layers as the deepest; a layer beyond a net's depth hands on what it gets.
    """

    def __init__(
        self,
        config: Config,
        seeds: Sequence[int],
        kinds: Sequence[tuple[str, int]],
        batch_norm: bool,
    ) -> None:
        self.config, self.seeds, self.kinds = config, seeds, kinds
        self.data = fashion_mnist()
        scales = config.scales[:1] if batch_norm else config.scales
        self.shape = (len(seeds), len(kinds), len(scales), len(config.rates))
        cells = list(product(seeds, kinds, scales, config.rates))
        self.seed_of, kind_of, scale_of, rates = map(list, zip(*cells, strict=True))
        self.activations, depths = map(np.array, zip(*kind_of, strict=True))
        self.depths = depths[:, None, None]
        widths = [config.width] * int(depths.max())
        by_scale = {scale: initial_stddevs(scale, [784, *widths, 10]) for scale in scales}
        super().__init__(
            self.data.x_train,
            self.data.y_train,
            widths=widths,
            rates=rates,
            stddevs=np.stack([by_scale[scale] for scale in scale_of]),
            batch_norm=batch_norm,
            seed=self.seed_of,
        )

    def activated(self, layer: int, z: Any, h: Any) -> Any:
        """Each net's own activation, or h where the net has no such layer."""
        value = None
        for name in np.unique(self.activations):
            each = getattr(ops, name)(z)
            chosen = (self.activations == name)[:, None, None]
            value = each if value is None else ops.where(chosen, each, value)
        deep_enough = layer < self.depths
        if layer == len(self.sizes) - 2 or deep_enough.all():  # the output layer, or all have it
            return value
        return ops.where(deep_enough, value, h)

    def weights_of(self, run: int) -> list[Array]:
        """The weights of the layers that this net has, in the order of ``build_model``."""
        weights = super().weights_of(run)
        hidden = self.depths[run, 0, 0] * (5 if self.batch_norm else 2)
        return [*weights[:hidden], *weights[-2:]]

    def train_and_measure(self, steps: int, title: str) -> list[list[dict[str, Any]]]:
        """The records of ``run_seeds``, for each seed and kind of net."""
        config, (seeds, kinds, *_) = self.config, self.shape
        start = [[self.measured(seed, kind, 0) for kind in range(kinds)] for seed in range(seeds)]
        stops = [*(step for step in config.evaluated if step < steps), steps]
        test, last = [], np.empty(0)
        for begin, end in bar(list(zip([0, *stops[:-1]], stops, strict=True)), desc=title):
            last = self.advance(begin, end, steps)
            test.append(self.evaluated(self.data.x_test, self.data.y_test, self.precise()))
        seen = self.end() | {"loss": rounded(last.mean(axis=1)).reshape(self.shape)}
        best = [
            protocol.best_rate(config.rates, seen["validation"][:, kind, 0])[0]
            for kind in range(kinds)
        ]
        return [
            [
                {
                    "steps": stops,
                    "test": [each[seed, kind] for each in test],
                    **{name: values[seed, kind] for name, values in seen.items()},
                    "rate": config.rates[best[kind]],
                    "start": start[seed][kind],
                    "end": self.measured(seed, kind, best[kind]),
                }
                for kind in range(kinds)
            ]
            for seed in range(seeds)
        ]

    def advance(self, begin: int, end: int, steps: int) -> Array:
        """Train from one step to another of so many; the losses of the last 100 of them."""
        rows, size = len(self.data.x_train), self.config.batch_size
        order = {seed: draw_batches(rows, size, end, seed) for seed in self.seeds}
        factors = cooldown(steps)
        losses = np.empty(0)
        for first in range(begin, end, PART):
            part = slice(first, min(first + PART, end))
            batches = {seed: each[part] for seed, each in order.items()}
            losses = self.train(batches_of(batches, self.seed_of), factors[part])
        return losses[:, -100:]

    def precise(self) -> Any:
        """The statistics of training images, where there are any."""
        return self.statistics(self.data.x_train[:PRECISE]) if self.batch_norm else None

    def evaluated(self, x: Array, y: Array, statistics: Any) -> Array:
        """Accuracy of each run, of ``self.shape``."""
        return self.accuracy(x, y, statistics=statistics).reshape(self.shape)

    def end(self) -> dict[str, Array]:
        """Accuracies after the last step, of ``self.shape``."""
        data, statistics = self.data, self.precise()
        found = {
            "validation": self.evaluated(data.x_validation, data.y_validation, statistics),
            "train": self.evaluated(data.x_train[:PRECISE], data.y_train[:PRECISE], statistics),
        }
        if self.batch_norm:
            found["moving"] = self.evaluated(data.x_test, data.y_test, None)
        return found

    def measured(self, seed: int, kind: int, rate: int) -> dict[str, Array]:
        """What ``measure`` finds in the net of this seed, kind and rate, at the first scale."""
        images = slice(self.config.images)
        weights = self.weights_of(int(np.ravel_multi_index((seed, kind, 0, rate), self.shape)))
        x, y = as_float(self.data.x_validation[images]), self.data.y_validation[images]
        return measure(weights, self.kinds[kind][0], self.batch_norm, x, y)


class Tuned(NamedTuple):
    """A net at the scale and learning rate that are best on the validation part.

    Attributes:
        scale: a key of ``SCALES``.
        rate: the learning rate.
        inside: whether the rate is neither the first nor the last of the grid.
        place: where scale and rate stand in the lists of the record.
        test: test accuracy after the last step, shape (seeds,).
    """

    scale: str
    rate: float
    inside: bool
    place: tuple[int, int]
    test: Array


def tuned(
    result: Result, activation: str, variant: str, depth: int, scales: Sequence[str] | None = None
) -> Tuned:
    """The net at its best rate, and at the best of these scales; of all that it has when None."""
    config = result.config
    validation = result.values(activation, variant, str(depth), "validation")
    test = result.values(activation, variant, str(depth), "test")[:, -1]
    found = []
    for k in range(validation.shape[1]):
        if scales is None or config["scales"][k] in scales:
            best, inside = protocol.best_rate(config["rates"], validation[:, k])
            chosen = (config["scales"][k], config["rates"][best], inside, (k, best))
            found.append((validation[:, k, best].mean(), Tuned(*chosen, test[:, k, best])))
    return max(found, key=lambda each: each[0])[1]


def on_the_way(result: Result, activation: str, variant: str, depth: int, scale: str) -> Array:
    """Test accuracy at each evaluated step, at the best rate of the scale: (seeds, steps)."""
    k, best = tuned(result, activation, variant, depth, [scale]).place
    return result.values(activation, variant, str(depth), "test")[:, :, k, best]


def diverged(result: Result, activation: str, variant: str, depth: int) -> Array:
    """How many seeds ended with a loss that is no number, shape (scales, rates)."""
    return np.isnan(result.values(activation, variant, str(depth), "loss")).sum(axis=0)


def accuracy(
    result: Result, activation: str, variant: str, scales: Sequence[str] | None = ("glorot",)
) -> Array:
    """Test accuracy of each depth at its best rate and scale, shape (seeds, depths)."""
    depths = result.config["depths"]
    return np.stack([tuned(result, activation, variant, d, scales).test for d in depths], axis=1)


def by_layer(
    result: Result, activation: str, variant: str, depth: int, quantity: str, when: str = "start"
) -> Array:
    """A quantity of ``measure``, shape (seeds, layers)."""
    return result.values(activation, variant, str(depth), when, quantity)


def gradient_ratio(result: Result, activation: str, variant: str, depth: int) -> Array:
    """Gradient norm of the first layer over that of the last hidden one, before training."""
    norms = by_layer(result, activation, variant, depth, "gradient")
    return norms[:, 0] / norms[:, -1]


def plot(result: Result) -> Any:
    """Test accuracy against depth, a panel for each activation; median and range over seeds."""
    from bnkit import plots

    depths = result.config["depths"]
    figure, axes = _panels(result)
    for activation, ax in axes.items():
        for k, variant in enumerate(VARIANTS):
            runs = 100 * accuracy(result, activation, variant)
            plots.band(ax, depths, runs, LABELS[variant], k)
        if len(result.config["scales"]) > 1:
            plots.band(ax, depths, 100 * accuracy(result, activation, "plain", None), BEST, 2)
        ax.axhline(10, color=plots.GREY, ls=":", lw=1)
        ax.set(ylim=(0, 100), xticks=depths)
    _name(figure, axes, "hidden layers", "test accuracy (%)")
    return figure


def plot_layers(result: Result, depth: int, quantity: str, label: str) -> Any:
    """A quantity by layer before training, a panel for each activation, on a logarithmic axis."""
    from bnkit import plots

    figure, axes = _panels(result)
    for activation, ax in axes.items():
        for k, variant in enumerate(VARIANTS):
            runs = by_layer(result, activation, variant, depth, quantity)
            plots.band(ax, range(1, depth + 1), runs, LABELS[variant], k)
        ax.set(yscale="log", xticks=[1, *range(5, depth + 1, 5)])
    _name(figure, axes, "layer, from the input", label)
    return figure


def _panels(result: Result) -> tuple[Any, dict[str, Any]]:
    """A figure with two panels a row, and its panels by activation."""
    import matplotlib.pyplot as plt

    names = result.config["activations"]
    rows = (len(names) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(7.2, 2.9 * rows), sharey=True, squeeze=False)
    panels = dict(zip(names, axes.flat, strict=False))
    for unused in axes.flat[len(names) :]:
        unused.remove()
    for name, ax in panels.items():
        ax.set_title(name.replace("relu", "ReLU"))
    return figure, panels


def _name(figure: Any, axes: dict[str, Any], xlabel: str, ylabel: str) -> None:
    """Name the axes, and the curves where a fourth panel would stand."""
    for number, ax in enumerate(axes.values()):
        ax.set_xlabel(xlabel)
        if number % 2 == 0:
            ax.set_ylabel(ylabel)
    handles, labels = next(iter(axes.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="center", bbox_to_anchor=(0.77, 0.26), fontsize=12)
