r"""Batch normalization as pure functions: forward, backward, inference, second derivative.

Per channel, over the m values of a batch:

.. math::
    \mu = \frac1m \sum_i x_i, \quad v = \frac1m \sum_i (x_i - \mu)^2, \quad
    \hat x_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}, \quad y_i = \gamma \hat x_i + \beta

Any rank of 2 or more; channels on ``axis``, statistics over every other axis. float16 and
bfloat16 are computed in float32, sums run in float64, results have the dtype of x (float32 for
integers). NaN and inf in x stay in their own channel, without a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bnkit import kernels
from bnkit.arguments import (
    Array,
    along,
    check_apart,
    check_axis,
    check_channels,
    check_epsilon,
    check_input,
    check_like,
    check_mask,
    check_optional_channels,
    check_out,
    check_variance,
    compute_dtype,
    other_axes,
    output_dtype,
    sum_dtype,
)
from bnkit.moments import Moments, centre, moments_where


@dataclass(frozen=True, eq=False)
class BatchNormCache:
    """What the forward pass leaves for the backward pass.

    ``x`` is the caller's array, not a copy: it must not change before the backward pass.

    Attributes:
        x: the input.
        gamma: scale, shape (C,), or None.
        beta: shift, shape (C,), or None.
        moments: count, mean and variance of the batch in float64.
        axis: the axis of the channels, counted from the front.
        epsilon: the number added to the variance.
        mask: True where a position counted, with a channel axis of length 1, or None.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    moments: Moments
    axis: int
    epsilon: float
    mask: Array | None

    @property
    @np.errstate(all="ignore")
    def mean(self) -> Array:
        """Mean of the batch, shape (C,), in the compute dtype."""
        return _round_channels(self.moments.mean, self.x)

    @property
    @np.errstate(all="ignore")
    def variance(self) -> Array:
        """Biased variance of the batch, shape (C,), in the compute dtype."""
        return _round_channels(self.moments.variance, self.x)

    @property
    @np.errstate(all="ignore")
    def inv_std(self) -> Array:
        """``1 / sqrt(variance + epsilon)``, shape (C,), in the compute dtype."""
        return _round_channels(_inv_std(self.moments.variance, self.epsilon), self.x)

    @property
    @np.errstate(all="ignore")
    def x_hat(self) -> Array:
        """The normalized input, computed anew, in the compute dtype."""
        inv_std = _inv_std(self.moments.variance, self.epsilon)
        return _normalize(self.x, self.moments.mean, inv_std, self.axis)


@np.errstate(all="ignore")
def batch_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Array, BatchNormCache]:
    r"""Normalize a batch by its own mean and variance, then scale and shift.

    .. math:: y_i = \gamma \frac{x_i - \mu}{\sqrt{v + \varepsilon}} + \beta

    Args:
        x: real array of rank 2 or more.
        gamma: scale, shape (C,); 1 when None.
        beta: shift, shape (C,); 0 when None.
        axis: the axis of the channels.
        epsilon: finite, not negative; added to the variance.
        mask: shape of x without the channel axis, True where a position counts. The others
            take no part in the statistics and are normalized like the rest.
        out: where to put y; shape and dtype of y, no overlap with x, which backward reads.

    Returns:
        y, of the shape and dtype of x (float32 for integers), and the cache for
        ``batch_norm_backward``.

    Raises:
        TypeError: x, gamma, beta or mask hold something other than real numbers.
        ValueError: a shape, axis or epsilon that does not fit, or nothing to average.

    Source:
        Ioffe and Szegedy (2015), Algorithm 1.

    >>> y, cache = batch_norm_forward([[1.0], [2.0], [3.0]], gamma=[2.0], epsilon=0.0)
    >>> y.ravel().round(3)
    array([-2.449,  0.   ,  2.449])
    """
    x = check_input(x)
    axis = check_axis(axis, x.ndim)
    gamma = check_optional_channels("gamma", gamma, x, axis)
    beta = check_optional_channels("beta", beta, x, axis)
    epsilon = check_epsilon(epsilon)
    out = check_out(out, x)
    check_apart(out, x)
    where = check_mask(mask, x, axis)
    small = kernels.forward(x, axis, gamma, beta, epsilon, out) if where is None else None
    if small is not None:
        y, mean, variance = small
        moments = Moments(x.size // len(mean), mean, variance)
    else:
        moments = moments_where(x, axis, where)
        y = _affine(x, moments.mean, moments.variance, gamma, beta, axis, epsilon, out)
    return y, BatchNormCache(x, gamma, beta, moments, axis, epsilon, where)


@np.errstate(all="ignore")
def batch_norm_backward(
    dy: ArrayLike, cache: BatchNormCache, *, out: Array | None = None
) -> tuple[Array, Array | None, Array | None]:
    r"""Gradients of a loss with respect to x, gamma and beta, in closed form.

    .. math::
        \frac{\partial L}{\partial x_i} = \frac{\gamma}{\sqrt{v + \varepsilon}} \left(g_i
        - \frac1m \sum_k g_k - \frac{\hat x_i}{m} \sum_k g_k \hat x_k\right), \quad
        \frac{\partial L}{\partial \gamma} = \sum_k g_k \hat x_k, \quad
        \frac{\partial L}{\partial \beta} = \sum_k g_k

    With a mask the sums still run over all positions, since all were normalized, but the two
    projections are taken from the positions that counted, and m is their number.

    Args:
        dy: upstream gradient :math:`g = \partial L / \partial y`, of the shape of x.
        cache: what ``batch_norm_forward`` returned.
        out: where to put dx; may be dy itself, but must not overlap the cached x.

    Returns:
        dx in the dtype of y, dgamma and dbeta of shape (C,) in the compute dtype; dgamma is
        None when gamma was None, and so is dbeta when beta was.

    Raises:
        TypeError: dy does not hold real numbers.
        ValueError: dy or out has the wrong shape, or out overlaps x.

    Source:
        Ioffe and Szegedy (2015), section 3, simplified; ``bnkit.symbolic`` has the proof.

    >>> y, cache = batch_norm_forward([[1.0], [2.0], [6.0]], gamma=[1.0])
    >>> dx, dgamma, dbeta = batch_norm_backward([[1.0], [1.0], [1.0]], cache)
    >>> bool(abs(dx).max() < 1e-15), dbeta
    (True, None)
    """
    x, axis, gamma = cache.x, cache.axis, cache.gamma
    mean, variance = cache.moments.mean, cache.moments.variance
    dy = check_like("dy", dy, x)
    out = check_out(out, x)
    check_apart(out, x)
    fast = None
    if cache.mask is None:
        fast = kernels.backward(dy, x, axis, mean, variance, gamma, cache.epsilon, out)
    if fast is not None:
        dx, dgamma, dbeta = fast
    else:
        dy, inv_std = _as_gradient("dy", dy, x), _inv_std(variance, cache.epsilon)
        x_hat = _normalize(x, mean, inv_std, axis)
        dgamma, dbeta = _channel_dot(dy, x_hat, axis), _channel_sum(dy, axis)
        dx = _project(dy, x_hat, dgamma, dbeta, cache)
        dx = _into(out, _scale(dx, inv_std if gamma is None else gamma * inv_std, axis), x)
    return (
        dx,
        None if cache.gamma is None else _round_channels(dgamma, x),
        None if cache.beta is None else _round_channels(dbeta, x),
    )


@np.errstate(all="ignore")
def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    out: Array | None = None,
) -> Array:
    r"""Normalize by a given mean and variance: an affine map of each value by itself.

    .. math:: y_i = \gamma \frac{x_i - \text{mean}}{\sqrt{\text{variance} + \varepsilon}} + \beta

    Args:
        x: real array of rank 2 or more.
        mean: shape (C,).
        variance: shape (C,), not negative.
        gamma: scale, shape (C,); 1 when None.
        beta: shift, shape (C,); 0 when None.
        axis: the axis of the channels.
        epsilon: finite, not negative.
        out: where to put y; may be x itself.

    Returns:
        y, of the shape and dtype of x (float32 for integers).

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape, axis or epsilon that does not fit, or a negative variance.

    Source:
        Ioffe and Szegedy (2015), Algorithm 2, step 11.

    >>> batch_norm_inference([[5.0]], mean=[3.0], variance=[4.0], epsilon=0.0)
    array([[1.]])
    """
    x = check_input(x)
    axis = check_axis(axis, x.ndim)
    mean = check_channels("mean", mean, x, axis)
    variance = check_variance(variance, x, axis)
    gamma = check_optional_channels("gamma", gamma, x, axis)
    beta = check_optional_channels("beta", beta, x, axis)
    epsilon = check_epsilon(epsilon)
    out = check_out(out, x)
    return _affine(x, mean, variance, gamma, beta, axis, epsilon, out)


@np.errstate(all="ignore")
def batch_norm_inference_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
) -> tuple[Array, Array | None, Array]:
    r"""Gradients of ``batch_norm_inference``, where mean and variance are constants.

    .. math::
        \frac{\partial L}{\partial x_i} = \frac{\gamma\, g_i}{\sqrt{v + \varepsilon}}, \quad
        \frac{\partial L}{\partial \gamma} = \sum_k g_k \hat x_k, \quad
        \frac{\partial L}{\partial \beta} = \sum_k g_k

    Args:
        dy: upstream gradient, of the shape of x.
        x: the input of the forward pass.
        mean: shape (C,).
        variance: shape (C,), not negative.
        gamma: scale, shape (C,); 1 when None.
        axis: the axis of the channels.
        epsilon: finite, not negative.

    Returns:
        dx in the dtype of y, dgamma (None when gamma is None) and dbeta of shape (C,) in the
        compute dtype.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape, axis or epsilon that does not fit, or a negative variance.

    >>> dx, dgamma, dbeta = batch_norm_inference_backward(
    ...     [[1.0]], [[5.0]], mean=[3.0], variance=[4.0], gamma=[6.0], epsilon=0.0)
    >>> dx, dgamma, dbeta
    (array([[3.]]), array([1.]), array([1.]))
    """
    x = check_input(x)
    axis = check_axis(axis, x.ndim)
    dy = check_like("dy", dy, x)
    mean = check_channels("mean", mean, x, axis)
    variance = check_variance(variance, x, axis)
    inv_std = _inv_std(variance, check_epsilon(epsilon))
    gamma = check_optional_channels("gamma", gamma, x, axis)
    scale = inv_std if gamma is None else gamma * inv_std
    fast = kernels.inference_backward(dy, x, axis, mean, variance, inv_std, scale)
    if fast is not None:
        dx, dgamma, dbeta = fast
    else:
        dy = _as_gradient("dy", dy, x)
        dgamma = _channel_dot(dy, _normalize(x, mean, inv_std, axis), axis)
        dbeta = _channel_sum(dy, axis)
        dx = _into(None, _scale(dy.copy(), scale, axis), x)
    return (
        dx,
        None if gamma is None else _round_channels(dgamma, x),
        _round_channels(dbeta, x),
    )


@np.errstate(all="ignore")
def batch_norm_double_backward(
    ddx: ArrayLike,
    ddgamma: ArrayLike | None,
    ddbeta: ArrayLike | None,
    dy: ArrayLike,
    cache: BatchNormCache,
) -> tuple[Array, Array, Array | None]:
    r"""Gradients of a function of dx, dgamma and dbeta, back to dy, x and gamma.

    Let u, a, b be the gradients that reach dx, dgamma and dbeta, r = inv_std, P the projection
    of the backward pass, :math:`dx = \gamma r\, P g`. Then

    .. math::
        \frac{\partial}{\partial g} = \gamma r\, P^T u + a \hat x + b, \qquad
        \frac{\partial}{\partial \gamma} = r\, u \cdot P g, \qquad
        \frac{\partial}{\partial x} = r P h
        - \frac{\gamma r^2}{m} (u \cdot P g)\, \hat x, \qquad
        h = a g - \frac{\gamma r}{m} \left((g \cdot \hat x)\, u + (u \cdot \hat x)\, g\right)

    where, with a mask, u and x_hat count only at the positions that counted in the statistics
    (except in the first term and in :math:`g \cdot \hat x`).

    Args:
        ddx: gradient that reaches dx, of the shape of x.
        ddgamma: gradient that reaches dgamma, shape (C,); None for none.
        ddbeta: gradient that reaches dbeta, shape (C,); None for none.
        dy: upstream gradient of the backward pass, of the shape of x.
        cache: what ``batch_norm_forward`` returned.

    Returns:
        d_dy and d_x in the dtype of y, d_gamma of shape (C,) in the compute dtype (None when
        gamma was None).

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: a shape that does not fit.

    >>> y, cache = batch_norm_forward([[1.0], [2.0], [6.0]], gamma=[1.0])
    >>> d_dy, d_x, d_gamma = batch_norm_double_backward(
    ...     [[0.0], [0.0], [0.0]], [1.0], None, [[1.0], [0.0], [0.0]], cache)
    >>> bool(np.allclose(d_dy, cache.x_hat)), d_gamma
    (True, array([0.]))
    """
    x, axis, n = cache.x, cache.axis, cache.moments.count
    ddx, dy = _as_gradient("ddx", ddx, x), _as_gradient("dy", dy, x)
    zeros = np.zeros(x.shape[axis])
    a = check_channels("ddgamma", zeros if ddgamma is None else ddgamma, x, axis)
    b = check_channels("ddbeta", zeros if ddbeta is None else ddbeta, x, axis)
    inv_std = _inv_std(cache.moments.variance, cache.epsilon)

    def wide(channels: Array) -> Array:
        return along(_round_channels(channels, x), axis, x.ndim)

    scale = inv_std if cache.gamma is None else cache.gamma * inv_std
    x_hat = _normalize(x, cache.moments.mean, inv_std, axis)
    counted_ddx = _counted(ddx, cache)
    dgamma, dbeta = _channel_dot(dy, x_hat, axis), _channel_sum(dy, axis)
    u_sum, u_x_hat = _channel_sum(counted_ddx, axis), _channel_dot(counted_ddx, x_hat, axis)
    u_p_g = _channel_dot(ddx, _project(dy, x_hat, dgamma, dbeta, cache), axis)

    transposed = ddx - wide(u_sum / n) - x_hat * wide(u_x_hat / n)
    d_dy = wide(scale) * transposed + wide(a) * x_hat + wide(b)

    h = dy * wide(a - scale * u_x_hat / n) - counted_ddx * wide(scale * dgamma / n)
    p_h = _project(h, x_hat, _channel_dot(h, x_hat, axis), _channel_sum(h, axis), cache)
    d_x = wide(inv_std) * p_h - _counted(x_hat, cache) * wide(scale * inv_std * u_p_g / n)
    d_gamma = None if cache.gamma is None else _round_channels(inv_std * u_p_g, x)
    return _into(None, d_dy, x), _into(None, d_x, x), d_gamma


def _inv_std(variance: Array, epsilon: float) -> Array:
    return np.reciprocal(np.sqrt(variance + epsilon))


def _round_channels(channels: Array, x: Array) -> Array:
    """Round one number a channel to the compute dtype of x."""
    return channels.astype(compute_dtype(x.dtype))


def _as_gradient(name: str, value: ArrayLike, x: Array) -> Array:
    """Return an upstream gradient in the dtype that the backward pass of x is computed in."""
    return check_like(name, value, x).astype(compute_dtype(x.dtype), copy=False)


def _normalize(x: Array, mean: Array, inv_std: Array, axis: int) -> Array:
    """x_hat, in a new array of the compute dtype."""
    return _scale(centre(x, mean, axis), inv_std, axis)


def _scale(values: Array, channels: Array, axis: int) -> Array:
    """Multiply ``values`` in place by one number a channel."""
    np.multiply(values, along(channels, axis, values.ndim), out=values, casting="same_kind")
    return values


def _affine(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int,
    epsilon: float,
    out: Array | None,
) -> Array:
    """Normalize, scale and shift, in one array of the compute dtype (``out`` when it is one)."""
    inv_std = _inv_std(variance, epsilon)
    scale = inv_std if gamma is None else gamma * inv_std
    fast = kernels.normalize(x, axis, mean, variance, scale, beta, out)
    if fast is not None:
        return fast
    fits = out is not None and out.dtype == compute_dtype(x.dtype)
    y = centre(x, mean, axis, out if fits else None)
    _scale(y, scale, axis)
    if beta is not None:
        np.add(y, along(beta, axis, x.ndim), out=y, casting="same_kind")
    return _into(out, y, x)


def _into(out: Array | None, result: Array, x: Array) -> Array:
    """Round a result to the dtype that belongs to x, into ``out`` when there is one."""
    if out is None:
        return result.astype(output_dtype(x.dtype), copy=False)
    if out is not result:
        np.copyto(out, result, casting="same_kind")
    return out


def _channel_sum(values: Array, axis: int) -> Array:
    """Sum over all axes but the channels', in float64: shape (C,)."""
    axes = other_axes(values.ndim, axis)
    return np.asarray(np.sum(values, axes, dtype=sum_dtype(values.dtype)))


def _channel_dot(a: Array, b: Array, axis: int) -> Array:
    """Sum of products over all axes but the channels', in float64: shape (C,)."""
    index = list(range(a.ndim))
    dtype = sum_dtype(a.dtype)
    return np.asarray(np.einsum(a, index, b, index, [axis], dtype=dtype, casting="same_kind"))


def _counted(values: Array, cache: BatchNormCache) -> Array:
    """The values, with zeros where a mask kept a position out of the statistics."""
    return values if cache.mask is None else np.where(cache.mask, values, 0)


def _project(dy: Array, x_hat: Array, dgamma: Array, dbeta: Array, cache: BatchNormCache) -> Array:
    """Take from dy what the statistics absorb: ``dy - dbeta / m - x_hat * dgamma / m``.

    Masked positions did not move the statistics, so they lose nothing.
    """
    m, axis = cache.moments.count, cache.axis
    absorbed = _scale(x_hat.copy(), dgamma / m, axis)
    np.add(absorbed, along(dbeta / m, axis, dy.ndim), out=absorbed, casting="same_kind")
    return np.subtract(dy, _counted(absorbed, cache), out=absorbed)
