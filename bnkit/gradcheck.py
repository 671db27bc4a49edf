"""Check a gradient against the function it is said to differentiate.

The numerical gradient knows nothing of the formula; where the two differ, the check says for
which argument, at which index, and what each of them gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array


def numerical_gradient(
    f: Callable[[Array], ArrayLike], x: ArrayLike, dy: ArrayLike = 1.0, *, step: float = 1e-3
) -> Array:
    r"""Gradient of the number ``sum(dy * f(x))`` with respect to x, by finite differences.

    Central differences at two steps, h and h/2, extrapolated (Richardson), so that the error is
    of order :math:`h^4`:

    .. math:: D(h) = \frac{F(x + h) - F(x - h)}{2h}, \qquad F' \approx \frac{4 D(h/2) - D(h)}{3}

    Args:
        f: function of an array.
        x: where to differentiate; any shape, taken as float64.
        dy: upstream gradient, broadcasts against f(x). Not all ones when f is a normalization:
            the gradient of a sum of normalized values is zero, whatever the formula.
        step: h, times the size of the entry where that is above 1.

    Returns:
        Array of the shape of x, float64.

    Raises:
        ValueError: step is not positive.

    >>> numerical_gradient(np.square, [1.0, 3.0], dy=[1.0, 10.0]).round(9)
    array([ 2., 60.])
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step!r}")
    x = np.array(x, np.float64)
    dy = np.asarray(dy, np.float64)
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        h = step * max(1.0, abs(float(x[index])))
        coarse, fine = (_central_difference(f, x, dy, index, d) for d in (h, h / 2))
        gradient[index] = (4 * fine - coarse) / 3
    return gradient


def _central_difference(
    f: Callable[[Array], ArrayLike], x: Array, dy: Array, index: tuple[int, ...], h: float
) -> float:
    above, below = x.copy(), x.copy()
    above[index] += h
    below[index] -= h
    # The difference of outputs is taken before the sum: summing first would cancel digits.
    change = np.sum(dy * (np.asarray(f(above)) - np.asarray(f(below))))
    return float(change / (above[index] - below[index]))


def relative_error(got: ArrayLike, want: ArrayLike) -> float:
    r"""Norm-wise relative error, :math:`\|got - want\| / \|want\|`.

    Entry-wise errors blame a gradient for entries that happen to be near zero; the norm does
    not. When ``want`` is zero the error is 0 if ``got`` is zero too, else infinite.

    Args:
        got: array to judge.
        want: array to judge by, of the same shape.

    Returns:
        A number that is 0 for equality; NaN when an array holds NaN.

    Raises:
        ValueError: the shapes differ.

    >>> relative_error([3.0, 4.4], [3.0, 4.0]).__round__(6)
    0.08
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"got must have the shape of want, {want.shape}, got {got.shape}")
    error, size = float(np.linalg.norm(got - want)), float(np.linalg.norm(want))
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size


def check_gradients(
    f: Callable[..., ArrayLike],
    inputs: Mapping[str, ArrayLike],
    dy: ArrayLike,
    gradients: Mapping[str, ArrayLike],
    *,
    tolerance: float = 1e-8,
    step: float = 1e-3,
) -> dict[str, float]:
    """Hold gradients against numerical ones and name the one that fails.

    Args:
        f: function called as ``f(**inputs)``.
        inputs: its arguments by name.
        dy: upstream gradient, of the shape of f's result.
        gradients: what to check, by the name of the argument; not every input needs one.
        tolerance: largest relative error allowed.
        step: step of ``numerical_gradient``.

    Returns:
        The relative error of each gradient, by name.

    Raises:
        AssertionError: a gradient is off by more than the tolerance, is not finite, or has the
            wrong shape; the message names it, the worst index and both values.
        ValueError: a gradient's name is not among the inputs; or a gradient and the numerical one
            are both zero but for rounding, so that nothing can be told from this dy.

    >>> x = np.array([1.0, 2.0])
    >>> errors = check_gradients(lambda x: x**3, {"x": x}, [1.0, 1.0], {"x": 3 * x**2})
    >>> check_gradients(lambda x: x**3, {"x": x}, [1.0, 1.0], {"x": 2 * x**2})
    Traceback (most recent call last):
        ...
    AssertionError: gradient of x: relative error 0.33 is above 1e-08; worst at (1,): got 8, want 12
    """
    inputs = {name: np.asarray(value, np.float64) for name, value in inputs.items()}
    dy = np.asarray(dy, np.float64)
    rounding = 8 * np.finfo(np.float64).eps / step * float(np.sum(np.abs(dy * f(**inputs))))
    errors = {}
    for name, got in gradients.items():
        if name not in inputs:
            raise ValueError(f"gradients name {name!r}, which is not among the inputs {[*inputs]}")

        def of_one(value: Array, name: str = name) -> ArrayLike:
            return f(**{**inputs, name: value})

        want = numerical_gradient(of_one, inputs[name], dy, step=step)
        errors[name] = _judge(name, np.asarray(got, np.float64), want, tolerance, rounding)
    return errors


def _judge(name: str, got: Array, want: Array, tolerance: float, rounding: float) -> float:
    if got.shape != want.shape:
        raise AssertionError(f"gradient of {name}: got shape {got.shape}, want {want.shape}")
    error = relative_error(got, want)
    if error > tolerance and max(np.abs(got).max(), np.abs(want).max()) <= rounding:
        raise ValueError(
            f"dy tests nothing about {name}: its gradient and the numerical one are both zero but "
            f"for rounding (below {rounding:.1g}). A normalization passes nothing back where dy is "
            "constant over the batch: take one that varies"
        )
    if not error <= tolerance:  # NaN fails too
        worst = np.unravel_index(np.argmax(np.abs(got - want)), want.shape)
        index = tuple(int(k) for k in worst)
        raise AssertionError(
            f"gradient of {name}: relative error {error:.2g} is above {tolerance:g}; "
            f"worst at {index}: got {got[index]:.6g}, want {want[index]:.6g}"
        )
    return error
