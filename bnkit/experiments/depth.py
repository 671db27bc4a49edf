"""Depth: how deep a net of sigmoid, tanh or ReLU units still trains, with and without BN.

The paper (sections 3.2 and 4.2.2) says that batch normalization makes it possible to use saturating
nonlinearities, by keeping the net from getting stuck in the saturated modes. It trains Inception
with sigmoids to 69.8 % where the plain one stays at chance. Here dense nets of one to twenty layers
are trained at several learning rates, and looked into before and after: is it saturation?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.sweep import Sweep
from bnkit.experiments.training import as_float, draw_batches, fashion_mnist
from bnkit.keras import probes

TITLE = "Depth"
QUESTION = "How deep can a net of sigmoid, tanh or ReLU units be and still train?"
PUBLISHED = {"Inception, ×5 sigmoid, with BN": 0.698, "without BN": 0.001}  # section 4.2.2, chance

VARIANTS = {"plain": False, "bn": True}
LABELS = {"plain": "without BN", "bn": "with BN"}
SATURATING = ("sigmoid", "tanh")


@dataclass(frozen=True)
class Config:
    """The nets, and the learning rates among which the validation part chooses."""

    depths: tuple[int, ...] = (1, 2, 4, 6, 8, 20)
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    width: int = 100
    batch_size: int = 60
    steps: int = 1000
    images: int = 1000  # of the validation part, to look into the nets with
    seeds: int = 5


PRESETS = {
    "quick": Config(depths=(2, 8), activations=("sigmoid",), rates=(0.1, 1.0), steps=300, seeds=3),
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


def glorot_stddevs(sizes: list[int], runs: int) -> Array:
    """Standard deviations of Glorot's initialization, Keras's default, alike for all runs."""
    pairs = np.array([sizes[:-1], sizes[1:]])
    return np.tile(np.sqrt(2 / pairs.sum(axis=0)), (runs, 1))


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """All nets; the learning rates of one net are one program.

    Returns:
        For each activation, variant and depth what ``train_and_look`` returns.
    """
    return {
        activation: {
            variant: {
                str(depth): train_and_look(config, seed, activation, batch_norm, depth)
                for depth in bar(config.depths, desc=f"{activation}, {LABELS[variant]}")
            }
            for variant, batch_norm in VARIANTS.items()
        }
        for activation in config.activations
    }


def train_and_look(
    config: Config, seed: int, activation: str, batch_norm: bool, depth: int
) -> dict[str, Any]:
    """Train one net at every rate, keep the one that is best on the validation part.

    Returns:
        Its "rate", "validation" and "test" accuracy, and, in "start" and "end", what ``look`` saw.
    """
    data = fashion_mnist()
    widths = [config.width] * depth
    sweep = Sweep(
        data.x_train,
        data.y_train,
        widths=widths,
        rates=config.rates,
        stddevs=glorot_stddevs([784, *widths, 10], len(config.rates)),
        activation=activation,
        batch_norm=batch_norm,
        seed=seed,
    )
    images = as_float(data.x_validation[: config.images]), data.y_validation[: config.images]
    model = build_model(depth, config.width, activation, batch_norm)
    model.set_weights(sweep.weights_of(0))
    start = look(model, *images)
    sweep.train(draw_batches(len(data.x_train), config.batch_size, config.steps, seed))
    validation = sweep.accuracy(data.x_validation, data.y_validation)
    best = int(validation.argmax())
    model.set_weights(sweep.weights_of(best))
    return {
        "rate": config.rates[best],
        "validation": validation[best],
        "test": sweep.accuracy(data.x_test, data.y_test)[best],
        "start": start,
        "end": look(model, *images),
    }


def look(model: keras.Model, x: Array, y: Array) -> dict[str, list[float]]:
    """One number a hidden layer, from the first to the last, in training mode.

    Returns:
        "gradient": norm of the loss's gradient by the kernel; "spread": standard deviation of a
        unit's output over the images, mean over units; "saturated": fraction of outputs within
        1 % of an end of the range, where there is one.
    """
    names = [layer.name for layer in model.layers if layer.name.startswith("activation")]
    kernels = [name.replace("activation", "dense") for name in names]
    moments = probes.moments(model, x, names, training=True)
    seen = {
        "gradient": list(probes.gradient_norms(model, x, y, kernels).values()),
        "spread": [float(np.sqrt(moments[name][1]).mean()) for name in names],
    }
    if model.get_layer(names[0]).activation.__name__ in SATURATING:
        fractions = probes.saturated_fraction(model, x, names, training=True)
        seen["saturated"] = list(fractions.values())
    return seen


def accuracy(result: Result, activation: str, variant: str) -> Array:
    """Test accuracy at the rate that the validation part chose, shape (seeds, depths)."""
    depths = map(str, result.config["depths"])
    return np.stack([result.values(activation, variant, depth, "test") for depth in depths], axis=1)


def by_layer(
    result: Result, activation: str, variant: str, depth: int, quantity: str, when: str = "start"
) -> Array:
    """A quantity of ``look``, shape (seeds, layers)."""
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
        ax.axhline(10, color=plots.GREY, ls=":", lw=1)
        ax.set(ylim=(0, 100), xticks=[layers for layers in depths if layers > 1])
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
