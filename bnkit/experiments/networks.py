"""The convolutional nets of the experiments: equal layers in stages, plain or with shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

Normalize = Callable[[], keras.layers.Layer]


def batch_norm(momentum: float = 0.9) -> Normalize:
    """Makes layers of batch normalization.

    The moving statistics forget faster than by Keras's default of 0.99: over short trainings a
    curve should show the net, not how far its averages lag behind it.
    """
    return lambda: keras.layers.BatchNormalization(momentum=momentum)


class Distortion(keras.layers.Layer):  # type: ignore[misc]
    """Changes each image at random in training, and does nothing in inference."""

    def __init__(self) -> None:
        super().__init__()
        self.active = True
        self.random = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        """The same shape as x, channels last."""
        return self.distorted(x) if training and self.active else x

    def distorted(self, x: Any) -> Any:
        """What training gets."""
        raise NotImplementedError


class CropAndFlip(Distortion):
    """Shifts each image by up to two pixels either way, and mirrors every second one.

    Source: He et al. 2016, section 4.2, with a border of two pixels instead of four.
    """

    border = 2

    def distorted(self, x: Any) -> Any:
        """Every image by its own row and column numbers in the picture with a border."""
        count, height, width = ops.shape(x)[0], x.shape[1], x.shape[2]

        def draw(ends: int) -> Any:
            return keras.random.randint((count, 1), 0, ends, dtype="int32", seed=self.random)

        rows = draw(2 * self.border + 1) + ops.arange(height, dtype="int32")
        straight = ops.arange(width, dtype="int32")
        columns = ops.where(draw(2) == 1, straight[::-1], straight) + draw(2 * self.border + 1)
        frame = [[0, 0], [self.border, self.border], [self.border, self.border], [0, 0]]
        x = ops.take_along_axis(ops.pad(x, frame), rows[:, :, None, None], axis=1)
        return ops.take_along_axis(x, columns[:, None, :, None], axis=2)


def conv_net(
    filters: tuple[int, ...],
    layers: int,
    normalize: Normalize | None = None,
    *,
    activation: str = "relu",
    residual: bool = False,
    head: tuple[keras.layers.Layer, ...] = (),
    stem: tuple[keras.layers.Layer, ...] = (),
    between: tuple[keras.layers.Layer, ...] = (),
    convolution: type = keras.layers.Conv2D,
    shape: tuple[int, int, int] = (28, 28, 1),
) -> keras.Model:
    """A convolutional net for small images: each stage halves the picture.

    Convolutions are 3 × 3, each with normalization (or a bias) and an activation behind it; then
    the mean over positions, and ten logits.

    Args:
        filters: channels of each stage.
        layers: convolutions in all, the same number in each stage.
        normalize: makes a layer of normalization; none when None.
        activation: "relu" or "sigmoid".
        residual: shortcuts around each two convolutions, as in ResNet.
        head: layers before the last one, such as dropout.
        stem: layers before the first one, such as distortions of the picture.
        between: layers behind each stage but the last, such as a normalization of its responses.
        convolution: what makes the convolutions.
        shape: height, width and channels of the images.

    Raises:
        ValueError: the convolutions cannot be shared out evenly.

    Source: He et al. 2016, figure 2, for the shortcuts.

    >>> conv_net((8, 16), layers=4).count_params()
    4322
    """
    per_block = 2 if residual else 1
    blocks, rest = divmod(layers, per_block * len(filters))
    if rest or not blocks:
        raise ValueError(
            f"layers must be a multiple of {per_block * len(filters)}, for {len(filters)} stages "
            f"of blocks of {per_block}; got {layers}"
        )
    block = partial(residual_block if residual else unit, convolution=convolution)
    inputs = x = keras.Input(shape)
    for layer in stem:
        x = layer(x)
    for stage, width in enumerate(filters):
        for k in range(blocks):
            x = block(x, width, 2 if k == 0 else 1, normalize, activation)
        for layer in between if stage < len(filters) - 1 else ():
            x = layer(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def unit(
    x: Any,
    width: int,
    strides: int,
    normalize: Normalize | None,
    activation: str | None,
    convolution: type = keras.layers.Conv2D,
) -> Any:
    """Convolution, normalization, activation; He's initial scale for ReLU, Glorot's otherwise."""
    x = convolution(
        width,
        3,
        strides=strides,
        padding="same",
        use_bias=normalize is None,
        kernel_initializer="glorot_normal" if activation == "sigmoid" else "he_normal",
    )(x)
    if normalize is not None:
        x = normalize()(x)
    return x if activation is None else keras.layers.Activation(activation)(x)


def residual_block(
    x: Any,
    width: int,
    strides: int,
    normalize: Normalize | None,
    activation: str,
    convolution: type = keras.layers.Conv2D,
) -> Any:
    """Two units and a shortcut around them; where the shape changes, a 1 × 1 convolution on it."""
    y = unit(x, width, strides, normalize, activation, convolution)
    y = unit(y, width, 1, normalize, None, convolution)
    if strides > 1 or x.shape[-1] != width:
        x = convolution(width, 1, strides=strides, padding="same", use_bias=False)(x)
    return keras.layers.Activation(activation)(keras.layers.add([x, y]))
