"""Placement: batch normalization before the nonlinearity, after it, or before the linear map.

The paper normalizes before the nonlinearity and gives a reason (section 3.2): the sum that a linear
map makes is closer to a normal distribution than its inputs are. It shows no comparison. Much code
normalizes after the nonlinearity, and residual nets do so before the nonlinearity and the linear
map both (He et al. 2016). Here each place is tried at each learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import keras
import numpy as np
from keras import layers

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.results import Result
from bnkit.experiments.runs import Runs
from bnkit.experiments.statistics import IMAGES
from bnkit.experiments.training import cosine, draw_batches, fashion_mnist

TITLE = "Placement"
QUESTION = "Where does it belong: before the nonlinearity, after it, or before the linear map?"
DISTRIBUTED = True  # `--strategy` works
PUBLISHED = None  # section 3.2 gives a reason, no numbers

LABELS = {
    "none": "without BN",
    "before": "before the nonlinearity",
    "after": "after the nonlinearity",
    "input": "before the linear map",
    "pixels": "before, and the pixels normalized",
    "scaled": "after, and made smaller at the end",
    "residual": "before, with shortcuts",
    "pre-activation": "pre-activation, with shortcuts",
}
PANELS = {  # of the figure, with the colours; each has the place of the paper
    "places": {"none": 0, "before": 1, "after": 2, "input": 3},
    "ends and shortcuts": {
        "before": 1,
        "pixels": 4,
        "scaled": 5,
        "residual": 3,
        "pre-activation": 0,
    },
}
INITIAL_WEIGHTS = {"relu": "he_normal", "sigmoid": "glorot_uniform"}
# Root mean square of the nonlinearity of a standard normal number: what the output layer gets when
# the normalization stands before the nonlinearity. When it stands after it, that is 1.
ROOT_MEAN_SQUARE = {"relu": 0.7071, "sigmoid": 0.5417}
DIVERGED_ABOVE = 10 * np.log(10)  # a loss ten times that of guessing


@dataclass(frozen=True)
class Config:
    """The net, the learning rates, which decay to zero by a cosine, and how long each trains."""

    activations: tuple[str, ...] = ("relu", "sigmoid")
    places: tuple[str, ...] = tuple(LABELS)
    rates: tuple[float, ...] = tuple(0.01 * 2**k for k in range(11))
    depth: int = 5  # odd: a layer, and pairs of layers with a shortcut around each
    width: int = 100
    batch_size: int = 60
    steps: int = 3000
    trained_above: float = 0.5  # accuracy that counts as having learnt something; guessing is 0.1
    jit: bool = True  # on TensorFlow; JAX always compiles, which takes seconds a placement
    seeds: int = 10


PRESETS = {
    "quick": Config(
        activations=("relu",),
        places=("none", "before", "after", "input", "scaled"),
        rates=(0.1, 3.0),
        steps=300,
        jit=False,
        seeds=3,
    ),
    "full": Config(),
}


def block(placement: str, units: int, activation: str) -> list[Any]:
    """A linear map and its nonlinearity, with batch normalization in the place that is named."""
    linear = layers.Dense(
        units,
        use_bias=placement != "before",  # there the mean takes it away
        kernel_initializer=INITIAL_WEIGHTS[activation],
    )
    nonlinearity = layers.Activation(activation)
    normalization = layers.BatchNormalization()
    return {
        "none": [linear, nonlinearity],
        "before": [linear, normalization, nonlinearity],
        "after": [linear, nonlinearity, normalization],
        "input": [normalization, linear, nonlinearity],
        "pre-activation": [normalization, nonlinearity, linear],
    }[placement]


def make_model(placement: str, depth: int, units: int, activation: str) -> Any:
    """So many blocks, and a linear layer that gives the logits; two of the places vary the ends."""
    if placement in ("residual", "pre-activation"):
        return residual_model(placement, depth, units, activation)
    place = {"pixels": "before", "scaled": "after"}.get(placement, placement)
    stack = [each for _ in range(depth) for each in block(place, units, activation)]
    if placement == "pixels":
        stack = [layers.BatchNormalization(), *stack]
    if placement == "scaled":
        stack = [*stack, layers.Rescaling(ROOT_MEAN_SQUARE[activation])]
    return keras.Sequential([keras.Input((784,)), *stack, layers.Dense(10)])


def residual_model(placement: str, depth: int, units: int, activation: str) -> Any:
    """The same linear maps; from the second on, a shortcut leads around each two of them.

    "residual" adds the shortcut before the second nonlinearity. With "pre-activation" nothing
    stands on the sum: normalization and nonlinearity come before each linear map behind the first,
    and once more at the end.

    Source: He et al. 2016 (identity mappings), figure 1.
    """
    inputs = keras.Input((784,))
    if placement == "residual":
        x = keras.Sequential(block("before", units, activation))(inputs)
        for _ in range(depth // 2):
            *first, last = (each for _ in range(2) for each in block("before", units, activation))
            x = last(layers.add([x, keras.Sequential(first)(x)]))
    else:
        x = layers.Dense(units, kernel_initializer=INITIAL_WEIGHTS[activation])(inputs)
        for _ in range(depth // 2):
            pair = [each for _ in range(2) for each in block(placement, units, activation)]
            x = layers.add([x, keras.Sequential(pair)(x)])
        x = layers.Activation(activation)(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All rates of all seeds side by side, for each activation and placement.

    Nets of one seed begin with the same weights of their linear maps and see the same batches.

    Returns:
        One record a seed: for each activation and placement the accuracy with precise statistics
        on the "validation", "test" and "train" part (of this, the images that give the
        statistics), "validation moving" and "test moving", the same with the moving ones, and the
        mean "loss" of the last 100 steps; each a list over the rates.
    """
    records: list[dict[str, Any]] = [{} for _ in seeds]
    for activation, placement in product(config.activations, config.places):
        for record, seen in zip(
            records, run_place(config, seeds, activation, placement), strict=True
        ):
            record.setdefault(activation, {})[placement] = seen
    return records


def run_place(
    config: Config, seeds: Sequence[int], activation: str, placement: str
) -> list[dict[str, Any]]:
    """Train one kind of net with each seed at each rate, and evaluate it: one record a seed."""
    data = fashion_mnist()
    cells = list(product(seeds, config.rates))
    seed_of, rates = map(list, zip(*cells, strict=True))
    runs = Runs(
        partial(make_model, placement, config.depth, config.width, activation),
        keras.optimizers.SGD,
        data.x_train,
        data.y_train,
        seeds=seed_of,
        rates=np.outer(rates, cosine(config.steps)),
        steps=config.steps,
        jit=config.jit,
    )
    order = {
        seed: draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
        for seed in seeds
    }
    losses = runs.train(np.stack([order[seed] for seed in seed_of], axis=1))
    parts = {
        "validation": (data.x_validation, data.y_validation),
        "test": (data.x_test, data.y_test),
        "train": (data.x_train[:IMAGES], data.y_train[:IMAGES]),
    }
    precise = runs.states if placement == "none" else runs.recomputed(data.x_train[:IMAGES])
    seen = {name: runs.accuracy(*part, states=precise) for name, part in parts.items()}
    for name in ("validation", "test"):
        moving = seen[name] if placement == "none" else runs.accuracy(*parts[name])
        seen[f"{name} moving"] = moving
    seen["loss"] = losses[:, -100:].mean(axis=1)
    shape = (len(seeds), len(config.rates))
    return [
        {name: values.reshape(shape)[k] for name, values in seen.items()} for k in range(len(seeds))
    ]


def best_rate(result: Result, activation: str, placement: str) -> tuple[int, bool]:
    """The place of the rate that is best on the validation part, and whether it lies inside."""
    scores = result.values(activation, placement, "validation")
    return protocol.best_rate(result.config["rates"], scores)


def best_test_accuracy(
    result: Result, activation: str, placement: str, part: str = "test"
) -> Array:
    """Of each seed, at the rate that is best on the validation part for all seeds."""
    best, _ = best_rate(result, activation, placement)
    return result.values(activation, placement, part)[:, best]


def trained(result: Result, activation: str, placement: str) -> Array:
    """Which nets have learnt something: bool of shape (seeds, rates)."""
    scores = result.values(activation, placement, "validation")
    return scores > result.config["trained_above"]


def diverged(result: Result, activation: str, placement: str) -> Array:
    """Which nets end with a loss that is no number, or a large one: bool of (seeds, rates)."""
    return ~(result.values(activation, placement, "loss") <= DIVERGED_ABOVE)


def largest_rate(result: Result, activation: str, placement: str) -> Array:
    """The largest rate at which each seed learns something; 0 where none does."""
    learned = trained(result, activation, placement)
    return (learned * np.array(result.config["rates"])).max(axis=1)


def plot(result: Result) -> Any:
    """Validation accuracy against the learning rate, a column of panels for each activation."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    activations, wanted = result.config["activations"], result.config["places"]
    figure = plt.figure(figsize=(7.2, 7.4))
    for part, (title, places) in zip(
        figure.subfigures(len(PANELS), 1), PANELS.items(), strict=True
    ):
        axes = part.subplots(1, len(activations), sharey=True, squeeze=False)[0]
        for ax, activation in zip(axes, activations, strict=True):
            for place in filter(wanted.__contains__, places):
                accuracies = 100 * result.values(activation, place, "validation")
                plots.band(ax, result.config["rates"], accuracies, LABELS[place], places[place])
            ax.set(
                xscale="log",
                xlabel="learning rate",
                title=f"{activation} units: {title}".replace("relu", "ReLU"),
                ylim=(0, 100),
            )
            ax.xaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel("validation accuracy (%)")
        part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
