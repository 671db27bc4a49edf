r"""Batch normalization's passes over memory, in NumPy: blocks that stay in the cache.

Per channel, forward is :math:`y = s (x - k) + t` and backward is
:math:`dx = a (g + b (x - k) + c)`. So each of them needs two passes: one that sums over the
batch, and one that maps each value by a few constants of its channel. A pass written in whole
arrays goes through memory once for every operation; here it goes through blocks of half a
megabyte, all operations on one block before the next, so that memory is read once a pass and
temporaries never leave the cache. The second pass runs backwards: what the first one read last
is still at hand.

The shift k is 0 unless the data ask for more (see ``moments``). Arrays are C-contiguous, of shape
(outer, C, inner): whatever the layout was, its channels are one axis of three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from bnkit.arguments import Array, aligned

FLOAT64 = np.dtype(np.float64)

BLOCK = 1 << 19  # bytes to map at a time: what is read and written stays in the second-level cache
SUMMED = 1 << 20  # bytes to sum at a time: more, since each block costs ten calls
WIDTH = 1 << 12  # elements of a row of constants: long inner loops, and they stay close
NARROW = 1 << 10  # elements of a row to be summed
SMALL = 1 << 16  # elements that make one block, whatever their layout
FEW = 1 << 13  # elements that are computed in float64 throughout
# How many rows BLAS adds up at a time: float64 is for those who count its digits.
ROWS = {np.dtype(np.float32): 16, FLOAT64: 4}
MOST = 256  # how many rows are added up in float32 in all
STRETCH = {np.dtype(np.float32): 512, FLOAT64: 64}  # how many values of a plane, the same way
PLANE = 64  # from this length on, the inner axis is summed by itself


Step = Callable[["Block"], Any]


class Block(NamedTuple):
    """A contiguous piece of an array: where it lies, and which constants belong to it."""

    span: slice
    shape: tuple[int, int, int]
    channels: slice
    inner: slice

    def of(self, array: Array) -> Array:
        """Return this piece of an array, in the shape of the block."""
        return array.reshape(-1)[self.span].reshape(self.shape)

    def of_constants(self, spread: Array | None) -> Any:
        """Return the constants of this piece; None for None."""
        return None if spread is None else spread[self.channels, self.inner]


def sums(
    x: Array, dy: Array | None, shift: Array | None, dtype: np.dtype[Any], workers: int = 1
) -> Array:
    """Sums of a and of a (x - shift) over each channel: shape (2, C), float64.

    Here a is dy, or x - shift itself when dy is None.
    """
    if x.size <= SMALL and x.shape[2] == 1:
        return _small_sums(x[:, :, 0], None if dy is None else dy[:, :, 0], shift, dtype)
    planes, row = x.shape[2] >= PLANE, x.shape[1] * x.shape[2]
    blocks, largest, width = _plan(x.shape, 0 if planes else NARROW, SUMMED // dtype.itemsize)
    spread = _spread(shift, x.shape, planes, width)
    converted = dy is not None and dy.dtype != dtype

    def make_step() -> Step:
        room = aligned((largest,), dtype)
        second_room = aligned((largest if converted else 0,), dtype)

        def step(block: Block) -> Array:
            v = _load(block.of(x), block.of_constants(spread), room)
            a = v if dy is None else _load(block.of(dy), None, second_room)
            if planes:
                result = np.zeros((2, x.shape[1]))
                result[:, block.channels] = _add_planes(a, None), _add_planes(a, v)
                return result
            wide = np.empty((2, v.shape[2]))
            wide[0] = _add_rows(a[:, 0])
            wide[1] = _add_rows(np.multiply(a, v, out=_within(room, v))[:, 0])
            if wide.size == 2 * x.shape[1]:
                return wide
            result = np.stack([_add_rows(part.reshape(-1, row)) for part in wide])
            return result.reshape(2, *x.shape[1:]).sum(2)

        return step

    return np.asarray(_walk(blocks, make_step, workers))


def _small_sums(x: Array, dy: Array | None, shift: Array | None, dtype: np.dtype[Any]) -> Array:
    """The same at once."""
    v = x.astype(dtype, copy=False)
    if shift is not None:
        v = v - shift
    a = v if dy is None else dy.astype(dtype, copy=False)
    result = np.empty((2, x.shape[1]))
    result[0], result[1] = _add_rows(a), _add_rows(a * v)
    return result


def few_forward(
    x: Array, gamma: Array | None, beta: Array | None, epsilon: float | None
) -> tuple[Array | None, Array, Array]:
    """Return y (None where epsilon is), mean and variance, all computed in float64."""
    v, m = x.astype(FLOAT64, copy=False), len(x)
    # Values of float32 leave float64 digits to spare, in any order of addition.
    add: Callable[[Array], Array] = _add_rows if v is x else _ones(m, FLOAT64).dot
    mean = add(v) / m
    v = np.subtract(v, mean, out=None if v is x else v)
    squares = add(v * v) / m
    if add is _add_rows:  # what rounding took from the mean
        rest = add(v) / m
        mean += rest
        squares -= rest * rest
    if epsilon is None:
        return None, mean, squares
    scale = 1 / np.sqrt(squares + epsilon)
    v *= scale if gamma is None else np.multiply(scale, gamma, out=scale)
    if beta is not None:
        v += beta
    return v.astype(x.dtype, copy=False), mean, squares


def few_normalize(x: Array, mean: Array, scale: Array, beta: Array | None) -> Array:
    """``scale (x - mean) + beta`` in float64, as an array of the dtype of x."""
    v = np.subtract(x, mean)
    v *= scale
    if beta is not None:
        v += beta
    return v.astype(x.dtype, copy=False)


def few_backward(
    dy: Array, x: Array, mean: Array, inv_std: Array, scale: Array
) -> tuple[Array, Array, Array]:
    """Return dx in the dtype of x, dgamma and dbeta, all computed in float64."""
    add, v, g = _ones(len(x), FLOAT64).dot, np.subtract(x, mean), dy.astype(FLOAT64, copy=False)
    dbeta, dgamma = add(g), add(g * v) * inv_std
    v *= dgamma * inv_std / -len(x)
    v += g
    v -= dbeta / len(x)
    v *= scale
    return v.astype(x.dtype, copy=False), dgamma, dbeta


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
    if x.size <= SMALL and x.shape[2] == 1:
        flat, target = x[:, :, 0], out[:, :, 0]
        room = (
            np.empty(flat.shape, scale.dtype)
            if dy is not None or out.dtype != scale.dtype
            else target
        )
        _map_values(
            flat, shift, scale, offset, None if dy is None else dy[:, :, 0], factor, room, target
        )
        return
    planes = x.shape[2] >= WIDTH // 4 or x.shape[1] * x.shape[2] > 8 * WIDTH
    blocks, largest, width = _plan(x.shape, 0 if planes else WIDTH, BLOCK // scale.dtype.itemsize)
    constants = [_spread(c, x.shape, planes, width) for c in (shift, scale, offset, factor)]
    dtype = scale.dtype
    direct = out.dtype == dtype and (dy is None or not np.may_share_memory(out, dy))

    def make_step() -> Step:
        room = aligned((0 if direct else largest,), dtype)

        def step(block: Block) -> int:
            v, target = block.of(x), block.of(out)
            k, s, t, a = map(block.of_constants, constants)
            gradient = None if dy is None else block.of(dy)
            work = target if direct else _within(room, v)
            _map_values(v, k, s, t, gradient, a, work, target)
            return 0

        return step

    _walk(blocks[::-1], make_step, workers)


def _map_values(
    v: Array,
    k: Array | None,
    s: Array,
    t: Array | None,
    dy: Array | None,
    a: Array | None,
    work: Array,
    target: Array,
) -> None:
    """``target = a (dy + s (v - k) + t)``, one operation after the other, in ``work``."""
    if k is not None:
        v = np.subtract(v, k, out=work)
    np.multiply(v, s, out=work)
    if dy is not None:
        np.add(work, dy, out=work, casting="same_kind")
    if t is not None:
        np.add(work, t, out=work)
    if a is not None:
        np.multiply(work, a, out=target, casting="same_kind")
    elif work is not target:
        np.copyto(target, work, casting="same_kind")


def _load(block: Array, shift: Array | None, room: Array) -> Array:
    """Return the block less a shift, in the dtype of the room, and there unless it is as wanted."""
    if shift is not None:
        return np.subtract(block, shift, out=_within(room, block), casting="same_kind")
    if block.dtype == room.dtype:
        return block
    work = _within(room, block)
    np.copyto(work, block, casting="same_kind")
    return work


def _within(room: Array, block: Array) -> Array:
    return room[: block.size].reshape(block.shape)


def _add_planes(a: Array, b: Array | None) -> Array:
    """Sum a, or a b, over all axes but the channels: short stretches by BLAS, then in float64."""
    outer, channels, length = a.shape
    stretch = STRETCH[a.dtype]
    cut = length // stretch * stretch
    total = np.zeros(channels)
    for start, stop, n in ((0, cut, stretch), (cut, length, length - cut)):
        if start < stop:
            shape = outer, channels, -1, n
            left = a[..., start:stop].reshape(shape)
            right = _ones(n, a.dtype) if b is None else b[..., start:stop].reshape(shape)
            total += np.vecdot(left, right).sum((0, 2), dtype=np.float64)
    return total


def _add_rows(block: Array, summed: int = 1) -> Array:
    """Sum over the rows: BLAS adds a few of them, then a few of these sums, and so on.

    A long chain of additions may round the same way each time, when the values are multiples of
    one number, as deviations from a large mean are. Sums of more than ``MOST`` rows are in float64.
    """
    rows, width = block.shape
    some = ROWS[block.dtype]
    if rows <= some:
        return _ones(rows, block.dtype) @ block
    whole = rows // some * some
    partial = _ones(some, block.dtype) @ block[:whole].reshape(-1, some, width)
    if summed * some >= MOST and len(partial) > 1:
        partial = partial.astype(FLOAT64, copy=False)
    total = _add_rows(partial, summed * some)
    return total if whole == rows else total + _add_rows(block[whole:])


@lru_cache(maxsize=64)
def _ones(length: int, dtype: np.dtype[Any]) -> Array:
    return np.ones(length, dtype)


@lru_cache(maxsize=256)
def _plan(shape: tuple[int, int, int], target: int, most: int) -> tuple[list[Block], int, int]:
    """Blocks that cover an array, the size of the largest, and the width of their constants."""
    outer, channels, inner = shape
    row = channels * inner
    if not target:
        width, length = inner, min(inner, most)
        some, many = min(channels, most // length), max(1, most // row)
        starts = product(*map(range, (0, 0, 0), shape, (many, some, length)))
        blocks = []
        for i, j, k in starts:
            size = min(many, outer - i), min(some, channels - j), min(length, inner - k)
            start = i * row + j * inner + k
            span = slice(start, start + math.prod(size))
            blocks.append(Block(span, size, slice(j, j + size[1]), slice(k, k + size[2])))
    else:
        width = row * max(1, min(target // row, outer // 64))
        whole = outer * row // width * width
        cuts = [*range(0, whole, max(1, most // width) * width), whole]
        spans = [(start, stop, width) for start, stop in pairwise(cuts)]
        if whole < outer * row:
            spans.append((whole, outer * row, outer * row - whole))
        blocks = [
            Block(slice(a, b), ((b - a) // n, 1, n), slice(0, 1), slice(0, n)) for a, b, n in spans
        ]
    return blocks, max(math.prod(block.shape) for block in blocks), width


def _spread(
    channels: Array | None, shape: tuple[int, int, int], planes: bool, width: int
) -> Array | None:
    """Lay out one number a channel so that it broadcasts against the blocks of a plan."""
    if channels is None:
        return None
    if planes:
        return np.broadcast_to(channels[:, None], shape[1:])
    row = channels if shape[2] == 1 else np.repeat(channels, shape[2])
    spread = np.empty((width // len(row), len(row)), row.dtype)
    spread[:] = row
    return spread.reshape(1, width)


def _walk(blocks: list[Block], make_step: Callable[[], Step], workers: int) -> Any:
    """Take a step on every block, and add up what the steps return.

    Halves of halves are added, so that rounding grows with the logarithm of their number, and
    the result is the same whatever the number of workers.
    """
    if workers > 1 and len(blocks) > 1:
        half = len(blocks) // 2
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(_quiet_walk, blocks[half:], make_step, workers // 2)
            return _walk(blocks[:half], make_step, workers - workers // 2) + other.result()
    if len(blocks) > 1 or math.prod(blocks[0].shape) > SMALL:
        # With its usual buffer of 8192, NumPy copies a shorter row of constants again and again.
        np.setbufsize(WIDTH // 4)
    return _halve(blocks, make_step())


@np.errstate(all="ignore")
def _quiet_walk(blocks: list[Block], make_step: Callable[[], Step], workers: int) -> Any:
    """The same in a thread of its own, which does not inherit what its caller ignores."""
    return _walk(blocks, make_step, workers)


def _halve(blocks: list[Block], step: Step) -> Any:
    if len(blocks) == 1:
        return step(blocks[0])
    half = len(blocks) // 2
    return _halve(blocks[:half], step) + _halve(blocks[half:], step)
