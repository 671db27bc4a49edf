"""Weight norm and effective learning rate: what a scale-invariant weight does under SGD.

Theory (van Laarhoven 2017) says: a weight in front of batch normalization is orthogonal to its
gradient, so that plain SGD can only make it longer, by exactly what the steps add by Pythagoras;
the longer it is, the less a step turns it. Weight decay holds the length where the two balance,
and then each step turns the weight by an angle of sqrt(2 rate decay), whatever the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.statistics import IMAGES, recompute_statistics
from bnkit.experiments.training import (
    STEPS_PER_CALL,
    Data,
    Trainer,
    as_float,
    draw_batches,
    fashion_mnist,
)

TITLE = "Weight norm and effective learning rate"
QUESTION = "How do weights in front of batch normalization grow, and what does weight decay do?"
PUBLISHED = "angle per step in balance: sqrt(2 rate decay) (Wan et al. 2021)"

TERMS = ("radial", "square", "turn")
CONSTANT, COSINE = "constant", "cosine"  # schedules of the learning rate
MOVING, PRECISE = "moving", "precise"  # kinds of statistics


class MeasuringSGD(keras.optimizers.SGD):  # type: ignore[misc]
    r"""Plain SGD that measures, for each kernel, what its steps add to the squared norm.

    For a step :math:`W \leftarrow W - \eta G` it adds up, for each kernel,

    * radial: :math:`-2 \eta \langle W, G \rangle`,
    * square: :math:`\eta^2 \lVert G \rVert^2`; with the radial part, all that moves the square;
    * turn: :math:`\eta^2 \lVert G_\perp \rVert^2 / \lVert W \rVert^2`, the squared angle.
    """

    def build(self, variables: Sequence[Any]) -> None:
        """Begin all totals at zero."""
        super().build(variables)
        self.totals = [
            self.add_variable((len(TERMS),), name=f"totals_{k}") for k in range(len(variables))
        ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Add up the terms of the step, and take it."""
        along = ops.sum(variable * gradient)
        size, square = ops.sum(ops.square(variable)), ops.sum(ops.square(gradient))
        turn = (square - along**2 / (size + 1e-30)) / (size + 1e-30)
        terms = ops.stack(
            [-2 * along * learning_rate, *(learning_rate**2 * each for each in (square, turn))]
        )
        self.assign_add(self.totals[self._get_variable_index(variable)], terms)
        super().update_step(gradient, variable, learning_rate)


@dataclass(frozen=True)
class Config:
    """The net, its learning rates with and without BN, the decays and how long it trains."""

    rate: float = 0.5
    plain_rate: float = 0.1  # 0.5 is too much for it
    decays: tuple[float, ...] = (0.0, 1e-3, 1e-2)
    depth: int = 3
    width: int = 100
    batch_size: int = 60
    steps: int = 10_000
    schedules: tuple[str, ...] = (CONSTANT, COSINE)
    seeds: int = 5


PRESETS = {"quick": Config(steps=1000, schedules=(CONSTANT,), seeds=3), "full": Config()}


def variants(decays: Sequence[float]) -> dict[str, tuple[bool, float]]:
    """Whether normalized, and the weight decay, for each variant by name."""
    with_bn = {f"with BN, decay {decay:g}": (True, decay) for decay in decays}
    return {**with_bn, "without BN, decay 0": (False, 0.0)}


def make_model(batch_norm: bool, depth: int, width: int) -> Any:
    """Dense → BatchNormalization → ReLU, over and over."""
    layers = [keras.Input((784,))]
    for _ in range(depth):
        layers += [
            keras.layers.Dense(width, use_bias=not batch_norm, kernel_initializer="he_normal")
        ]
        layers += [keras.layers.BatchNormalization()] if batch_norm else []
        layers += [keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def make_trainer(
    config: Config, seed: int, data: Data, batch_norm: bool, decay: float, schedule: str
) -> Trainer:
    """A fresh net, and the optimizer that measures it; only kernels decay."""
    keras.utils.set_random_seed(seed)
    model = make_model(batch_norm, config.depth, config.width)
    rate = config.rate if batch_norm else config.plain_rate
    if schedule == COSINE:
        rate = keras.optimizers.schedules.CosineDecay(rate, config.steps)
    optimizer = MeasuringSGD(rate, weight_decay=decay or None)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return Trainer(model, optimizer, data.x_train, data.y_train, jit=False)


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """All variants with each schedule; at a constant rate, measured after each hundred steps.

    Returns:
        For each variant "squared_norm", "radial", "square" and "turn" of the second hidden
        layer's kernel at the constant rate (the first number before the first step; the totals
        of the steps since), the mean "loss" of each hundred steps, and by schedule what
        ``accuracies`` gives at the end.
    """
    data = fashion_mnist(validation=0)
    batches = draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
    record: dict[str, Any] = {}
    for name, variant in variants(config.decays).items():
        record[name] = {}
        for schedule in config.schedules:
            trainer = make_trainer(config, seed, data, *variant, schedule)
            if schedule == CONSTANT:
                record[name] |= train_measured(trainer, batches)
            else:
                trainer.train(batches)
            record[name][schedule] = accuracies(trainer, data)
    return record


def train_measured(trainer: Trainer, batches: Array) -> dict[str, Any]:
    """Train, and measure the second hidden layer's kernel before and after each hundred steps."""
    kernel = [each for each in trainer.model.layers if isinstance(each, keras.layers.Dense)][
        1
    ].kernel
    measured, losses = [measure(trainer.optimizer, kernel)], []
    for part in np.split(batches, range(STEPS_PER_CALL, len(batches), STEPS_PER_CALL)):
        losses.append(trainer.train(part).mean())
        measured.append(measure(trainer.optimizer, kernel))
    columns = dict(zip(("squared_norm", *TERMS), np.transpose(measured), strict=True))
    return {**columns, "loss": losses}


def measure(optimizer: MeasuringSGD, kernel: Any) -> list[float]:
    """The squared norm of a kernel, and its totals."""
    totals = optimizer.totals[optimizer._get_variable_index(kernel)]
    return [float(np.sum(kernel.numpy().astype(float) ** 2)), *totals.numpy().tolist()]


def accuracies(trainer: Trainer, data: Data) -> dict[str, dict[str, float]]:
    """Accuracy on the "test" and the "train" part, with "moving" and "precise" statistics.

    The model keeps the precise ones.
    """
    found: dict[str, dict[str, float]] = {"test": {}, "train": {}}
    for kind in (MOVING, PRECISE):
        if kind == PRECISE:
            recompute_statistics(trainer.model, as_float(data.x_train[:IMAGES]))
        found["test"][kind] = trainer.accuracy(data.x_test, data.y_test)
        found["train"][kind] = trainer.accuracy(data.x_train, data.y_train)
    return found


def accuracy_of(
    result: Result, variant: str, schedule: str, kind: str = PRECISE, part: str = "test"
) -> Array:
    """Accuracy at the end in percent, shape (seeds,)."""
    return 100 * result.values(variant, schedule, part, kind)


def steps_measured(result: Result) -> Array:
    """After how many steps the kernel was measured, the first time before the first step."""
    return np.arange(0, result.config["steps"] + 1, STEPS_PER_CALL)


def growth(result: Result, variant: str, term: str) -> Array:
    """What a term of the steps has added to the squared norm, relative to its start.

    Shape (seeds, times).
    """
    return result.values(variant, term) / result.values(variant, "squared_norm")[:, :1]


def effective_rate(result: Result, variant: str) -> Array:
    """Learning rate over squared norm of the weights, shape (seeds, times); for nets with BN."""
    return result.config["rate"] / result.values(variant, "squared_norm")


def angle(result: Result, variant: str) -> Array:
    """Root mean square angle (radians) by which a step turns the weights, in each hundred steps.

    Shape (seeds, times - 1).
    """
    return np.sqrt(np.diff(result.values(variant, "turn"), axis=1) / STEPS_PER_CALL)


def balanced_angle(result: Result, decay: float) -> float:
    """The angle per step where growth and decay balance: sqrt(2 rate decay)."""
    return float(np.sqrt(2 * result.config["rate"] * decay))


def plot(result: Result) -> Any:
    """Squared norm, and angle per step beside what theory predicts, against steps."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    figure, axes = plt.subplots(1, 2, figsize=(7.2, 4.2))
    steps = steps_measured(result)
    for index, (name, (batch_norm, decay)) in enumerate(variants(result.config["decays"]).items()):
        norms = result.values(name, "squared_norm")
        plots.band(axes[0], steps, norms / norms[:, :1], name, index)
        plots.band(axes[1], steps[1:], angle(result, name), name, index)
        if batch_norm and decay:
            axes[1].axhline(
                balanced_angle(result, decay), color=plots.COLORS[index], lw=1, ls=":", zorder=0
            )
    axes[0].set(yscale="log", xlabel="training steps", title="‖W‖², 1 at the start")
    axes[1].set(yscale="log", xlabel="training steps", title="Angle per step (radians)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
