"""Shift and smoothness: how the inputs of layers move, and how far a gradient can be trusted.

Ioffe and Szegedy 2015 explain batch normalization by internal covariate shift. Santurkar et al.
2018 measure that shift in another way, by the gradients, put noise behind each normalization so
that the inputs shift all the same, and find that the loss gets smoother (their figures 1, 2 and 4).
Here all of it is done to two deep nets, with ReLU and with sigmoid units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.gradients import Measured, Measuring
from bnkit.experiments.layerwise import rounded
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.runs import Runs
from bnkit.experiments.statistics import IMAGES
from bnkit.experiments.training import as_float, cooldown, draw_batches, fashion_mnist

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
NOISE = {"bn": (0.0, 1.0), "noisy": (0.5, 1.25), "noisier": (1.0, 2.0)}  # see MovingTarget
QUIET = NOISE["bn"]
WINDOW = 50  # steps between the two evaluations that the drift compares
AT_ONCE = 1000  # images that share their statistics where a net is judged as it trains


@dataclass(frozen=True)
class Config:
    """The nets, when they are measured, and how."""

    activations: tuple[str, ...] = ("relu", "sigmoid")
    variants: tuple[str, ...] = ("plain", "bn", "noisy", "noisier")
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    measured: tuple[float, ...] = (0.1, 0.3, 1.0)  # the rates at which the nets are measured
    depth: int = 8
    width: int = 100
    batch_size: int = 60
    measured_at: tuple[int, ...] = (100, 300, 1000)  # steps, while the rate is constant
    steps: int = 1500
    images: int = 1000  # validation images, for the moments of the layers' inputs
    batches: int = 4  # each time, for what is measured of the gradients
    walk: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # how far along the gradient, in learning rates
    distances: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # the same, as lengths in weight space
    seeds: int = 5


PRESETS = {
    "quick": Config(
        variants=("plain", "bn", "noisy"),
        rates=(0.1,),
        measured=(0.1,),
        measured_at=(250,),
        steps=400,
        batches=1,
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
        start = keras.initializers.Constant
        self.shift = self.add_weight((), start(shift), trainable=False, name="shift")
        self.stretch = self.add_weight((), start(stretch), trainable=False, name="stretch")
        self.random = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        """The same x in inference."""
        if not training:
            return x
        units = (1, x.shape[-1])
        stretch = 1 + (self.stretch - 1) * keras.random.uniform(units, seed=self.random)
        return stretch * x + self.shift * keras.random.uniform(units, -1.0, 1.0, seed=self.random)


def make_model(config: Config, activation: str, variant: str) -> Any:
    """Dense layers, each with BatchNormalization and noise, or neither, before its nonlinearity."""
    stack = [keras.Input((784,))]
    for _ in range(config.depth):
        initial = INITIAL_WEIGHTS[activation]
        plain = variant == "plain"
        stack += [layers.Dense(config.width, use_bias=plain, kernel_initializer=initial)]
        if not plain:
            stack += [layers.BatchNormalization(), MovingTarget(*NOISE[variant])]
        stack += [layers.Activation(activation)]
    return keras.Sequential([*stack, layers.Dense(10)])


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All rates of all seeds side by side, and the sizes of noise, which are numbers in one model.

    The learning rate is constant for four fifths of the steps, then decays to zero.

    Returns:
        One record a seed: for each activation and variant, accuracies after the last step by rate:
        "validation", "test" and "train" with precise statistics and the noise off, "moving", the
        test accuracy with the moving statistics, and "validation_on" and "test_on", the images
        normalized a thousand at a time by their own statistics, with the noise on; the mean "loss"
        of the last 100 steps; and lists over the measured rates of lists over the steps of what
        ``Measuring.walks`` finds, and of "drift".
    """
    records: list[dict[str, Any]] = [{} for _ in seeds]
    for activation in config.activations:
        normalized = tuple(each for each in config.variants if each != "plain")
        for variants in [("plain",), normalized]:
            nets = compiled(replace(config, seeds=len(seeds)), activation, variants)
            for record, seen in zip(records, nets.train(seeds), strict=True):
                record.setdefault(activation, {}).update(seen)
    return records


@cache
def compiled(config: Config, activation: str, variants: tuple[str, ...]) -> Nets:
    """Nets that can be trained with other seeds, so that their programs are compiled once."""
    return Nets(config, activation, variants)


class Nets:
    """The nets of one activation: by seed, variant and learning rate."""

    def __init__(self, config: Config, activation: str, variants: Sequence[str]) -> None:
        self.config, self.data, self.variants = config, fashion_mnist(), variants
        self.title = f"{activation}, {' and '.join(LABELS[each] for each in variants)}"
        self.shape = (config.seeds, len(variants), len(config.rates))
        cells = list(product(range(config.seeds), variants, config.rates))
        self.seed_of, variant_of, rates = map(list, zip(*cells, strict=True))
        self.rates = np.outer(rates, cooldown(config.steps))
        self.runs = Runs(
            lambda: make_model(config, activation, variants[0]),
            keras.optimizers.SGD,
            self.data.x_train,
            self.data.y_train,
            seeds=[0] * len(cells),
            rates=self.rates,
            steps=config.steps,
            jit=False,  # XLA takes longer to compile eight layers than it saves
        )
        self.measuring = Measuring(self.runs.model, config.walk, config.distances)
        self.noise = np.array([NOISE.get(each, QUIET) for each in variant_of], np.float32)

    def train(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Train with these seeds, and measure on the way: one record a seed, by variant."""
        config, rows = self.config, len(self.data.x_train)
        self.runs.restart(seeds=[seeds[k] for k in self.seed_of], rates=self.rates)
        self.make_noise(self.noise)
        order = [draw_batches(rows, config.batch_size, config.steps, seed) for seed in seeds]
        batches = np.stack([order[k] for k in self.seed_of], axis=1)
        measured: list[Measured] = []
        made = 0
        for step in bar(config.measured_at, desc=self.title):
            self.runs.train(batches[made:step])
            measured.append(self.measure(batches[step : step + config.batches], self.rates[:, 0]))
            before = self.moments()
            made = step + WINDOW
            self.runs.train(batches[step:made])
            measured[-1]["drift"] = drift(before, self.moments())
        losses = self.runs.train(batches[made:])
        end = self.end() | {"loss": rounded(losses[:, -100:].mean(axis=1))}
        return self.recorded(end, measured)

    def recorded(self, end: dict[str, Array], measured: list[Measured]) -> list[dict[str, Any]]:
        """What was found, for each seed and variant."""
        chosen = [self.config.rates.index(rate) for rate in self.config.measured]
        found = {name: values.reshape(self.shape) for name, values in end.items()}
        for name in measured[0]:
            values = np.stack([each[name] for each in measured], axis=1)
            found[name] = rounded(values).reshape(*self.shape, *values.shape[1:])[:, :, chosen]
        return [
            {
                variant: {name: values[seed, k] for name, values in found.items()}
                for k, variant in enumerate(self.variants)
            }
            for seed in range(self.shape[0])
        ]

    def measure(self, batches: Array, rates: Array) -> Measured:
        """The mean of ``Measuring.walks`` over batches of shape (batches, runs, batch size)."""
        values, data = self.runs.stacked(), self.data
        found = [
            self.measuring.walks(values, as_float(data.x_train[rows]), data.y_train[rows], rates)
            for rows in batches
        ]
        return {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}

    def moments(self) -> tuple[Array, Array]:
        """Means and variances of what each nonlinearity gives, (runs, layers, units)."""
        images = slice(self.config.images)
        x, y = as_float(self.data.x_validation[images]), self.data.y_validation[images]
        _, means, variances = self.measuring.as_trained(self.runs.stacked(), x, y)
        return means, variances

    def variables(self, noise: Array, draw: int = 0) -> list[Array]:
        """Those of the runs with other sizes of noise, and with another of its draws."""
        arrays = [np.array(each) for each in self.runs.stacked()]
        for variable, values in zip(self.runs.model.variables, arrays, strict=True):
            if variable.name in ("shift", "stretch"):
                values[...] = noise[:, ("shift", "stretch").index(variable.name)]
            elif variable.name == "seed_generator_state":
                values[:, 1] += draw
        return arrays

    def make_noise(self, noise: Array) -> None:
        """Give each run its size of noise, shape (runs, 2)."""
        arrays = self.variables(noise)
        self.runs.states = [[each[run] for each in arrays] for run in range(len(noise))]

    def end(self) -> dict[str, Array]:
        """Accuracies after the last step, shape (runs,)."""
        data, runs = self.data, self.runs
        found = {
            "validation_on": self.accuracy_on(data.x_validation, data.y_validation),
            "test_on": self.accuracy_on(data.x_test, data.y_test),
            "moving": runs.accuracy(data.x_test, data.y_test),
        }
        self.make_noise(np.full_like(self.noise, QUIET))
        precise = runs.recomputed(data.x_train[:IMAGES])
        found["validation"] = runs.accuracy(data.x_validation, data.y_validation, states=precise)
        found["test"] = runs.accuracy(data.x_test, data.y_test, states=precise)
        found["train"] = runs.accuracy(data.x_train[:IMAGES], data.y_train[:IMAGES], states=precise)
        return found

    def accuracy_on(self, x: Array, y: Array) -> Array:
        """A thousand images at a time, normalized by their own statistics, each with its noise."""
        right = np.zeros(len(self.noise))
        for part in range(0, len(x), AT_ONCE):
            values = self.variables(self.noise, draw=part)
            rows = slice(part, part + AT_ONCE)
            right += self.measuring.as_trained(values, as_float(x[rows]), y[rows])[0]
        return right / len(x)


def drift(before: tuple[Array, Array], after: tuple[Array, Array]) -> Array:
    r"""How far the means and deviations of a layer's units moved, in deviations of the units.

    .. math:: \sqrt{\frac{\sum_c (\mu_c' - \mu_c)^2 + (\sigma_c' - \sigma_c)^2}{\sum_c \sigma_c^2}}

    For normal distributions the numerator is the square of the Wasserstein distance.

    Args:
        before: mean and variance of each unit, each of shape (..., C).
        after: the same, later.

    >>> drift((np.zeros(2), np.ones(2)), (np.array([3.0, 4.0]), np.ones(2)))
    np.float64(3.5355339059327378)
    """
    (mean, variance), (later_mean, later_variance) = before, after
    moved = (later_mean - mean) ** 2 + (np.sqrt(later_variance) - np.sqrt(variance)) ** 2
    with np.errstate(all="ignore"):  # units that have died
        return np.sqrt(moved.sum(axis=-1) / variance.sum(axis=-1))


class Tuned(NamedTuple):
    """The rate that is best on the validation part, whether it lies inside, test by seed."""

    rate: float
    inside: bool
    test: Array


def tuned(result: Result, activation: str, variant: str, *, noise_on: bool = False) -> Tuned:
    """A net at its best rate: with precise statistics, or as it trains, with the noise on."""
    ending = "_on" if noise_on else ""
    rates = result.config["rates"]
    best, inside = protocol.best_rate(
        rates, result.values(activation, variant, f"validation{ending}")
    )
    test = result.values(activation, variant, f"test{ending}")[:, best]
    return Tuned(rates[best], inside, test)


def gain(
    result: Result, activation: str, variant: str, than: str, *, noise_on: bool = False
) -> protocol.Interval:
    """Test accuracy less that of another variant, in points, each at its own best rate."""
    one, other = (
        tuned(result, activation, each, noise_on=noise_on).test for each in (variant, than)
    )
    return protocol.interval(100 * (one - other))


def at_step(
    result: Result, activation: str, variant: str, name: str, step: int = 300, rate: float = 0.1
) -> Array:
    """What was measured under this name, for each seed, at one of the steps and rates."""
    rates, steps = result.config["measured"], result.config["measured_at"]
    return result.values(activation, variant, name)[:, rates.index(rate), steps.index(step)]


def loss_range(result: Result, activation: str, variant: str, **where: Any) -> Array:
    """The lowest and the highest loss on the walk along the gradient, shape (seeds, 2)."""
    losses = at_step(result, activation, variant, "walk_loss", **where)[:, 1:]
    return np.stack([losses.min(axis=1), losses.max(axis=1)], axis=1)


def smoothness(result: Result, activation: str, variant: str, **where: Any) -> Array:
    """Change of the gradient over the distance walked, shape (seeds, distances).

    It is a length over a length; where it is small, the loss is smooth.
    """
    change = at_step(result, activation, variant, "distance_change", **where)
    length = at_step(result, activation, variant, "gradient_length", **where)
    return change * length[:, None] / np.array(result.config["distances"])


def plot(result: Result, step: int | None = None, rate: float = 0.1) -> Any:
    """A column for each activation: drift, gradient shift, loss on the walk, smoothness."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from bnkit import plots

    config = result.config
    where: dict[str, Any] = {
        "step": step or config["measured_at"][len(config["measured_at"]) // 2],
        "rate": rate,
    }
    columns = len(config["activations"])
    figure, axes = plt.subplots(4, columns, figsize=(7.2, 11), sharex="row", squeeze=False)
    numbers = np.arange(2, config["depth"] + 2)
    walk = np.array([0, *config["walk"]])
    panels = {"drift": numbers, "gradient_shift": numbers, "walk_loss": walk}
    for column, activation in zip(axes.T, config["activations"], strict=True):
        for index, variant in enumerate(config["variants"]):
            for ax, (name, x) in zip(column, panels.items(), strict=False):
                values = at_step(result, activation, variant, name, **where)
                plots.band(ax, x, values, LABELS[variant], index)
            values = smoothness(result, activation, variant, **where)
            plots.band(column[3], config["distances"], values, LABELS[variant], index)
        for ax in column[:2]:
            low, high = ax.dataLim.intervaly
            ax.set_xlabel("layer")
            if high > 100 * low:
                ax.set_yscale("log")
            else:
                ax.set_ylim(bottom=0)
        column[0].set_title(f"{activation} units".replace("relu", "ReLU"))
        column[2].set_xlabel("way along the gradient\n(learning rates)")
        column[3].set(xscale="log", yscale="log", xlabel="distance along the gradient")
        column[3].set_xticks(config["distances"], map(str, config["distances"]), minor=False)
        column[3].minorticks_off()
        column[3].yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        column[3].yaxis.set_major_formatter("{x:g}")
    ylabels = (f"drift in {WINDOW} steps", "shift of the gradient", "loss of the batch")
    for ax, ylabel in zip(
        axes[:, 0], (*ylabels, "change of the gradient\nper distance"), strict=True
    ):
        ax.set_ylabel(ylabel)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
