r"""Fold a batch normalization in inference mode into the weights beside it.

With fixed statistics the layer is an affine map of each channel, ``scale * x + shift``, and a
linear map beside it can do that work as well: ``fold_into_previous`` for the usual order,
``fold_into_next`` for a normalization that comes first.

Kernels have the layouts of Keras: ``(inputs, outputs)`` for Dense, ``(…, inputs, outputs)`` for
convolutions of any rank, ``(…, inputs, multiplier)`` for depthwise ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array, check_epsilon, check_real, output_dtype, sum_dtype


def scale_and_shift(
    mean: ArrayLike,
    variance: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float = 1e-3,
) -> tuple[Array, Array]:
    r"""The two numbers a channel that a normalization by fixed statistics comes down to.

    .. math:: \text{scale} = \frac{\gamma}{\sqrt{\text{variance} + \varepsilon}}, \qquad
        \text{shift} = \beta - \text{scale} \cdot \text{mean}

    Args:
        mean: shape (C,).
        variance: shape (C,), not negative.
        gamma: scale, shape (C,); 1 when None.
        beta: shift, shape (C,); 0 when None.
        epsilon: finite, not negative.

    Returns:
        scale and shift, shape (C,), float64 (or wider).

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: shapes that differ, or a variance + epsilon that is not positive.

    Source:
        Ioffe and Szegedy (2015), Algorithm 2, step 11.

    >>> scale_and_shift(mean=[3.0], variance=[4.0], gamma=[6.0], beta=[1.0], epsilon=0.0)
    (array([3.]), array([-8.]))
    """
    mean = _as_channels("mean", mean, np.shape(mean)[:1])
    variance = _as_channels("variance", variance, mean.shape)
    epsilon = check_epsilon(epsilon)
    if np.any(variance < 0) or np.any(variance + epsilon == 0):
        raise ValueError(
            "variance must not be negative, and variance + epsilon must be positive, "
            f"got a minimum of {variance.min()} and epsilon {epsilon}"
        )
    scale = 1 / np.sqrt(variance + epsilon)
    if gamma is not None:
        scale *= _as_channels("gamma", gamma, mean.shape)
    shift = -scale * mean
    if beta is not None:
        shift += _as_channels("beta", beta, mean.shape)
    return scale, shift


def fold_into_previous(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    scale: ArrayLike,
    shift: ArrayLike,
    *,
    depthwise: bool = False,
) -> tuple[Array, Array]:
    r"""Weights of one layer that does the work of a linear layer and the normalization after it.

    .. math:: \text{kernel}' = \text{scale} \cdot \text{kernel}, \qquad
        \text{bias}' = \text{scale} \cdot \text{bias} + \text{shift}

    The linear layer may be Dense, a convolution of any rank, padded, strided or in groups; there
    must be no nonlinearity between the two. Products are formed in float64 and rounded once.

    Args:
        kernel: shape (…, inputs, C), or (…, inputs, multiplier) of a depthwise convolution, which
            has C = inputs * multiplier channels.
        bias: shape (C,); None for a layer without bias.
        scale: of the normalization, from ``scale_and_shift``, shape (C,).
        shift: shape (C,).
        depthwise: whether the kernel is that of a depthwise convolution.

    Returns:
        kernel and bias of the folded layer, in the dtype of the kernel. There is always a bias.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: shapes that do not fit.

    >>> kernel, bias = fold_into_previous([[2.0], [1.0]], [1.0], scale=[3.0], shift=[-8.0])
    >>> kernel.ravel(), bias
    (array([6., 3.]), array([-5.]))
    """
    kernel, dtype = _check_kernel(kernel)
    outputs = kernel.shape[-2:] if depthwise else kernel.shape[-1:]
    channels = (math.prod(outputs),)
    scale = _as_channels("scale", scale, channels)
    folded_bias = _as_channels("shift", shift, channels)
    if bias is not None:
        folded_bias += scale * _as_channels("bias", bias, channels)
    return (kernel * scale.reshape(outputs)).astype(dtype), folded_bias.astype(dtype)


def fold_into_next(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    scale: ArrayLike,
    shift: ArrayLike,
    *,
    depthwise: bool = False,
) -> tuple[Array, Array]:
    r"""Weights of one layer that does the work of a normalization and the linear layer after it.

    With k for positions of the kernel, c for its inputs and o for its outputs,

    .. math:: \text{kernel}'_{kco} = \text{scale}_c\, \text{kernel}_{kco}, \qquad
        \text{bias}'_o = \text{bias}_o + \sum_{k,c} \text{shift}_c\, \text{kernel}_{kco}

    A convolution must not pad: zeros put around a normalized input are not what zeros around the
    raw input become. Nor may it work in groups, unless it is depthwise.

    Args:
        kernel: shape (…, C, outputs), or (…, C, multiplier) of a depthwise convolution.
        bias: shape (outputs,), of a depthwise convolution (C * multiplier,); None for none.
        scale: of the normalization, from ``scale_and_shift``, shape (C,).
        shift: shape (C,).
        depthwise: whether the kernel is that of a depthwise convolution.

    Returns:
        kernel and bias of the folded layer, in the dtype of the kernel. There is always a bias.

    Raises:
        TypeError: an argument holds something other than real numbers.
        ValueError: shapes that do not fit.

    >>> kernel, bias = fold_into_next([[2.0], [1.0]], [1.0], scale=[3.0, 1.0], shift=[-8.0, 0.0])
    >>> kernel.ravel(), bias
    (array([6., 1.]), array([-15.]))
    """
    kernel, dtype = _check_kernel(kernel)
    scale = _as_channels("scale", scale, kernel.shape[-2:-1])
    shift = _as_channels("shift", shift, kernel.shape[-2:-1])
    by_input = np.sum(kernel * shift[:, None], axis=tuple(range(kernel.ndim - 2)))
    folded_bias = by_input.ravel() if depthwise else by_input.sum(axis=0)
    if bias is not None:
        folded_bias += _as_channels("bias", bias, folded_bias.shape)
    return (kernel * scale[:, None]).astype(dtype), folded_bias.astype(dtype)


def _check_kernel(kernel: ArrayLike) -> tuple[Array, np.dtype[Any]]:
    """Return the kernel in float64 or wider, and the dtype of what is folded."""
    array = check_real("kernel", kernel)
    if array.ndim < 2:
        raise ValueError(f"kernel must have rank 2 or more, got shape {array.shape}")
    return array.astype(sum_dtype(array.dtype)), output_dtype(array.dtype)


def _as_channels(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return ``value``, one number a channel, in float64 or wider."""
    array = check_real(name, value)
    if array.ndim != 1 or array.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape or '(C,)'}, one value a channel, got {array.shape}"
        )
    return array.astype(sum_dtype(array.dtype))
