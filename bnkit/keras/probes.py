"""Looks into a Keras model: what a chosen layer gets and gives, and how its gradients are.

Each function takes a model, inputs and names of layers, and returns one entry a name. Each leaves
the model as it was, also where it looks in training mode. ``Probe`` is a callback that calls such a
function every so many steps of ``fit``. All work on every backend of Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array

cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


def inputs_of(
    model: Any, x: ArrayLike, layers: Sequence[str], *, training: bool = False
) -> dict[str, Array]:
    """What each layer gets when the model gets x."""
    return _values(model, x, {name: model.get_layer(name).input for name in layers}, training)


def outputs_of(
    model: Any, x: ArrayLike, layers: Sequence[str], *, training: bool = False
) -> dict[str, Array]:
    """What each layer gives when the model gets x.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu")])
    >>> outputs_of(model, [[-1.0, 2.0]], ["relu"])["relu"]
    array([[0., 2.]], dtype=float32)
    """
    return _values(model, x, {name: model.get_layer(name).output for name in layers}, training)


def moments(
    model: Any, x: ArrayLike, layers: Sequence[str], *, training: bool = False
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of what each layer gives, for each channel of the last axis, in float64."""
    seen = outputs_of(model, x, layers, training=training)
    rows = {name: y.reshape(-1, y.shape[-1]).astype(float) for name, y in seen.items()}
    return {name: (y.mean(axis=0), y.var(axis=0)) for name, y in rows.items()}


def percentiles(
    model: Any,
    x: ArrayLike,
    layers: Sequence[str],
    ranks: Sequence[float] = (15, 50, 85),
    *,
    training: bool = False,
) -> dict[str, Array]:
    """Percentiles of what each layer gets, for each channel: shape (ranks, channels).

    Source: the ranks are those of Ioffe and Szegedy 2015, figure 1.
    """
    seen = inputs_of(model, x, layers, training=training)
    rows = {name: each.reshape(-1, each.shape[-1]) for name, each in seen.items()}
    return {name: np.percentile(each, ranks, axis=0) for name, each in rows.items()}


def saturated_fraction(
    model: Any,
    x: ArrayLike,
    layers: Sequence[str],
    *,
    margin: float = 0.01,
    training: bool = False,
) -> dict[str, float]:
    """The fraction of outputs within a margin, as a part of the range, of either end of it.

    Args:
        model: the model.
        x: its inputs.
        layers: names of layers whose activation is sigmoid or tanh.
        margin: 0.01 counts a sigmoid above 0.99 or below 0.01.
        training: look in training mode.

    Raises:
        ValueError: a layer's activation has no such range.
    """
    seen = outputs_of(model, x, layers, training=training)
    return {name: _near_an_end(model.get_layer(name), y, margin) for name, y in seen.items()}


def gradient_norms(
    model: Any,
    x: ArrayLike,
    y: ArrayLike,
    layers: Sequence[str],
    *,
    loss: Callable[[Any, Any], Any] = cross_entropy,
    training: bool = True,
) -> dict[str, float]:
    """The Euclidean norm of the loss's gradient by the first trainable weight of each layer.

    Of a Dense or Conv layer that is its kernel, of batch normalization gamma.

    Args:
        model: the model; it gives logits where the loss wants them.
        x: inputs.
        y: labels.
        layers: names of layers.
        loss: takes labels and outputs.
        training: in training mode by default, where gradients are made.

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="map")])
    >>> norms = gradient_norms(model, [[3.0]], [[0.0]], ["map"], loss=lambda y, out: out[0, 0])
    >>> norms
    {'map': 3.0}
    """
    chosen = [model.get_layer(name).trainable_variables[0] for name in layers]
    with unchanged(model):
        gradients = _gradients(model, np.asarray(x, np.float32), y, chosen, loss, training)
    arrays = [keras.ops.convert_to_numpy(each).astype(float) for each in gradients]
    return {name: float(np.linalg.norm(g)) for name, g in zip(layers, arrays, strict=True)}


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """What is done inside leaves no trace in the model's variables: a call in training mode would.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    >>> with unchanged(model):
    ...     y = model(np.ones((3, 2)), training=True)
    >>> float(model.layers[0].moving_mean[0])
    0.0
    """
    copies = [keras.ops.copy(variable) for variable in model.variables]
    kept = [keras.ops.convert_to_numpy(value) for value in copies]
    try:
        yield
    finally:
        for variable, value in zip(model.variables, kept, strict=True):
            variable.assign(value)


class Probe(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls ``look(model)`` every so many training steps, and keeps what it returned.

    Args:
        look: for example ``lambda model: percentiles(model, x, ["sigmoid_3"])``.
        every: how many steps lie between two looks; the first is before the first step.

    Attributes:
        steps: the number of steps made when it looked.
        seen: what it saw then.

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="map")])
    >>> model.compile("sgd", "mse")
    >>> probe = Probe(lambda model: moments(model, [[1.0]], ["map"]), every=2)
    >>> history = model.fit(np.ones((5, 1)), np.ones(5), batch_size=1, callbacks=[probe], verbose=0)
    >>> probe.steps
    [0, 2, 4]
    """

    def __init__(self, look: Callable[[Any], Any], every: int = 100) -> None:
        super().__init__()
        self.look, self.every = look, every
        self.steps: list[int] = []
        self.seen: list[Any] = []
        self._made = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Look at the model before it has made a step."""
        self._look_if_due()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the step, and look if it is time."""
        self._made += 1
        self._look_if_due()

    def _look_if_due(self) -> None:
        if self._made % self.every == 0 and self._made not in self.steps:
            self.steps.append(self._made)
            self.seen.append(self.look(self.model))


def _values(model: Any, x: ArrayLike, tensors: dict[str, Any], training: bool) -> dict[str, Array]:
    inner = keras.Model(model.inputs, tensors)
    with unchanged(model):
        seen = inner(keras.ops.convert_to_tensor(np.asarray(x, np.float32)), training=training)
    return {name: keras.ops.convert_to_numpy(value) for name, value in seen.items()}


def _near_an_end(layer: Any, y: Array, margin: float) -> float:
    activation = layer.activation.__name__ if hasattr(layer, "activation") else ""
    if activation not in RANGES:
        raise ValueError(
            f"layers must end in sigmoid or tanh, got {layer.name!r} with {activation!r}"
        )
    low, high = RANGES[activation]
    width = margin * (high - low)
    return float(np.mean((y < low + width) | (y > high - width)))


def _gradients(
    model: Any, x: Array, y: ArrayLike, variables: list[Any], loss: Any, training: bool
) -> list[Any]:
    """The gradients by the variables, as the backend takes them."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=training))
        return tape.gradient(value, variables)
    if backend == "torch":
        import torch

        value = loss(y, model(x, training=training))
        return list(torch.autograd.grad(value, [variable.value for variable in variables]))
    import jax

    fixed = [variable.value for variable in model.non_trainable_variables]
    trained = model.trainable_variables

    def value_of(values: list[Any]) -> Any:
        return loss(y, model.stateless_call(values, fixed, x, training=training)[0])

    gradients = jax.grad(value_of)([variable.value for variable in trained])
    places = {id(variable): k for k, variable in enumerate(trained)}
    return [gradients[places[id(variable)]] for variable in variables]
