r"""Layer, group, instance and RMS normalization: batch normalization's kernel over other axes.

Each of them splits x into sets of values that share their statistics, and normalizes each set by
itself. Write the sets as the rows of a matrix, and it is batch normalization with a channel for
each row: forward, backward and sums are those of ``bnkit.functional``. What differs is which
values make a set, and that gamma and beta belong to features, not to sets.

.. math::
    \hat x = \frac{x - \mu_S}{\sqrt{v_S + \varepsilon}}, \qquad y = \gamma \hat x + \beta

Dtypes, errors and defaults are those of ``bnkit.functional``: float16 and bfloat16 are computed
in float32, sums run in float64, results have the dtype of x (float32 for integers).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import (
    Array,
    check_apart,
    check_axis,
    check_epsilon,
    check_input,
    check_like,
    check_out,
    check_real,
    compute_dtype,
    output_dtype,
    sum_dtype,
)
from bnkit.functional import (
    BatchNormCache,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from bnkit.moments import Moments


@dataclass(frozen=True)
class Sets:
    """Which values of x share their statistics: all that agree in their place on ``kept``.

    Attributes:
        shape: the shape of x, with the channels split into groups where there are groups.
        kept: the axes of that shape that tell one set from another.
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """All axes, those that are kept first."""
        return self.kept + tuple(k for k in range(len(self.shape)) if k not in self.kept)

    def as_rows(self, values: Array) -> Array:
        """Return values of the shape of x as a matrix with a row for each set."""
        count = math.prod(self.shape[k] for k in self.kept)
        length = math.prod(self.shape[k] for k in self.order[len(self.kept) :])
        return values.reshape(self.shape).transpose(self.order).reshape(count, length)

    def from_rows(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """Return a matrix with a row for each set as values of the shape of x."""
        moved = rows.reshape([self.shape[k] for k in self.order])
        return moved.transpose(np.argsort(self.order)).reshape(shape)


@dataclass(frozen=True, eq=False)
class NormCache:
    """What a forward pass leaves for ``norm_backward``.

    Attributes:
        x: the input, which must not change before the backward pass.
        gamma: scale, in the compute dtype and of a shape that broadcasts against x, or None.
        beta: shift, likewise.
        features: the axes that gamma and beta belong to.
        sets: which values share their statistics.
        rows: batch normalization's cache for the matrix that has a row for each set.
        centred: whether the mean was subtracted; where not, its place in ``rows`` holds zeros.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    features: tuple[int, ...]
    sets: Sets
    rows: BatchNormCache
    centred: bool

    @property
    def x_hat(self) -> Array:
        """The normalized input, computed anew, of the shape of x, in the compute dtype."""
        return self.sets.from_rows(self.rows.x_hat, self.x.shape)

    @property
    def inv_std(self) -> Array:
        """What each set was multiplied by, in the compute dtype; its shape is that of the sets."""
        return self.rows.inv_std.reshape([self.sets.shape[k] for k in self.sets.kept])


def layer_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    r"""Normalize each sample over its features, then scale and shift each feature.

    .. math:: y_{ni} = \gamma_i \frac{x_{ni} - \mu_n}{\sqrt{v_n + \varepsilon}} + \beta_i, \qquad
        \mu_n = \frac1H \sum_{i=1}^H x_{ni}, \quad v_n = \frac1H \sum_{i=1}^H (x_{ni} - \mu_n)^2

    Args:
        x: real array of rank 2 or more.
        gamma: scale, of the shape of x on ``axis``; 1 when None.
        beta: shift, likewise; 0 when None.
        axis: the axis or axes to average over.
        epsilon: finite, not negative; added to the variance.
        out: where to put y; shape and dtype of y, no overlap with x, which backward reads.

    Returns:
        y, of the shape and dtype of x (float32 for integers), and the cache for
        ``layer_norm_backward``.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape, axis or epsilon that does not fit, or nothing to average.

    Source:
        Ba, Kiros and Hinton (2016), equation 3.

    >>> y, cache = layer_norm_forward([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]], epsilon=0.0)
    >>> y.round(3)
    array([[-1.225,  0.   ,  1.225],
           [ 1.225,  0.   , -1.225]])
    """
    x = check_input(x)
    axes = _check_axes(axis, x.ndim)
    return _forward(x, gamma, beta, axes, _all_but(x, axes), epsilon, out)


def group_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    groups: int = 32,
    axis: int = -1,
    epsilon: float = 1e-3,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    r"""Normalize each sample over all positions of each group of channels.

    The set of a value at sample n and channel c, with :math:`C/G` channels to a group, is

    .. math:: S = \{(n', c') : n' = n,\ \lfloor c' G / C \rfloor = \lfloor c\, G / C \rfloor\}

    at all positions. One group is layer normalization over all axes but the first; as many
    groups as channels is instance normalization.

    Args:
        x: real array of rank 2 or more, samples on its first axis.
        gamma: scale, shape (C,); 1 when None.
        beta: shift, shape (C,); 0 when None.
        groups: a divisor of the number of channels C; each group is a run of neighbours.
        axis: the axis of the channels, not the first.
        epsilon: finite, not negative; added to the variance.
        out: where to put y; shape and dtype of y, no overlap with x, which backward reads.

    Returns:
        y, of the shape and dtype of x (float32 for integers), and the cache for
        ``group_norm_backward``.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape, axis, epsilon or number of groups that does not fit, or nothing to
            average.

    Source:
        Wu and He (2018), equations 1, 2, 6 and 7.

    >>> y, cache = group_norm_forward([[1.0, 3.0, 10.0, 30.0]], groups=2, epsilon=0.0)
    >>> y
    array([[-1.,  1., -1.,  1.]])
    """
    x = check_input(x)
    axis = _check_channel_axis(axis, x.ndim)
    groups = _check_groups(groups, x, axis)
    split = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return _forward(x, gamma, beta, (axis,), Sets(split, (0, axis)), epsilon, out)


def instance_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    r"""Normalize each channel of each sample over its positions, then scale and shift it.

    .. math:: y_{npc} = \gamma_c \frac{x_{npc} - \mu_{nc}}{\sqrt{v_{nc} + \varepsilon}} + \beta_c

    Args:
        x: real array of rank 2 or more, samples on its first axis. At rank 2 a set is a single
            value, and nothing of x is left.
        gamma: scale, shape (C,); 1 when None.
        beta: shift, shape (C,); 0 when None.
        axis: the axis of the channels, not the first.
        epsilon: finite, not negative; added to the variance.
        out: where to put y; shape and dtype of y, no overlap with x, which backward reads.

    Returns:
        y, of the shape and dtype of x (float32 for integers), and the cache for
        ``instance_norm_backward``.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape, axis or epsilon that does not fit, or nothing to average.

    Source:
        Ulyanov, Vedaldi and Lempitsky (2016).

    >>> y, cache = instance_norm_forward([[[1.0, 20.0], [3.0, 10.0]]], epsilon=0.0)
    >>> y
    array([[[-1.,  1.],
            [ 1., -1.]]])
    """
    x = check_input(x)
    axis = _check_channel_axis(axis, x.ndim)
    return _forward(x, gamma, beta, (axis,), Sets(x.shape, (0, axis)), epsilon, out)


def rms_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    r"""Divide each sample by its root mean square, then scale each feature.

    .. math:: y_{ni} = \gamma_i \frac{x_{ni}}{\sqrt{q_n + \varepsilon}}, \qquad
        q_n = \frac1H \sum_{i=1}^H x_{ni}^2

    Args:
        x: real array of rank 2 or more.
        gamma: scale, of the shape of x on ``axis``; 1 when None.
        axis: the axis or axes to average over.
        epsilon: finite, not negative; added to the mean square. The default is Keras's.
        out: where to put y; shape and dtype of y, no overlap with x, which backward reads.

    Returns:
        y, of the shape and dtype of x (float32 for integers), and the cache for
        ``rms_norm_backward``, whose dbeta is None.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape, axis or epsilon that does not fit, or nothing to average.

    Source:
        Zhang and Sennrich (2019), equation 4.

    >>> y, cache = rms_norm_forward([[1.0, 7.0]], epsilon=0.0)
    >>> y
    array([[0.2, 1.4]])
    """
    x = check_input(x)
    axes = _check_axes(axis, x.ndim)
    return _forward(x, gamma, None, axes, _all_but(x, axes), epsilon, out, centred=False)


@np.errstate(all="ignore")
def norm_backward(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, Array | None, Array | None]:
    r"""Gradients of a loss with respect to x, gamma and beta, for each of the four.

    With :math:`h = \gamma g` and means over the set of the value,

    .. math:: \frac{\partial L}{\partial x} = \frac{1}{\sqrt{v_S + \varepsilon}}
        \left(h - \overline{h} - \hat x\, \overline{h \hat x}\right)

    where RMS normalization, which does not centre, has no :math:`\overline h`.

    Args:
        dy: upstream gradient :math:`g = \partial L / \partial y`, of the shape of x.
        cache: what the forward pass returned.
        out: where to put dx; may be dy itself, but must not overlap the cached x.

    Returns:
        dx in the dtype of y, dgamma and dbeta of the shape of gamma and beta in the compute
        dtype; None for a parameter that was None.

    Raises:
        TypeError: dy does not hold real numbers.
        ValueError: dy or out has the wrong shape, or out overlaps x.

    Source:
        As ``batch_norm_backward``, over other axes.

    >>> y, cache = layer_norm_forward([[1.0, 2.0, 6.0]], gamma=[1.0, 1.0, 1.0])
    >>> dx, dgamma, dbeta = layer_norm_backward([[1.0, 1.0, 1.0]], cache)
    >>> bool(abs(dx).max() < 1e-15), dgamma.round(2), dbeta
    (True, array([-0.93, -0.46,  1.39]), None)
    """
    x = cache.x
    out = check_out(out, x)
    check_apart(out, x)
    dy = check_like("dy", dy, x).astype(compute_dtype(x.dtype), copy=False)
    dgamma = None if cache.gamma is None else _sum_to_features(cache, dy, cache.x_hat)
    dbeta = None if cache.beta is None else _sum_to_features(cache, dy)
    upstream = cache.sets.as_rows(dy if cache.gamma is None else dy * cache.gamma)
    if cache.centred:
        dx = batch_norm_backward(upstream, cache.rows)[0]
    else:
        dx = _uncentred_backward(upstream, cache.rows)
    return _result(cache.sets.from_rows(dx, x.shape), x, out), dgamma, dbeta


# The cache knows which sets it came from, so that one backward pass serves them all.
layer_norm_backward = group_norm_backward = norm_backward
instance_norm_backward = rms_norm_backward = norm_backward


@np.errstate(all="ignore")
def _forward(
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    features: tuple[int, ...],
    sets: Sets,
    epsilon: float,
    out: Array | None,
    *,
    centred: bool = True,
) -> tuple[Array, NormCache]:
    gamma = _check_parameter("gamma", gamma, x, features)
    beta = _check_parameter("beta", beta, x, features)
    epsilon = check_epsilon(epsilon)
    out = check_out(out, x)
    check_apart(out, x)
    rows = sets.as_rows(x).astype(compute_dtype(x.dtype), copy=False)
    if rows.shape[1] == 0:
        raise ValueError(f"there is nothing to average: got x of shape {x.shape}")
    normalized, cache = batch_norm_forward(rows, axis=0, epsilon=epsilon)
    if not centred:
        normalized, cache = _without_centring(cache)
    y = sets.from_rows(normalized, x.shape)
    if gamma is not None:
        y *= gamma
    if beta is not None:
        y += beta
    return _result(y, x, out), NormCache(x, gamma, beta, features, sets, cache, centred)


def _without_centring(cache: BatchNormCache) -> tuple[Array, BatchNormCache]:
    """Rows divided by their root mean square: the mean is 0, the variance the mean square."""
    moments = cache.moments
    about_zero = Moments(
        moments.count, np.zeros_like(moments.mean), moments.variance + moments.mean**2
    )
    y = batch_norm_inference(
        cache.x, about_zero.mean, about_zero.variance, axis=0, epsilon=cache.epsilon
    )
    return y, replace(cache, moments=about_zero)


def _uncentred_backward(dy: Array, cache: BatchNormCache) -> Array:
    """The closed form without the mean of dy: ``inv_std (dy - x_hat mean(dy x_hat))``."""
    about_zero, ones = cache.moments, np.ones(len(cache.x))
    dx, slope, _ = batch_norm_inference_backward(
        dy, cache.x, about_zero.mean, about_zero.variance, ones, axis=0, epsilon=cache.epsilon
    )
    assert slope is not None  # the scale was given above
    return dx - cache.x_hat * (cache.inv_std * slope / about_zero.count)[:, None]


def _all_but(x: Array, axes: tuple[int, ...]) -> Sets:
    return Sets(x.shape, tuple(k for k in range(x.ndim) if k not in axes))


def _check_axes(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return one axis or several as axes counted from the front, in order."""
    given = axis if isinstance(axis, Sequence) else (axis,)
    axes = tuple(sorted(check_axis(each, ndim) for each in given))
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axis must name one or more different axes, got {axis!r}")
    return axes


def _check_channel_axis(axis: int, ndim: int) -> int:
    """Return the axis of the channels, which is not that of the samples."""
    index = check_axis(axis, ndim)
    if index == 0:
        raise ValueError(f"axis must not be the first, which is that of the samples, got {axis}")
    return index


def _check_groups(groups: int, x: Array, axis: int) -> int:
    """Return the number of groups, which divides that of the channels."""
    try:
        count = operator.index(groups)
    except TypeError:
        raise TypeError(f"groups must be an integer, got {groups!r}") from None
    if count < 1 or x.shape[axis] % count:
        raise ValueError(
            f"groups must divide the {x.shape[axis]} channels of x {x.shape} on axis {axis}, "
            f"got {groups}"
        )
    return count


def _check_parameter(
    name: str, value: ArrayLike | None, x: Array, features: tuple[int, ...]
) -> Array | None:
    """Return gamma or beta in the compute dtype, with axes of length 1 to broadcast against x."""
    if value is None:
        return None
    array = check_real(name, value)
    wanted = tuple(x.shape[k] for k in features)
    if array.shape != wanted:
        raise ValueError(
            f"{name} must have shape {wanted}, that of x {x.shape} on its axes {features}, "
            f"got {array.shape}"
        )
    wide = [length if k in features else 1 for k, length in enumerate(x.shape)]
    return array.astype(compute_dtype(x.dtype)).reshape(wide)


def _sum_to_features(cache: NormCache, *factors: Array) -> Array:
    """Sum of a product over all axes but those of gamma and beta, in float64, rounded once."""
    dtype, every = factors[0].dtype, list(range(cache.x.ndim))
    operands = [part for factor in factors for part in (factor, every)]
    total = np.einsum(*operands, [*cache.features], dtype=sum_dtype(dtype), casting="same_kind")
    return np.asarray(total, dtype)


def _result(values: Array, x: Array, out: Array | None) -> Array:
    """Round to the dtype that belongs to x, into ``out`` when there is one."""
    if out is None:
        return np.ascontiguousarray(values, output_dtype(x.dtype))
    np.copyto(out, values, casting="same_kind")
    return out
