"""Trains any Keras model for a given number of steps, fast or plainly, and looks at it.

``Trainer`` is the fast path: one call makes 100 steps inside TensorFlow, because going back to
Python after every step would take longer than a small net's step. On Keras's other backends it
takes Keras's own loop, step by step. ``fit`` is the plain path everywhere: the same steps through
``train_on_batch``. Both see the same batches, and a test holds their curves against each other.
In the scope of several devices (``bnkit.experiments.devices``) ``Trainer`` shares each batch out.

Images stay bytes, a quarter of the memory of float32: ``as_float`` makes them numbers from 0 to 1,
in the step itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array
from bnkit.experiments.devices import split, synchronize
from bnkit.keras import load_cifar10, load_fashion_mnist, load_mnist
from bnkit.keras.probes import cross_entropy, unchanged

STEPS_PER_CALL = 100


class Data(NamedTuple):
    """Images as bytes, labels as int32, in three parts of which none sees another's rows."""

    x_train: Array
    y_train: Array
    x_validation: Array
    y_validation: Array
    x_test: Array
    y_test: Array


LOADERS = {"fashion-mnist": load_fashion_mnist, "mnist": load_mnist, "cifar10": load_cifar10}


@cache
def _parts(name: str, validation: int) -> Data:
    (x, y), (x_test, y_test) = LOADERS[name]()
    y, y_test = y.ravel().astype("int32"), y_test.ravel().astype("int32")
    if not 0 <= validation < len(x):
        raise ValueError(f"validation must lie in [0, {len(x)}), got {validation}")
    order = np.random.default_rng(20150211).permutation(len(x))  # one split for all experiments
    held, kept = order[:validation], order[validation:]
    return Data(x[kept], y[kept], x[held], y[held], x_test, y_test)


def pictures(
    name: str, *, flat: bool = True, train: int | None = None, validation: int = 10_000
) -> Data:
    """A data set in three parts: to train on, to choose by, and to report.

    The validation part is taken from the training images, the same ones each time. What is chosen
    (a learning rate, a step to stop at) is chosen by it; the test part only reports.

    Args:
        name: "fashion-mnist", "mnist" or "cifar10", which is not downloaded.
        flat: images as rows of 784 numbers for dense nets, of 3072 for CIFAR-10; else (28, 28, 1)
            or (32, 32, 3).
        train: how many of the training images to keep; all that are left when None.
        validation: how many images to hold out.

    Returns:
        ``Data``: uint8 images and int32 labels.

    Raises:
        ValueError: more images are asked for than there are, or another data set.

    >>> data = pictures("fashion-mnist", train=1000)
    >>> data.x_train.shape, data.x_validation.shape, data.x_test.shape, data.x_train.dtype
    ((1000, 784), (10000, 784), (10000, 784), dtype('uint8'))
    """
    if name not in LOADERS:
        raise ValueError(f"name must be one of {', '.join(LOADERS)}; got {name!r}")
    data = _parts(name, validation)
    if train is not None and not 0 < train <= len(data.x_train):
        raise ValueError(f"train must lie in [1, {len(data.x_train)}], got {train}")
    size = data.x_train.shape[1:]
    shape = (-1, int(np.prod(size))) if flat else (-1, *size[:2], *(size[2:] or (1,)))
    x_train, x_validation, x_test = (
        x.reshape(shape) for x in (data.x_train[:train], data.x_validation, data.x_test)
    )
    return Data(x_train, data.y_train[:train], x_validation, data.y_validation, x_test, data.y_test)


def fashion_mnist(**parts: Any) -> Data:
    """Fashion-MNIST in three parts: ``pictures("fashion-mnist", ...)``.

    >>> fashion_mnist(train=1000, flat=False).x_train.shape
    (1000, 28, 28, 1)
    """
    return pictures("fashion-mnist", **parts)


def cosine(steps: int) -> Array:
    """What a learning rate is multiplied by at each step when it decays to zero by a cosine.

    >>> cosine(4).round(2).tolist()
    [1.0, 0.85, 0.5, 0.15]
    """
    return (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def cooldown(steps: int, part: float = 0.2) -> Array:
    """What a constant learning rate is multiplied by where its last part decays by a cosine.

    >>> cooldown(10, part=0.3).round(2).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.25]
    """
    last = round(part * steps)
    return np.concatenate([np.ones(steps - last), cosine(last)])


def as_float(x: Array) -> Array:
    """Bytes as float32 from 0 to 1; other numbers as float32.

    >>> as_float(np.array([0, 255], np.uint8)), as_float(np.array([0.5]))
    (array([0., 1.], dtype=float32), array([0.5], dtype=float32))
    """
    x = np.asarray(x)
    return x.astype("float32") / np.float32(255 if x.dtype == np.uint8 else 1)


def draw_batches(rows: int, batch_size: int, steps: int, seed: int) -> Array:
    """Row numbers of all batches: every row once, in random order, then all again in a new one.

    Args:
        rows: how many there are.
        batch_size: how many a batch has.
        steps: how many batches.
        seed: fixes the order.

    Returns:
        int32 of shape (steps, batch_size).

    >>> draw_batches(rows=4, batch_size=2, steps=3, seed=0)
    array([[2, 0],
           [1, 3],
           [3, 2]], dtype=int32)
    """
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // rows)
    stream = np.concatenate([rng.permutation(rows) for _ in range(epochs)]).astype("int32")
    return stream[: steps * batch_size].reshape(steps, batch_size)


def log_steps(last: int, points: int = 30) -> Array:
    """About so many steps up to the last, spread over their logarithm, each a multiple of 100.

    >>> log_steps(1000, points=5)
    array([ 100,  200,  300,  600, 1000])
    """
    calls = np.geomspace(1, max(last // STEPS_PER_CALL, 1), points).round().astype(int)
    return np.unique(calls) * STEPS_PER_CALL


class Trainer:
    """A model, its optimizer and its training data: ``train`` makes steps, ``predict`` looks.

    On TensorFlow both are compiled once. XLA compiles them too where that pays (`jit` None): not
    for convolutions on a CPU, which it slows down inside a loop. On other backends each step is a
    ``train_on_batch``.

    Args:
        model: any Keras model with one input, that gives logits.
        optimizer: any Keras optimizer.
        x: training inputs; bytes are divided by 255.
        y: their labels, int.
        loss: a Keras loss; what the model's layers add to it counts as in ``fit``.
        jit: whether XLA compiles the steps.

    >>> keras.utils.set_random_seed(0)
    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> data = fashion_mnist()
    >>> trainer = Trainer(model, keras.optimizers.SGD(0.1), data.x_train, data.y_train)
    >>> batches = draw_batches(len(data.x_train), batch_size=60, steps=200, seed=0)
    >>> trainer.train(batches).shape
    (200,)
    >>> trainer.accuracy(data.x_validation, data.y_validation) > 0.6
    True
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        x: Array,
        y: Array,
        *,
        loss: Any = cross_entropy,
        jit: bool | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.jit = pays_to_jit(model) if jit is None else jit
        if keras.backend.backend() == "tensorflow":
            optimizer.build(model.trainable_variables)
            self._steps = _tensorflow_steps(model, optimizer, x, y, loss, self.jit)
            self._logits = _tensorflow_logits(model, self.jit)
        else:
            compile_plainly(model, optimizer, loss, self.jit)
            self._steps = lambda batches: _keras_steps(model, x, y, batches)
            self._logits = lambda x, training: model(x, training=training)

    def train(self, batches: Array) -> Array:
        """Make one step for each batch.

        Args:
            batches: int32 of shape (steps, batch size), row numbers of the training data.

        Returns:
            The loss of each step before its update, float32 of shape (steps,).
        """
        return self._steps(batches)

    def predict(self, x: Array, *, training: bool = False, batch_size: int = 1000) -> Array:
        """The logits of each row, batch by batch; the model stays as it is, in training mode too.

        Args:
            x: inputs like those of the training.
            training: normalize each batch by its own statistics.
            batch_size: rows at a time; in training mode the result depends on it.

        Returns:
            float32 of shape (rows, classes).
        """
        if not training:
            return self._predict(x, False, batch_size)
        with unchanged(self.model):
            return self._predict(x, True, batch_size)

    def accuracy(self, x: Array, y: Array, **how: Any) -> float:
        """The fraction of rows whose largest logit is that of their label."""
        return float(np.mean(self.predict(x, **how).argmax(axis=1) == y))

    def _predict(self, x: Array, training: bool, batch_size: int) -> Array:
        parts = [x[k : k + batch_size] for k in range(0, len(x), batch_size)]
        logits = [self._logits(as_float(part), training=training) for part in parts]
        return np.concatenate([keras.ops.convert_to_numpy(part) for part in logits])


def fit(
    model: Any, optimizer: Any, x: Array, y: Array, batches: Array, *, loss: Any = cross_entropy
) -> Array:
    """Make the same steps as ``Trainer.train``, plainly: Keras's own step for each batch.

    Returns:
        The loss of each step, float32 of shape (steps,).
    """
    compile_plainly(model, optimizer, loss, pays_to_jit(model))
    return _keras_steps(model, x, y, batches)


def compile_plainly(model: Any, optimizer: Any, loss: Any, jit: bool) -> None:
    """Tell Keras's own loop what to do; PyTorch compiles nothing."""
    model.compile(optimizer, loss, jit_compile=jit and keras.backend.backend() != "torch")


def _keras_steps(model: Any, x: Array, y: Array, batches: Array) -> Array:
    losses = [model.train_on_batch(as_float(x[rows]), y[rows]) for rows in batches]
    return np.array(losses, np.float32)


def _tensorflow_steps(model: Any, optimizer: Any, x: Array, y: Array, loss: Any, jit: bool) -> Any:
    import tensorflow as tf

    x, y = tf.constant(x), tf.constant(y)

    distribution = tf.distribute.get_strategy()  # of one device, unless a run asked for several
    devices = distribution.num_replicas_in_sync
    if devices > 1:
        synchronize(model)

    def steps(batches: Any, count: Any) -> Any:
        losses = tf.TensorArray("float32", STEPS_PER_CALL)
        for k in tf.range(count):
            parts = distribution.run(step, (batches, k))
            losses = losses.write(k, distribution.reduce("SUM", parts, axis=None))
        return losses.stack()

    def step(batches: Any, k: Any) -> Any:
        """One device's step: its loss is divided by their number, the optimizer sums gradients."""
        rows = batches[k]
        with tf.GradientTape() as tape:
            logits = tf.cast(model(pixels(tf.gather(x, rows)), training=True), "float32")
            value = loss(tf.gather(y, rows), logits)  # Keras divides this one by itself
            value += sum(model.losses) / devices
        optimizer.apply(tape.gradient(value, model.trainable_variables))
        return value

    def pixels(inputs: Any) -> Any:
        return tf.cast(inputs, "float32") / (255.0 if x.dtype == tf.uint8 else 1.0)

    compiled = tf.function(steps, jit_compile=jit and devices == 1)

    def train(batches: Array) -> Array:
        """Calls of one shape, the last one filled up, so that it is compiled once."""
        parts = []
        for start in range(0, len(batches), STEPS_PER_CALL):
            part = batches[start : start + STEPS_PER_CALL]
            padded = np.pad(part, [(0, STEPS_PER_CALL - len(part)), (0, 0)])
            losses = compiled(split(distribution, padded), tf.constant(len(part)))
            parts.append(losses.numpy()[: len(part)])
        return np.concatenate(parts)

    return train


def _tensorflow_logits(model: Any, jit: bool) -> Any:
    import tensorflow as tf

    def logits(x: Any, training: bool) -> Any:
        return tf.cast(model(x, training=training), "float32")

    return tf.function(logits, jit_compile=jit, reduce_retracing=True)


def pays_to_jit(model: Any) -> bool:
    """Whether XLA makes the training loop faster: everywhere but with convolutions on a CPU."""
    has_convolutions = any("Conv" in type(layer).__name__ for layer in model._flatten_layers())
    return not has_convolutions or on_gpu()


def on_gpu() -> bool:
    """Whether Keras's backend computes on a GPU."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import torch

    return torch.cuda.is_available()


def loss_of(logits: ArrayLike, y: ArrayLike) -> float:
    """Mean cross-entropy of logits, in float64.

    >>> print(f"{loss_of([[0.0, 0.0]], [1]):.4f}")
    0.6931
    """
    logits = np.asarray(logits, np.float64)
    largest = logits.max(axis=1, keepdims=True)
    total = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    return float(np.mean(total - logits[np.arange(len(logits)), np.asarray(y)]))
