"""The compiled loops: each is a pass over memory, or over a small array, written out.

Neighbours in memory belong to different sums, columns here and ``LANES`` of a plane there, so that
the compiler makes vector instructions of a loop without changing the order of any sum:
``fastmath`` is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

LANES = 64  # how many sums run side by side within a plane


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a loop at its first use; keep it on disk where there is a folder for it."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        return njit(nogil=True)(function)


@compiled
def few_forward(x, gamma, beta, epsilon):  # type: ignore[no-untyped-def]
    """Y, mean and variance of a small array, computed in float64."""
    mean, variance = few_moments(x)
    scale = gamma / np.sqrt(variance + epsilon)
    return few_normalize(x, mean, scale, beta), mean, variance


@compiled
def few_moments(x):  # type: ignore[no-untyped-def]
    """Mean and variance of the columns of a small array, in float64.

    Deviations from the first row have a mean² of at most m variances, which values of float32 can
    bear. Those of float64 have no digits to spare: they are looked at again, from the mean.
    """
    m, first = len(x), x[0].astype(np.float64)
    both = np.zeros((2, first.size))
    add_rows(x, None, first, both)
    near, squares = both / m
    mean = first + near
    if x.itemsize == 8:
        near, squares = sum_columns(x, None, mean, 8, 0, m) / m
        mean += near
    return mean, np.maximum(squares - near * near, 0.0)


@compiled
def few_normalize(x, mean, scale, beta):  # type: ignore[no-untyped-def]
    """``scale (x - mean) + beta`` in float64, as an array of the dtype of x."""
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = scale[j] * (x[i, j] - mean[j]) + beta[j]
    return y


@compiled
def few_backward(dy, x, mean, variance, gamma, epsilon):  # type: ignore[no-untyped-def]
    """Return dx in the dtype of x, dgamma and dbeta, all computed in float64."""
    m, inv_std = len(x), 1 / np.sqrt(variance + epsilon)
    dbeta, product = sum_columns(x, dy, mean, 256, 0, m)
    dgamma = product * inv_std
    a, b, c = gamma * inv_std, dgamma * inv_std / m, dbeta / m
    dx = np.empty_like(x)
    for i in range(m):
        for j in range(x.shape[1]):
            dx[i, j] = a[j] * (dy[i, j] - c[j] - b[j] * (x[i, j] - mean[j]))
    return dx, dgamma, dbeta


@compiled
def add_rows(x, dy, k, both):  # type: ignore[no-untyped-def]
    """Add up a and a (x - k) in the rows of ``both``; a is dy, or x - k itself where dy is None.

    Four rows at a time: the sums are fetched and put down once for all of them, which takes half
    the time, and rounds less often.
    """
    whole = len(x) // 4 * 4
    for r in range(0, whole, 4):
        for j in range(k.size):
            v0, v1 = x[r, j] - k[j], x[r + 1, j] - k[j]
            v2, v3 = x[r + 2, j] - k[j], x[r + 3, j] - k[j]
            if dy is None:
                a0, a1, a2, a3 = v0, v1, v2, v3
            else:
                a0, a1, a2, a3 = dy[r, j], dy[r + 1, j], dy[r + 2, j], dy[r + 3, j]
            both[0, j] += (a0 + a1) + (a2 + a3)
            both[1, j] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
    for r in range(whole, len(x)):
        for j in range(k.size):
            v = x[r, j] - k[j]
            a = v if dy is None else dy[r, j]
            both[0, j] += a
            both[1, j] += a * v


@compiled
def sum_columns(x, dy, k, some, start, stop):  # type: ignore[no-untyped-def]
    """The sums of ``add_rows`` over these rows, ``some`` at a time in the dtype of k."""
    total, few = np.zeros((2, 2, k.size)), np.empty((2, k.size), k.dtype)
    for top in range(start, stop, some):
        end = min(top + some, stop)
        few[:] = 0
        add_rows(x[top:end], dy if dy is None else dy[top:end], k, few)
        _add_exactly(few[0], total[0, 0], total[0, 1])
        _add_exactly(few[1], total[1, 0], total[1, 1])
    return total[:, 0] + total[:, 1]


@compiled
def sum_planes(x, dy, k, some, start, stop):  # type: ignore[no-untyped-def]
    """The same over the planes of these channels, in the order in which they lie in memory."""
    outer, _, inner = x.shape
    piece = some * LANES
    together = max(1, piece // inner)  # short planes that are added up in the dtype of x
    total = np.zeros((stop - start, 2, 2, LANES))
    all_few = np.zeros((stop - start, 2, LANES), k.dtype)
    for o in range(outer):
        for c in range(start, stop):
            few, sums = all_few[c - start], total[c - start]
            for left in range(0, inner, piece):
                right = min(left + piece, inner)
                if dy is None:
                    _add_squares(x[o, c, left:right], k[c], few[0], few[1])
                else:
                    _add_products(x[o, c, left:right], dy[o, c, left:right], k[c], few[0], few[1])
                if right < inner or (o + 1) % together == 0 or o == outer - 1:
                    _add_exactly(few[0], sums[0, 0], sums[0, 1])
                    _add_exactly(few[1], sums[1, 0], sums[1, 1])
                    few[:] = 0
    lanes = total.transpose(2, 1, 3, 0)  # the sum, and what it lost; then the two sums; lanes
    return fold(lanes[0]) + fold(lanes[1])


@compiled
def fold(parts):  # type: ignore[no-untyped-def]
    """Sum over the middle axis, with what each addition rounds away kept beside the sum."""
    total = np.zeros((2, 2, parts.shape[2]))
    for i in range(2):
        for row in parts[i]:
            _add_exactly(row, total[i, 0], total[i, 1])
    return total[:, 0] + total[:, 1]


@compiled
def _add_squares(x, k, total, squares):  # type: ignore[no-untyped-def]
    rows, rest = divmod(x.size, LANES)
    for r in range(rows):
        for j in range(LANES):
            v = x[r * LANES + j] - k
            total[j] += v
            squares[j] += v * v
    for j in range(rest):
        v = x[rows * LANES + j] - k
        total[j] += v
        squares[j] += v * v


@compiled
def _add_products(x, dy, k, total, products):  # type: ignore[no-untyped-def]
    rows, rest = divmod(x.size, LANES)
    for r in range(rows):
        for j in range(LANES):
            g = dy[r * LANES + j]
            total[j] += g
            products[j] += g * (x[r * LANES + j] - k)
    for j in range(rest):
        g = dy[rows * LANES + j]
        total[j] += g
        products[j] += g * (x[rows * LANES + j] - k)


@compiled
def _add_exactly(few, total, error):  # type: ignore[no-untyped-def]
    for j in range(few.size):
        b = np.float64(few[j])
        a = total[j]
        total[j] = a + b
        rounded = total[j] - a
        error[j] += (a - (total[j] - rounded)) + (b - rounded)


@compiled
def map_columns(x, dy, out, k, s, t, f, start, stop):  # type: ignore[no-untyped-def]
    """Write ``s (x - k) + t``, or ``f (dy + s (x - k) + t)``, into these rows of out."""
    for r in range(start, stop):
        for j in range(x.shape[1]):
            v = s[j] * (x[r, j] if k is None else x[r, j] - k[j]) + t[j]
            out[r, j] = v if dy is None else f[j] * (dy[r, j] + v)


@compiled
def map_planes(x, dy, out, k, s, t, f, start, stop):  # type: ignore[no-untyped-def]
    """The same for the planes of these channels."""
    for o in range(x.shape[0]):
        for c in range(start, stop):
            for i in range(x.shape[2]):
                v = s[c] * (x[o, c, i] if k is None else x[o, c, i] - k[c]) + t[c]
                out[o, c, i] = v if dy is None else f[c] * (dy[o, c, i] + v)
