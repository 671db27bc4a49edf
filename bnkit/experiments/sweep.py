"""Trains many small dense nets as one program: all arrays get a leading axis for the runs.

What the runs share: depth, widths, activation, batches, and the normal draws behind their weights.
What each has for itself: its learning rate and the standard deviation of its initial weights. So
a grid of learning rates and scales is compiled once and trained at once, which on a GPU costs
little more than one of its cells. TensorFlow runs it, whatever Keras's backend is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array
from bnkit.experiments.training import STEPS_PER_CALL, as_float

ACTIVATIONS = ("relu", "sigmoid", "tanh", "linear")


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
        seed: fixes the initial weights.
        classes: how many outputs there are.
        momentum: what the moving statistics keep at each step; a number, or one for each run.
        epsilon: added to the variance.
        jit: let XLA compile the program.

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
        seed: int = 0,
        classes: int = 10,
        momentum: ArrayLike = 0.99,
        epsilon: float = 1e-3,
        jit: bool = True,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
            )
        self.batch_norm, self.epsilon = batch_norm, epsilon
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
        self._make_variables(scales, seed)
        self._compile(x, y, activation, jit)

    def train(self, batches: Array) -> Array:
        """Make one step of each run for each batch, which all runs share.

        Args:
            batches: int32 of shape (steps, batch size), row numbers of the training data.

        Returns:
            The losses before each step, float32 of shape (runs, steps).
        """
        import tensorflow as tf

        parts = []
        for start in range(0, len(batches), STEPS_PER_CALL):
            part = batches[start : start + STEPS_PER_CALL]
            padded = np.pad(part, [(0, STEPS_PER_CALL - len(part)), (0, 0)])
            parts.append(
                self._steps(tf.constant(padded), tf.constant(len(part))).numpy()[: len(part)]
            )
        return np.concatenate(parts).T

    def predict(self, x: Array, *, training: bool = False, batch_size: int = 1000) -> Array:
        """The logits of each run, float32 of shape (runs, rows, classes)."""
        return self.look(x, training=training, batch_size=batch_size)[1]

    def look(
        self, x: Array, *, training: bool = False, batch_size: int = 1000
    ) -> tuple[Array, Array]:
        """What the last activation gets, (runs, rows, units), and the logits of ``predict``.

        The nets stay as they are, in training mode too.
        """
        import tensorflow as tf

        moving = [*self.moving_means, *self.moving_variances]
        kept = [each.numpy() for each in moving]
        parts = [x[k : k + batch_size] for k in range(0, len(x), batch_size)]
        seen = [self._forward(tf.constant(as_float(part)), training=training) for part in parts]
        for each, value in zip(moving, kept, strict=True):
            each.assign(value)
        inputs, logits = (np.concatenate(each, axis=1) for each in zip(*seen, strict=True))
        return inputs, logits

    def accuracy(self, x: Array, y: Array, **how: Any) -> Array:
        """The fraction of rows that each run gets right, shape (runs,)."""
        return (self.predict(x, **how).argmax(axis=-1) == y).mean(axis=1)

    def weights_of(self, run: int) -> list[Array]:
        """The weights of one run, in the order in which the same Keras model has them."""
        weights = []
        for k, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            weights.append(kernel[run])
            if self.batch_norm and k < len(self.gammas):
                norm = (self.gammas[k], bias, self.moving_means[k], self.moving_variances[k])
                weights += [each[run, 0] for each in norm]
            else:
                weights.append(bias[run, 0])
        return [weight.numpy() for weight in weights]

    def _make_variables(self, scales: Array, seed: int) -> None:
        import tensorflow as tf

        rng = np.random.default_rng(seed)
        runs, hidden = len(scales), self.sizes[1:-1] if self.batch_norm else []
        draws = [
            rng.standard_normal(shape, np.float32)
            for shape in zip(self.sizes, self.sizes[1:], strict=False)
        ]
        self.kernels = [
            tf.Variable(scale[:, None, None] * draw)
            for scale, draw in zip(scales.T, draws, strict=True)
        ]
        # Where a layer is normalized, its bias is beta: added after the normalization.
        self.biases = [tf.Variable(tf.zeros((runs, 1, size))) for size in self.sizes[1:]]
        self.gammas = [tf.Variable(tf.ones((runs, 1, size))) for size in hidden]
        self.moving_means = [tf.Variable(tf.zeros((runs, 1, size))) for size in hidden]
        self.moving_variances = [tf.Variable(tf.ones((runs, 1, size))) for size in hidden]

    def _compile(self, x: Array, y: Array, activation: str, jit: bool) -> None:
        import tensorflow as tf

        activate = getattr(tf.nn, activation, tf.identity)
        x_train, y_train = tf.constant(x), tf.constant(y)
        rates = tf.constant(self.rates[:, None, None])
        trained = [*self.kernels, *self.biases, *self.gammas]

        def forward(inputs: Any, training: bool) -> Any:
            """The last hidden layer's input and the logits, both (runs, rows, …)."""
            h, z = inputs, inputs
            for k, kernel in enumerate(self.kernels):
                last = k == len(self.kernels) - 1
                before = z
                z = tf.einsum("bi,rio->rbo" if k == 0 else "rbi,rio->rbo", h, kernel)
                if self.batch_norm and not last:
                    z = self.gammas[k] * self._normalize(z, k, training)
                z += self.biases[k]
                h = activate(z)
            return before, z

        def steps(batches: Any, count: Any) -> Any:
            losses = tf.TensorArray("float32", STEPS_PER_CALL)
            for k in tf.range(count):
                inputs = tf.cast(tf.gather(x_train, batches[k]), "float32")
                inputs /= 255.0 if x_train.dtype == tf.uint8 else 1.0
                with tf.GradientTape() as tape:
                    _, logits = forward(inputs, training=True)
                    labels = tf.broadcast_to(tf.gather(y_train, batches[k]), tf.shape(logits)[:2])
                    each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                    value = tf.reduce_mean(each, axis=1)
                # The sum over runs has the gradient of each run, because they share no weight.
                for weight, gradient in zip(trained, tape.gradient(value, trained), strict=True):
                    weight.assign_sub(rates * gradient)
                losses = losses.write(k, value)
            return losses.stack()

        self._steps = tf.function(steps, jit_compile=jit)
        self._forward = tf.function(forward, jit_compile=jit, reduce_retracing=True)

    def _normalize(self, z: Any, k: int, training: bool) -> Any:
        import tensorflow as tf

        if not training:
            mean, variance = self.moving_means[k], self.moving_variances[k]
        else:
            mean, variance = tf.nn.moments(z, axes=[1], keepdims=True)
            for moving, now in [(self.moving_means[k], mean), (self.moving_variances[k], variance)]:
                moving.assign(self.momentum * moving + (1 - self.momentum) * now)
        return (z - mean) * tf.math.rsqrt(variance + self.epsilon)


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
