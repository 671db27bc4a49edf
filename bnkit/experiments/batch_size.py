"""Batch size: normalization by the batch and by other things, from batches of 2 to batches of 128.

After the Group Normalization paper (Wu and He 2018), whose figure 1 shows ImageNet error by batch
size for ResNet-50. Every net sees the same number of images; the learning rate is proportional to
the batch size and decays to zero. Its value at the reference size is chosen on the validation part,
for each kind of normalization by itself.

On a GPU the nets can be those of the paper's family::

    from bnkit import experiments
    experiments.run("batch-size", "full", residual=True, filters=(64, 128, 256), layers=18,
                    images=500_000)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.networks import conv_net
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.training import Trainer, draw_batches, fashion_mnist, loss_of

TITLE = "Batch size"
QUESTION = "How small may a batch be before batch normalization breaks down?"
# Wu and He 2018, figure 1 and table 2: ResNet-50, ImageNet validation error in percent.
PUBLISHED = {
    "batch_sizes": (32, 16, 8, 4, 2),
    "batch": (23.6, 23.7, 24.8, 27.3, 34.7),
    "group": (24.1, 24.2, 24.0, 24.2, 24.1),
}

CLIPPING = {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}  # the values of Ioffe 2017, section 4

# Each makes a layer; only the first two use the momentum, since only they have moving statistics.
NORMALIZATIONS: dict[str, Callable[[float], keras.layers.Layer]] = {
    "batch": lambda momentum: keras.layers.BatchNormalization(momentum=momentum),
    "renorm": lambda momentum: keras.layers.BatchNormalization(
        momentum=momentum, renorm=True, renorm_clipping=CLIPPING, renorm_momentum=momentum
    ),
    "group": lambda momentum: keras.layers.GroupNormalization(groups=4),
    "layer": lambda momentum: keras.layers.GroupNormalization(groups=1),  # over all of a picture
}
LABELS = {
    "batch": "batch norm",
    "renorm": "batch renorm",
    "group": "group norm",
    "layer": "layer norm",
}


@dataclass(frozen=True)
class Config:
    """The net, how many images it sees, and in batches of what size."""

    batch_sizes: tuple[int, ...] = (2, 4, 8, 32, 128)
    normalizations: tuple[str, ...] = ("batch", "renorm", "group", "layer")
    reference: int = 32  # the batch size at which the learning rate is chosen
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    memory: float = 0.95  # what the moving statistics keep of themselves over `reference` images
    filters: tuple[int, ...] = (8, 16, 32)
    layers: int = 3
    residual: bool = False
    images: int = 8000
    looks: int = 1000  # test images that are looked at in both modes
    seeds: int = 5


PRESETS = {
    "quick": Config(
        batch_sizes=(2, 8, 32),
        normalizations=("batch", "group"),
        rates=(0.3,),
        images=4000,
        looks=500,
        seeds=3,
    ),
    "full": Config(),
}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Every kind of normalization at every batch size.

    Returns:
        For each kind "rate", the one chosen at the reference size, and for each batch size what
        ``train_and_test`` returns.
    """
    record: dict[str, Any] = {}
    for kind in config.normalizations:
        rate = choose_rate(config, seed, kind)
        record[kind] = {"rate": rate}
        for size in bar(config.batch_sizes, desc=LABELS[kind]):
            record[kind][str(size)] = train_and_test(config, seed, kind, size, rate)
    return record


def choose_rate(config: Config, seed: int, kind: str) -> float:
    """The learning rate that is best on the validation part, at the reference batch size."""
    if len(config.rates) == 1:
        return config.rates[0]
    size = config.reference
    found = [train_and_test(config, seed, kind, size, rate) for rate in config.rates]
    return config.rates[int(np.argmax([each["validation"] for each in found]))]


def train_and_test(config: Config, seed: int, kind: str, size: int, rate: float) -> dict[str, Any]:
    """Train one net on batches of one size.

    Args:
        config: the net and the number of images.
        seed: of the initial weights and of the batches.
        kind: a key of ``NORMALIZATIONS``.
        size: the batch size.
        rate: the learning rate at the reference batch size.

    Returns:
        "validation" and "test" accuracy in inference mode; for the first test images accuracy and
        loss in both modes, "inference" and "training", the latter in batches of the same size.
    """
    data = fashion_mnist(flat=False)
    share = size / config.reference
    keras.utils.set_random_seed(seed)
    model = conv_net(
        config.filters,
        config.layers,
        lambda: NORMALIZATIONS[kind](config.memory**share),
        residual=config.residual,
    )
    steps = config.images // size
    decaying = keras.optimizers.schedules.CosineDecay(rate * share, steps)
    trainer = Trainer(model, keras.optimizers.SGD(decaying), data.x_train, data.y_train)
    trainer.train(draw_batches(len(data.x_train), size, steps, seed))
    looks = config.looks // size * size  # no smaller batch at the end
    x, y = data.x_test[:looks], data.y_test[:looks]
    record: dict[str, Any] = {
        "validation": trainer.accuracy(data.x_validation, data.y_validation),
        "test": trainer.accuracy(data.x_test, data.y_test),
    }
    for mode in ("inference", "training"):
        logits = trainer.predict(x, training=mode == "training", batch_size=size)
        correct = float(np.mean(logits.argmax(axis=1) == y))
        record[mode] = {"accuracy": correct, "loss": loss_of(logits, y)}
    return record


def accuracy(result: Result, kind: str) -> Array:
    """Test accuracy in inference mode, shape (seeds, batch sizes)."""
    sizes = map(str, result.config["batch_sizes"])
    return np.stack([result.values(kind, size, "test") for size in sizes], axis=1)


def gap(result: Result, kind: str, quantity: str = "accuracy") -> Array:
    """Training mode less inference mode on the same test images, shape (seeds, batch sizes)."""
    return np.stack(
        [
            result.values(kind, str(size), "training", quantity)
            - result.values(kind, str(size), "inference", quantity)
            for size in result.config["batch_sizes"]
        ],
        axis=1,
    )


def plot(result: Result) -> Any:
    """Test accuracy and the gap between the modes against batch size; median and range."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.2, 6.4), sharex=True)
    sizes = result.config["batch_sizes"]
    for k, kind in enumerate(result.config["normalizations"]):
        plots.band(upper, sizes, 100 * accuracy(result, kind), LABELS[kind], k)
        if kind in ("batch", "renorm"):  # the others do the same in both modes
            plots.band(lower, sizes, 100 * gap(result, kind), LABELS[kind], k)
    lower.axhline(0, color=plots.GREY, lw=1, ls=":")
    lower.set_xscale("log", base=2)
    lower.set_xticks(sizes, sizes)
    lower.set(
        xlabel="batch size", ylabel="points of accuracy", title="Training mode less inference mode"
    )
    upper.set(ylabel="test accuracy (%)", title="Inference mode")
    for ax in (upper, lower):
        plots.label_lines(ax, gap=0.085)
    return figure
