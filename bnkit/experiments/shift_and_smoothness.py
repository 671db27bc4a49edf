"""Shift and smoothness: how the inputs of layers move, and how far a gradient can be trusted.

Ioffe and Szegedy 2015 explain batch normalization by internal covariate shift. Santurkar et al.
2018 measure that shift in another way, by the gradients, put noise behind each normalization so
that the inputs shift all the same, and find that the loss gets smoother (their figures 1, 2 and 4).
Here all of it is done to two deep nets, with ReLU and with sigmoid units.
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
from bnkit.experiments.training import Trainer, as_float, draw_batches, fashion_mnist
from bnkit.keras.probes import moments

TITLE = "Shift and smoothness"
QUESTION = "Does batch normalization help by keeping inputs in place, or by smoothing the loss?"
PUBLISHED = "Santurkar et al. 2018, figures 1, 2 and 4: noise does no harm, the loss is smoother"

LABELS = {
    "plain": "without BN",
    "bn": "with BN",
    "noisy": "BN and noise",
    "noisier": "BN and more noise",
}
INITIAL_WEIGHTS = {"relu": "he_normal", "sigmoid": "glorot_uniform"}
WINDOW = 50  # steps between the two looks that the drift compares
MAGNIFIER = 1000.0  # the rate of the step that shows a gradient


@dataclass(frozen=True)
class Config:
    """The nets, when they are looked at, and how."""

    activations: tuple[str, ...] = ("relu", "sigmoid")
    variants: tuple[str, ...] = ("plain", "bn", "noisy", "noisier")
    rates: tuple[float, ...] = (0.1, 1.0)
    rate: float = 0.1  # where the nets are looked at; one of the rates
    depth: int = 8
    width: int = 100
    batch_size: int = 60
    looks: tuple[int, ...] = (100, 300, 1000)  # steps
    steps: int = 1500
    noisy: tuple[float, float] = (0.5, 1.25)  # shift and stretch, see MovingTarget
    noisier: tuple[float, float] = (1.0, 2.0)
    images: int = 1000  # validation images, for the moments of the layers' inputs
    batches: int = 4  # at each look, for what is seen of the gradients
    walk: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # how far along the gradient, in learning rates
    seeds: int = 5


PRESETS = {
    "quick": Config(
        variants=("plain", "bn", "noisy"),
        rates=(0.1,),
        looks=(300,),
        steps=400,
        batches=2,
        seeds=3,
    ),
    "full": Config(),
}


@keras.saving.register_keras_serializable("bnkit")
class MovingTarget(layers.Layer):  # type: ignore[misc]
    """Shifts and stretches each unit anew at each step of training, the same for the whole batch.

    This is an internal covariate shift by construction. (In Santurkar et al. 2018 the noise also
    differs a little from example to example.)

    Args:
        shift: a unit is moved by up to so much, up or down.
        stretch: and multiplied by a number from 1 to this.
    """

    def __init__(self, shift: float, stretch: float, **options: Any) -> None:
        super().__init__(**options)
        self.shift, self.stretch = shift, stretch
        self.random = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        """The same x in inference."""
        if not training:
            return x
        units = (1, x.shape[-1])
        stretch = keras.random.uniform(units, 1.0, self.stretch, seed=self.random)
        return stretch * x + keras.random.uniform(units, -self.shift, self.shift, seed=self.random)


def make_model(config: Config, activation: str, variant: str) -> Any:
    """Dense layers, each with BatchNormalization, noise or neither before its nonlinearity."""
    stack = [keras.Input((784,))]
    for _ in range(config.depth):
        initial = INITIAL_WEIGHTS[activation]
        plain = variant == "plain"
        stack += [layers.Dense(config.width, use_bias=plain, kernel_initializer=initial)]
        if not plain:
            stack += [layers.BatchNormalization()]
        if variant in ("noisy", "noisier"):
            stack += [MovingTarget(*getattr(config, variant))]
        stack += [layers.Activation(activation)]
    return keras.Sequential([*stack, layers.Dense(10)])


@cache
def trainer(config: Config, activation: str, variant: str) -> Trainer:
    """One model for all seeds and rates, so that its steps are compiled once.

    XLA takes longer to compile eight layers than it saves.
    """
    data = fashion_mnist()
    model = make_model(config, activation, variant)
    return Trainer(model, keras.optimizers.SGD(), data.x_train, data.y_train, jit=False)


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Train every variant at every rate, and look at it on the way at one of them.

    Returns:
        For each activation and variant: "validation" and "test" accuracy by rate, the batches of
        1,000 images normalized by their own statistics and with noise where there is noise;
        "inference", the test accuracy in inference mode; and for each look what ``look`` sees.
    """
    data = fashion_mnist()
    batches = draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
    record: dict[str, Any] = {}
    for activation in config.activations:
        record[activation] = {}
        for variant in config.variants:
            machine = trainer(config, activation, variant)
            seen: dict[str, Any] = {"validation": [], "test": [], "inference": []}
            for rate in config.rates:
                restart(machine, make_model, config, activation, variant, seed=seed, rate=rate)
                if rate == config.rate:
                    seen |= train_and_look(config, machine, batches)
                else:
                    machine.train(batches)
                for name, x, y, training in (
                    ("validation", data.x_validation, data.y_validation, True),
                    ("test", data.x_test, data.y_test, True),
                    ("inference", data.x_test, data.y_test, False),
                ):
                    seen[name].append(machine.accuracy(x, y, training=training))
            record[activation][variant] = seen
    return record


def restart(machine: Trainer, make: Any, *network: Any, seed: int, rate: float) -> None:
    """Give the model the weights of a fresh one, and the state of its random numbers."""
    keras.utils.set_random_seed(seed)
    for variable, value in zip(machine.model.variables, make(*network).variables, strict=True):
        variable.assign(value)
    machine.optimizer.learning_rate.assign(rate)


def train_and_look(config: Config, machine: Trainer, batches: Array) -> dict[str, Any]:
    """Train on all batches, and stop to look. One list for each quantity, over the looks."""
    data = fashion_mnist()
    images = as_float(data.x_validation[: config.images])
    names = [each.name for each in machine.model.layers if isinstance(each, layers.Activation)]
    seen: dict[str, list[Any]] = {"drift": [], "gradient_shift": [], "cosine": []}
    seen |= {"walk_loss": [], "walk_change": []}
    made = 0
    for step in config.looks:
        machine.train(batches[made:step])
        ahead = batches[step : step + config.batches]
        for name, values in look(config, machine, ahead).items():
            seen[name].append(values)
        before = moments(machine.model, images, names, training=True)
        made = step + WINDOW
        machine.train(batches[step:made])
        after = moments(machine.model, images, names, training=True)
        seen["drift"].append([drift(before[name], after[name]) for name in names])
    machine.train(batches[made:])
    return seen


def drift(before: tuple[Array, Array], after: tuple[Array, Array]) -> float:
    r"""How far the means and deviations of a layer's units moved, in deviations of the units.

    .. math:: \sqrt{\frac{\sum_c (\mu_c' - \mu_c)^2 + (\sigma_c' - \sigma_c)^2}{\sum_c \sigma_c^2}}

    For normal distributions the numerator is the square of the Wasserstein distance.

    Args:
        before: mean and variance of each unit, each of shape (C,).
        after: the same, later.

    >>> drift((np.zeros(2), np.ones(2)), (np.array([3.0, 4.0]), np.ones(2)))
    3.5355339059327378
    """
    (mean, variance), (later_mean, later_variance) = before, after
    moved = (later_mean - mean) ** 2 + (np.sqrt(later_variance) - np.sqrt(variance)) ** 2
    return float(np.sqrt(moved.sum() / variance.sum()))


def look(config: Config, machine: Trainer, batches: Array) -> dict[str, Array]:
    """What a few batches show of the gradients; the model stays as it is.

    Returns:
        Means over the batches. For each layer but the first, how its gradient changes when the
        layers below take their step: "gradient_shift", the length of the difference over that of
        the gradient, and the "cosine" of the angle between both. For each point of a walk along
        the whole gradient: "walk_loss", the first of them before the walk; and "walk_change", the
        length of the gradient's difference over its length at the start.
    """
    seen = [_look_at_one(config, machine, rows) for rows in batches]
    return {name: np.mean([each[name] for each in seen], axis=0) for name in seen[0]}


def _look_at_one(config: Config, machine: Trainer, rows: Array) -> dict[str, Any]:
    state = [variable.numpy() for variable in machine.model.variables]
    loss, gradient = loss_and_gradient(machine, state, rows)

    def moved(rates: float, end: int | None = None) -> list[Array]:
        """The state after a step of so many learning rates, of the first variables alone."""
        step = [rates * config.rate * each for each in gradient[:end]]
        return [value - each for value, each in zip(state, step, strict=False)] + state[len(step) :]

    seen: dict[str, Any] = {"gradient_shift": [], "cosine": []}
    for kernel in _kernels(machine.model)[1:]:
        before, after = (
            gradient[kernel],
            loss_and_gradient(machine, moved(1, kernel), rows)[1][kernel],
        )
        seen["gradient_shift"].append(_change([before], [after]))
        seen["cosine"].append(_cosine(before, after))
    walk = [loss_and_gradient(machine, moved(rates), rows) for rates in config.walk]
    _set(machine.model, state)
    seen["walk_loss"] = [loss, *(each for each, _ in walk)]
    seen["walk_change"] = [_change(gradient, each) for _, each in walk]
    return seen


def loss_and_gradient(
    machine: Trainer, state: list[Array], rows: Array
) -> tuple[float, list[Array]]:
    """The loss of one batch where the model's variables have these values, and its gradient.

    The machine makes a step so large that hardly a digit of it is lost in the weights.

    Returns:
        The loss; and for each variable its gradient, 0 where it is not trained.
    """
    model, rate = machine.model, machine.optimizer.learning_rate
    kept = float(rate)
    _set(model, state)
    rate.assign(MAGNIFIER)
    loss = float(machine.train(rows[None])[0])
    rate.assign(kept)
    after = [variable.numpy() for variable in model.variables]
    steps = [(s - a) * v.trainable for s, a, v in zip(state, after, model.variables, strict=True)]
    return loss, [step / MAGNIFIER for step in steps]


def _set(model: Any, state: list[Array]) -> None:
    for variable, value in zip(model.variables, state, strict=True):
        variable.assign(value)


def _kernels(model: Any) -> list[int]:
    """The places of the dense layers' kernels among the model's variables."""
    places = {id(variable): k for k, variable in enumerate(model.variables)}
    return [places[id(each.kernel)] for each in model.layers if isinstance(each, layers.Dense)]


def _change(before: list[Array], after: list[Array]) -> float:
    """Length of the difference over the length before."""
    moved = sum(np.sum((b - a) ** 2.0) for b, a in zip(before, after, strict=True))
    return float(np.sqrt(moved / sum(np.sum(b**2.0) for b in before)))


def _cosine(one: Array, other: Array) -> float:
    return float(np.sum(one * other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def best_test_accuracy(result: Result, activation: str, variant: str) -> Array:
    """Of each seed, at the rate that is best on the validation part."""
    best = result.values(activation, variant, "validation").argmax(axis=1)
    return result.values(activation, variant, "test")[np.arange(len(best)), best]


def at_look(result: Result, activation: str, variant: str, name: str, step: int = 300) -> Array:
    """One of the quantities that ``train_and_look`` records, for each seed, at one of the looks."""
    return result.values(activation, variant, name)[:, result.config["looks"].index(step)]


def loss_range(result: Result, activation: str, variant: str, step: int = 300) -> Array:
    """The lowest and the highest loss on the walk along the gradient, shape (seeds, 2)."""
    losses = at_look(result, activation, variant, "walk_loss", step)[:, 1:]
    return np.stack([losses.min(axis=1), losses.max(axis=1)], axis=1)


def plot(result: Result) -> Any:
    """A column for each activation: drift and gradient shift by layer, the loss on the walk."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    config = result.config
    columns = len(config["activations"])
    figure, axes = plt.subplots(3, columns, figsize=(7.2, 8.6), sharex="row", squeeze=False)
    numbers = np.arange(2, config["depth"] + 2)
    walk = np.array([0, *config["walk"]])
    panels = [("drift", numbers), ("gradient_shift", numbers), ("walk_loss", walk)]
    for column, activation in zip(axes.T, config["activations"], strict=True):
        for index, variant in enumerate(config["variants"]):
            for ax, (name, x) in zip(column, panels, strict=True):
                plots.band(
                    ax, x, at_look(result, activation, variant, name), LABELS[variant], index
                )
        for ax in column[:2]:
            low, high = ax.dataLim.intervaly
            ax.set_xlabel("layer")
            if high > 100 * low:
                ax.set_yscale("log")
            else:
                ax.set_ylim(bottom=0)
        column[0].set_title(f"{activation} units".replace("relu", "ReLU"))
        column[2].set_xlabel("way along the gradient\n(learning rates)")
    ylabels = (f"drift in {WINDOW} steps", "shift of the gradient", "loss of the batch")
    for ax, ylabel in zip(axes[:, 0], ylabels, strict=True):
        ax.set_ylabel(ylabel)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
