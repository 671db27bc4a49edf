r"""The passes over memory, compiled by numba: loops that touch each value once a pass.

NumPy puts its result down after every operation, so ``blocked`` has to keep blocks in the cache.
A compiled loop keeps it in a register: one pass reads x (and dy) and adds up, the other one reads
again and writes. What remains is the question of digits. A long sum in float32 loses them, and
one in float64 takes twice the time; so a few rows are added up in the dtype of x, and these short
sums in float64, with what each addition rounds away kept beside it (Knuth's two-sum).

Arrays are C-contiguous, of shape (outer, C, inner). With a short inner axis they are read as rows
of C * inner columns; with a long one, plane by plane, a plane being rows of ``LANES`` values. In
both cases neighbours in memory belong to different sums, so that the compiler makes vector
instructions of a loop without changing the order of any sum: ``fastmath`` is off. Code is compiled
at its first use, and kept on disk. It runs without Python's lock, so plain threads share the work.

A small batch is not a question of memory but of calls, at half a microsecond each: there one
compiled call does all of a pass in float64, which leaves nothing to be looked after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numba import njit

from bnkit.arguments import Array
from bnkit.kernels import blocked

ROWS = {4: 16, 8: 4}  # how many rows are added up in float32, and in float64
LANES = 64  # how many sums run side by side within a plane
CHUNK = 1024  # how many columns at a time: their sums stay in the first-level cache

FEW = blocked.SMALL  # elements that are computed in float64 throughout, in one call

compiled = njit(cache=True, nogil=True)


def sums(
    x: Array, dy: Array | None, shift: Array | None, dtype: np.dtype[Any], workers: int = 1
) -> Array:
    """Sums of a and of a (x - shift) over each channel: shape (2, C), float64.

    Here a is dy, or x - shift itself when dy is None.
    """
    if not _taken(x, dy):
        return blocked.sums(x, dy, shift, dtype, workers)
    channels, inner = x.shape[1:]
    k = np.zeros(channels, dtype) if shift is None else shift.astype(dtype)
    if inner >= LANES:
        planes = _share(partial(_sum_planes, x, dy, k, ROWS[dtype.itemsize]), channels, workers)
        return np.concatenate(planes, axis=1)
    total = np.zeros((2, channels))
    for columns, (rows, gradient) in _as_columns(x, dy):
        wide = _widen(k, inner, columns)
        work = partial(_sum_columns, rows, gradient, wide, ROWS[dtype.itemsize])
        for part in _share(work, rows.shape[0], workers):
            parts = part.reshape(2, -1, channels * inner)
            total += _fold(parts).reshape(2, channels, inner).sum(2)
    return total


def affine(
    x: Array,
    shift: Array | None,
    scale: Array,
    offset: Array | None,
    out: Array,
    dy: Array | None = None,
    factor: Array | None = None,
    workers: int = 1,
) -> None:
    """Write ``scale (x - shift) + offset``, or ``factor (dy + scale (x - shift) + offset)``."""
    if not _taken(x, out, dy):
        return blocked.affine(x, shift, scale, offset, out, dy, factor, workers)
    zeros = np.zeros_like(scale)
    k = zeros if shift is None else shift.astype(scale.dtype)
    constants = k, scale, zeros if offset is None else offset, factor
    channels, inner = x.shape[1:]
    if inner >= LANES:
        _share(partial(_map_planes, x, dy, out, *constants), channels, workers)
        return None
    for columns, arrays in _as_columns(x, dy, out):
        wide = (_widen(c, inner, columns) for c in constants)
        _share(partial(_map_columns, *arrays, *wide), arrays[0].shape[0], workers)
    return None


def _taken(*arrays: Array | None) -> bool:
    """Whether loops pay, and numba knows the dtypes: it has no float16."""
    some = [array for array in arrays if array is not None]
    return some[0].size > blocked.SMALL and all(array.dtype.itemsize >= 4 for array in some)


def _as_columns(x: Array, *others: Array | None) -> Iterator[tuple[int, list[Any]]]:
    """View arrays as rows, of several samples where one is short; what is left over comes last."""
    row = x[0].size
    columns = max(1, min(CHUNK // row, len(x))) * row
    whole = x.size // columns * columns
    for part, width in (np.s_[:whole], columns), (np.s_[whole:], row):
        arrays = [a if a is None else a.reshape(-1)[part].reshape(-1, width) for a in (x, *others)]
        yield width, arrays


def _widen(channels: Array | None, inner: int, columns: int) -> Array | None:
    """Repeat one number a channel so that there is one for each column."""
    if channels is None:
        return None
    row = channels.repeat(inner)
    wide = np.empty((columns // row.size, row.size), row.dtype)
    wide[:] = row
    return wide.reshape(-1)


def _share(work: Callable[[int, int], Any], count: int, workers: int) -> list[Any]:
    """Split ``range(count)`` evenly among threads."""
    if workers == 1 or count < workers:
        return [work(0, count)]
    cuts = [count * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, cuts[:-1], cuts[1:]))


def few_forward(
    x: Array, gamma: Array | None, beta: Array | None, epsilon: float | None
) -> tuple[Array | None, Array, Array]:
    """Return y (None where epsilon is), mean and variance, all computed in float64."""
    if epsilon is None:
        return None, *_few_moments(x)
    channels = x.shape[1]
    g = _constant(1.0, channels) if gamma is None else gamma
    b = _constant(0.0, channels) if beta is None else beta
    result: tuple[Array, Array, Array] = _few_forward(x, g, b, epsilon)
    return result


def few_normalize(x: Array, mean: Array, scale: Array, beta: Array | None) -> Array:
    """``scale (x - mean) + beta`` in float64, as an array of the dtype of x."""
    y: Array = _few_normalize(x, mean, scale, _constant(0.0, len(mean)) if beta is None else beta)
    return y


@lru_cache(maxsize=64)
def _constant(value: float, channels: int) -> Array:
    return np.full(channels, value)


@compiled
def _few_forward(x, gamma, beta, epsilon):  # type: ignore[no-untyped-def]
    mean, variance = _few_moments(x)
    scale = gamma / np.sqrt(variance + epsilon)
    return _few_normalize(x, mean, scale, beta), mean, variance


@compiled
def _few_moments(x):  # type: ignore[no-untyped-def]
    m, channels = x.shape
    mean, variance = np.zeros(channels), np.zeros(channels)
    if x.itemsize == 8:
        return _exact_moments(x)
    # Deviations from the first row: their mean² is at most m variances, which float64 can bear.
    first = x[0].astype(np.float64)
    for i in range(1, m):
        for j in range(channels):
            v = x[i, j] - first[j]
            mean[j] += v
            variance[j] += v * v
    for j in range(channels):
        mean[j] /= m
        variance[j] = max(variance[j] / m - mean[j] * mean[j], 0.0)
        mean[j] += first[j]
    return mean, variance


@compiled
def _exact_moments(x):  # type: ignore[no-untyped-def]
    m, channels = x.shape
    total, rest, squares = np.zeros((3, 2, channels))
    for i in range(m):
        _add_exactly(x[i], total[0], total[1])
    mean = (total[0] + total[1]) / m
    v, square = np.empty((2, channels))
    for i in range(m):
        for j in range(channels):
            v[j] = x[i, j] - mean[j]
            square[j] = v[j] * v[j]
        _add_exactly(v, rest[0], rest[1])
        _add_exactly(square, squares[0], squares[1])
    correction = (rest[0] + rest[1]) / m
    variance = (squares[0] + squares[1]) / m - correction * correction
    return mean + correction, np.maximum(variance, 0.0)


@compiled
def _few_normalize(x, mean, scale, beta):  # type: ignore[no-untyped-def]
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = scale[j] * (x[i, j] - mean[j]) + beta[j]
    return y


@compiled
def few_backward(dy, x, mean, inv_std, scale):  # type: ignore[no-untyped-def]
    """Return dx in the dtype of x, dgamma and dbeta, all computed in float64."""
    m, channels = x.shape
    dgamma, dbeta = np.zeros(channels), np.zeros(channels)
    for i in range(m):
        for j in range(channels):
            dbeta[j] += dy[i, j]
            dgamma[j] += dy[i, j] * (x[i, j] - mean[j])
    dgamma *= inv_std
    b, c = dgamma * inv_std / m, dbeta / m
    dx = np.empty_like(x)
    for i in range(m):
        for j in range(channels):
            dx[i, j] = scale[j] * (dy[i, j] - c[j] - b[j] * (x[i, j] - mean[j]))
    return dx, dgamma, dbeta


@compiled
def _sum_columns(x, dy, k, some, start, stop):  # type: ignore[no-untyped-def]
    total = np.zeros((2, 2, k.size))
    for left in range(0, k.size, CHUNK):
        right = min(left + CHUNK, k.size)
        few = np.empty((2, right - left), k.dtype)
        for top in range(start, stop, some):
            few[:] = 0
            for r in range(top, min(top + some, stop)):
                if dy is None:
                    _add_square(x[r, left:right], k[left:right], few[0], few[1])
                else:
                    _add_product(x[r, left:right], dy[r, left:right], k[left:right], few[0], few[1])
            _add_exactly(few[0], total[0, 0, left:right], total[0, 1, left:right])
            _add_exactly(few[1], total[1, 0, left:right], total[1, 1, left:right])
    return total[:, 0] + total[:, 1]


@compiled
def _sum_planes(x, dy, k, some, start, stop):  # type: ignore[no-untyped-def]
    result = np.empty((2, stop - start))
    outer, _, inner = x.shape
    lanes = min(inner, 4 * LANES)
    for c in range(start, stop):
        total = np.zeros((2, 2, lanes))
        few = np.zeros((2, lanes), k.dtype)
        shift = np.full(lanes, k[c], k.dtype)
        rows = 0
        for o in range(outer):
            for left in range(0, inner, lanes):
                right = min(left + lanes, inner)
                if dy is None:
                    _add_square(x[o, c, left:right], shift, few[0], few[1])
                else:
                    _add_product(x[o, c, left:right], dy[o, c, left:right], shift, few[0], few[1])
                rows += 1
                if rows % some == 0 or (o == outer - 1 and right == inner):
                    _add_exactly(few[0], total[0, 0], total[0, 1])
                    _add_exactly(few[1], total[1, 0], total[1, 1])
                    few[:] = 0
        result[:, c - start] = _fold(np.ascontiguousarray(total[:, 0]).reshape(2, lanes, 1))[:, 0]
        result[:, c - start] += _fold(np.ascontiguousarray(total[:, 1]).reshape(2, lanes, 1))[:, 0]
    return result


@compiled
def _fold(parts):  # type: ignore[no-untyped-def]
    total = np.zeros((2, 2, parts.shape[2]))
    for i in range(2):
        for row in parts[i]:
            _add_exactly(row, total[i, 0], total[i, 1])
    return total[:, 0] + total[:, 1]


@compiled
def _add_square(x, k, total, squares):  # type: ignore[no-untyped-def]
    for j in range(x.size):
        v = x[j] - k[j]
        total[j] += v
        squares[j] += v * v


@compiled
def _add_product(x, dy, k, total, products):  # type: ignore[no-untyped-def]
    for j in range(x.size):
        total[j] += dy[j]
        products[j] += dy[j] * (x[j] - k[j])


@compiled
def _add_exactly(few, total, error):  # type: ignore[no-untyped-def]
    for j in range(few.size):
        b = np.float64(few[j])
        a = total[j]
        total[j] = a + b
        rounded = total[j] - a
        error[j] += (a - (total[j] - rounded)) + (b - rounded)


@compiled
def _map_columns(x, dy, out, k, s, t, f, start, stop):  # type: ignore[no-untyped-def]
    for r in range(start, stop):
        if dy is None:
            for j in range(x.shape[1]):
                out[r, j] = s[j] * (x[r, j] - k[j]) + t[j]
        else:
            for j in range(x.shape[1]):
                out[r, j] = f[j] * (dy[r, j] + s[j] * (x[r, j] - k[j]) + t[j])


@compiled
def _map_planes(x, dy, out, k, s, t, f, start, stop):  # type: ignore[no-untyped-def]
    for o in range(x.shape[0]):
        for c in range(start, stop):
            if dy is None:
                for i in range(x.shape[2]):
                    out[o, c, i] = s[c] * (x[o, c, i] - k[c]) + t[c]
            else:
                for i in range(x.shape[2]):
                    out[o, c, i] = f[c] * (dy[o, c, i] + s[c] * (x[o, c, i] - k[c]) + t[c])
