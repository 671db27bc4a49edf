"""Precise statistics of any Keras model: those of many images at once, weights held still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from bnkit.arguments import Array
from bnkit.experiments.networks import Distortion

IMAGES = 10_000  # training images from which a net gets precise statistics


@contextmanager
def taking_over(model: Any, *, drop: bool = False) -> Iterator[None]:
    """Within it a call in training mode sets the moving statistics to those of its batch.

    Each layer's input is then made by the layers before it with their own new statistics, so that
    one call on many images is a recomputation for all layers. Images are not distorted meanwhile.

    Args:
        model: any Keras model, with models nested in it or not.
        drop: whether dropout drops meanwhile, as in training.
    """
    changed: list[tuple[Any, str, Any]] = []
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            changed.append((layer, "momentum", layer.momentum))
            layer.momentum = 0.0
        elif isinstance(layer, keras.layers.Dropout) and not drop:
            changed.append((layer, "rate", layer.rate))
            layer.rate = 0.0
        elif isinstance(layer, Distortion):
            changed.append((layer, "active", layer.active))
            layer.active = False
    try:
        yield
    finally:
        for layer, name, value in changed:
            setattr(layer, name, value)


def recompute_statistics(model: Any, x: Array, *, drop: bool = False) -> None:
    """Set the moving statistics of a model to those of x as one batch.

    Args:
        model: any Keras model; its moving statistics are changed, nothing else.
        x: float32 inputs.
        drop: whether dropout drops meanwhile, as in training.
    """
    with taking_over(model, drop=drop):
        model(x, training=True)
