"""Placement: batch normalization before the nonlinearity, after it, or before the linear map.

The paper normalizes before the nonlinearity and gives a reason (section 3.2): the sum that a linear
map makes is closer to a normal distribution than its inputs are. It shows no comparison. Much code
normalizes after the nonlinearity. Here each place is tried at each learning rate.
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
from bnkit.experiments.training import Trainer, draw_batches, fashion_mnist

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
}
INITIAL_WEIGHTS = {"relu": "he_normal", "sigmoid": "glorot_uniform"}
# Root mean square of the nonlinearity of a standard normal number: what the output layer gets when
# the normalization stands before the nonlinearity. When it stands after it, that is 1.
ROOT_MEAN_SQUARE = {"relu": 0.7071, "sigmoid": 0.5417}


@dataclass(frozen=True)
class Config:
    """The net, the learning rates and how long each trains."""

    activations: tuple[str, ...] = ("relu", "sigmoid")
    rates: tuple[float, ...] = (0.1, 1.0, 3.0, 10.0)
    depth: int = 5
    width: int = 100
    batch_size: int = 60
    steps: int = 1000
    trained_above: float = 0.5  # accuracy that counts as having learnt something; guessing is 0.1
    jit: bool = True  # XLA pays where there are many steps: compiling takes seconds a placement
    seeds: int = 5


PRESETS = {
    "quick": Config(activations=("relu",), rates=(0.1, 3.0), steps=300, jit=False, seeds=3),
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
    }[placement]


def make_model(placement: str, depth: int, units: int, activation: str) -> Any:
    """So many blocks, and a linear layer that gives the logits; two of the places vary the ends."""
    place = {"pixels": "before", "scaled": "after"}.get(placement, placement)
    stack = [each for _ in range(depth) for each in block(place, units, activation)]
    if placement == "pixels":
        stack = [layers.BatchNormalization(), *stack]
    if placement == "scaled":
        stack = [*stack, layers.Rescaling(ROOT_MEAN_SQUARE[activation])]
    return keras.Sequential([keras.Input((784,)), *stack, layers.Dense(10)])


@cache
def trainer(jit: bool, *network: Any) -> Trainer:
    """One model for all seeds and rates, so that its steps are compiled once."""
    data = fashion_mnist()
    model = make_model(*network)
    return Trainer(model, keras.optimizers.SGD(), data.x_train, data.y_train, jit=jit)


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Train every placement at every rate, all from the same draws and on the same batches.

    Returns:
        For each activation and placement: "validation" and "test" accuracy, and the mean "loss"
        of the last 100 steps; each a list over the rates.
    """
    data = fashion_mnist()
    batches = draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
    record: dict[str, Any] = {}
    for activation in config.activations:
        record[activation] = {}
        for placement in LABELS:
            network = (placement, config.depth, config.width, activation)
            machine = trainer(config.jit, *network)
            keras.utils.set_random_seed(seed)
            initial_weights = make_model(*network).get_weights()
            seen: dict[str, list[float]] = {"loss": [], "validation": [], "test": []}
            for rate in config.rates:
                machine.model.set_weights(initial_weights)
                machine.optimizer.learning_rate.assign(rate)
                seen["loss"].append(float(machine.train(batches)[-100:].mean()))
                seen["validation"].append(machine.accuracy(data.x_validation, data.y_validation))
                seen["test"].append(machine.accuracy(data.x_test, data.y_test))
            record[activation][placement] = seen
    return record


def best_test_accuracy(result: Result, activation: str, placement: str) -> Array:
    """Of each seed, at the rate that is best on the validation part."""
    best = result.values(activation, placement, "validation").argmax(axis=1)
    return result.values(activation, placement, "test")[np.arange(len(best)), best]


def largest_rate(result: Result, activation: str, placement: str) -> Array:
    """The largest rate at which each seed learns something; 0 where none does."""
    learned = result.values(activation, placement, "validation") > result.config["trained_above"]
    return (learned * np.array(result.config["rates"])).max(axis=1)


def plot(result: Result) -> Any:
    """Validation accuracy against the learning rate, a panel for each activation."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    activations = result.config["activations"]
    figure, axes = plt.subplots(1, len(activations), figsize=(7.2, 4.6), sharey=True, squeeze=False)
    for ax, activation in zip(axes[0], activations, strict=True):
        for index, (placement, label) in enumerate(LABELS.items()):
            accuracies = 100 * result.values(activation, placement, "validation")
            plots.band(ax, result.config["rates"], accuracies, label, index)
        ax.set(
            xscale="log",
            xlabel="learning rate",
            title=f"{activation} units".replace("relu", "ReLU"),
            ylim=(0, 100),
        )
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("validation accuracy (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
