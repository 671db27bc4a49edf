"""Gradients of many copies of a Keras model at given variables, and on walks along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from bnkit.arguments import Array
from bnkit.keras.probes import cross_entropy

Measured = dict[str, Array]


class Measuring:
    """Measures copies of a model, compiled once: side by side on JAX, in turn on TensorFlow.

    Variables are given as one array each, in the model's order, the copies along the first axis,
    as ``Runs.stacked`` gives them. The model itself stays as it is.

    Args:
        model: dense layers, each with an Activation layer behind it but the last.
        walk: points along the gradient, in learning rates.
        distances: points along the gradient, as lengths in the space of all weights.
    """

    def __init__(self, model: Any, walk: Sequence[float], distances: Sequence[float]) -> None:
        outputs = [each.output for each in model.layers if isinstance(each, layers.Activation)]
        self.inner = keras.Model(model.inputs, [*outputs, *model.outputs])
        places = {id(variable): k for k, variable in enumerate(model.variables)}
        self.trained = [places[id(each)] for each in self.inner.trainable_variables]
        self.rest = [places[id(each)] for each in self.inner.non_trainable_variables]
        trained = {id(each): k for k, each in enumerate(self.inner.trainable_variables)}
        dense = [each for each in model.layers if isinstance(each, layers.Dense)]
        self.kernels = [trained[id(each.kernel)] for each in dense][1:]
        count = len(self.trained)
        below = np.arange(count) < np.array(self.kernels)[:, None]
        self.by_rate = np.concatenate([below, np.outer(walk, np.ones(count))]).astype("float32")
        self.by_length = np.outer(distances, np.ones(count)).astype("float32")
        self.walked = len(self.kernels), len(walk), len(distances)
        self._watch = side_by_side(self._watch_one, shared=2)
        self._walk = side_by_side(self._walk_one, shared=0)

    def as_trained(self, values: Sequence[Array], x: Array, y: Array) -> tuple[Array, ...]:
        """What x, the same for all copies, gives in training mode.

        Returns:
            How many rows each copy gets right, (copies,), and mean and variance over the rows of
            what each Activation layer gives, both (copies, layers, units).
        """
        return self._watch(list(values), x, y)

    def walks(self, values: Sequence[Array], x: Array, y: Array, rates: Array) -> Measured:
        """How the loss of a batch and its gradient change where the weights move.

        Args:
            values: the variables.
            x: a batch for each copy, shape (copies, rows, features).
            y: its labels, (copies, rows).
            rates: the learning rate of each copy.

        Returns:
            For each dense layer but the first, how its gradient changes when the layers below take
            their step: "gradient_shift", the length of the difference over that of the gradient,
            and the "cosine" of the angle between both. For each point of the walk in learning
            rates "walk_loss", the first of them before the walk, and "walk_change", the length of
            the gradient's difference over its length at the start; for each distance likewise
            "distance_loss" and "distance_change". "gradient_length" and "weight_length" are those
            of all trained variables as one vector.
        """
        found = self._walk(list(values), x, y, np.asarray(rates, np.float32))
        loss, squares, weights, losses, moved, products, later = map(np.asarray, found)
        steps, walk, _ = self.walked
        with np.errstate(all="ignore"):  # gradients that are zero, losses that are no number
            kernels = (slice(None), np.arange(steps), self.kernels)
            change = np.sqrt(moved.sum(axis=2) / squares.sum(axis=1)[:, None])[:, steps:]
            own = squares[:, self.kernels]
            return {
                "gradient_shift": np.sqrt(moved[kernels] / own),
                "cosine": products[kernels] / np.sqrt(own * later[kernels]),
                "walk_loss": np.concatenate([loss[:, None], losses[:, steps:][:, :walk]], axis=1),
                "walk_change": change[:, :walk],
                "distance_loss": losses[:, steps + walk :],
                "distance_change": change[:, walk:],
                "gradient_length": np.sqrt(squares.sum(axis=1)),
                "weight_length": np.sqrt(weights),
            }

    def _split(self, values: Any) -> tuple[list[Any], list[Any]]:
        return [values[k] for k in self.trained], [values[k] for k in self.rest]

    def _watch_one(self, values: Any, x: Any, y: Any) -> Any:
        outputs, _ = self.inner.stateless_call(*self._split(values), x, training=True)
        right = ops.cast(ops.argmax(outputs[-1], axis=-1), "int32") == y
        means = [ops.mean(each, axis=0) for each in outputs[:-1]]
        variances = [
            ops.mean(ops.square(each - mean), axis=0)
            for each, mean in zip(outputs, means, strict=False)
        ]
        return ops.sum(ops.cast(right, "int32")), ops.stack(means), ops.stack(variances)

    def _walk_one(self, values: Any, x: Any, y: Any, rate: Any) -> Any:
        """Losses and, by trained variable, squares and products of the gradients."""
        trained, rest = self._split(values)

        def loss_of(weights: Any) -> Any:
            outputs, _ = self.inner.stateless_call(weights, rest, x, training=True)
            return cross_entropy(y, outputs[-1])

        loss, gradient = value_and_gradient(loss_of, trained)
        squares = by_variable(gradient, gradient)
        length = ops.sqrt(ops.sum(squares))
        steps = ops.concatenate([rate * self.by_rate, self.by_length / length])

        def at(step: Any) -> Any:
            """There the weights are less so many gradients, a number for each variable."""
            there = [
                w - step[k] * g for k, (w, g) in enumerate(zip(trained, gradient, strict=True))
            ]
            value, later = value_and_gradient(loss_of, there)
            moved = [b - a for a, b in zip(gradient, later, strict=True)]
            return (
                value,
                by_variable(moved, moved),
                by_variable(gradient, later),
                by_variable(later, later),
            )

        weights = ops.sum(by_variable(trained, trained))
        return loss, squares, weights, *ops.map(at, steps)


def by_variable(one: list[Any], other: list[Any]) -> Any:
    """The inner product of each pair of arrays."""
    return ops.stack([ops.sum(a * b) for a, b in zip(one, other, strict=True)])


def value_and_gradient(function: Callable[[Any], Any], values: list[Any]) -> tuple[Any, list[Any]]:
    """A function's value and its gradient by a list of tensors, on TensorFlow or JAX.

    >>> value, (gradient,) = value_and_gradient(lambda v: ops.sum(v[0] ** 2), [ops.ones(2)])
    >>> float(value), ops.convert_to_numpy(gradient).tolist()
    (2.0, [2.0, 2.0])
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.value_and_grad(function)(values)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(values)
        value = function(values)
    return value, tape.gradient(value, values)


def side_by_side(function: Callable[..., Any], shared: int) -> Callable[..., tuple[Array, ...]]:
    """The function for many copies at once: compiled, its arguments with an axis for the copies.

    Args:
        function: takes a list of tensors and others, returns a tuple of tensors.
        shared: how many of the last arguments are the same for all copies.
    """
    if keras.backend.backend() == "jax":
        import jax

        def every(*arguments: Any) -> tuple[Array, ...]:
            axes = [0] * (len(arguments) - shared) + [None] * shared
            found = compiled.setdefault("it", jax.jit(jax.vmap(function, in_axes=axes)))
            return tuple(np.asarray(each) for each in found(*arguments))

        compiled: dict[str, Any] = {}
        return every
    import tensorflow as tf

    one = tf.function(function, reduce_retracing=True)

    def in_turn(values: list[Array], *others: Any) -> tuple[Array, ...]:
        found = []
        for copy in range(len(values[0])):
            own = len(others) - shared
            arguments = [each[copy] for each in others[:own]] + list(others[own:])
            state = [tf.constant(each[copy]) for each in values]
            found.append([each.numpy() for each in one(state, *map(tf.constant, arguments))])
        return tuple(np.stack(each) for each in zip(*found, strict=True))

    return in_turn
