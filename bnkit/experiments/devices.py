"""Trains on several devices: the frameworks' own strategies, with statistics of the whole batch.

Whatever the strategy, a batch is cut into equal parts, one for each device, and the step is that of
one device with the whole batch: the loss and its gradients are means over all rows, and batch
normalization takes the moments of all of them. A test holds the weights against each other after a
few steps; after many, rounding has grown, as it does when the rows of a batch change places.

``mirrored`` and ``multi-worker`` are TensorFlow's MirroredStrategy (the devices of one machine) and
MultiWorkerMirroredStrategy (several processes, named in TF_CONFIG); ``jax`` is Keras's
DataParallel, for which the batch is one array that happens to lie on several devices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np

from bnkit.arguments import Array

BACKENDS = {"mirrored": "tensorflow", "multi-worker": "tensorflow", "jax": "jax"}


class Devices(NamedTuple):
    """What a model is trained on, if it and its optimizer are made and used inside ``scope()``."""

    name: str  # the strategy and the number of devices, for the provenance
    scope: Callable[[], AbstractContextManager[Any]]


def find(strategy: str) -> Devices:
    """All devices that the strategy can use. TensorFlow wants to be asked before anything else.

    Args:
        strategy: "mirrored", "multi-worker", "jax", or "none" for a single device.

    Raises:
        ValueError: no such strategy; another backend of Keras, or TF_CONFIG, is wanted; there is
            only one device.

    >>> find("none").name
    'none'
    """
    if strategy == "none":
        return Devices(strategy, nullcontext)
    if strategy not in BACKENDS:
        raise ValueError(f"strategy must be none, {', '.join(BACKENDS)}, got {strategy!r}")
    if keras.backend.backend() != BACKENDS[strategy]:
        raise ValueError(
            f"strategy {strategy!r} needs KERAS_BACKEND={BACKENDS[strategy]}, "
            f"got {keras.backend.backend()}"
        )
    count, scope = _of_jax() if strategy == "jax" else _of_tensorflow(strategy)
    if count < 2:
        raise ValueError(f"strategy {strategy!r} needs at least two devices, found {count}")
    return Devices(f"{strategy}, {count} devices", scope)


def _of_jax() -> tuple[int, Any]:
    distribution = keras.distribution.DataParallel(devices=keras.distribution.list_devices())

    @contextmanager
    def scope() -> Iterator[None]:
        keras.distribution.set_distribution(distribution)
        try:
            yield
        finally:
            keras.distribution.set_distribution(None)

    return len(keras.distribution.list_devices()), scope


@cache
def _of_tensorflow(strategy: str) -> tuple[int, Any]:
    """One for all runs of a process: two of them would mistake each other's messages."""
    import tensorflow as tf

    if strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        distribution = tf.distribute.MirroredStrategy([device.name for device in devices])
    elif "TF_CONFIG" in os.environ:
        distribution = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        raise ValueError("strategy 'multi-worker' needs the addresses of all workers in TF_CONFIG")
    return distribution.num_replicas_in_sync, distribution.scope


def is_chief(strategy: str) -> bool:
    """Whether this process is the one that writes the results: of several workers, the first."""
    if strategy != "multi-worker":
        return True
    return int(json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)) == 0


def synchronize(model: Any) -> None:
    """Have each batch normalization take the moments of the whole batch, on TensorFlow.

    On JAX it does so in any case: there, the whole batch is all that it sees.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def split(distribution: Any, batches: Array) -> Any:
    """Each batch in equal parts, one for each device of a strategy of TensorFlow.

    Args:
        distribution: a ``tf.distribute.Strategy``.
        batches: int32 of shape (steps, batch size).

    Raises:
        ValueError: the batch size is no multiple of the number of devices.
    """
    import tensorflow as tf

    devices = distribution.num_replicas_in_sync
    _check_divides(batches, devices)
    parts = np.split(batches, devices, axis=1)
    return distribution.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def spread(batches: Array) -> Any:
    """Each batch in equal parts, one for each device of Keras's distribution on JAX.

    Args:
        batches: int32 of shape (steps, …, batch size).

    Returns:
        The same array, spread along its last axis; as it is where there is no distribution.

    Raises:
        ValueError: the batch size is no multiple of the number of devices.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batches
    import jax

    mesh = distribution.device_mesh.backend_mesh
    _check_divides(batches, mesh.size)
    axes = [*[None] * (batches.ndim - 1), *mesh.axis_names]
    return jax.device_put(
        batches, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    )


def _check_divides(batches: Array, devices: int) -> None:
    if batches.shape[-1] % devices:
        raise ValueError(f"batch size {batches.shape[-1]} cannot be divided by {devices} devices")
