"""What an argument may be: checks that name it, and the rule for dtypes.

Each check returns the argument in the form that the formulas want, or raises an error that
names the argument, says what came and what was wanted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
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
    return np.dtype(np.float32) if is_integer(dtype) else np.result_type(dtype, np.float32)


@cache
def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype holds booleans or integers: NumPy's, or the narrow ones of ml_dtypes."""
    if dtype.kind == "V" and np.can_cast(dtype, np.float32):  # as ml_dtypes registers its types
        return not np.array(0.5, np.float32).astype(dtype).astype(np.float32)
    return dtype.kind in "biu"


@cache
def sum_dtype(dtype: np.dtype[Any] | str) -> np.dtype[Any]:
    """Dtype that sums over an input of the given dtype are added up in: at least float64."""
    return np.result_type(compute_dtype(dtype), np.float64)


@cache
def output_dtype(dtype: np.dtype[Any] | str) -> np.dtype[Any]:
    """Dtype of the result for an input of the given dtype: the same, or float32 for integers."""
    dtype = np.dtype(dtype)
    return compute_dtype(dtype) if is_integer(dtype) else dtype


def check_plain(name: str, value: ArrayLike) -> Array:
    """Return ``value`` as an array; TypeError where that would drop a part of its meaning.

    A mask, a unit or a record of gradients is no number, and ``np.asarray`` leaves it out.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(
            f"{name} must not have masked entries, got {type(value).__name__}: pass its data, and "
            "the positions that count as mask where there is such an argument"
        )
    if hasattr(value, "unit") or hasattr(value, "units"):
        raise TypeError(
            f"{name} must hold numbers without a unit, got {type(value).__name__}: pass its values"
        )
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{name} must not require gradients, which NumPy cannot follow: pass "
            f"{name}.detach(), or use bnkit.torch"
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must hold an array of numbers: {error}") from error
    except Exception as error:  # what a foreign array says when it is no numbers
        raise TypeError(
            f"{name} must hold real numbers, got {type(value).__name__}: {error}"
        ) from error


def check_real(name: str, value: ArrayLike) -> Array:
    """Return ``value`` as an array of real numbers; TypeError otherwise."""
    array = check_plain(name, value)
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


def check_axis(axis: int | Sequence[int], ndim: int) -> int:
    """Return ``axis``, or the one that a list names, counted from the front."""
    if isinstance(axis, (list, tuple)) and len(axis) == 1:  # as Keras 2 writes it
        (axis,) = axis
    try:
        index = operator.index(axis)  # type: ignore[arg-type]
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
    value = check_number("epsilon", epsilon)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon!r}")
    return value


def check_momentum(momentum: float, name: str = "momentum") -> float:
    """Return ``momentum``, which weighs the old value, as a number in [0, 1]."""
    if momentum is None:
        raise TypeError(
            f"{name} must be a number in [0, 1], got None. What PyTorch means by it, the average "
            "over all batches alike, is bnkit.population_moments"
        )
    value = check_number(name, momentum)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {momentum!r}")
    return value


def check_number(name: str, value: float) -> float:
    """Return ``value`` as a float; TypeError when it is no single real number."""
    if type(value) is float:
        return value
    array = check_plain(name, value)
    if array.ndim != 0 or array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(array)


def check_mask(mask: ArrayLike | None, x: Array, axis: int) -> Array | None:
    """Return ``mask`` with a channel axis of length 1, so that it broadcasts against x."""
    if mask is None:
        return None
    array = check_plain("mask", mask)
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
