"""What trains the nets of a sweep: the same steps on TensorFlow and on JAX.

Both make up to 100 steps in one call, by ``Sweep.loss``, and keep the weights between calls.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bnkit.arguments import Array
from bnkit.experiments.training import STEPS_PER_CALL

TRAINED = ("kernel", "bias", "gamma")


def engine() -> type:
    """The engine of Keras's backend.

    Raises:
        ValueError: the backend is neither TensorFlow nor JAX.
    """
    backend = keras.backend.backend()
    if backend not in ENGINES:
        raise ValueError(f"a sweep runs on {' or '.join(ENGINES)}, got the backend {backend}")
    return ENGINES[backend]


def as_pixels(x: Any, is_bytes: bool) -> Any:
    """A batch as float32, bytes divided by 255."""
    x = ops.cast(x, "float32")
    return x / 255.0 if is_bytes else x


class TensorFlow:
    """The weights are variables; a loop within a compiled function makes the steps."""

    def __init__(self, sweep: Any, weights: Any, x: Array, y: Array, jit: bool) -> None:
        import tensorflow as tf

        self.variables = {
            name: [tf.Variable(each) for each in arrays] for name, arrays in weights.items()
        }
        x_train, y_train = tf.constant(x), tf.constant(y)
        trained = [each for name in TRAINED for each in self.variables[name]]

        def steps(batches: Any, rates: Any, count: Any) -> Any:
            losses = tf.TensorArray("float32", STEPS_PER_CALL)
            for k in tf.range(count):
                inputs = as_pixels(tf.gather(x_train, batches[k]), x.dtype == np.uint8)
                with tf.GradientTape() as tape:
                    value, used = sweep.loss(self.weights(), inputs, tf.gather(y_train, batches[k]))
                # The sum over runs has the gradient of each run, because they share no weight.
                for weight, gradient in zip(trained, tape.gradient(value, trained), strict=True):
                    weight.assign_sub(rates[k][:, None, None] * gradient)
                for layer, now in enumerate(used):
                    for name, new in zip(("mean", "variance"), now, strict=True):
                        moving = self.variables[name][layer]
                        moving.assign(sweep.moved(moving, new))
                losses = losses.write(k, value)
            return losses.stack()

        self._steps = tf.function(steps, jit_compile=jit)
        self._forward = tf.function(sweep.forward, jit_compile=jit, reduce_retracing=True)

    def weights(self) -> dict[str, list[Any]]:
        """Tensors by what they are and then by layer."""
        return {
            name: [each.read_value() for each in arrays] for name, arrays in self.variables.items()
        }

    def steps(self, batches: Array, rates: Array) -> Array:
        """Losses before each step; calls of one shape, the last filled up, compile once."""
        missing = STEPS_PER_CALL - len(batches)
        padded = [
            np.pad(each, [(0, missing), *[(0, 0)] * (each.ndim - 1)]) for each in (batches, rates)
        ]
        return self._steps(*map(ops.convert_to_tensor, (*padded, len(batches))))[: len(batches)]

    def forward(self, x: Array, statistics: Any) -> Any:
        """What ``Sweep.forward`` returns."""
        return self._forward(self.weights(), ops.convert_to_tensor(x), statistics)


class Jax:
    """The weights are a tree of arrays; a scan makes the steps."""

    def __init__(self, sweep: Any, weights: Any, x: Array, y: Array, jit: bool) -> None:
        import jax

        self._weights = jax.tree.map(jax.numpy.asarray, weights)
        x_train, y_train = jax.numpy.asarray(x), jax.numpy.asarray(y)

        def total(trained: Any, moving: Any, inputs: Any, labels: Any) -> Any:
            value, used = sweep.loss(trained | moving, inputs, labels)
            return value.sum(), (value, used)

        def step(weights: Any, now: Any) -> Any:
            rows, rates = now
            inputs = as_pixels(x_train[rows], x.dtype == np.uint8)
            trained = {name: weights[name] for name in TRAINED}
            moving = {name: weights[name] for name in ("mean", "variance")}
            # The sum over runs has the gradient of each run, because they share no weight.
            gradients, (value, used) = jax.grad(total, has_aux=True)(
                trained, moving, inputs, y_train[rows]
            )
            trained = jax.tree.map(lambda w, g: w - rates[:, None, None] * g, trained, gradients)
            for layer, statistics in enumerate(used):
                for name, new in zip(("mean", "variance"), statistics, strict=True):
                    moving[name] = [*moving[name]]
                    moving[name][layer] = sweep.moved(moving[name][layer], new)
            return trained | moving, value

        self._steps = jax.jit(lambda weights, *now: jax.lax.scan(step, weights, now))
        self._forward = jax.jit(sweep.forward)

    def weights(self) -> dict[str, list[Any]]:
        """Arrays by what they are and then by layer."""
        return self._weights

    def steps(self, batches: Array, rates: Array) -> Array:
        """Losses before each step."""
        self._weights, losses = self._steps(self._weights, batches, rates)
        return np.asarray(losses)

    def forward(self, x: Array, statistics: Any) -> Any:
        """What ``Sweep.forward`` returns."""
        return self._forward(self._weights, x, statistics)


ENGINES = {"tensorflow": TensorFlow, "jax": Jax}
