"""The recipe: what else the paper changed when it put batch normalization in, one thing at a time.

Section 4.2.1 of the paper lists the changes: a higher learning rate, no dropout, less weight decay,
a faster decay of the learning rate, no local response normalization, better shuffling, less
distortion of the pictures. Here a net is trained with all of them, and then with one taken back at
a time, each at the learning rate that is best for it. Two thousand images and many passes over
them, so that the net fits them all: most of the changes are about overfitting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np
from keras import ops

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.ghost import Patchwise
from bnkit.experiments.moving_statistics import EQUAL
from bnkit.experiments.networks import Distortion, batch_norm, conv_net
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.runs import Runs
from bnkit.experiments.training import STEPS_PER_CALL, cosine, draw_batches, loss_of, pictures

TITLE = "The recipe"
QUESTION = "Which of the changes that came with batch normalization matter to a small net?"
PUBLISHED = None  # the paper does not take the changes apart

TAKEN_BACK = {
    "none": "the whole recipe",
    "rate": "rate a fifth",
    "dropout": "with dropout 0.4",
    "weight-decay": "weight decay ×5",
    "slow-decay": "rate decays to a half only",
    "response-norm": "with local response norm",
    "fixed-batches": "the same batches in each pass",
    "distortion": "with distorted brightness",
}
# Nets that are one program: they differ in their rates and batches only.
PROGRAMS = {
    "plain": ("none", "rate", "slow-decay", "fixed-batches"),
    "dropout": ("dropout",),
    "weight-decay": ("weight-decay",),
    "response-norm": ("response-norm",),
    "distortion": ("distortion",),
}


@dataclass(frozen=True)
class Config:
    """The net, the few images, and the many passes over them."""

    data: str = "fashion-mnist"
    filters: tuple[int, ...] = (16, 32)
    layers: int = 4
    train: int = 2000
    batch_size: int = 50
    steps: int = 2400  # 60 passes
    rates: tuple[float, ...] = tuple(0.1 * 2**k for k in range(8))
    weight_decay: float = 5e-4
    images: int = 10_000  # of the validation and of the test part
    seeds: int = 10


PRESETS = {
    "quick": Config(filters=(8, 16), train=500, steps=100, rates=(0.3, 1.0), images=1000, seeds=3),
    "full": Config(),
}


class LocalResponseNormalization(keras.layers.Layer):  # type: ignore[misc]
    """Divides by the root of one plus the sum of squares of five neighbouring channels either way.

    The form is that of Krizhevsky et al. 2012, section 3.3, the constants are the defaults of
    ``tf.nn.local_response_normalization``. With theirs, 2 + 0.0001 times the sum, it would divide
    responses of a size near 1 by a constant, which the next batch normalization takes out again.
    """

    radius = 5

    def call(self, x: Any) -> Any:
        """The same shape as x, channels last."""
        squares = ops.pad(ops.square(x), [[0, 0], [0, 0], [0, 0], [self.radius, self.radius]])
        near = sum(squares[..., k : k + x.shape[-1]] for k in range(2 * self.radius + 1))
        return x / ops.sqrt(1.0 + near)


class Brightness(Distortion):
    """Changes brightness by up to 0.3 and contrast by up to 30 percent; images stay in [0, 1]."""

    def distorted(self, x: Any) -> Any:
        """Each image about its own mean."""

        def draw(low: float, high: float) -> Any:
            return keras.random.uniform((ops.shape(x)[0], 1, 1, 1), low, high, seed=self.random)

        mean = ops.mean(x, axis=(1, 2, 3), keepdims=True)
        return ops.clip(mean + draw(0.7, 1.3) * (x - mean) + draw(-0.3, 0.3), 0.0, 1.0)


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """The whole recipe, and the recipe without each of its parts, at each learning rate.

    Returns:
        For each key of ``TAKEN_BACK`` what ``train_and_test`` tells of each rate.
    """
    record: dict[str, Any] = {}
    for name in bar(PROGRAMS, desc="recipe"):
        record |= train_and_test(config, seed, name)
    return {taken_back: record[taken_back] for taken_back in TAKEN_BACK}


def train_and_test(config: Config, seed: int, name: str) -> dict[str, Any]:
    """Train what is one program: its recipes at each rate, on images that the seed draws.

    Returns:
        For each of its recipes lists over the rates, with precise statistics: accuracy on the
        images trained with, "train", on the "validation" and the "test" part, the "test loss"; and
        "moving", accuracy on the test part with moving statistics, and the mean "loss" of the last
        pass, nan where the run diverged.
    """
    recipes = PROGRAMS[name]
    cells = [(each, rate) for each in recipes for rate in config.rates]
    runs = program(config, name, keras.config.dtype_policy().name)
    rates = np.array([plan(config, each, rate) for each, rate in cells])
    runs.restart(seeds=[seed] * len(cells), rates=rates)
    data = pictures(config.data, flat=False)
    rows = np.random.default_rng(seed).permutation(len(data.x_train))[: config.train]
    order = {each: rows[batches(config, seed, each)].astype("int32") for each in recipes}
    losses = []
    for start in range(0, config.steps, STEPS_PER_CALL):
        part = slice(start, start + STEPS_PER_CALL)
        losses.append(runs.train(np.stack([order[each][part] for each, _ in cells], axis=1)))
    precise = runs.recomputed(data.x_train[rows])
    x_validation, y_validation, x_test, y_test = (each[: config.images] for each in data[2:])
    logits = runs.logits(x_test, states=precise)
    a_pass = max(config.train // config.batch_size, 1)
    found = {
        "train": runs.accuracy(data.x_train[rows], data.y_train[rows], states=precise),
        "validation": runs.accuracy(x_validation, y_validation, states=precise),
        "test": (logits.argmax(axis=-1) == y_test).mean(axis=1),
        "test loss": np.array([loss_of(each, y_test) for each in logits]),
        "moving": runs.accuracy(x_test, y_test),
        "loss": np.concatenate(losses, axis=1)[:, -a_pass:].mean(axis=1),
    }
    shape = (len(recipes), len(config.rates))
    by_recipe = {key: values.reshape(shape) for key, values in found.items()}
    return {
        each: {key: values[k] for key, values in by_recipe.items()}
        for k, each in enumerate(recipes)
    }


@cache
def program(config: Config, name: str, precision: str) -> Runs:
    """The nets of one program, compiled once for all seeds."""
    del precision  # which the layers take from Keras
    data = pictures(config.data, flat=False)
    copies = len(PROGRAMS[name]) * len(config.rates)
    return Runs(
        lambda: build_model(config, name, data.x_train.shape[1:]),
        lambda rate: optimizer(config, name, rate),
        data.x_train,
        data.y_train,
        seeds=[0] * copies,
        rates=np.zeros((copies, config.steps)),
        steps=config.steps,
        together=True,
    )


def build_model(
    config: Config, taken_back: str, shape: tuple[int, int, int] = (28, 28, 1)
) -> keras.Model:
    """The net, with whatever the recipe leaves out put back in."""
    return conv_net(
        config.filters,
        config.layers,
        batch_norm(),
        stem=(Brightness(),) if taken_back == "distortion" else (),
        between=(LocalResponseNormalization(),) if taken_back == "response-norm" else (),
        head=(keras.layers.Dropout(0.4),) if taken_back == "dropout" else (),
        convolution=Patchwise if keras.backend.backend() == "jax" else keras.layers.Conv2D,
        shape=shape,
    )


def optimizer(config: Config, taken_back: str, rate: Any) -> keras.optimizers.Optimizer:
    """Gradient descent with decoupled weight decay."""
    decay = config.weight_decay * (5 if taken_back == "weight-decay" else 1)
    return keras.optimizers.SGD(rate, weight_decay=decay)


def plan(config: Config, taken_back: str, rate: float) -> Array:
    """The learning rate at each step: down to zero by a cosine, or exponentially to a half."""
    if taken_back == "slow-decay":
        return rate * 0.5 ** (np.arange(config.steps) / config.steps)
    return rate * (0.2 if taken_back == "rate" else 1) * cosine(config.steps)


def batches(config: Config, seed: int, taken_back: str) -> Array:
    """Batches drawn anew in each pass; or always the same ones, in a new order."""
    if taken_back != "fixed-batches":
        return draw_batches(config.train, config.batch_size, config.steps, seed)
    once = draw_batches(config.train, config.batch_size, config.train // config.batch_size, seed)
    return once[draw_batches(len(once), 1, config.steps, seed)[:, 0]]


def chosen(result: Result, taken_back: str) -> tuple[int, bool]:
    """The place of the rate that is best on the validation part, and whether it lies inside.

    A fifth of the rate is a fifth of the one that is best for the whole recipe.
    """
    tuned = "none" if taken_back == "rate" else taken_back
    return protocol.best_rate(result.config["rates"], result.values(tuned, "validation"))


def at_best(result: Result, taken_back: str, quantity: str = "test") -> Array:
    """A quantity at the chosen rate, for each seed."""
    return result.values(taken_back, quantity)[:, chosen(result, taken_back)[0]]


def differences(result: Result, taken_back: str, quantity: str = "test") -> Array:
    """What taking a part back changes, for each seed, against the whole recipe, each tuned."""
    return at_best(result, taken_back, quantity) - at_best(result, "none", quantity)


def lowest_loss(result: Result, taken_back: str) -> tuple[Array, int, bool]:
    """The test loss where its mean over seeds is lowest: of images that it is judged on, too.

    Returns:
        It for each seed; the place of the rate, and whether that lies inside the grid.
    """
    losses = result.values(taken_back, "test loss")
    place, inside = protocol.best_rate(result.config["rates"], -losses)
    return losses[:, place], place, inside


def plot(result: Result) -> Any:
    """What each part does to accuracy and loss on the test part: seeds, and intervals of the mean.

    Grey is the bound of equivalence; for the loss there is none.
    """
    import matplotlib.pyplot as plt

    from bnkit import plots

    names = [name for name in TAKEN_BACK if name != "none"][::-1]
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True)
    for ax, quantity, factor in zip(axes, ("test", "test loss"), (100, 1), strict=True):
        for k, name in enumerate(names):
            found = factor * differences(result, name, quantity)
            mean, low, high = protocol.interval(found)
            ax.plot([low, high], [k, k], "-", lw=4, color=plots.COLORS[1], alpha=0.5)
            ax.plot([mean], [k], "|", ms=14, mew=2.5, color=plots.COLORS[1])
            ax.plot(found, [k] * len(found), "o", ms=5, mfc="none", color=plots.COLORS[0])
        ax.axvline(0, color=plots.GREY, lw=1, ls=":")
    axes[0].axvspan(-EQUAL, EQUAL, color=plots.GREY, alpha=0.12, lw=0)
    axes[0].set_yticks(range(len(names)), [TAKEN_BACK[name] for name in names])
    axes[0].set(xlabel="points of accuracy", title="accuracy")
    axes[1].set(xlabel="cross-entropy", title="loss")
    return figure
