r"""Batch normalization's passes over memory, in NumPy: blocks that stay in the cache.

Per channel, forward is :math:`y = s (x - k) + t` and backward is
:math:`dx = a (g + b (x - k) + c)`. So each of them needs two passes: one that sums over the
batch, and one that maps each value by a few constants of its channel. A pass written in whole
arrays goes through memory once for every operation; here it goes through blocks of a megabyte,
all operations on one block before the next, so that memory is read once a pass and temporaries
never leave the cache. The second pass runs backwards: what the first one read last
is still at hand.

The shift k is 0 unless the data ask for more (see ``moments``). Arrays are C-contiguous, of shape
(outer, C, inner): whatever the layout was, its channels are one axis of three.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnkit.arguments import Array, aligned
from bnkit.kernels.adding import add_planes, add_rows
from bnkit.kernels.blocks import SMALL, WIDTH, Block, Step, lay_out, plan, walk
from bnkit.kernels.small import FEW, few_backward, few_forward, few_normalize

__all__ = ["FEW", "affine", "few_backward", "few_forward", "few_normalize", "sums"]

BLOCK = 1 << 20  # bytes at a time: half as many or twice as many take a few percent longer
NARROW = 1 << 10  # elements of a row to be summed
PLANE = 64  # from this length on, the inner axis is summed by itself


def sums(
    x: Array, dy: Array | None, shift: Array | None, dtype: np.dtype[Any], workers: int = 1
) -> Array:
    """Sums of a and of a (x - shift) over each channel: shape (2, C), float64.

    Here a is dy, or x - shift itself when dy is None.
    """
    if x.size <= SMALL and x.shape[2] == 1:
        return _small_sums(x[:, :, 0], None if dy is None else dy[:, :, 0], shift, dtype)
    planes, row = x.shape[2] >= PLANE, x.shape[1] * x.shape[2]
    blocks, largest, width = plan(x.shape, 0 if planes else NARROW, BLOCK // dtype.itemsize)
    spread = lay_out(shift, x.shape, planes, width)
    converted = dy is not None and dy.dtype != dtype

    def make_step() -> Step:
        room = aligned((largest,), dtype)
        second_room = aligned((largest if converted else 0,), dtype)

        def step(block: Block) -> Array:
            v = _load(block.of(x), block.of_constants(spread), room)
            a = v if dy is None else _load(block.of(dy), None, second_room)
            if planes:
                result = np.zeros((2, x.shape[1]))
                result[:, block.channels] = add_planes(a, None), add_planes(a, v)
                return result
            wide = np.empty((2, v.shape[2]))
            wide[0] = add_rows(a[:, 0])
            wide[1] = add_rows(np.multiply(a, v, out=_within(room, v))[:, 0])
            if wide.size == 2 * x.shape[1]:
                return wide
            result = np.stack([add_rows(part.reshape(-1, row)) for part in wide])
            return result.reshape(2, *x.shape[1:]).sum(2)

        return step

    return np.asarray(walk(blocks, make_step, workers))


def _small_sums(x: Array, dy: Array | None, shift: Array | None, dtype: np.dtype[Any]) -> Array:
    """The same at once."""
    v = x.astype(dtype, copy=False)
    if shift is not None:
        v = v - shift
    a = v if dy is None else dy.astype(dtype, copy=False)
    result = np.empty((2, x.shape[1]))
    result[0], result[1] = add_rows(a), add_rows(a * v)
    return result


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
    blocks, largest, width = plan(x.shape, 0 if planes else WIDTH, BLOCK // scale.dtype.itemsize)
    constants = [lay_out(c, x.shape, planes, width) for c in (shift, scale, offset, factor)]
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

    walk(blocks[::-1], make_step, workers)


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
