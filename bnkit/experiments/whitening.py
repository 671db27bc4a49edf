"""Whitening the inputs of a network, against normalizing each of them by itself.

Networks are said to converge faster on whitened inputs (LeCun et al. 1998), and batch
normalization to be a cheap stand-in for whitening (Ioffe and Szegedy 2015, section 3). Neither
paper shows numbers for it. Here the same nets train on the pixels as they are, centred, normalized
one by one, and whitened in two ways, each at the learning rate that suits it best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.sweep import Sweep, he_stddevs
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
NETS = {"linear": "one linear layer", "deep": "two hidden layers"}


@dataclass(frozen=True)
class Config:
    """The kinds of input, the data, the nets and how long they train."""

    kinds: tuple[str, ...] = tuple(KINDS)
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    hidden: tuple[int, ...] = (100, 100)
    train: int = 50_000
    batch_size: int = 60
    steps: int = 2000
    epsilon: float = 1e-3  # added to variances and eigenvalues
    bare_epsilon: float = 1e-7  # the same for "zca bare"
    window: int = 100  # steps whose losses are averaged
    seeds: int = 3


PRESETS = {
    "quick": Config(("raw", "normalized", "zca"), train=10_000, steps=400, window=20),
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
    """Each net on each kind of input, at all rates as one program.

    Returns:
        For each net and kind: the "rate" that is best on the validation part, the "test" accuracy
        there, and its "loss" in windows of steps, before the update of each step.
    """
    data = fashion_mnist(train=config.train)
    x_train, x_validation, x_test = map(as_float, (data.x_train, data.x_validation, data.x_test))
    batches = draw_batches(config.train, config.batch_size, config.steps, seed)
    moments = x_train.mean(axis=0, dtype=np.float64), np.cov(x_train.T, ddof=0)
    record: dict[str, Any] = {net: {} for net in NETS}
    for kind in config.kinds:
        mean, matrix = (part.astype("float32") for part in transform(config, kind, *moments))
        parts = [(x - mean) @ matrix for x in (x_train, x_validation, x_test)]
        for net, widths in (("linear", ()), ("deep", config.hidden)):
            sizes = [x_train.shape[1], *widths, 10]
            sweep = Sweep(
                parts[0],
                data.y_train,
                widths=widths,
                rates=config.rates,
                stddevs=he_stddevs(sizes, np.ones(len(config.rates))),
                seed=seed,
                jit=config.steps > 1000,  # to compile takes longer than it saves in a short run
            )
            losses = sweep.train(batches)
            best = int(np.argmax(sweep.accuracy(parts[1], data.y_validation)))
            record[net][kind] = {
                "rate": config.rates[best],
                "test": sweep.accuracy(parts[2], data.y_test)[best],
                "loss": losses[best].reshape(-1, config.window).mean(axis=1),
            }
    return record


def steps(result: Result) -> Array:
    """The step in the middle of each window."""
    config = result.config
    return np.arange(0, config["steps"], config["window"]) + config["window"] / 2


def speed_up(result: Result, net: str, kind: str) -> Array:
    """How many times sooner than "raw" a kind reaches the loss at which "raw" ends, by seed.

    The loss at the end is the mean of the last tenth of the windows; nan where it is not reached.
    """
    raw, other = (result.values(net, each, "loss") for each in ("raw", kind))
    target = raw[:, -max(1, raw.shape[1] // 10) :].mean(axis=1, keepdims=True)
    first = [
        _first_step(result, curve <= level) for curve, level in zip(other, target, strict=True)
    ]
    slow = [_first_step(result, curve <= level) for curve, level in zip(raw, target, strict=True)]
    return np.array(slow) / np.array(first)


def _first_step(result: Result, reached: Array) -> float:
    return float(steps(result)[reached.argmax()]) if reached.any() else np.nan


def plot(result: Result) -> Any:
    """Training loss against steps for each kind of input, one panel a net."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from bnkit import plots

    figure, axes = plt.subplots(1, len(NETS), figsize=(7.2, 4.2), sharey=True)
    for ax, (net, name) in zip(axes, NETS.items(), strict=True):
        for index, (kind, label) in enumerate(KINDS.items()):
            if kind in result.config["kinds"]:
                plots.band(ax, steps(result), result.values(net, kind, "loss"), label, index)
        ax.set(title=name, xlabel="training steps", xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    axes[0].set_ylabel("training loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
