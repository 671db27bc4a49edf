"""Measures each layer of a trained dense net: its gradient, its spread, how many units saturate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnkit.arguments import Array
from bnkit.functional import batch_norm_backward, batch_norm_forward
from bnkit.keras.probes import RANGES

DIGITS = 3

OUTPUTS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda z: 0.5 + 0.5 * np.tanh(z / 2),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
}
SLOPES: dict[str, Callable[[Array], Array]] = {  # by the output
    "sigmoid": lambda h: h * (1 - h),
    "tanh": lambda h: 1 - h**2,
    "relu": lambda h: h > 0,
}


@np.errstate(all="ignore")  # nets that have diverged
def measure(
    weights: list[Array], activation: str, batch_norm: bool, x: Array, y: Array
) -> dict[str, Array]:
    """One number a hidden layer, from the first to the last, in training mode, in float64.

    Args:
        weights: of ``build_model``, in its order.
        activation: "sigmoid", "tanh" or "relu".
        batch_norm: whether the net has batch normalization.
        x: images, as one batch.
        y: their labels.

    Returns:
        "gradient": norm of the loss's gradient by the kernel; "spread": standard deviation of a
        unit's output over the images, mean over units; "saturated": fraction of outputs within
        1 % of an end of the range, where there is one.
    """
    each = 5 if batch_norm else 2  # arrays of a hidden layer
    h, kept = x.astype(float), []
    cache: Any = None
    for kernel, *others in (weights[k : k + each] for k in range(0, len(weights) - 2, each)):
        z = h @ kernel
        if batch_norm:
            z, cache = batch_norm_forward(z, *(each.astype(float) for each in others[:2]))
        else:
            z += others[0]
        kept.append((h, kernel.astype(float), cache))
        h = OUTPUTS[activation](z)
    outputs = [*(inputs for inputs, *_ in kept[1:]), h]
    logits = h @ weights[-2] + weights[-1]
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    dh = (chances - np.eye(len(weights[-1]))[y]) / len(y) @ weights[-2].T
    norms = []
    for output, (inputs, kernel, cache) in zip(outputs[::-1], kept[::-1], strict=True):
        dz = dh * SLOPES[activation](output)
        if batch_norm:
            dz = batch_norm_backward(dz, cache)[0]
        norms.append(np.linalg.norm(inputs.T @ dz))
        dh = dz @ kernel.T
    seen = {"gradient": norms[::-1], "spread": [h.std(axis=0).mean() for h in outputs]}
    if activation in RANGES:
        low, high = RANGES[activation]
        margin = 0.01 * (high - low)
        seen["saturated"] = [np.mean((h < low + margin) | (h > high - margin)) for h in outputs]
    return {name: rounded(values) for name, values in seen.items()}


def rounded(values: Any) -> Array:
    """So many digits as are worth keeping.

    >>> rounded([0.123456, 1234.5])
    array([1.23e-01, 1.23e+03])
    """
    values = np.asarray(values, float)
    digits = [float(f"{value:.{DIGITS}g}") for value in values.ravel()]
    return np.array(digits).reshape(values.shape)
