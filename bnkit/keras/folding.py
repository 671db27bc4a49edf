"""Fold the batch normalizations of a whole Keras model into the layers before them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras

from bnkit.folding import fold_into_previous, scale_and_shift

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
LINEAR = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    *DEPTHWISE,
)


def fold_batch_norms(model: Any) -> Any:
    """Return a model for inference with the same outputs and fewer layers.

    Each ``BatchNormalization`` goes into the Dense or convolution layer before it. It stays where
    this cannot be done: after a nonlinearity, or where something else reads the layer's output
    too, or where a layer is called more than once.

    Args:
        model: a built Sequential or functional ``keras.Model``; it is left as it was.

    Returns:
        A functional ``keras.Model`` with weights of its own.

    Raises:
        ValueError: the model is not built.

    >>> layers = [keras.layers.Dense(3), keras.layers.BatchNormalization()]
    >>> folded = fold_batch_norms(keras.Sequential([keras.Input((2,)), *layers]))
    >>> [type(layer).__name__ for layer in folded.layers]
    ['InputLayer', 'Dense']
    """
    if not model.built:
        raise ValueError("model must be built: give it an Input, or call it once")
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0])
    pairs = foldable_pairs(model)
    merged = {norm.name: linear.name for linear, norm in pairs}

    def clone(layer: Any) -> Any:
        needs_bias = layer.name in merged.values()
        config = layer.get_config() | ({"use_bias": True} if needs_bias else {})
        return type(layer).from_config(config)

    def call(layer: Any, x: Any, *args: Any, **options: Any) -> Any:
        return x if layer.name in merged else layer(x, *args, **options)

    folded = keras.models.clone_model(model, clone_function=clone, call_function=call)
    new_weights = {linear.name: folded_weights(linear, norm) for linear, norm in pairs}
    for layer in model.layers:
        if layer.weights and layer.name not in merged:
            weights = new_weights.get(layer.name, layer.get_weights())
            folded.get_layer(layer.name).set_weights(weights)
    return folded


def foldable_pairs(model: Any) -> list[tuple[Any, Any]]:
    """Each layer of a model that a batch normalization can be folded into, with that one."""
    called_once = [layer for layer in model.layers if len(layer._inbound_nodes) == 1]
    source = {id(layer.output): layer for layer in called_once if isinstance(layer, LINEAR)}
    read = [tensor for layer in model.layers for tensor in inputs_of(layer)]
    readers = Counter(map(id, [*read, *model.outputs]))
    return [
        (source[id(norm.input)], norm)
        for norm in called_once
        if isinstance(norm, keras.layers.BatchNormalization)
        and id(norm.input) in source
        and readers[id(norm.input)] == 1
        and fits(source[id(norm.input)], norm)
    ]


def inputs_of(layer: Any) -> list[Any]:
    """The tensors that a layer reads, in all its calls."""
    return [tensor for node in layer._inbound_nodes for tensor in node.input_tensors]


def fits(linear: Any, norm: Any) -> bool:
    """Whether nothing nonlinear lies between the two, and the channels are those of the kernel."""
    rank = len(norm.input.shape)
    channels_first = getattr(linear, "data_format", "channels_last") == "channels_first"
    channels_axis = 1 if channels_first else rank - 1
    return linear.activation is keras.activations.linear and norm.axis % rank == channels_axis


def folded_weights(linear: Any, norm: Any) -> tuple[Any, Any]:
    """Kernel and bias of the layer that does the work of both."""
    scale, shift = scale_and_shift(
        as_array(norm.moving_mean),
        as_array(norm.moving_variance),
        as_array(norm.gamma),
        as_array(norm.beta),
        epsilon=norm.epsilon,
    )
    depthwise = isinstance(linear, DEPTHWISE)
    return fold_into_previous(
        as_array(linear.kernel), as_array(linear.bias), scale, shift, depthwise=depthwise
    )


def as_array(weight: Any) -> Any:
    """The value of a weight of Keras, or None where the layer has none."""
    return None if weight is None else weight.numpy()
