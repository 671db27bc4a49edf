"""Whether sums and constants in the dtype of x are good enough, judged by what came out."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnkit.arguments import Array

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# An unshifted sum of squares, or product with x, loses digits once the mean is large against the
# spread. Up to this ratio of mean² to variance the loss is below the rounding of the result.
LIMIT = {FLOAT32: 4.0, FLOAT64: 0.25}
SMALLEST = {FLOAT32: 1e-30, FLOAT64: 1e-290}  # below it, squares may have underflowed


def settled(margin: Array, dtype: np.dtype[Any]) -> Array:
    """Where ``LIMIT * variance - mean²`` says that a channel was summed accurately."""
    return (margin >= SMALLEST[dtype]) & (margin < np.inf)


def all_settled(margin: Array, dtype: np.dtype[Any]) -> bool:
    """Whether every channel is: NaN counts as the smallest of all, and is none."""
    return bool(margin[margin.argmin()] >= SMALLEST[dtype] and margin[margin.argmax()] < np.inf)


def moderate(constants: Array) -> bool:
    """Whether float32 holds these constants, and products with them."""
    sizes = np.abs(constants)
    if sizes[sizes.argmin()] > 1e-30 and sizes[sizes.argmax()] < 1e30:
        return True
    return not np.any((sizes > 1e30) | ((sizes < 1e-30) & (sizes > 0)))
