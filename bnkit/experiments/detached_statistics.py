"""Detached statistics: mean and variance of the batch, taken out of the gradient.

The paper (section 2) tells what happens when the statistics are computed outside the gradient
step, for a layer that is centred: the bias grows without bound while the loss stays where it is,
and it gets worse when the layer is scaled as well. The paper shows no numbers. Here the mean, the
variance or both are detached, in a layer that scales and in one that only centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.training import STEPS_PER_CALL, Trainer, draw_batches, fashion_mnist

TITLE = "Detached statistics"
QUESTION = "What becomes of weights and biases when the batch statistics get no gradient?"
PUBLISHED = None  # section 2 of the paper tells it without numbers


class Normalization(keras.layers.Layer):  # type: ignore[misc]
    """Batch normalization in training mode, some of whose statistics are constants to the gradient.

    Args:
        detached: the names of those, "mean" and "variance".
        scale: divide by the standard deviation; else the layer only centres.
    """

    def __init__(self, detached: tuple[str, ...] = (), scale: bool = True) -> None:
        super().__init__()
        self.detached, self.scale = detached, scale

    def build(self, shape: Any) -> None:
        """Make gamma and beta."""
        self.gamma = self.add_weight((shape[-1],), "ones", name="gamma")
        self.beta = self.add_weight((shape[-1],), "zeros", name="beta")

    def call(self, x: Any) -> Any:
        """Normalize by the statistics of this batch."""
        mean, variance = ops.mean(x, axis=0), ops.var(x, axis=0)
        if "mean" in self.detached:
            mean = ops.stop_gradient(mean)
        if "variance" in self.detached:
            variance = ops.stop_gradient(variance)
        scale = ops.rsqrt(variance + 1e-3) if self.scale else 1.0
        return self.gamma * (x - mean) * scale + self.beta


VARIANTS: dict[str, dict[str, Any]] = {
    "attached": {},
    "mean detached": {"detached": ("mean",)},
    "variance detached": {"detached": ("variance",)},
    "both detached": {"detached": ("mean", "variance")},
    "centring, attached": {"scale": False},
    "centring, detached": {"detached": ("mean",), "scale": False},
}


@dataclass(frozen=True)
class Config:
    """The net, its learning rates and how long it trains."""

    rates: tuple[float, ...] = (0.1, 0.5, 1.0)
    depth: int = 3
    width: int = 100
    batch_size: int = 60
    steps: int = 3000
    seeds: int = 5


PRESETS = {"quick": Config(rates=(0.5,), steps=500, seeds=3), "full": Config()}


def make_model(variant: str, depth: int, width: int) -> Any:
    """Dense → normalization → ReLU, over and over; the bias in front of the mean is left in."""
    layers = [keras.Input((784,))]
    for _ in range(depth):
        layers += [
            keras.layers.Dense(width, kernel_initializer="he_normal"),
            Normalization(**VARIANTS[variant]),
            keras.layers.ReLU(),
        ]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """All variants at all rates.

    Returns:
        For each variant "loss", mean over each hundred steps, and after them "bias", the largest
        entry of the biases of normalized layers by size, and "weight", the norm of all their
        kernels together: lists over rates of lists over time. null where a number is not finite.
    """
    data = fashion_mnist(validation=0)
    batches = draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
    record = {}
    for variant in VARIANTS:
        seen: dict[str, list[Any]] = {"loss": [], "bias": [], "weight": []}
        for rate in config.rates:
            keras.utils.set_random_seed(seed)
            model = make_model(variant, config.depth, config.width)
            optimizer = keras.optimizers.SGD(rate)
            trainer = Trainer(model, optimizer, data.x_train, data.y_train, jit=False)
            watched = [watch(trainer, part) for part in in_hundreds(batches)]
            for name, values in zip(seen, zip(*watched, strict=True), strict=True):
                seen[name].append(values)
        record[variant] = seen
    return record


def in_hundreds(batches: Array) -> list[Array]:
    """The batches, a hundred steps at a time."""
    return np.split(batches, range(STEPS_PER_CALL, len(batches), STEPS_PER_CALL))


def watch(trainer: Trainer, batches: Array) -> tuple[float, float, float]:
    """Train on the batches; their mean loss, and afterwards the largest bias and kernels' norm."""
    loss = float(trainer.train(batches).mean())
    *hidden, _ = (each for each in trainer.model.layers if isinstance(each, keras.layers.Dense))
    kernels, biases = zip(*(each.get_weights() for each in hidden), strict=True)
    size = np.sqrt(sum(np.sum(np.square(kernel, dtype=float)) for kernel in kernels))
    return loss, float(np.abs(biases).max()), float(size)


def largest_bias(result: Result, variant: str) -> Array:
    """The largest bias at the end, of shape (seeds, rates); nan where the net has broken down."""
    return result.values(variant, "bias")[:, :, -1]


def final_loss(result: Result, variant: str) -> Array:
    """The mean loss of the last hundred steps, of shape (seeds, rates); nan as above."""
    return result.values(variant, "loss")[:, :, -1]


def breakdown(result: Result, variant: str) -> Array:
    """The first of the hundreds of steps whose loss is not finite, counted by their ends.

    Shape (seeds, rates); inf where there is none.
    """
    broken = ~np.isfinite(result.values(variant, "loss"))
    first = STEPS_PER_CALL * (1 + broken.argmax(axis=2))
    return np.where(broken.any(axis=2), first, np.inf)


def plot(result: Result, rate: float | None = None) -> Any:
    """Largest bias and loss against steps at one rate (the middle one), a line for each variant."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    rates = result.config["rates"]
    k = len(rates) // 2 if rate is None else rates.index(rate)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 4.2))
    for index, variant in enumerate(VARIANTS):
        for ax, quantity in zip(axes, ("bias", "loss"), strict=True):
            runs = result.values(variant, quantity)[:, k]
            steps = STEPS_PER_CALL * np.arange(1, runs.shape[1] + 1)
            alive = np.isfinite(runs).all(axis=0)
            plots.band(ax, steps[alive], runs[:, alive], variant, index)
    axes[0].set(yscale="log", title="Largest bias", xlabel="training steps")
    axes[1].set(title=f"Training loss, rate {rates[k]:g}", xlabel="training steps")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
