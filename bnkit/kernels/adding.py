"""Sums over the rows or the planes of a block: BLAS adds a few values, float64 adds these sums.

A product with a vector of ones is the fastest sum that NumPy has (44 ps a value, where
``add.reduce`` takes 72), and it does not hold Python's lock. Each product is short: below the size
at which BLAS would start threads of its own, and too short to lose digits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from bnkit.arguments import Array

FLOAT64 = np.dtype(np.float64)

# How many rows BLAS adds up at a time, at most: float64 is for those who count its digits.
ROWS = {np.dtype(np.float32): 16, FLOAT64: 8}
LAST = 16  # how many sums it adds up in the end
MOST = 256  # how many rows are added up in float32 in all
STRETCH = {np.dtype(np.float32): 512, FLOAT64: 64}  # how many values of a plane, the same way


def add_planes(a: Array, b: Array | None) -> Array:
    """Sum a, or a b, over all axes but the channels: short stretches by BLAS, then in float64."""
    outer, channels, length = a.shape
    stretch = STRETCH[a.dtype]
    cut = length // stretch * stretch
    total = np.zeros(channels)
    for start, stop, n in ((0, cut, stretch), (cut, length, length - cut)):
        if start < stop:
            shape = outer, channels, -1, n
            left = a[..., start:stop].reshape(shape)
            right = ones(n, a.dtype) if b is None else b[..., start:stop].reshape(shape)
            total += np.vecdot(left, right).sum((0, 2), dtype=np.float64)
    return total


def add_rows(block: Array, summed: int = 1) -> Array:
    """Sum over the rows: BLAS adds a few of them, then a few of these sums, and so on.

    A long chain of additions may round the same way each time, when the values are multiples of
    one number, as deviations from a large mean are. Sums of more than ``MOST`` rows are in float64.
    """
    rows, width = block.shape
    if rows <= LAST:
        return ones(rows, block.dtype) @ block
    some = _some(rows, ROWS[block.dtype])
    whole = rows // some * some
    partial = ones(some, block.dtype) @ block[:whole].reshape(-1, some, width)
    if summed * some >= MOST:
        partial = partial.astype(FLOAT64, copy=False)
    total = add_rows(partial, summed * some)
    return total if whole == rows else total + add_rows(block[whole:])


@lru_cache(maxsize=64)
def _some(rows: int, most: int) -> int:
    """Return how many rows to add up at a time: so that none is left over, if that can be."""
    return next((some for some in range(most, most // 2, -1) if rows % some == 0), most)


@lru_cache(maxsize=64)
def ones(length: int, dtype: np.dtype[Any]) -> Array:
    """Return a vector of ones, always the same one."""
    return np.ones(length, dtype)
