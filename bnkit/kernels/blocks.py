"""Blocks of an array: how it is cut, which constants belong to a piece, and the walk over them.

A block is contiguous. Where the inner axis is short, it is read as rows of ``width`` values, a
whole number of samples, and constants are laid out along such a row: NumPy's inner loops are then
long (60 rows of 100 values times a row of constants take twice as long as the product of two such
arrays). Where the inner axis is long, a block is a piece of some planes, and each plane has its
constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from bnkit.arguments import Array

SMALL = 1 << 16  # elements that make one block, whatever their layout
WIDTH = 1 << 12  # elements of a row of constants: long inner loops, and they stay close

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


@lru_cache(maxsize=256)
def plan(shape: tuple[int, int, int], target: int, most: int) -> tuple[list[Block], int, int]:
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


def lay_out(
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


def walk(blocks: list[Block], make_step: Callable[[], Step], workers: int) -> Any:
    """Take a step on every block, and add up what the steps return.

    Halves of halves are added, so that rounding grows with the logarithm of their number, and
    the result is the same whatever the number of workers.
    """
    if workers > 1 and len(blocks) > 1:
        half = len(blocks) // 2
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(_quiet_walk, blocks[half:], make_step, workers // 2)
            return walk(blocks[:half], make_step, workers - workers // 2) + other.result()
    if len(blocks) == 1 and math.prod(blocks[0].shape) <= SMALL:
        return _halve(blocks, make_step())
    # With its usual buffer of 8192, NumPy copies a shorter row of constants again and again.
    usual = np.setbufsize(WIDTH // 4)
    try:
        return _halve(blocks, make_step())
    finally:
        np.setbufsize(usual)


@np.errstate(all="ignore")
def _quiet_walk(blocks: list[Block], make_step: Callable[[], Step], workers: int) -> Any:
    """The same in a thread of its own, which does not inherit what its caller ignores."""
    return walk(blocks, make_step, workers)


def _halve(blocks: list[Block], step: Step) -> Any:
    if len(blocks) == 1:
        return step(blocks[0])
    half = len(blocks) // 2
    return _halve(blocks[:half], step) + _halve(blocks[half:], step)
