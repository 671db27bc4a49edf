"""Layers for the experiment on batch size: statistics of groups of examples, and a convolution.

Both are made for copies of a net that train side by side as one program: the size of the group is a
variable, so that copies may differ in it, and the convolution is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

SETTINGS = ("group", "rmax", "dmax")  # variables that no step changes


class GhostBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    r"""Batch normalization by the statistics of so many examples, however large the batch is.

    In training mode each run of `group` neighbours in the batch is normalized by its own mean and
    variance; the moving statistics move once, by the average over the groups (in the paper once for
    each group in turn). In inference mode it is batch normalization.

    With `rmax` above 1 or `dmax` above 0 it is clipped batch renormalization: what a group's
    statistics give is corrected towards the moving ones, by factors that pass no gradient.

    .. math:: r = \frac{\sigma_g}{\sigma}, \qquad d = \frac{\mu_g - \mu}{\sigma}, \qquad
              y = \gamma (\hat x r + d) + \beta

    Args:
        group: examples in each group; the last one has fewer where it does not divide the batch.
        rmax: largest correction of the scale, and the reciprocal of the smallest; 1 for none.
        dmax: largest correction of the mean; 0 for none.
        how: what ``keras.layers.BatchNormalization`` takes; the channels come last.

    Source: Hoffer et al. 2017, algorithm 1; Ioffe 2017, algorithm 1.

    >>> layer = GhostBatchNormalization(group=2, epsilon=0.0)
    >>> y = layer(np.array([[0.0], [2.0], [10.0], [30.0]]), training=True)
    >>> ops.convert_to_numpy(y).ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, group: int = 128, *, rmax: float = 1.0, dmax: float = 0.0, **how: Any):
        super().__init__(**how)
        self.settings = (group, rmax, dmax)

    def build(self, input_shape: Any) -> None:
        """Make the variables."""
        super().build(input_shape)
        for name, value in zip(SETTINGS, self.settings, strict=True):
            variable = self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(value),
                dtype="int32" if name == "group" else "float32",
                trainable=False,
                name=name,
            )
            setattr(self, name, variable)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize."""
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        x = ops.cast(inputs, "float32")
        positions = tuple(range(1, len(x.shape) - 1))
        mean = self._over_groups(ops.mean(x, axis=positions, keepdims=True))
        variance = self._over_groups(ops.mean(ops.square(x - mean), axis=positions, keepdims=True))
        std = ops.sqrt(variance + self.epsilon)
        moving_std = ops.sqrt(self.moving_variance + self.epsilon)
        rmax, dmax = map(ops.convert_to_tensor, (self.rmax, self.dmax))
        r = ops.clip(std / moving_std, 1.0 / rmax, rmax)
        d = ops.clip((mean - self.moving_mean) / moving_std, -dmax, dmax)
        y = (x - mean) / std * ops.stop_gradient(r) + ops.stop_gradient(d)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average = ops.mean(now, axis=tuple(range(len(x.shape) - 1)))
            moving.assign(moving * self.momentum + average * (1.0 - self.momentum))
        return ops.cast(self.gamma * y + self.beta, self.compute_dtype)

    def _over_groups(self, values: Any) -> Any:
        """For each example the mean of its group; values and result of shape (rows, 1, …, C)."""
        rows, group = ops.shape(values)[0], ops.convert_to_tensor(self.group)
        of_row = ops.arange(rows, dtype="int32") // group
        total = ops.segment_sum(values, of_row, num_segments=rows)
        count = ops.minimum(group, rows - of_row * group)
        count = ops.reshape(ops.cast(count, "float32"), (-1, *[1] * (len(values.shape) - 1)))
        return ops.take(total, of_row, axis=0) / count

    def get_config(self) -> dict[str, Any]:
        """What makes the layer again."""
        return {**super().get_config(), **dict(zip(SETTINGS, self.settings, strict=True))}


class Patchwise(keras.layers.Conv2D):  # type: ignore[misc]
    """``Conv2D`` as one product of matrices: of the patches, laid out as rows, and the kernel.

    A single net gains nothing by it. Copies side by side do, each with a kernel of its own, since
    many small products of matrices are one batched product. Padding is "same", channels come last.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution without what follows it."""
        (high, wide), (down, right) = self.kernel_size, self.strides
        rows, columns = (
            -(-size // stride) for size, stride in zip(inputs.shape[1:3], self.strides, strict=True)
        )
        margins = []
        for size, count, stride, reach in zip(
            inputs.shape[1:3], (rows, columns), self.strides, self.kernel_size, strict=True
        ):
            missing = max((count - 1) * stride + reach - size, 0)
            margins.append((missing // 2, missing - missing // 2))
        x = ops.pad(inputs, ((0, 0), *margins, (0, 0)))
        patches = [
            x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]
            for i in range(high)
            for j in range(wide)
        ]
        matrix = ops.reshape(kernel, (-1, kernel.shape[-1]))
        return ops.matmul(ops.concatenate(patches, axis=-1), matrix)


def with_settings(model: Any, states: Sequence[Any], settings: Sequence[Any]) -> list[Any]:
    """States of runs with other sizes of groups and other clips.

    Args:
        model: whose variables, in its order, a state holds.
        states: one for each run.
        settings: for each run its group, rmax and dmax.

    Returns:
        The same states but for these variables.
    """
    place = {}
    for k, variable in enumerate(model.variables):
        name = variable.path.rpartition("/")[2]
        if name in SETTINGS:
            place[k] = SETTINGS.index(name)
    types = ("int32", "float32", "float32")
    return [
        [
            np.array(chosen[place[k]], types[place[k]]) if k in place else value
            for k, value in enumerate(state)
        ]
        for state, chosen in zip(states, settings, strict=True)
    ]
