"""Five variants: batch normalization at the baseline's learning rate, at higher ones, and sigmoids.

After section 4.2.2 of the paper, which trains five variants of Inception on ImageNet. The baseline
gets its best learning rate, chosen on the validation part; the others get multiples of it. What
counts is how many steps a variant needs for the baseline's best accuracy.

A GPU has room for larger nets, with shortcuts::

    from bnkit import experiments
    experiments.run("five-variants", "full", residual=True, layers=(20, 44), filters=(64, 128),
                    batch_size=128, steps=20_000)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.networks import batch_norm, conv_net
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.training import Data, Trainer, draw_batches, fashion_mnist

TITLE = "Five variants"
QUESTION = "How many steps does batch normalization save, at higher and higher learning rates?"
DISTRIBUTED = True  # `--strategy` works
# Ioffe and Szegedy 2015, figure 3: millions of steps to 72.2 %, and the best accuracy in percent.
PUBLISHED = {
    "plain": (31.0, 72.2),
    "bn": (13.3, 72.7),
    "bn-x5": (2.1, 73.0),
    "bn-x30": (2.7, 74.8),
    "bn-x5-sigmoid": (None, 69.8),
}


class Variant(NamedTuple):
    """A row of the paper's table."""

    label: str
    batch_norm: bool = True
    times: float = 1  # the baseline's learning rate
    activation: str = "relu"


VARIANTS = {
    "plain": Variant("baseline", batch_norm=False),
    "bn": Variant("BN"),
    "bn-x5": Variant("BN, rate ×5", times=5),
    "bn-x30": Variant("BN, rate ×30", times=30),
    "bn-x5-sigmoid": Variant("BN, rate ×5, sigmoid", times=5, activation="sigmoid"),
}


@dataclass(frozen=True)
class Config:
    """The nets, the training, and how it is watched."""

    layers: tuple[int, ...] = (4, 8)  # convolutions: one net each
    filters: tuple[int, ...] = (8, 16)
    residual: bool = False
    rates: tuple[float, ...] = (0.1, 0.2, 0.4)  # for the baseline to choose from
    batch_size: int = 32
    steps: int = 800
    every: int = 50  # steps from one look at the accuracy to the next
    images: int = 2000  # to look with, of the validation and of the test part
    smooth: int = 5  # looks that are averaged
    seeds: int = 5


PRESETS = {
    "quick": Config(layers=(4,), rates=(0.2, 0.4), steps=300, every=20, images=1000, seeds=3),
    "full": Config(),
}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """For each net the baseline at all rates, and then the other variants at multiples of the best.

    Returns:
        For each number of layers: "rate", the baseline's; and for each variant the curves
        "validation" and "test" of accuracy, one number a look.
    """
    return {str(layers): run_net(config, seed, layers) for layers in config.layers}


def run_net(config: Config, seed: int, layers: int) -> dict[str, Any]:
    """All variants of one net."""
    data = fashion_mnist(flat=False)

    def curves(variant: Variant, rate: float) -> dict[str, Array]:
        keras.utils.set_random_seed(seed)
        normalize = batch_norm() if variant.batch_norm else None
        model = conv_net(
            config.filters,
            layers,
            normalize,
            activation=variant.activation,
            residual=config.residual,
        )
        return watch(config, seed, model, rate * variant.times, data, variant.label)

    tried = [curves(VARIANTS["plain"], rate) for rate in config.rates]
    ends = [smoothed(each["validation"], config.smooth)[-1] for each in tried]
    best = int(np.argmax(ends))
    others = {
        name: curves(variant, config.rates[best])
        for name, variant in VARIANTS.items()
        if variant.batch_norm
    }
    return {"rate": config.rates[best], "plain": tried[best], **others}


def watch(
    config: Config, seed: int, model: keras.Model, rate: float, data: Data, label: str
) -> dict[str, Array]:
    """Train by plain gradient descent, and look at the accuracy every so many steps."""
    trainer = Trainer(model, keras.optimizers.SGD(rate), data.x_train, data.y_train)
    batches = draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
    parts = {"validation": data[2:4], "test": data[4:6]}
    seen: dict[str, list[float]] = {name: [] for name in parts}
    for start in bar(range(0, config.steps, config.every), desc=f"{label}, rate {rate:g}"):
        trainer.train(batches[start : start + config.every])
        for name, (x, y) in parts.items():
            seen[name].append(trainer.accuracy(x[: config.images], y[: config.images]))
    return {name: np.array(curve) for name, curve in seen.items()}


def smoothed(curves: Array, width: int) -> Array:
    """Mean of each so many consecutive values of the last axis; the result is shorter by width - 1.

    >>> smoothed(np.array([1.0, 2.0, 6.0]), 2)
    array([1.5, 4. ])
    """
    windows = np.lib.stride_tricks.sliding_window_view(curves, width, axis=-1)
    return np.asarray(windows.mean(axis=-1))


def looked_at(result: Result) -> Array:
    """The steps at which the smoothed curves end their windows."""
    config = result.config
    return np.arange(config["smooth"], config["steps"] // config["every"] + 1) * config["every"]


def curves(result: Result, layers: int, variant: str) -> Array:
    """Smoothed test accuracy, shape (seeds, looks)."""
    return smoothed(result.values(str(layers), variant, "test"), result.config["smooth"])


def steps_to_baseline(result: Result, layers: int, variant: str) -> Array:
    """Steps to the best accuracy of the same seed's baseline; inf where it is never reached."""
    level = curves(result, layers, "plain").max(axis=1, keepdims=True)
    reached = curves(result, layers, variant) >= level
    return np.where(reached.any(axis=1), looked_at(result)[reached.argmax(axis=1)], np.inf)


def speed_up(result: Result, layers: int, variant: str) -> Array:
    """The baseline's steps over the variant's, for each seed; 0 where it never gets there."""
    baseline = steps_to_baseline(result, layers, "plain")
    return np.asarray(baseline / steps_to_baseline(result, layers, variant))


def final_accuracy(result: Result, layers: int, variant: str) -> Array:
    """The last value of the smoothed test accuracy, for each seed."""
    return curves(result, layers, variant)[:, -1]


def plot(result: Result) -> Any:
    """Smoothed test accuracy against steps, a panel for each net; median and range over seeds."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    nets = result.config["layers"]
    figure, axes = plt.subplots(
        len(nets), 1, figsize=(7.2, 3.2 * len(nets)), sharex=True, squeeze=False
    )
    for ax, layers in zip(axes[:, 0], nets, strict=True):
        for k, (name, variant) in enumerate(VARIANTS.items()):
            runs = 100 * curves(result, layers, name)
            plots.band(ax, looked_at(result), runs, variant.label, k)
        ax.set(ylim=(0, 100), ylabel="test accuracy (%)", title=f"{layers} convolutions")
        plots.label_lines(ax, gap=0.085)
    axes[-1, 0].set_xlabel("steps")
    return figure
