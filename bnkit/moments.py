r"""Mean and variance: of a batch, merged from parts, moving, of a population.

Variances are biased (divided by the count) unless a name says otherwise. Sums are added up in
float64 whatever the input's dtype, and the variance is the mean of squared *deviations*: the
shortcut :math:`E[x^2] - E[x]^2` loses every digit once the mean is large against the spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bnkit import kernels
from bnkit.arguments import (
    Array,
    along,
    check_axis,
    check_input,
    check_mask,
    check_momentum,
    check_real,
    compute_dtype,
    other_axes,
    sum_dtype,
)


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and biased variance of a set of values, channel by channel.

    Attributes:
        count: how many values each channel was averaged over.
        mean: shape (C,), float64 (or wider).
        variance: shape (C,), biased: the sum of squared deviations divided by ``count``.
    """

    count: int
    mean: Array
    variance: Array

    @property
    def unbiased_variance(self) -> Array:
        r"""Bessel's correction, ``variance * count / (count - 1)``; ValueError at count 1."""
        if self.count < 2:
            raise ValueError(f"an unbiased variance needs count 2 or more, got {self.count}")
        return self.variance * (self.count / (self.count - 1))


def batch_moments(x: ArrayLike, axis: int = -1, mask: ArrayLike | None = None) -> Moments:
    r"""Mean and biased variance of each channel of a batch.

    .. math:: \mu = \frac1m \sum_i x_i, \qquad v = \frac1m \sum_i (x_i - \mu)^2

    The sums run in float64, in two passes and with the correction of Chan, Golub and LeVeque
    (1983) for the rounding of the mean itself, so that a large mean costs no accuracy.

    Args:
        x: real array of rank 2 or more.
        axis: the axis of the channels; the averages run over all others.
        mask: shape of x without the channel axis, True where a position counts.

    Returns:
        Moments of shape (C,).

    Raises:
        TypeError: x is not real.
        ValueError: rank, axis or mask do not fit, or there is nothing to average.

    Source:
        Ioffe and Szegedy (2015), Algorithm 1, lines 1 and 2.

    >>> batch_moments([[1.0, 10.0], [3.0, 10.0]])
    Moments(count=2, mean=array([ 2., 10.]), variance=array([1., 0.]))
    """
    x = check_input(x)
    axis = check_axis(axis, x.ndim)
    with np.errstate(all="ignore"):  # NaN and inf pass through, each in its own channel
        return moments_where(x, axis, check_mask(mask, x, axis))


def moments_where(x: Array, axis: int, where: Array | None) -> Moments:
    """``batch_moments`` of arguments that were checked."""
    positions = math.prod(x.shape[:axis] + x.shape[axis + 1 :])
    count = positions if where is None else int(np.count_nonzero(where))
    if count == 0:
        reason = f"x of shape {x.shape}" if where is None else "a mask that is False everywhere"
        raise ValueError(f"there is nothing to average: got {reason}")

    fast = kernels.moments(x, axis) if where is None else None
    if fast is not None:
        return Moments(count, *fast)

    axes, dtype = other_axes(x.ndim, axis), sum_dtype(x.dtype)
    mean = np.sum(x, axes, dtype=dtype, where=True if where is None else where) / count
    centred = centre(x, mean, axis)
    if where is not None:
        np.copyto(centred, 0, where=~where)
    channel_index = list(range(x.ndim))
    correction = np.sum(centred, axes, dtype=dtype) / count
    squares = np.einsum(
        centred, channel_index, centred, channel_index, [axis], dtype=dtype, casting="same_kind"
    )
    return Moments(count, mean + correction, squares / count - correction**2)


def centre(x: Array, mean: Array, axis: int, out: Array | None = None) -> Array:
    """Return ``x - mean``, subtracted in float64 and rounded once to the compute dtype.

    A float32 mean of 3e5 is off by up to 0.016, which is lost for good once it is subtracted.
    NumPy converts x block by block through a small buffer, so no float64 copy of x is made.
    """
    out = np.empty(x.shape, compute_dtype(x.dtype)) if out is None else out
    # dtype, not the operands, picks the float64 loop: bfloat16 has no subtraction with float64.
    loop = sum_dtype(x.dtype)
    return np.subtract(x, along(mean, axis, x.ndim), out=out, dtype=loop, casting="same_kind")


def merge_moments(parts: Iterable[Moments]) -> Moments:
    r"""Moments of a whole from the moments of its parts, for any split.

    .. math::
        \mu = \frac{\sum_p n_p \mu_p}{n}, \qquad
        v = \frac{\sum_p n_p \left(v_p + (\mu_p - \mu)^2\right)}{n}, \qquad n = \sum_p n_p

    Args:
        parts: moments of disjoint parts, of equal shape (C,); those of count 0 add nothing.

    Returns:
        Moments of all values together.

    Raises:
        ValueError: no parts, parts of different shapes, or none with a count above 0.

    Source:
        Chan, Golub and LeVeque (1983), section 2.

    >>> merge_moments([batch_moments([[0.0], [2.0]]), batch_moments([[7.0]])])
    Moments(count=3, mean=array([3.]), variance=array([8.66666667]))
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts must hold at least one Moments, got none")
    shapes = {part.mean.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"parts must have equal shapes, got {sorted(shapes)}")
    parts = [part for part in parts if part.count]
    if not parts:
        raise ValueError("parts must hold a count above 0, got none but empty ones")
    count = sum(part.count for part in parts)
    # Deviations from one of the means, not the means themselves, are averaged: no cancellation.
    origin = parts[0].mean
    mean = origin + sum(part.count * (part.mean - origin) for part in parts) / count
    spread = sum(part.count * (part.variance + (part.mean - mean) ** 2) for part in parts)
    return Moments(count, mean, np.asarray(spread / count))


def moving_average(moving: ArrayLike, batch: ArrayLike, momentum: float) -> Array:
    r"""One step of an exponential moving average; momentum weighs the old value.

    .. math:: \text{moving} \leftarrow \text{momentum} \cdot \text{moving}
        + (1 - \text{momentum}) \cdot \text{batch}

    This is the convention of Keras, Flax and ONNX. PyTorch's momentum p weighs the new value:
    pass ``1 - p``.

    Args:
        moving: the average so far, any shape.
        batch: the new value, of a shape that broadcasts against it.
        momentum: a number in [0, 1].

    Returns:
        The new average.

    Raises:
        TypeError: momentum is no number, or the averages are not real.
        ValueError: momentum outside [0, 1].

    >>> moving_average(0.0, 1.0, momentum=0.75)
    np.float64(0.25)
    """
    momentum = check_momentum(momentum)
    moving, batch = check_real("moving", moving), check_real("batch", batch)
    return momentum * moving + (1 - momentum) * batch


def population_moments(batches: Iterable[Moments], *, between: bool = True) -> Moments:
    r"""Mean and unbiased variance of a population, estimated from its batches.

    With ``between=True`` the variance of the batch means counts as well: the unbiased variance
    of all values taken together. With ``between=False`` it is the estimate of the paper,

    .. math:: \operatorname{Var}[x] = \frac{m}{m-1} E_{\mathcal{B}}[v_{\mathcal{B}}]

    (pooled by degrees of freedom when batch sizes differ). Both are unbiased when rows are
    drawn independently; when they are not, only the first one sees it.

    Args:
        batches: the moments of each batch.
        between: whether the spread of the batch means counts.

    Returns:
        Moments with the count of all values; ``variance`` is the population's estimate.

    Raises:
        ValueError: no batches, different shapes, or a single value in all (or, with
            ``between=False``, in each batch).

    Source:
        Ioffe and Szegedy (2015), Algorithm 2, step 10.

    >>> parts = [batch_moments([[0.0], [2.0]]), batch_moments([[4.0], [6.0]])]
    >>> population_moments(parts).variance, population_moments(parts, between=False).variance
    (array([6.66666667]), array([2.]))
    """
    batches = list(batches)
    merged = merge_moments(batches)
    batches = [batch for batch in batches if batch.count]
    if between:
        return Moments(merged.count, merged.mean, merged.unbiased_variance)
    freedom = merged.count - len(batches)
    if freedom < 1:
        raise ValueError("between=False needs a batch of 2 values or more, got batches of 1")
    within = sum(batch.count * batch.variance for batch in batches) / freedom
    return Moments(merged.count, merged.mean, np.asarray(within))
