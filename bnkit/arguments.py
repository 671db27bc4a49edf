"""What an argument may be: checks that name it, and the rule for dtypes.

Each check returns the argument in the form that the formulas want, or raises an error that
names the argument, says what came and what was wanted.
"""

from __future__ import annotations

import math
import operator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

CACHE_LINE = 64  # bytes; a store that crosses the border of two lines takes twice as long


@cache
def compute_dtype(dtype: np.dtype[Any] | str) -> np.dtype[Any]:
    """Dtype that an input of the given dtype is computed in: at least float32.

    Integers and booleans become float32, float16 and bfloat16 become float32, wider floats
    stay as they are.
    """
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype.kind in "biu" else np.result_type(dtype, np.float32)


@cache
def sum_dtype(dtype: np.dtype[Any] | str) -> np.dtype[Any]:
    """Dtype that sums over an input of the given dtype are added up in: at least float64."""
    return np.result_type(compute_dtype(dtype), np.float64)


@cache
def output_dtype(dtype: np.dtype[Any] | str) -> np.dtype[Any]:
    """Dtype of the result for an input of the given dtype: the same, or float32 for integers."""
    dtype = np.dtype(dtype)
    return compute_dtype(dtype) if dtype.kind in "biu" else dtype


def check_real(name: str, value: ArrayLike) -> Array:
    """Return ``value`` as an array of real numbers; TypeError otherwise."""
    array = np.asarray(value)
    # The bfloat16 and float8 types of ml_dtypes register themselves with kind "V".
    kind = array.dtype.kind
    if kind not in "biuf" and not (kind == "V" and np.can_cast(array.dtype, np.float32)):
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def check_input(x: ArrayLike) -> Array:
    """Return ``x`` as a real array of rank 2 or more."""
    array = check_real("x", x)
    if array.ndim < 2:
        raise ValueError(
            f"x must have rank 2 or more (batch and channels), got shape {array.shape}"
        )
    return array


def check_axis(axis: int, ndim: int) -> int:
    """Return ``axis`` counted from the front."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None
    if not -ndim <= index < ndim:
        raise ValueError(f"axis must lie in [{-ndim}, {ndim}) for x of rank {ndim}, got {index}")
    return index % ndim


def check_like(name: str, value: ArrayLike, x: Array) -> Array:
    """Return ``value`` as a real array of the shape of x."""
    array = check_real(name, value)
    if array.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, got {array.shape}")
    return array


def check_channels(name: str, value: ArrayLike, x: Array, axis: int) -> Array:
    """Return ``value``, one number a channel, as an array of shape (C,) in the dtype of sums."""
    array = check_real(name, value)
    if array.shape != (x.shape[axis],):
        raise ValueError(
            f"{name} must have shape ({x.shape[axis]},), one value for each channel of x "
            f"{x.shape} on axis {axis}, got {array.shape}"
        )
    return array.astype(sum_dtype(x.dtype))


def check_optional_channels(
    name: str, value: ArrayLike | None, x: Array, axis: int
) -> Array | None:
    """Return ``value`` as ``check_channels`` does, or None when it is None."""
    return None if value is None else check_channels(name, value, x, axis)


def check_variance(variance: ArrayLike, x: Array, axis: int) -> Array:
    """Return ``variance`` as an array of shape (C,) without negative entries."""
    array = check_channels("variance", variance, x, axis)
    smallest = np.fmin.reduce(array, initial=0)  # fmin passes over NaN
    if smallest < 0:
        raise ValueError(f"variance must not be negative, got a minimum of {smallest}")
    return array


def check_epsilon(epsilon: float) -> float:
    """Return ``epsilon`` as a finite number that is not negative."""
    number = type(epsilon) is float or (
        np.ndim(epsilon) == 0 and np.asarray(epsilon).dtype.kind in "biuf"
    )
    if not number:
        raise TypeError(f"epsilon must be a number, got {epsilon!r}")
    value = float(epsilon)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon!r}")
    return value


def check_mask(mask: ArrayLike | None, x: Array, axis: int) -> Array | None:
    """Return ``mask`` with a channel axis of length 1, so that it broadcasts against x."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype.kind not in "biu":
        raise TypeError(f"mask must hold booleans, got dtype {array.dtype}")
    wanted = x.shape[:axis] + x.shape[axis + 1 :]
    if array.shape != wanted:
        raise ValueError(
            f"mask must have the shape of x without the channel axis, {wanted}, got {array.shape}"
        )
    return np.expand_dims(array.astype(bool), axis)


def check_out(out: Array | None, x: Array) -> Array | None:
    """Return ``out`` when a result for x fits into it."""
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    wanted = output_dtype(x.dtype)
    if out.shape != x.shape or out.dtype != wanted:
        raise ValueError(
            f"out must have shape {x.shape} and dtype {wanted}, got {out.shape} and {out.dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    return out


def check_apart(out: Array | None, x: Array) -> None:
    """Refuse an ``out`` that overlaps x, which a backward pass is still to read."""
    if out is not None and np.shares_memory(out, x):
        raise ValueError("out must not overlap x, which a backward pass still reads")


def other_axes(ndim: int, axis: int) -> tuple[int, ...]:
    """Return all axes but the channels' own: those that statistics run over."""
    return tuple(k for k in range(ndim) if k != axis)


def along(channels: Array, axis: int, ndim: int) -> Array:
    """Return a vector of shape (C,) as a view that broadcasts along ``axis`` of rank ``ndim``."""
    return channels.reshape([-1 if k == axis else 1 for k in range(ndim)])


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a new array that begins with a cache line."""
    size = math.prod(shape)
    if size < 1 << 15:  # then it is not worth the search
        return np.empty(shape, dtype)
    spare = np.empty(size + CACHE_LINE // dtype.itemsize, dtype)
    start = -spare.ctypes.data % CACHE_LINE // dtype.itemsize
    return spare[start : start + size].reshape(shape)
