"""The fast passes over memory behind ``bnkit.functional``, and the settings that choose them.

``functional`` and ``moments`` are the readable definition. Here the same formulas are folded into
a few constants a channel and handed to one of two backends that know how to walk through memory:
``blocked`` (NumPy) or ``compiled`` (numba). They take dense arrays of float16, float32 and
float64, without a mask. For anything else the functions here return None, and the definition
does the work.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from types import ModuleType
from typing import Any

import numpy as np

from bnkit.arguments import Array, aligned, compute_dtype, output_dtype
from bnkit.kernels.blocks import SMALL
from bnkit.kernels.digits import FLOAT32, FLOAT64, LIMIT, all_settled, moderate, settled

BACKENDS = {"numpy": "bnkit.kernels.blocked", "numba": "bnkit.kernels.compiled"}
PARALLEL = 1 << 20  # elements from which on another thread is worth its start

TAKEN = {np.dtype(np.float16), FLOAT32, FLOAT64}


def set_backend(name: str) -> None:
    """Choose what walks through memory: "numpy", or "numba", which must be installed.

    The environment variable ``BNKIT_BACKEND`` chooses it at the start; where it is empty or
    missing, "numpy" is chosen.

    Raises:
        ValueError: no such backend.
        ImportError: numba is not installed.

    >>> set_backend("numpy")
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)}, got {name!r}")
    if name == "numba" and importlib.util.find_spec("numba") is None:
        raise ImportError("the backend 'numba' needs numba: pip install numba")
    _backend = importlib.import_module(BACKENDS[name])


def set_threads(count: int | str) -> None:
    """Choose how many threads share the work on arrays of a million elements and more.

    The environment variable ``BNKIT_THREADS`` chooses it at the start; where it is empty or
    missing, there is one.

    Raises:
        ValueError: no integer, or one below 1.

    >>> set_threads(1)
    """
    global _threads
    try:
        number = int(count)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ValueError(f"the number of threads must be an integer of 1 or more, got {count!r}")
    _threads = number


def forward(
    x: Array,
    axis: int,
    gamma: Array | None,
    beta: Array | None,
    epsilon: float,
    out: Array | None,
) -> tuple[Array, Array, Array] | None:
    """y, mean and variance of a small array at once: a call costs more there than arithmetic."""
    if not _is_few(x, axis, out):
        return None
    found = _backend.few_forward(_rows(x), gamma, beta, epsilon)
    return found and (_place(found[0].reshape(x.shape), out), *found[1:])


def moments(x: Array, axis: int) -> tuple[Array, Array] | None:
    """Mean and biased variance of each channel, in float64.

    The first look sums x and x² as they are. Where the result shows that this was not accurate
    (a large mean, squares outside the range of the dtype), a second look sums deviations from
    the mean that was found, and a third does so in float64. A channel that is settled keeps
    its result, so that no channel changes the digits of another one.
    """
    few = _backend.few_forward(_rows(x), None, None, None) if _is_few(x, axis) else None
    if few is not None:
        return few[1:]
    folded, dtype = _fold(x, axis), compute_dtype(x.dtype)
    if folded is None:
        return None
    mean, variance, margin = _look(folded, None, dtype)
    if all_settled(margin, dtype):
        return mean, variance
    done = settled(margin, dtype) | _zero_channels(folded, variance)
    for again in (dtype, FLOAT64):
        if done.all():
            break
        shift = np.where(done | ~np.isfinite(mean), 0, mean).astype(dtype).astype(again)
        centre, spread, margin = _look(folded, shift, again)
        mean, variance = np.where(done, mean, centre), np.where(done, variance, spread)
        done |= settled(margin, again)
    return mean, np.maximum(variance, 0)


def _look(x: Array, shift: Array | None, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """Mean, variance, and a margin that is negative where they are not accurate."""
    offset, squares = _backend.sums(x, None, shift, dtype, _workers(x)) / (x.shape[0] * x.shape[2])
    square = offset * offset
    variance = squares - square
    mean = offset if shift is None else offset + shift
    return mean, variance, LIMIT[dtype] * variance - square


def _zero_channels(x: Array, variance: Array) -> Array:
    """Whether a channel holds nothing but zeros, as that of a dead unit does."""
    zero = variance == 0
    for channel in np.flatnonzero(zero):
        zero[channel] = not x[:, channel].any()
    return zero


def normalize(
    x: Array,
    axis: int,
    mean: Array,
    variance: Array,
    scale: Array,
    beta: Array | None,
    out: Array | None,
) -> Array | None:
    """``scale (x - mean) + beta``, folded into ``scale (x - k) + t``."""
    few = _backend.few_normalize(_rows(x), mean, scale, beta) if _is_few(x, axis, out) else None
    if few is not None:
        return _place(few.reshape(x.shape), out)
    folded, y = _fold(x, axis), _result(x, x, out)
    if folded is None or y is None:
        return None
    shift, offset = _shift(x, mean, variance)
    dtype = _map_dtype(x, scale)
    scale = scale.astype(dtype)
    t = scale * -offset
    if beta is not None:
        t += beta
    target = y.reshape(folded.shape)
    _backend.affine(folded, shift, scale, t.astype(dtype), target, workers=_workers(x))
    return _place(y, out)


def backward(
    dy: Array,
    x: Array,
    axis: int,
    mean: Array,
    variance: Array,
    gamma: Array | None,
    epsilon: float,
    out: Array | None,
) -> tuple[Array, Array, Array] | None:
    """dx, dgamma and dbeta, with ``dx = a (dy + b (x - mean) + c)`` folded as in ``normalize``."""
    if _is_few(x, axis, out) and _is_few(dy, axis, out):
        found = _backend.few_backward(_rows(dy), _rows(x), mean, variance, gamma, epsilon)
        if found is not None:
            return _place(found[0].reshape(x.shape), out), *found[1:]
    folded, gradient, dx = _fold(x, axis), _fold(dy, axis), _result(x, dy, out)
    if folded is None or gradient is None or dx is None:
        return None
    inv_std = np.reciprocal(np.sqrt(variance + epsilon))
    a = inv_std if gamma is None else gamma * inv_std
    shift, offset = _shift(x, mean, variance)
    dbeta, dgamma = _sums(folded, gradient, shift, offset, variance, inv_std)
    count = -(x.size // x.shape[axis])
    b = inv_std * dgamma / count
    dtype = _map_dtype(x, a, b)
    b = b.astype(dtype)
    c = (dbeta / count - b * offset).astype(dtype)
    target = dx.reshape(folded.shape)
    _backend.affine(folded, shift, b, c, target, gradient, a.astype(dtype), _workers(x))
    return _place(dx, out), dgamma, dbeta


def inference_backward(
    dy: Array, x: Array, axis: int, mean: Array, variance: Array, inv_std: Array, scale: Array
) -> tuple[Array, Array, Array] | None:
    """dx, dgamma and dbeta where mean and variance are constants: ``dx = scale dy``."""
    folded, gradient, dx = _fold(x, axis), _fold(dy, axis), _result(x, dy, None)
    if folded is None or gradient is None or dx is None:
        return None
    dbeta, dgamma = _sums(folded, gradient, *_shift(x, mean, variance), variance, inv_std)
    scale = scale.astype(_map_dtype(x, scale))
    target = dx.reshape(folded.shape)
    _backend.affine(gradient, None, scale, None, target, workers=_workers(x))
    return dx, dgamma, dbeta


def _sums(
    x: Array, dy: Array, shift: Array | None, offset: Array, variance: Array, inv_std: Array
) -> tuple[Array, Array]:
    """Sums of dy and of ``dy x_hat`` over each channel, in float64."""
    dtype = _map_dtype(x, variance)
    both = _backend.sums(x, dy, shift, dtype, _workers(x))
    if dtype != FLOAT64 and not math.isfinite(np.vdot(both, both)):  # beyond float32, or NaN
        both = np.where(np.isfinite(both), both, _backend.sums(x, dy, shift, FLOAT64, _workers(x)))
    total, product = both
    return total, inv_std * (product - total * offset)


def _is_few(x: Array, axis: int, out: Array | None = None) -> bool:
    """Whether an array in rows is small enough to go straight through, by way of a copy to out."""
    if not 0 < x.size <= (_backend.FEW if out is None else SMALL):
        return False
    taken = x.dtype == FLOAT32 or x.dtype == FLOAT64
    return taken and x.flags.c_contiguous and axis == x.ndim - 1 and x.shape[-1] >= 4


def _rows(x: Array) -> Array:
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _fold(x: Array, axis: int) -> Array | None:
    """View a dense array as (outer, C, inner); what is strided and small is made dense."""
    if x.dtype not in TAKEN or x.size == 0 or not (x.flags.c_contiguous or x.size <= SMALL):
        return None
    shape = x.shape
    return np.ascontiguousarray(x).reshape(
        math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    )


def _result(x: Array, source: Array, out: Array | None) -> Array | None:
    """Return a dense array for a result of x: ``out`` if blocks can be written into it.

    A block is written before the next one of the source is read, so ``out`` must be the source
    itself or lie apart from it. What is small is copied to ``out`` in the end.
    """
    dense = out is not None and out.dtype in TAKEN and out.flags.c_contiguous
    if dense and (out is source or not np.may_share_memory(out, source)):
        return out
    return aligned(x.shape, output_dtype(x.dtype)) if out is None or x.size <= SMALL else None


def _place(result: Array, out: Array | None) -> Array:
    if out is None or out is result:
        return result
    np.copyto(out, result)
    return out


def _shift(x: Array, mean: Array, variance: Array) -> tuple[Array | None, Array]:
    """What to take off x first, the mean where it is large, and what is left of the mean then."""
    dtype = compute_dtype(x.dtype)
    margin = LIMIT[dtype] * variance - mean * mean
    if margin[margin.argmin()] >= 0:
        return None, mean
    shift = np.where(margin >= 0, 0, mean).astype(dtype)
    return shift, mean - shift


def _map_dtype(x: Array, *constants: Array) -> np.dtype[Any]:
    """Dtype to compute in: that of x, or float64 where float32 could not hold the constants."""
    dtype = compute_dtype(x.dtype)
    return dtype if dtype == FLOAT64 or all(map(moderate, constants)) else FLOAT64


def _workers(x: Array) -> int:
    return _threads if x.size >= PARALLEL else 1


_backend: ModuleType
_threads: int
set_backend(os.environ.get("BNKIT_BACKEND") or "numpy")
set_threads(os.environ.get("BNKIT_THREADS") or 1)
