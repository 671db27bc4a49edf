"""Folding: the same answers from fewer layers, and how much sooner they come.

In inference mode a normalization is an affine map of each channel, and goes into the layer before
it (Ioffe and Szegedy 2015, section 3.1, note that the transform is linear then). What it saves
depends on the net, the batch and the compiler, so each is timed here before and after, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import keras
import numpy as np

from bnkit.arguments import Array
from bnkit.experiments.results import Result
from bnkit.gradcheck import relative_error
from bnkit.keras.folding import fold_batch_norms

TITLE = "Folding"
QUESTION = "Does a folded net give the same answers, and how much faster is it?"
PUBLISHED = None

NETS = {"dense": "dense", "convolutional": "convolutional", "separable": "depthwise separable"}
WAYS = {"graph": False, "xla": True}  # whether XLA compiles the net


@dataclass(frozen=True)
class Config:
    """What is timed, and how often."""

    batch_sizes: tuple[int, ...] = (1, 64)
    ways: tuple[str, ...] = ("graph", "xla")
    repeats: int = 200
    seeds: int = 5


PRESETS = {"quick": Config(ways=("graph",), repeats=25, seeds=3), "full": Config()}


def make_net(name: str) -> Any:
    """A small net for 28 × 28 pixels with a normalization after every linear layer but the last."""
    layers = keras.layers
    stack: list[Any] = [keras.Input((28, 28, 1))]
    if name == "dense":
        stack += [layers.Flatten()]
        for _ in range(4):
            stack += [layers.Dense(256, use_bias=False), layers.BatchNormalization(), layers.ReLU()]
        return keras.Sequential([*stack, layers.Dense(10)])
    for filters, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        settings = {"strides": stride, "padding": "same", "use_bias": False}
        if name == "separable" and len(stack) > 1:
            stack += [layers.DepthwiseConv2D(3, **settings), layers.BatchNormalization()]
            stack += [layers.ReLU(), layers.Conv2D(filters, 1, use_bias=False)]
        else:
            stack += [layers.Conv2D(filters, 3, **settings)]
        stack += [layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential([*stack, layers.GlobalAveragePooling2D(), layers.Dense(10)])


def randomize_norms(model: Any, rng: np.random.Generator) -> None:
    """Give each normalization gamma, beta and statistics as a trained net might have them."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            gamma, variance = rng.uniform(0.5, 2, shape), rng.uniform(0.05, 3, shape)
            layer.set_weights([gamma, rng.normal(size=shape), rng.normal(size=shape), variance])


def run_seed(config: Config, seed: int) -> dict[str, Any]:
    """Fold each net, compare the outputs, and time both in turn.

    Returns:
        For each net the relative "error" of the folded outputs, and for each way and batch size
        the median milliseconds of a call, of the net and of the folded one.
    """
    rng = np.random.default_rng(seed)
    record: dict[str, Any] = {}
    for name in NETS:
        model = make_net(name)
        randomize_norms(model, rng)
        folded = fold_batch_norms(model)
        x = rng.uniform(size=(256, 28, 28, 1)).astype("float32")
        both = [keras.ops.convert_to_numpy(each(x, training=False)) for each in (folded, model)]
        record[name] = {"error": relative_error(*both)}
        for way in config.ways:
            record[name][way] = {}
            for size in config.batch_sizes:
                calls = [compiled(net, x[:size], WAYS[way]) for net in (model, folded)]
                record[name][way][str(size)] = milliseconds(calls, config.repeats)
    return record


def compiled(model: Any, x: Array, jit: bool) -> Callable[[], Any]:
    """A call of the model for inference, as fast as the backend makes it, which waits for the end.

    TensorFlow compiles it; on Keras's other backends it is the plain call.
    """
    tensor = keras.ops.convert_to_tensor(x)
    call = model
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        call = tf.function(model, jit_compile=jit)
    return lambda: keras.ops.convert_to_numpy(call(tensor, training=False))


def milliseconds(calls: Sequence[Callable[[], Any]], repeats: int) -> Array:
    """Median time of each call.

    They run in turn, so that a busy moment of the machine hits all of them. What a call compiles
    is compiled before.
    """
    for call in calls:
        call()
    seconds = np.empty((repeats, len(calls)))
    for turn in range(repeats):
        for which, call in enumerate(calls):
            start = perf_counter()
            call()
            seconds[turn, which] = perf_counter() - start
    return 1000 * np.median(seconds, axis=0)


def time_ratio(result: Result, net: str, way: str, batch_size: int) -> Array:
    """How many times longer the net takes than the folded one, for each seed."""
    before, after = result.values(net, way, str(batch_size)).T
    return before / after


def plot(result: Result) -> Any:
    """Time ratio of each net, by batch size and way: a dot a seed, a bar for their median."""
    import matplotlib.pyplot as plt

    from bnkit import plots

    config = result.config
    figure, axes = plt.subplots(1, len(config["ways"]), figsize=(7.2, 3.4), sharey=True)
    for ax, way in zip(np.atleast_1d(axes), config["ways"], strict=True):
        for index, size in enumerate(config["batch_sizes"]):
            for place, net in enumerate(NETS):
                ratios, x = time_ratio(result, net, way, size), place + 0.25 * (index - 0.5)
                color, label = plots.COLORS[index], f"batch of {size}" if place == 0 else None
                ax.plot([x] * len(ratios), ratios, "o", ms=4, alpha=0.5, color=color)
                ax.plot([x - 0.1, x + 0.1], [np.median(ratios)] * 2, "-", color=color, label=label)
        ax.axhline(1, color=plots.GREY, lw=0.8)
        ax.set_xticks(range(len(NETS)), [name.replace(" ", "\n") for name in NETS.values()])
        ax.grid(axis="x", visible=False)
        ax.set(title={"graph": "TensorFlow's graph", "xla": "compiled by XLA"}[way], ylim=(0, None))
    np.atleast_1d(axes)[0].set_ylabel("time before / time after folding")
    figure.legend(
        *np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside upper center", ncols=2
    )
    return figure
