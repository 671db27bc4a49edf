"""Five variants: batch normalization at the baseline's learning rate, at higher ones, and sigmoids.

After section 4.2.2 of the paper, which trains five variants of Inception on ImageNet. The baseline
gets its best learning rate, chosen on the validation part; the others get multiples of it, as in
the paper, and one variant more gets the rate that is best for it. What counts is how many steps a
variant needs for several accuracies that are fixed beforehand, at a constant rate. Final accuracy
comes from runs whose rate decays to zero.

All nets of one kind train side by side, see ``bnkit.experiments.runs``: every rate of the grid,
constant and decaying, and the multiples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.ghost import Patchwise
from bnkit.experiments.networks import CropAndFlip, batch_norm, conv_net
from bnkit.experiments.results import Result
from bnkit.experiments.runner import bar
from bnkit.experiments.runs import Runs
from bnkit.experiments.training import Data, cosine, draw_batches, pictures

TITLE = "Five variants"
QUESTION = "How many steps does batch normalization save, at higher and higher learning rates?"
# Ioffe and Szegedy 2015, figure 3: millions of steps to 72.2 %, and the best accuracy in percent.
PUBLISHED = {
    "plain": (31.0, 72.2),
    "bn": (13.3, 72.7),
    "bn-x5": (2.1, 73.0),
    "bn-x30": (2.7, 74.8),
    "bn-x5-sigmoid": (None, 69.8),
}
CALL = 10  # steps in one call, and what the evaluated steps are multiples of


class Variant(NamedTuple):
    """A row of the paper's table, and one more."""

    label: str
    kind: str  # which of KINDS it is
    times: float | None = None  # the baseline's learning rate; its own best when None


class Kind(NamedTuple):
    """Nets that are one program: they differ in their learning rates only."""

    batch_norm: bool
    activation: str = "relu"


KINDS = {"plain": Kind(False), "bn": Kind(True), "sigmoid": Kind(True, "sigmoid")}
VARIANTS = {
    "plain": Variant("baseline", "plain"),
    "bn": Variant("BN", "bn", 1),
    "bn-x5": Variant("BN, rate ×5", "bn", 5),
    "bn-x30": Variant("BN, rate ×30", "bn", 30),
    "bn-x5-sigmoid": Variant("BN, rate ×5, sigmoid", "sigmoid", 5),
    "bn-best": Variant("BN at its best rate", "bn"),
}
SCHEDULES = ("constant", "cosine")
NETS = {"plain-4": (4, False), "residual-8": (8, True)}  # layers, and whether with shortcuts
LABELS = {
    "plain-4": "4 convolutions",
    "residual-8": "8 convolutions with shortcuts",
}


@dataclass(frozen=True)
class Config:
    """The nets, the training, and how it is watched."""

    data: str = "fashion-mnist"
    nets: tuple[str, ...] = tuple(NETS)
    filters: tuple[int, ...] = (16, 32)
    rates: tuple[float, ...] = tuple(0.0125 * 2**k for k in range(7))  # the baseline's grid
    bn_rates: tuple[float, ...] = tuple(0.05 * 2**k for k in range(8))  # that of BN
    schedules: tuple[str, ...] = SCHEDULES
    batch_size: int = 32
    steps: int = 15_620  # ten passes over 50,000 images
    evaluations: int = 30  # spread over the logarithm of the steps
    images: int = 2000  # to evaluate with on the way, and for precise statistics
    final_images: int = 10_000  # to evaluate with at the end
    levels: tuple[float, ...] = (0.7, 0.8, 0.85, 0.88)
    seeds: int = 5


PRESETS = {
    "quick": Config(
        nets=("plain-4",),
        filters=(8, 16),
        rates=(0.2, 0.4),
        bn_rates=(0.4, 0.8),
        schedules=("constant",),
        steps=250,
        evaluations=8,
        images=1000,
        final_images=1000,
        levels=(0.3, 0.4, 0.5, 0.6),
        seeds=3,
    ),
    "full": Config(),
}


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """For each net the baseline at all rates, then the others at all rates and at the multiples.

    Returns:
        For each net "rate", the baseline's best constant one. For "plain" and "bn", by schedule,
        what ``ends`` tells of each rate, and at the constant rate the "curves" on the validation
        and the test part, shape (rates, evaluated steps). For each variant at a multiple of the
        baseline's rate the same, without the rates' axis.
    """
    return {net: run_net(config, seed, net) for net in config.nets}


def run_net(config: Config, seed: int, net: str) -> dict[str, Any]:
    """All variants of one net."""
    plain = train(config, seed, net, "plain", [])
    ends = [run["validation"] for run in plain[: len(config.rates)]]
    rate = config.rates[int(np.argmax(ends))]
    record = {"rate": rate, "plain": by_schedule(config, plain, len(config.rates))}
    for kind in ("bn", "sigmoid"):
        names = [name for name, v in VARIANTS.items() if v.kind == kind and v.times]
        runs = train(
            config, seed, net, kind, [rate * (VARIANTS[name].times or 1) for name in names]
        )
        multiples = runs[-len(names) :]
        record |= dict(zip(names, multiples, strict=True))
        if kind == "bn":
            record["bn-grid"] = by_schedule(config, runs, len(config.bn_rates))
    return record


def by_schedule(config: Config, runs: Sequence[Any], rates: int) -> dict[str, Any]:
    """The first runs, as lists over the rates for each schedule; curves of the constant rate."""
    found: dict[str, Any] = {}
    for k, schedule in enumerate(config.schedules):
        part = runs[k * rates : (k + 1) * rates]
        names = [each for each in part[0] if schedule == "constant" or each != "curves"]
        found[schedule] = {name: [run[name] for run in part] for name in names if name != "curves"}
        if "curves" in names:
            found[schedule]["curves"] = {
                name: [run["curves"][name] for run in part] for name in part[0]["curves"]
            }
    return found


def grid(config: Config, kind: str) -> tuple[float, ...]:
    """The learning rates of a kind of net that do not depend on the baseline's."""
    return {"plain": config.rates, "bn": config.bn_rates, "sigmoid": ()}[kind]


@cache
def program(config: Config, net: str, kind: str, copies: int, precision: str) -> Runs:
    """The copies of a net as one program, compiled once for all seeds."""
    del precision  # which the layers take from Keras
    data = pictures(config.data, flat=False)
    layers, residual = NETS[net]
    patchwise = keras.backend.backend() == "jax"

    def make_model() -> keras.Model:
        return conv_net(
            config.filters,
            layers,
            batch_norm() if KINDS[kind].batch_norm else None,
            activation=KINDS[kind].activation,
            residual=residual,
            stem=(CropAndFlip(),),
            convolution=Patchwise if patchwise else keras.layers.Conv2D,
            shape=data.x_train.shape[1:],
        )

    return Runs(
        make_model,
        keras.optimizers.SGD,
        data.x_train,
        data.y_train,
        seeds=[0] * copies,
        rates=np.zeros((copies, config.steps)),
        steps=config.steps,
        together=True,
    )


def train(
    config: Config, seed: int, net: str, kind: str, multiples: Sequence[float]
) -> list[dict[str, Any]]:
    """Train a kind of net: each schedule at each rate of the grid, then the multiples, constant."""
    factors = {"constant": np.ones(config.steps), "cosine": cosine(config.steps)}
    cells = [(s, rate) for s in config.schedules for rate in grid(config, kind)]
    cells += [("constant", rate) for rate in multiples]
    rates = np.array([rate * factors[schedule] for schedule, rate in cells])
    precision = keras.config.dtype_policy().name
    runs = program(config, net, kind, len(cells), precision)
    runs.restart(seeds=[seed] * len(cells), rates=rates)
    data = pictures(config.data, flat=False)
    order = draw_batches(len(data.x_train), config.batch_size, config.steps, seed)
    losses, curves = [], []
    steps = evaluated_until(config.steps, config.evaluations)
    for start, stop in bar(
        list(zip([0, *steps[:-1]], steps, strict=True)), desc=f"{LABELS[net]}, {kind}"
    ):
        losses += advance(runs, order[start:stop], len(cells))
        curves.append(evaluate(runs, data, config.images))
    found = ends(config, runs, data, np.concatenate(losses, axis=1))
    return [
        {
            **{name: values[k] for name, values in found.items()},
            "curves": {part: [seen[part][k] for seen in curves] for part in curves[0]},
        }
        for k in range(len(cells))
    ]


def advance(runs: Runs, order: Array, copies: int) -> list[Array]:
    """Steps of all copies on the same batches; on JAX in calls of one length, compiled once."""
    size = CALL if keras.backend.backend() == "jax" else len(order)
    parts = [order[k : k + size, None] for k in range(0, len(order), size)]
    return [runs.train(np.broadcast_to(p, (len(p), copies, p.shape[-1]))) for p in parts]


def evaluate(runs: Runs, data: Data, images: int) -> dict[str, Array]:
    """Accuracy of each copy with precise statistics, on the first images of two parts."""
    precise = runs.recomputed(data.x_train[:images])
    parts = {"validation": data[2:4], "test": data[4:6]}
    return {
        name: runs.accuracy(x[:images], y[:images], states=precise)
        for name, (x, y) in parts.items()
    }


def ends(config: Config, runs: Runs, data: Data, losses: Array) -> dict[str, Array]:
    """Of each copy after the last step, with precise statistics.

    Returns:
        Accuracy on the "train", "validation" and "test" part; "moving", that on the test part with
        the moving statistics; and the mean "loss" of the last 100 steps, nan where the run
        diverged.
    """
    precise = runs.recomputed(data.x_train[: config.images])
    last = slice(config.final_images)
    parts = {"train": data[:2], "validation": data[2:4], "test": data[4:6]}
    found = {
        name: runs.accuracy(x[last], y[last], states=precise) for name, (x, y) in parts.items()
    }
    found["moving"] = runs.accuracy(data.x_test[last], data.y_test[last])
    return found | {"loss": losses[:, -100:].mean(axis=1)}


def evaluated_until(last: int, evaluations: int) -> Array:
    """About so many steps up to the last, spread over their logarithm, multiples of ten.

    >>> evaluated_until(1170, 8)
    array([  10,   20,   40,   80,  150,  300,  590, 1170])
    """
    return np.unique(np.geomspace(1, last / CALL, evaluations).round().astype(int)) * CALL


def evaluated(result: Result) -> Array:
    """The steps at which the nets were evaluated."""
    return evaluated_until(result.config["steps"], result.config["evaluations"])


def grid_of(result: Result, variant: str) -> list[float]:
    """The learning rates among which a tuned variant, "plain" or "bn-best", was tried."""
    return list(result.config["rates" if variant == "plain" else "bn_rates"])


def values(result: Result, net: str, variant: str, *keys: str) -> Array:
    """A quantity of a tuned variant, "plain" or "bn-best": shape (seeds, rates, …)."""
    return result.values(net, "plain" if variant == "plain" else "bn-grid", *keys)


def chosen(result: Result, net: str, variant: str, schedule: str = "constant") -> tuple[Array, int]:
    """For each seed the place of the best rate on the validation part.

    Returns:
        The places, and for how many seeds the rate lies inside its grid.
    """
    scores = values(result, net, variant, schedule, "validation")
    best = np.argmax(scores, axis=1)
    inside = (best > 0) & (best < scores.shape[1] - 1)
    return best, int(inside.sum())


def tuned(
    result: Result, net: str, variant: str, schedule: str = "cosine", part: str = "test"
) -> Array:
    """A quantity after the last step, each seed at its best rate; see ``ends`` for the parts."""
    best, _ = chosen(result, net, variant, schedule)
    return values(result, net, variant, schedule, part)[np.arange(len(best)), best]


def curves(result: Result, net: str, variant: str, part: str = "test") -> Array:
    """Accuracy at the constant rate, shape (seeds, evaluated steps)."""
    if VARIANTS[variant].times is not None:
        return result.values(net, variant, "curves", part)
    best, _ = chosen(result, net, variant)
    return values(result, net, variant, "constant", "curves", part)[np.arange(len(best)), best]


def steps_to(result: Result, net: str, variant: str, level: float) -> Array:
    """For each seed the first evaluated step at or above the level; inf where there is none."""
    return first_at(result, curves(result, net, variant), level)


def first_at(result: Result, seen: Array, level: float) -> Array:
    """Where curves, the evaluated steps along their last axis, are first at or above the level."""
    reached = seen >= level
    return np.where(reached.any(axis=-1), evaluated(result)[reached.argmax(axis=-1)], np.inf)


def fewest_steps(result: Result, net: str, variant: str, level: float) -> tuple[Array, Array]:
    """Steps of a tuned variant, each seed at the rate that is fastest on the validation part.

    Returns:
        For each seed the steps on the test part, and the place of the rate; of equal ones the
        lowest.
    """
    on = {
        part: first_at(result, values(result, net, variant, "constant", "curves", part), level)
        for part in ("validation", "test")
    }
    fastest = on["validation"].argmin(axis=1)
    return on["test"][np.arange(len(fastest)), fastest], fastest


def speed_up(result: Result, net: str, variant: str, level: float) -> Array:
    """The baseline's steps to a level over the variant's, for each seed.

    0 where only the baseline gets there, inf where only the variant does, nan where neither does.
    """
    baseline, own = (steps_to(result, net, name, level) for name in ("plain", variant))
    with np.errstate(invalid="ignore"):
        return np.asarray(baseline / own)


def diverged(result: Result, net: str, variant: str) -> int:
    """For how many seeds the loss of a variant at the constant rate is not finite at the end."""
    if VARIANTS[variant].times is not None:
        losses = result.values(net, variant, "loss")
    else:
        losses = tuned(result, net, variant, "constant", "loss")
    return int((~np.isfinite(losses)).sum())


def plot(result: Result) -> Any:
    """Test accuracy against steps, a panel for each net.

    Median and range over seeds; where some fail and others do not, at thirty times the rate, each
    seed by itself.
    """
    import matplotlib.pyplot as plt

    from bnkit import plots

    nets, steps = result.config["nets"], evaluated(result)
    figure, axes = plt.subplots(
        len(nets), 1, figsize=(7.2, 3.5 * len(nets)), sharex=True, squeeze=False
    )
    for ax, net in zip(axes[:, 0], nets, strict=True):
        for k, (name, variant) in enumerate(VARIANTS.items()):
            accuracy = 100 * curves(result, net, name)
            if name == "bn-x30":
                color, dash = plots.COLORS[k], plots.DASHES[k]
                first, *_ = ax.plot(steps, accuracy.T, color=color, linestyle=dash, linewidth=1)
                first.set_label(f"{variant.label}, each seed")
            else:
                plots.band(ax, steps, accuracy, variant.label, k)
        ax.set(xscale="log", ylim=(0, 100), ylabel="test accuracy (%)", title=LABELS[net])
        ax.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    axes[-1, 0].set_xlabel("steps")
    return figure
