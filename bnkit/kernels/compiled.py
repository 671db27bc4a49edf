r"""The passes over memory, compiled by numba: loops that touch each value once a pass.

NumPy puts its result down after every operation, so ``blocked`` has to keep blocks in the cache.
A compiled loop keeps it in a register: one pass reads x (and dy) and adds up, the other one reads
again and writes. What remains is the question of digits. A long sum in float32 loses them, and
one in float64 takes twice the time; so a few rows are added up in the dtype of x, and these short
sums in float64, with what each addition rounds away kept beside it (Knuth's two-sum).

Arrays are C-contiguous, of shape (outer, C, inner). With a short inner axis they are read as rows
of C * inner columns; with a long one, plane by plane. The loops themselves are in ``loops``; they
run without Python's lock, so plain threads share the work.

What fits into the cache is not a question of memory but of calls and conversions: there one
compiled call does all of a pass in float64, which leaves nothing to be looked after, in half the
time at 512 rows of 256 and two thirds at 1024 rows of 512.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.kernels import blocked, loops
from bnkit.kernels.blocks import SMALL
from bnkit.kernels.loops import LANES

ROWS = {4: 16, 8: 8}  # how many rows are added up in float32, and in float64
FEW = 1 << 19  # elements up to which one call in float64 is faster than passes in float32
WIDTH = 1024  # columns of a row that short samples are read as


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
        planes = _share(
            partial(loops.sum_planes, x, dy, k, ROWS[dtype.itemsize]), channels, workers
        )
        return np.concatenate(planes, axis=1)
    total = np.zeros((2, channels))
    for columns, (rows, gradient) in _as_columns(x, dy):
        wide = _widen(k, inner, columns)
        work = partial(loops.sum_columns, rows, gradient, wide, ROWS[dtype.itemsize])
        for part in _share(work, rows.shape[0], workers):
            parts = part.reshape(2, -1, channels * inner)
            total += loops.fold(parts).reshape(2, channels, inner).sum(2)
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
    k = None if shift is None else shift.astype(scale.dtype)
    constants = k, scale, np.zeros_like(scale) if offset is None else offset, factor
    channels, inner = x.shape[1:]
    if inner >= LANES:
        _share(partial(loops.map_planes, x, dy, out, *constants), channels, workers)
        return None
    for columns, arrays in _as_columns(x, dy, out):
        wide = (_widen(c, inner, columns) for c in constants)
        _share(partial(loops.map_columns, *arrays, *wide), arrays[0].shape[0], workers)
    return None


def _taken(*arrays: Array | None) -> bool:
    """Whether loops pay, and numba knows the dtypes: it has no float16."""
    some = [array for array in arrays if array is not None]
    return some[0].size > SMALL and all(array.dtype.itemsize >= 4 for array in some)


def _as_columns(x: Array, *others: Array | None) -> Iterator[tuple[int, list[Any]]]:
    """View arrays as rows, of several samples where one is short; what is left over comes last."""
    row = x[0].size
    columns = max(1, min(WIDTH // row, len(x))) * row
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
        return None, *loops.few_moments(x)
    channels = x.shape[1]
    g = _constant(1.0, channels) if gamma is None else gamma
    b = _constant(0.0, channels) if beta is None else beta
    result: tuple[Array, Array, Array] = loops.few_forward(x, g, b, epsilon)
    return result


def few_normalize(x: Array, mean: Array, scale: Array, beta: Array | None) -> Array:
    """``scale (x - mean) + beta`` in float64, as an array of the dtype of x."""
    y: Array = loops.few_normalize(
        x, mean, scale, _constant(0.0, len(mean)) if beta is None else beta
    )
    return y


def few_backward(
    dy: Array, x: Array, mean: Array, variance: Array, gamma: Array | None, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return dx in the dtype of x, dgamma and dbeta, all computed in float64."""
    g = _constant(1.0, len(mean)) if gamma is None else gamma
    result: tuple[Array, Array, Array] = loops.few_backward(dy, x, mean, variance, g, epsilon)
    return result


@lru_cache(maxsize=64)
def _constant(value: float, channels: int) -> Array:
    return np.full(channels, value)
