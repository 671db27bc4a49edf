"""The recipe: what else the paper changed when it put batch normalization in, one thing at a time.

Section 4.2.1 of the paper lists the changes: a higher learning rate, no dropout, less weight decay,
a faster decay of the learning rate, no local response normalization, better shuffling, less
distortion of the pictures. Here a net is trained with all of them, and then with one taken back at
a time. Few images and many passes over them, since most of these are about overfitting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.networks import batch_norm, conv_net
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.training import Trainer, draw_batches, fashion_mnist, loss_of

TITLE = "The recipe"
QUESTION = "Which of the changes that came with batch normalization matter to a small net?"
DISTRIBUTED = True  # `--strategy` works
PUBLISHED = None  # the paper does not take the changes apart

TAKEN_BACK = {
    "none": "the whole recipe",
    "rate": "rate a fifth",
    "dropout": "with dropout 0.4",
    "slow-decay": "learning rate decays little",
    "fixed-batches": "the same batches in each pass",
    "distortion": "with distorted brightness",
}


@dataclass(frozen=True)
class Config:
    """The net, the few images, and the many passes over them."""

    filters: tuple[int, ...] = (8, 16)
    layers: int = 4
    train: int = 2000
    batch_size: int = 32
    steps: int = 600
    rate: float = 1.0
    weight_decay: float = 1e-4
    seeds: int = 5


PRESETS = {"quick": Config(train=1000, steps=200, seeds=3), "full": Config()}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """The whole recipe, and the recipe without each of its parts.

    Returns:
        For each key of ``TAKEN_BACK`` what ``train_and_test`` returns.
    """
    return {
        taken_back: train_and_test(config, seed, taken_back)
        for taken_back in bar(TAKEN_BACK, desc="recipe")
    }


def train_and_test(config: Config, seed: int, taken_back: str) -> dict[str, float]:
    """Train with the recipe, less one part.

    Returns:
        Accuracy on the training images, "train", accuracy and loss on the "test" images.
    """
    data = fashion_mnist(flat=False, train=config.train)
    keras.utils.set_random_seed(seed)
    model = build_model(config, taken_back)
    trainer = Trainer(model, optimizer(config, taken_back), data.x_train, data.y_train)
    trainer.train(batches(config, seed, taken_back))
    logits = trainer.predict(data.x_test)
    return {
        "train": trainer.accuracy(data.x_train, data.y_train),
        "test": float(np.mean(logits.argmax(axis=1) == data.y_test)),
        "loss": loss_of(logits, data.y_test),
    }


def build_model(config: Config, taken_back: str) -> keras.Model:
    """The net, with whatever the recipe leaves out put back in."""
    stem = {
        "distortion": (
            keras.layers.RandomBrightness(0.3, value_range=(0, 1)),
            keras.layers.RandomContrast(0.3, value_range=(0, 1)),
        ),
    }.get(taken_back, ())
    head = (keras.layers.Dropout(0.4),) if taken_back == "dropout" else ()
    return conv_net(config.filters, config.layers, batch_norm(), stem=stem, head=head)


def optimizer(config: Config, taken_back: str) -> keras.optimizers.Optimizer:
    """Gradient descent whose rate decays to a hundredth."""
    rate = config.rate * (0.2 if taken_back == "rate" else 1)
    left = 0.5 if taken_back == "slow-decay" else 0.01
    schedule = keras.optimizers.schedules.ExponentialDecay(rate, config.steps, left)
    return keras.optimizers.SGD(schedule, weight_decay=config.weight_decay)


def batches(config: Config, seed: int, taken_back: str) -> Array:
    """Batches drawn anew in each pass; or always the same ones, in a new order."""
    if taken_back != "fixed-batches":
        return draw_batches(config.train, config.batch_size, config.steps, seed)
    once = draw_batches(config.train, config.batch_size, config.train // config.batch_size, seed)
    return once[draw_batches(len(once), 1, config.steps, seed)[:, 0]]


def differences(result: Result, taken_back: str, quantity: str = "test") -> Array:
    """What taking a part back changes, for each seed, against the whole recipe."""
    return result.values(taken_back, quantity) - result.values("none", quantity)


def plot(result: Result) -> Any:
    """What each part does to the test accuracy when it is taken back: seeds and their mean."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    names = [name for name in TAKEN_BACK if name != "none"][::-1]
    figure, ax = plt.subplots(figsize=(7.2, 3.8))
    for k, name in enumerate(names):
        points = 100 * differences(result, name)
        ax.plot(points, [k] * len(points), "o", ms=5, mfc="none", color=plots.COLORS[0])
        ax.plot([points.mean()], [k], "|", ms=18, mew=2.5, color=plots.COLORS[1])
    ax.axvline(0, color=plots.GREY, lw=1, ls=":")
    ax.set_yticks(range(len(names)), [TAKEN_BACK[name] for name in names])
    ax.set_xlabel("test accuracy, points against the whole recipe")
    return figure
