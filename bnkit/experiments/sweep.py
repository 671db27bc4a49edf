"""Trains many small dense nets as one program: all arrays get a leading axis for the runs.

What the runs share: depth, widths and activation. What each has for itself: its learning rate, the
standard deviation of its initial weights, the seed that draws them, and its batches where they are
given by run. So a grid of learning rates, scales and seeds is compiled once and trained at once,
which on a GPU costs little more than one of its cells. TensorFlow or JAX runs it, whichever is
Keras's backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from bnkit.arguments import Array
from bnkit.experiments import engines
from bnkit.experiments.training import STEPS_PER_CALL, as_float

ACTIVATIONS = ("relu", "sigmoid", "tanh", "linear")
PRECISE = 10_000  # training images from which a net gets precise statistics
Statistics = list[tuple[Any, Any]]  # mean and variance of each normalized layer, (runs, 1, units)


class Sweep:
    """Dense nets side by side, trained by plain gradient descent.

    Each is Dense → BatchNormalization → activation for each hidden width, then Dense; without
    `batch_norm` the dense layers have a bias instead, as in Keras, whose defaults hold.

    Args:
        x: training inputs, shape (rows, features); bytes are divided by 255.
        y: labels, int of shape (rows,).
        widths: units of each hidden layer.
        rates: learning rate of each run, shape (runs,).
        stddevs: standard deviation of the initial weights, shape (runs,) for all layers alike or
            (runs, layers) with the output layer as the last one.
        activation: "relu", "sigmoid", "tanh" or "linear".
        batch_norm: normalize before each activation.
        seed: fixes the initial weights; a number, or one for each run.
        classes: how many outputs there are.
        momentum: what the moving statistics keep at each step; a number, or one for each run.
        epsilon: added to the variance.
        jit: let XLA compile the program; JAX always does.

    Raises:
        ValueError: an activation that there is not, shapes that do not fit, or another backend
            than TensorFlow and JAX.

    >>> from bnkit.experiments.training import draw_batches, fashion_mnist
    >>> data = fashion_mnist()
    >>> sweep = Sweep(data.x_train, data.y_train, widths=[32], rates=[0.1, 0.0], stddevs=[0.1, 0.1])
    >>> sweep.train(draw_batches(len(data.x_train), 60, steps=100, seed=0)).shape
    (2, 100)
    >>> learned, untrained = sweep.accuracy(data.x_validation, data.y_validation)
    >>> learned > 0.5 > untrained
    np.True_
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        *,
        widths: Sequence[int],
        rates: ArrayLike,
        stddevs: ArrayLike,
        activation: str = "relu",
        batch_norm: bool = False,
        seed: int | Sequence[int] = 0,
        classes: int = 10,
        momentum: ArrayLike = 0.99,
        epsilon: float = 1e-3,
        jit: bool = True,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
            )
        self.activation, self.batch_norm, self.epsilon = activation, batch_norm, epsilon
        self.momentum = np.reshape(np.asarray(momentum, np.float32), (-1, 1, 1))
        self.rates = np.asarray(rates, np.float32)
        self.sizes = [x.shape[1], *widths, classes]
        layers = len(self.sizes) - 1
        scales = np.asarray(stddevs, np.float32)
        if scales.ndim == 1:
            scales = np.repeat(scales[:, None], layers, axis=1)
        if self.rates.ndim != 1 or scales.shape != (len(self.rates), layers):
            raise ValueError(
                f"rates must have shape (runs,) and stddevs (runs,) or (runs, {layers}); "
                f"got {self.rates.shape} and {np.shape(stddevs)}"
            )
        weights = self._initial_weights(scales, np.broadcast_to(seed, self.rates.shape))
        self._engine = engines.engine()(self, weights, x, y, jit)

    def train(self, batches: Array, factors: ArrayLike = 1.0) -> Array:
        """Make one step of each run for each batch.

        Args:
            batches: int32, row numbers of the training data: of shape (steps, batch size) where
                all runs share them, or (steps, runs, batch size).
            factors: what the learning rates are multiplied by at each step, shape (steps,) or
                (steps, runs).

        Returns:
            The losses before each step, float32 of shape (runs, steps).
        """
        steps = len(batches)
        factors = np.asarray(factors, np.float32)
        factors = factors[:, None] if factors.ndim == 1 else factors
        rates = np.broadcast_to(self.rates * factors, (steps, len(self.rates)))
        parts = []
        for start in range(0, steps, STEPS_PER_CALL):
            part = slice(start, min(start + STEPS_PER_CALL, steps))
            parts.append(self._engine.steps(batches[part], rates[part]))
        return np.concatenate(parts).T

    def statistics(self, x: Array) -> Statistics:
        """Precise statistics: those of the rows as one batch, weights held still.

        Returns:
            Mean and variance of each normalized layer, to hand to ``accuracy`` and ``predict``.
        """
        return self._engine.forward(as_float(x), None)[2]

    def predict(self, x: Array, **how: Any) -> Array:
        """The logits of each run, float32 of shape (runs, rows, classes); see ``evaluate``."""
        return self.evaluate(x, units=0, **how)[1]

    def evaluate(
        self,
        x: Array,
        *,
        training: bool = False,
        statistics: Statistics | None = None,
        batch_size: int = 1000,
        units: int | None = None,
    ) -> tuple[Array, Array]:
        """What the last activation gets, (runs, rows, units), and the logits of ``predict``.

        The nets stay as they are, in training mode too.

        Args:
            x: inputs like those of the training.
            training: normalize each batch by its own statistics.
            statistics: normalize by these instead of the moving ones, as ``statistics`` gives them.
            batch_size: rows at a time; in training mode the result depends on it.
            units: how many of the last hidden layer's units to return; all when None.
        """
        if training or statistics is None:
            weights = self._engine.weights()
            statistics = list(zip(weights["mean"], weights["variance"], strict=True))
        seen: tuple[list[Array], list[Array]] = ([], [])
        for k in range(0, len(x), batch_size):
            part = as_float(x[k : k + batch_size])
            before, logits, _ = self._engine.forward(part, None if training else statistics)
            seen[0].append(ops.convert_to_numpy(before[..., :units]))
            seen[1].append(ops.convert_to_numpy(logits))
        inputs, logits = (np.concatenate(each, axis=1) for each in seen)
        return inputs, logits

    def accuracy(self, x: Array, y: Array, **how: Any) -> Array:
        """The fraction of rows that each run gets right, shape (runs,); see ``evaluate``."""
        return (self.predict(x, **how).argmax(axis=-1) == y).mean(axis=1)

    def weights_of(self, run: int) -> list[Array]:
        """The weights of one run, in the order in which the same Keras model has them."""
        found = self._engine.weights()
        weights = []
        for k, (kernel, bias) in enumerate(zip(found["kernel"], found["bias"], strict=True)):
            weights.append(kernel[run])
            if k < len(found["gamma"]):
                norm = (found["gamma"][k], bias, found["mean"][k], found["variance"][k])
                weights += [each[run, 0] for each in norm]
            else:
                weights.append(bias[run, 0])
        return [ops.convert_to_numpy(weight) for weight in weights]

    def _initial_weights(self, scales: Array, seeds: Array) -> dict[str, list[Array]]:
        """Arrays with a leading axis for the runs, by what they are and then by layer."""
        drawn = {int(seed): np.random.default_rng(int(seed)) for seed in np.unique(seeds)}
        kernels = []
        for scale, shape in zip(
            scales.T, zip(self.sizes, self.sizes[1:], strict=False), strict=True
        ):
            by_seed = {seed: rng.standard_normal(shape, np.float32) for seed, rng in drawn.items()}
            kernels.append(
                np.stack([s * by_seed[int(k)] for s, k in zip(scale, seeds, strict=True)])
            )
        runs, hidden = len(scales), self.sizes[1:-1] if self.batch_norm else []

        def layers(sizes: Sequence[int], value: float) -> list[Array]:
            return [np.full((runs, 1, size), value, np.float32) for size in sizes]

        return {
            "kernel": kernels,
            "bias": layers(self.sizes[1:], 0),  # where a layer is normalized, this is beta
            "gamma": layers(hidden, 1),
            "mean": layers(hidden, 0),
            "variance": layers(hidden, 1),
        }

    def forward(
        self, weights: dict[str, list[Any]], x: Any, statistics: Statistics | None
    ) -> tuple[Any, Any, Statistics]:
        """All nets at once, in the terms of ``keras.ops``.

        Args:
            weights: as ``_initial_weights`` makes them.
            x: shape (rows, features) or (runs, rows, features).
            statistics: to normalize by; those of the rows themselves when None.

        Returns:
            The last hidden layer's input and the logits, both (runs, rows, …), and the statistics.
        """
        h, z, used = x, x, []
        for k, kernel in enumerate(weights["kernel"]):
            before, z = z, ops.matmul(h, kernel)
            if k < len(weights["gamma"]):
                if statistics is None:
                    mean = ops.mean(z, axis=1, keepdims=True)
                    variance = ops.mean(ops.square(z - mean), axis=1, keepdims=True)
                else:
                    mean, variance = statistics[k]
                used.append((mean, variance))
                z = weights["gamma"][k] * (z - mean) * ops.rsqrt(variance + self.epsilon)
            z = z + weights["bias"][k]
            h = z if self.activation == "linear" else getattr(ops, self.activation)(z)
        return before, z, used

    def loss(self, weights: dict[str, list[Any]], x: Any, y: Any) -> tuple[Any, Statistics]:
        """Mean cross-entropy of each run on a batch, shape (runs,), and the batch's statistics."""
        _, logits, used = self.forward(weights, x, None)
        labels = ops.broadcast_to(y, ops.shape(logits)[:2])
        each = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return ops.mean(each, axis=1), used

    def moved(self, moving: Any, now: Any) -> Any:
        """Moving statistics after one batch."""
        return self.momentum * moving + (1 - self.momentum) * now


def batches_of(order: dict[int, Array], seeds: Sequence[int]) -> Array:
    """The batches of runs that have seeds, in the form that ``Sweep.train`` takes.

    Args:
        order: for each seed its batches, int32 of shape (steps, batch size).
        seeds: that of each run.

    Returns:
        The batches of the one seed, or an array of shape (steps, runs, batch size).

    >>> order = {0: np.zeros((100, 60), "int32"), 1: np.ones((100, 60), "int32")}
    >>> batches_of(order, [0, 0]).shape, batches_of(order, [0, 0, 1]).shape
    ((100, 60), (100, 3, 60))
    """
    if len(set(seeds)) == 1:
        return order[seeds[0]]
    return np.stack([order[seed] for seed in seeds], axis=1)


def he_stddevs(sizes: Sequence[int], scales: ArrayLike) -> Array:
    r"""Standard deviations of He's initialization, times a scale for each run.

    .. math:: \sigma_l = \text{scale} \cdot \sqrt{2 / n_{l-1}}

    Args:
        sizes: inputs, hidden widths, outputs.
        scales: shape (runs,).

    Returns:
        Shape (runs, layers).

    Source: He et al. 2015, eq. 10.

    >>> he_stddevs([8, 2, 1], [1.0, 10.0])
    array([[ 0.5,  1. ],
           [ 5. , 10. ]])
    """
    return np.outer(np.asarray(scales, float), np.sqrt(2 / np.asarray(sizes[:-1], float)))
