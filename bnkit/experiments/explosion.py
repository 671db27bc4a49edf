"""Gradient explosion: how the gradient grows from layer to layer of a deep net at its start.

The paper (section 3.3) conjectures that batch normalization keeps the singular values of a layer's
Jacobian near 1. Yang et al. (2019) derive that in deep nets without shortcuts the gradient grows
exponentially at initialization, for wide ReLU nets and large batches by sqrt(pi / (pi - 1)), 1.211,
for each layer. Here is the growth, measured on real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.experiments.training import as_float, fashion_mnist
from bnkit.keras.probes import gradient_norms

TITLE = "Gradient explosion at initialization"
QUESTION = "By which factor does the gradient grow from layer to layer of a deep net?"
PUBLISHED = {"relu": float(np.sqrt(np.pi / (np.pi - 1)))}  # Yang et al. 2019, large batches

VARIANTS: dict[str, dict[str, Any]] = {
    "ReLU": {"activation": "relu"},
    "tanh": {"activation": "tanh"},
    "linear": {"activation": "linear"},
    "ReLU, without BN": {"activation": "relu", "batch_norm": False},
    "ReLU, shortcuts": {"activation": "relu", "shortcuts": True},
}


@dataclass(frozen=True)
class Config:
    """The net, and the batches whose gradients are taken."""

    depth: int = 50
    width: int = 500
    batch_sizes: tuple[int, ...] = (8, 32, 128, 512)
    skipped: int = 10  # layers at either end, where the data and the loss still show
    seeds: int = 10


PRESETS = {
    "quick": Config(depth=30, width=200, batch_sizes=(128,), skipped=5, seeds=3),
    "full": Config(),
}


def make_model(
    depth: int,
    width: int,
    *,
    activation: str,
    batch_norm: bool = True,
    shortcuts: bool = False,
) -> Any:
    """Dense → BatchNormalization → activation, over and over, with He's initialization.

    With shortcuts each layer is BatchNormalization → activation → Dense, and adds to its input.
    """
    h = inputs = keras.Input((784,))
    if shortcuts:
        h = keras.layers.Dense(width, kernel_initializer="he_normal")(h)
    for k in range(depth):
        dense = keras.layers.Dense(
            width, use_bias=False, kernel_initializer="he_normal", name=f"hidden_{k}"
        )
        activate = keras.layers.Activation(activation)
        norm = keras.layers.BatchNormalization() if batch_norm else keras.layers.Identity()
        h = h + dense(activate(norm(h))) if shortcuts else activate(norm(dense(h)))
    return keras.Model(inputs, keras.layers.Dense(10)(h))


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """The gradients of freshly made nets, for one batch of images of each size.

    Returns:
        For each variant the norms of the gradients by the kernels, a list over batch sizes of
        lists over layers, the first layer first.
    """
    data = fashion_mnist(validation=0)
    rows = np.random.default_rng(seed).permutation(len(data.x_train))
    names = [f"hidden_{k}" for k in range(config.depth)]
    record: dict[str, list[list[float]]] = {}
    for variant, kind in VARIANTS.items():
        keras.utils.set_random_seed(seed)
        model = make_model(config.depth, config.width, **kind)
        record[variant] = []
        for size in config.batch_sizes:
            x, y = as_float(data.x_train[rows[:size]]), data.y_train[rows[:size]]
            record[variant].append(list(gradient_norms(model, x, y, names).values()))
    return record


def factors(result: Result, variant: str) -> Array:
    """By how much the gradient grows for each layer on its way back, shape (seeds, batch sizes).

    The geometric mean over the middle layers.
    """
    skipped = result.config["skipped"]
    logs = np.log(result.values(variant))[:, :, skipped:-skipped]
    return np.exp(-np.diff(logs, axis=2).mean(axis=2))


def predicted_factor(activation: str, points: int = 2000) -> float:
    r"""The factor for a wide net and a large batch, by the theory of mean fields.

    .. math:: \sqrt{\frac{E[\phi'(z)^2]}{\operatorname{Var} \phi(z)}}, \qquad z \sim N(0, 1)

    Args:
        activation: "relu", "tanh" or "linear".
        points: how many z, evenly spread, the integrals are taken over.

    Source: Yang et al. 2019; the chapter on explosion derives it for large batches.

    >>> print(f"{predicted_factor('relu'):.3f}, {predicted_factor('linear'):.3f}")
    1.211, 1.000
    """
    functions: dict[str, tuple[Any, Any]] = {
        "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        "linear": (lambda z: z, np.ones_like),
    }
    phi, slope = functions[activation]
    z = np.linspace(-10, 10, 2 * points)  # no point at 0, where ReLU has its kink
    density = np.exp(-(z**2) / 2)
    density /= density.sum()
    variance = density @ phi(z) ** 2 - (density @ phi(z)) ** 2
    return float(np.sqrt(density @ slope(z) ** 2 / variance))


def plot(result: Result) -> Any:
    """Gradient norms by layer, relative to the last layer, for the largest batches."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    figure, ax = plt.subplots(figsize=(7.2, 3.9))
    size = int(np.argmax(result.config["batch_sizes"]))
    for index, variant in enumerate(VARIANTS):
        norms = result.values(variant)[:, size]
        layers = np.arange(1, norms.shape[1] + 1)
        plots.band(ax, layers[::-1], (norms / norms[:, -1:])[:, ::-1], variant, index)
    ax.set(
        yscale="log",
        xlim=(layers[-1], 1),
        xlabel="layer, from the last to the first: the way the gradient takes",
        ylabel="relative to the last layer",
        title=f"Length of the weights' gradient, batches of {result.config['batch_sizes'][size]}",
    )
    plots.label_lines(ax)
    return figure
