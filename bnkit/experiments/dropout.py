"""Dropout and batch normalization: what each does for a net with few images, and both together.

The paper (sections 3.4 and 4.2.1) finds that batch normalization regularizes and removes dropout
from its ImageNet networks. Li et al. 2018 say why the two may disturb each other: dropout makes the
variance larger in training than in inference, and the moving variance is that of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np
from keras import layers

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.training import Trainer, as_float, draw_batches, fashion_mnist, loss_of
from bnkit.keras.probes import inputs_of

TITLE = "Dropout"
QUESTION = "Does batch normalization replace dropout, and do the two get along?"
PUBLISHED = "BN-Inception without dropout: 'does not suffer from increased overfitting' (4.2.1)"

LABELS = {
    "plain": "without BN",
    "bn": "BN, dropout in each block",
    "bn, dropout last": "BN, dropout after the last BN",
}


@dataclass(frozen=True)
class Config:
    """The net, how few images it has, and how much is dropped."""

    images: tuple[int, ...] = (500, 2000, 10_000)
    dropped: tuple[float, ...] = (0.0, 0.2, 0.5)
    depth: int = 3
    width: int = 200
    rate: float = 0.1
    batch_size: int = 60
    steps: int = 1500
    seeds: int = 5


PRESETS = {
    "quick": Config(images=(2000,), dropped=(0.0, 0.5), steps=1000, seeds=3),
    "full": Config(),
}


def make_model(variant: str, dropped: float, depth: int, width: int) -> Any:
    """Blocks of Dense, BatchNormalization, ReLU and Dropout, or of those that the variant has."""
    stack = [keras.Input((784,))]
    for number in range(1, depth + 1):
        stack += [layers.Dense(width, use_bias=variant == "plain", kernel_initializer="he_normal")]
        if variant != "plain":
            stack += [layers.BatchNormalization()]
        stack += [layers.Activation("relu")]
        if dropped and (variant != "bn, dropout last" or number == depth):
            stack += [layers.Dropout(dropped)]
    return keras.Sequential([*stack, layers.Dense(10)])


@cache
def trainer(images: int, rate: float, *network: Any) -> Trainer:
    """One model for all seeds, so that its steps are compiled once.

    XLA does not compile them: its random numbers are slow on a CPU.
    """
    data = fashion_mnist(train=images)
    optimizer = keras.optimizers.SGD(rate)
    return Trainer(make_model(*network), optimizer, data.x_train, data.y_train, jit=False)


def restart(model: Any, fresh: Any) -> None:
    """Give a model the weights of a fresh one, and the state of its random numbers."""
    for variable, value in zip(model.variables, fresh.variables, strict=True):
        variable.assign(value)


def variance_ratios(model: Any, x: Array) -> Array:
    """The variance of each normalization's input in inference, over its moving variance.

    Returns:
        For each batch normalization the median over its channels.
    """
    normalizations = [each for each in model.layers if isinstance(each, layers.BatchNormalization)]
    seen = inputs_of(model, x, [each.name for each in normalizations])
    moving = [each.moving_variance.numpy() for each in normalizations]
    found = [each.var(axis=0) for each in seen.values()]
    return np.array([np.median(f / m) for f, m in zip(found, moving, strict=True)])


def predicted_ratio(model: Any, x: Array, dropped: float) -> float:
    """What ``variance_ratios`` should find at the second normalization, from the weights alone.

    A linear map W of inputs u of which the fraction p is dropped has the variance
    Var(W u) + p/(1 − p) Σ W² E[u²] in training, and Var(W u) in inference.
    """
    dense = [each for each in model.layers if isinstance(each, layers.Dense)][1]
    u = inputs_of(model, x, [dense.name])[dense.name].astype(float)
    weights = dense.kernel.numpy().astype(float)
    inference = (u @ weights).var(axis=0)
    extra = dropped / (1 - dropped) * np.mean(u**2, axis=0) @ weights**2
    return float(np.median(inference / (inference + extra)))


def recalibrate(model: Any, x: Array, *, drop: bool) -> None:
    """Set the moving statistics to those of x, each layer's input made by the layers before it.

    Args:
        model: a Sequential model; its moving statistics are changed.
        x: float32 inputs.
        drop: whether dropout drops meanwhile, as in training.
    """
    value = keras.ops.convert_to_tensor(x)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            mean, variance = keras.ops.moments(value, axes=[0])
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
        value = layer(value, training=drop and isinstance(layer, layers.Dropout))


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Every variant with every fraction dropped and every number of images.

    Returns:
        For each variant a dict of lists over numbers of images, of lists over fractions dropped:
        "accuracy" and "loss" on the test part, "train_loss", all in inference mode. With batch
        normalization also "ratio", by ``variance_ratios`` over the training images, and both
        measures on the test part after the statistics were computed anew over the training images,
        "with_dropout" and "without_dropout". For "bn" also "predicted", by ``predicted_ratio``.
    """
    return {
        variant: _stack(
            [
                [run_one(config, seed, variant, images, dropped) for dropped in config.dropped]
                for images in config.images
            ]
        )
        for variant in LABELS
    }


def run_one(config: Config, seed: int, variant: str, images: int, dropped: float) -> dict[str, Any]:
    """Train one network and look at it in inference mode."""
    data = fashion_mnist(train=images)
    network = (variant, dropped, config.depth, config.width)
    machine = trainer(images, config.rate, *network)
    keras.utils.set_random_seed(seed)
    restart(machine.model, make_model(*network))
    machine.train(draw_batches(images, config.batch_size, config.steps, seed))

    def on_test() -> tuple[float, float]:
        logits = machine.predict(data.x_test)
        return float(np.mean(logits.argmax(axis=1) == data.y_test)), loss_of(logits, data.y_test)

    seen: dict[str, Any] = {"train_loss": loss_of(machine.predict(data.x_train), data.y_train)}
    seen["accuracy"], seen["loss"] = on_test()
    x_train = as_float(data.x_train)
    if variant == "bn":
        seen["predicted"] = predicted_ratio(machine.model, x_train, dropped)
    if variant != "plain":
        seen["ratio"] = variance_ratios(machine.model, x_train)
        for drop, how in ((True, "with_dropout"), (False, "without_dropout")):
            recalibrate(machine.model, x_train, drop=drop)
            seen[f"accuracy_{how}"], seen[f"loss_{how}"] = on_test()
    return seen


def _stack(rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Dicts in lists of lists become lists of lists in a dict."""
    return {name: [[cell[name] for cell in row] for row in rows] for name in rows[0][0]}


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
        sharey="col",
        squeeze=False,
    )
    for row, count in enumerate(images):
        for ax, measure, factor in zip(axes[row], ("accuracy", "loss"), (100, 1), strict=True):
            for index, (variant, label) in enumerate(LABELS.items()):
                values = factor * result.values(variant, measure)[:, row]
                plots.band(ax, dropped, values, label, index)
            ax.set_title(f"{count:,} training images")
        axes[row, 0].set_ylabel("test accuracy (%)")
        axes[row, 1].set_ylabel("test loss")
    for ax in axes[-1]:
        ax.set_xlabel("fraction dropped")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    return figure
