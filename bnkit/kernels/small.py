"""Small batches, in NumPy: calls cost more there than the arithmetic they do.

Arrays are rows of float32 or float64. Up to ``WIDE`` values are computed in float64 throughout,
which leaves nothing to be looked after when they are of float32. Beyond, and in a forward pass of
float64, sums and maps are those of the large arrays, without the book-keeping for blocks, layouts
and second looks, which take a fifth of the time at 256 rows of 128. Where the data ask for more,
None hands them over to ``bnkit.kernels``. The formulas are the same, to the last bit, so that a
channel has the same digits either way.
"""

from __future__ import annotations

import math

import numpy as np

from bnkit.arguments import Array
from bnkit.kernels.adding import add_rows, ones
from bnkit.kernels.digits import FLOAT64, LIMIT, all_settled, moderate

FEW = 1 << 17  # elements up to which this is faster: beyond, they leave the cache
WIDE = 1 << 13  # elements that are computed in float64 throughout


def few_forward(
    x: Array, gamma: Array | None, beta: Array | None, epsilon: float | None
) -> tuple[Array | None, Array, Array] | None:
    """Return y (None where epsilon is), mean and variance."""
    if x.size <= WIDE and x.dtype != FLOAT64:
        return _wide_forward(x, gamma, beta, epsilon)
    if epsilon is None:
        return None
    y, sums = np.empty_like(x), np.empty((2, x.shape[1]))
    sums[0], sums[1] = add_rows(x), add_rows(np.multiply(x, x, out=y))
    sums /= len(x)
    mean, squares = sums
    square = mean * mean
    variance = squares - square
    scale = np.reciprocal(np.sqrt(variance + epsilon))
    if gamma is not None:
        scale *= gamma
    if not (all_settled(LIMIT[x.dtype] * variance - square, x.dtype) and _fits(scale, x)):
        return None
    scale = scale.astype(x.dtype)
    offset = scale * -mean
    if beta is not None:
        offset += beta
    np.multiply(x, scale, out=y)
    np.add(y, offset.astype(x.dtype), out=y)
    return y, mean, variance


def _wide_forward(
    x: Array, gamma: Array | None, beta: Array | None, epsilon: float | None
) -> tuple[Array | None, Array, Array]:
    """The same, computed in float64: its digits suffice for float32 in any order of addition."""
    v, add, m = x.astype(FLOAT64), ones(len(x), FLOAT64).dot, len(x)
    mean = add(v) / m
    v -= mean
    variance = add(v * v) / m
    if epsilon is None:
        return None, mean, variance
    std = np.sqrt(variance + epsilon)
    v *= np.divide(1 if gamma is None else gamma, std, out=std)
    if beta is not None:
        v += beta
    return v.astype(x.dtype), mean, variance


def few_normalize(x: Array, mean: Array, scale: Array, beta: Array | None) -> Array | None:
    """``scale (x - mean) + beta`` in float64, as an array of the dtype of x."""
    if x.size > WIDE:
        return None
    v = np.subtract(x, mean)
    v *= scale
    if beta is not None:
        v += beta
    return v.astype(x.dtype, copy=False)


def few_backward(
    dy: Array, x: Array, mean: Array, variance: Array, gamma: Array | None, epsilon: float
) -> tuple[Array, Array, Array] | None:
    """Return dx in the dtype of x, dgamma and dbeta."""
    inv_std, m = np.reciprocal(np.sqrt(variance + epsilon)), len(x)
    a = inv_std if gamma is None else gamma * inv_std
    if x.size <= WIDE:
        return _wide_backward(dy, x, mean, inv_std, a)
    margin = LIMIT[x.dtype] * variance - mean * mean
    if dy.dtype != x.dtype or not all_settled(margin, x.dtype):
        return None
    dx, sums = np.empty_like(x), np.empty((2, x.shape[1]))
    sums[0], sums[1] = add_rows(dy), add_rows(np.multiply(dy, x, out=dx))
    dbeta, product = sums
    dgamma = inv_std * (product - dbeta * mean)
    b = inv_std * dgamma / -m
    if not (math.isfinite(np.vdot(sums, sums)) and _fits(a, x) and _fits(b, x)):
        return None
    b = b.astype(x.dtype)
    c = dbeta / -m - b * mean
    np.multiply(x, b, out=dx)
    np.add(dx, dy, out=dx)
    np.add(dx, c.astype(x.dtype), out=dx)
    np.multiply(dx, a.astype(x.dtype), out=dx)
    return dx, dgamma, dbeta


def _wide_backward(
    dy: Array, x: Array, mean: Array, inv_std: Array, a: Array
) -> tuple[Array, Array, Array]:
    """The same, computed in float64."""
    add, v, g = ones(len(x), FLOAT64).dot, np.subtract(x, mean), dy.astype(FLOAT64, copy=False)
    dbeta, dgamma = add(g), add(g * v) * inv_std
    v *= dgamma * inv_std / -len(x)
    v += g
    v -= dbeta / len(x)
    v *= a
    return v.astype(x.dtype, copy=False), dgamma, dbeta


def _fits(constants: Array, x: Array) -> bool:
    return x.dtype == FLOAT64 or moderate(constants)
