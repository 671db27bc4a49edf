"""Whitening the inputs of a network, against normalizing each of them by itself.

Networks are said to converge faster on whitened inputs (LeCun et al. 1998), and batch
normalization to be a cheap stand-in for whitening (Ioffe and Szegedy 2015, section 3). Neither
paper shows numbers for it. Here the same nets train on the pixels as they are, centred, normalized
one by one, and whitened in two ways, each at the learning rate that suits it best: by the training
loss at the end where speed is judged, and by the validation part where accuracy is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments import protocol
from bnkit.experiments.results import Result
from bnkit.experiments.sweep import Sweep, batches_of, he_stddevs
from bnkit.experiments.training import as_float, draw_batches, fashion_mnist

TITLE = "Whitened inputs"
QUESTION = "Does whitening the inputs speed up training, and how much of it does scaling them give?"
PUBLISHED = None  # stated in both papers, without numbers

KINDS = {
    "raw": "pixels as they are",
    "centred": "mean taken away",
    "normalized": "each pixel normalized",
    "pca": "whitened, PCA",
    "zca": "whitened, ZCA",
    "zca bare": "whitened, ZCA, tiny ε",
}
LEVELS = (0.6, 0.5, 0.4, 0.3)  # of the training loss, that the steps to them are counted
NETS = {"linear": "one linear layer", "deep": "two hidden layers"}


@dataclass(frozen=True)
class Config:
    """The kinds of input, the data, the nets and how long they train."""

    kinds: tuple[str, ...] = tuple(KINDS)
    rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    hidden: tuple[int, ...] = (100, 100)
    train: int = 50_000
    batch_size: int = 60
    steps: int = 2000
    epsilon: float = 1e-3  # added to variances and eigenvalues
    bare_epsilon: float = 1e-7  # the same for "zca bare"
    window: int = 50  # steps whose losses are averaged
    last: int = 200  # steps at the end whose mean loss chooses the learning rate
    seeds: int = 10


PRESETS = {
    "quick": Config(
        ("raw", "normalized", "zca"),
        rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        train=10_000,
        steps=400,
        window=20,
        last=40,
        seeds=3,
    ),
    "full": Config(),
}


def whitening_matrix(covariance: Array, kind: str, epsilon: float) -> Array:
    r"""The matrix that centred rows are multiplied by.

    .. math:: V (\Lambda + \varepsilon)^{-1/2} \quad \text{(PCA)}, \qquad
        V (\Lambda + \varepsilon)^{-1/2} V^{\mathsf T} \quad \text{(ZCA)}, \qquad
        \Sigma = V \Lambda V^{\mathsf T}

    Args:
        covariance: shape (C, C).
        kind: "pca", "zca", or "normalized" for the diagonal alone.
        epsilon: added to eigenvalues, or to variances.

    Returns:
        Shape (C, C).

    >>> covariance = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> matrix = whitening_matrix(covariance, "zca", epsilon=0.0)
    >>> np.allclose(matrix.T @ covariance @ matrix, np.eye(2))
    True
    """
    if kind == "normalized":
        return np.diag(1 / np.sqrt(np.diag(covariance) + epsilon))
    eigenvalues, vectors = np.linalg.eigh(covariance)
    scaled = vectors / np.sqrt(np.maximum(eigenvalues, 0) + epsilon)
    return scaled if kind == "pca" else scaled @ vectors.T


def transform(config: Config, kind: str, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """What a kind takes away from a row, and the matrix that it multiplies the rest by."""
    if kind == "raw":
        return np.zeros_like(mean), np.eye(len(mean))
    if kind == "centred":
        return mean, np.eye(len(mean))
    name, _, bare = kind.partition(" ")
    return mean, whitening_matrix(covariance, name, config.bare_epsilon if bare else config.epsilon)


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """One seed; see ``run_seeds``."""
    return run_seeds(config, [seed])[0]


def run_seeds(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Each net on each kind of input, all seeds and rates as one program.

    Returns:
        One record a seed: for each net and kind, by rate, the "loss" in windows of steps, before
        the update of each step, and the accuracy at the end on the first 10,000 images that are
        trained on ("train"), and on the "validation" and the "test" part. Where a run diverges its
        losses are not finite.
    """
    data = fashion_mnist(train=config.train)
    x_train, x_validation, x_test = map(as_float, (data.x_train, data.x_validation, data.x_test))
    order = {
        seed: draw_batches(config.train, config.batch_size, config.steps, seed) for seed in seeds
    }
    seed_of, rates = map(list, zip(*product(seeds, config.rates), strict=True))
    batches = batches_of(order, seed_of)
    moments = x_train.mean(axis=0, dtype=np.float64), np.cov(x_train.T, ddof=0)
    records: list[dict[str, Any]] = [{net: {} for net in NETS} for _ in seeds]
    for kind, (net, widths) in product(config.kinds, (("linear", ()), ("deep", config.hidden))):
        mean, matrix = (part.astype("float32") for part in transform(config, kind, *moments))
        parts = [(x - mean) @ matrix for x in (x_train, x_validation, x_test)]
        sweep = Sweep(
            parts[0],
            data.y_train,
            widths=widths,
            rates=rates,
            stddevs=he_stddevs([x_train.shape[1], *widths, 10], np.ones(len(rates))),
            seed=seed_of,
            jit=config.steps > 1000,  # to compile takes longer than it saves in a short run
        )
        losses = sweep.train(batches)
        seen = {
            "loss": losses.reshape(len(rates), -1, config.window).mean(axis=2),
            "train": sweep.accuracy(parts[0][:10_000], data.y_train[:10_000]),
            "validation": sweep.accuracy(parts[1], data.y_validation),
            "test": sweep.accuracy(parts[2], data.y_test),
        }
        for k, record in enumerate(records):
            own = slice(k * len(config.rates), (k + 1) * len(config.rates))
            record[net][kind] = {name: values[own] for name, values in seen.items()}
    return records


def steps(result: Result) -> Array:
    """The step in the middle of each window."""
    config = result.config
    return np.arange(0, config["steps"], config["window"]) + config["window"] / 2


def final_loss(result: Result, net: str, kind: str, *, fresh: bool = False) -> Array:
    """Mean training loss of the last steps, shape (seeds, rates); nan where a run diverges.

    Args:
        result: a run of this experiment.
        net: one of ``NETS``.
        kind: one of ``KINDS``.
        fresh: the last steps of the first epoch, up to which every image is new to the net, in
            place of those of the run.
    """
    config = result.config
    values = result.values(net, kind, "loss")
    end = values.shape[2]
    if fresh:
        end = min(end, config["train"] // config["batch_size"] // config["window"])
    start = max(end - config["last"] // config["window"], 0)
    return values[:, :, start:end].mean(axis=2)


def chosen(result: Result, net: str, kind: str, by: str) -> tuple[int, bool]:
    """The place of the best rate, by the mean over seeds, and whether it lies inside the grid.

    Args:
        result: a run of this experiment.
        net: one of ``NETS``.
        kind: one of ``KINDS``.
        by: "loss", that of the last steps; "fresh", that at the end of the first epoch; or
            "validation" accuracy.

    Returns:
        As ``protocol.best_rate``.
    """
    if by == "validation":
        scores = result.values(net, kind, "validation")
    else:
        scores = -final_loss(result, net, kind, fresh=by == "fresh")
    return protocol.best_rate(result.config["rates"], scores)


def losses(result: Result, net: str, kind: str) -> Array:
    """Training loss at the rate that ends lowest, shape (seeds, windows)."""
    return result.values(net, kind, "loss")[:, chosen(result, net, kind, "loss")[0]]


def loss_at_end(result: Result, net: str, kind: str, *, fresh: bool = False) -> Array:
    """``final_loss`` at the rate where it is lowest, by seed."""
    best, _ = chosen(result, net, kind, "fresh" if fresh else "loss")
    return final_loss(result, net, kind, fresh=fresh)[:, best]


def accuracy(result: Result, net: str, kind: str, part: str) -> Array:
    """Accuracy on a part at the rate that is best on the validation part, by seed."""
    best, _ = chosen(result, net, kind, "validation")
    return result.values(net, kind, part)[:, best]


def steps_to(result: Result, net: str, kind: str, level: float) -> Array:
    """Steps until the loss of a window is at most the level, by seed; nan where it never is."""
    reached = losses(result, net, kind) <= level
    return np.where(reached.any(axis=1), steps(result)[reached.argmax(axis=1)], np.nan)


def plot(result: Result) -> Any:
    """Training loss against steps for each kind of input, one panel a net.

    A grey line stands where an epoch ends.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from bnkit import plots

    config = result.config
    epoch = config["train"] / config["batch_size"]
    figure, axes = plt.subplots(1, len(NETS), figsize=(7.2, 4.2), sharey=True)
    for ax, (net, name) in zip(axes, NETS.items(), strict=True):
        for index, (kind, label) in enumerate(KINDS.items()):
            if kind in config["kinds"]:
                plots.band(ax, steps(result), losses(result, net, kind), label, index)
        for end in np.arange(epoch, config["steps"], epoch):
            ax.axvline(end, color=plots.GREY, linewidth=0.8, zorder=0)
        ax.set(title=name, xlabel="training steps", xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    axes[0].set_ylabel("training loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
