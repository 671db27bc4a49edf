"""The stateful layer: a NumPy twin of ``keras.layers.BatchNormalization``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from bnkit.arguments import (
    Array,
    check_axis,
    check_epsilon,
    check_input,
    check_momentum,
    check_real,
)
from bnkit.functional import (
    BatchNormCache,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from bnkit.moments import Moments, batch_moments, moving_average

_STANDARD_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")

Initializer = str | Callable[[tuple[int, ...]], ArrayLike]


@dataclass(frozen=True, eq=False)
class _BatchPass:
    """What a call in training leaves for ``backward``; r and d where there is renorm."""

    cache: BatchNormCache
    correction: tuple[Array, Array] | None = None


@dataclass(frozen=True, eq=False)
class _InferencePass:
    """What a call with moving statistics leaves for ``backward``: the numbers that it used."""

    x: Array
    mean: Array
    variance: Array
    gamma: Array | None


class BatchNormalization:
    r"""Normalize by the batch in training, by moving statistics in inference.

    Constructor, defaults, weights and their order are those of Keras 3. Two things differ: there
    is no optimizer here, so regularizers and constraints are left out, and ``backward`` stands
    in for a gradient tape. Batch statistics are used only when ``training and trainable``, as
    in Keras; the moving variance is biased, as in Keras, unless ``unbiased_ranks`` says otherwise.

    .. math:: \text{moving} \leftarrow \text{momentum} \cdot \text{moving}
        + (1 - \text{momentum}) \cdot \text{batch}

    Args:
        axis: the axis of the channels.
        momentum: weight of the old value in the moving averages.
        epsilon: added to the variance.
        center: whether there is a shift beta.
        scale: whether there is a scale gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer,
            moving_variance_initializer: "zeros", "ones" or a function of a shape.
        renorm: batch renormalization (Ioffe 2017): correct the batch's statistics by
            ``r = std / renorm_stddev`` and ``d = (mean - renorm_mean) / renorm_stddev``, which
            take no part in the gradient.
        renorm_clipping: limits "rmin", "rmax" and "dmax" of these corrections.
        renorm_momentum: momentum of ``renorm_mean`` and ``renorm_stddev``.
        unbiased_ranks: ranks of input for which the moving variance is fed the unbiased variance
            of the batch, as in other frameworks (``bnkit.conventions``); not with renorm.
        trainable: False freezes the layer, which then always uses its moving statistics.
        dtype: dtype of the weights.

    Attributes:
        gamma, beta: shape (C,), or None.
        moving_mean, moving_variance: shape (C,).
        gradients: after ``backward``, the gradients of gamma and beta by name.

    Source:
        Ioffe and Szegedy (2015), Algorithms 1 and 2; Ioffe (2017), Algorithm 1.

    >>> layer = BatchNormalization(momentum=0.9)
    >>> y = layer([[0.0], [4.0]], training=True)
    >>> layer.moving_mean, layer.moving_variance
    (array([0.2], dtype=float32), array([1.3], dtype=float32))
    >>> dx = layer.backward([[1.0], [0.0]])
    >>> sorted(layer.gradients)
    ['beta', 'gamma']
    """

    gamma: Array | None
    beta: Array | None
    moving_mean: Array
    moving_variance: Array
    moving_stddev: Array
    renorm_mean: Array
    renorm_stddev: Array

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Initializer = "zeros",
        gamma_initializer: Initializer = "ones",
        moving_mean_initializer: Initializer = "zeros",
        moving_variance_initializer: Initializer = "ones",
        *,
        renorm: bool = False,
        renorm_clipping: Mapping[str, float] | None = None,
        renorm_momentum: float = 0.99,
        unbiased_ranks: Collection[int] = (),
        trainable: bool = True,
        dtype: DTypeLike = "float32",
    ) -> None:
        self.axis = axis
        self.momentum = check_momentum(momentum)
        self.epsilon = check_epsilon(epsilon)
        self.center = center
        self.scale = scale
        self.renorm = renorm
        self.renorm_clipping = _check_clipping(renorm_clipping)
        self.renorm_momentum = check_momentum(renorm_momentum, "renorm_momentum")
        self.unbiased_ranks = unbiased_ranks
        self.trainable = trainable
        self.dtype = np.dtype(dtype)
        self._initializers = {
            "gamma": gamma_initializer,
            "beta": beta_initializer,
            "moving_mean": moving_mean_initializer,
            "moving_variance": moving_variance_initializer,
            "renorm_mean": moving_mean_initializer,
        }
        self.gamma = None
        self.beta = None
        self.built = False
        self.gradients: dict[str, Array] = {}
        self._last: _BatchPass | _InferencePass | None = None

    @property
    def weight_names(self) -> list[str]:
        """Names of the weights, in the order of ``get_weights``, which is Keras's."""
        names = ["gamma"] * self.scale + ["beta"] * self.center
        names += ["moving_mean", "moving_variance"]
        return names + ["moving_stddev", "renorm_mean", "renorm_stddev"] * self.renorm

    def build(self, input_shape: Sequence[int]) -> None:
        """Create the weights for inputs of the given shape; only the channels' length matters."""
        self._create_weights(input_shape[check_axis(self.axis, len(input_shape))])

    def __call__(
        self, x: ArrayLike, training: bool = False, mask: ArrayLike | None = None
    ) -> Array:
        """Normalize x, by its own statistics if ``training and trainable``, else the moving ones.

        Args:
            x: real array of rank 2 or more.
            training: whether to use and record the statistics of this batch.
            mask: shape of x without the channel axis, True where a position counts. It matters
                in training only.

        Returns:
            y, of the shape and dtype of x (float32 for integers).

        Raises:
            TypeError, ValueError: as ``batch_norm_forward``; x with another number of channels
                than the layer was built for.
        """
        x = check_input(x)
        if not self.built:
            self.build(x.shape)
        channels = x.shape[check_axis(self.axis, x.ndim)]
        if channels != len(self.moving_mean):
            raise ValueError(
                f"x must have {len(self.moving_mean)} channels on axis {self.axis}, as when the "
                f"layer was built, got {channels} in shape {x.shape}"
            )
        if training and self.trainable:
            return self._normalize_by_batch(x, mask)
        return self._normalize_by_moving_statistics(x)

    def backward(self, dy: ArrayLike) -> Array:
        """Return dx for the last call's input, and leave the weights' gradients in ``gradients``.

        Args:
            dy: upstream gradient, of the shape of the last call's input.

        Returns:
            dx, of the shape of x.

        Raises:
            RuntimeError: the layer was not called yet.
            ValueError: dy has the wrong shape.
        """
        if self._last is None:
            raise RuntimeError("backward needs a forward pass first: call the layer on an input")
        if isinstance(self._last, _InferencePass):
            return self._inference_backward(dy, self._last)
        return self._batch_backward(dy, self._last)

    def get_weights(self) -> list[Array]:
        """Copies of all weights, in the order of ``weight_names``; none before ``build``."""
        return [np.array(getattr(self, name)) for name in self.weight_names] if self.built else []

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Replace all weights by those given, in the order of ``get_weights``.

        Raises:
            ValueError: another number of weights, shapes that are not (C,), or a negative
                variance, as when mean and variance are swapped.
        """
        names = self.weight_names
        if len(weights) != len(names):
            raise ValueError(f"weights must hold {len(names)} arrays {names}, got {len(weights)}")
        arrays = [
            np.array(check_real(name, weight), self.dtype)
            for name, weight in zip(names, weights, strict=True)
        ]
        shapes = [array.shape for array in arrays]
        wanted = self.moving_mean.shape if self.built else shapes[0]
        if len(wanted) != 1 or any(shape != wanted for shape in shapes):
            raise ValueError(f"weights must all have shape {wanted or '(C,)'}, got {shapes}")
        for name, array in zip(names, arrays, strict=True):
            if name in ("moving_variance", "moving_stddev") and (array < 0).any():
                raise ValueError(
                    f"{name} must not be negative, got a minimum of {np.nanmin(array)}; the order "
                    f"of the weights is {names}"
                )
        if not self.built:
            self._create_weights(wanted[0])
        for name, array in zip(names, arrays, strict=True):
            setattr(self, name, array)

    @classmethod
    def from_keras(cls, layer: Any) -> BatchNormalization:
        """Return the twin of a ``keras.layers.BatchNormalization``: same settings and weights."""
        names = ["axis", "momentum", "epsilon", "center", "scale", "trainable"]
        names += [f"{name}_initializer" for name in _STANDARD_WEIGHTS]
        settings = {name: getattr(layer, name) for name in names}
        if getattr(layer, "renorm", False):  # Keras 3 has it from 3.14 on
            settings["renorm"] = True
            settings["renorm_clipping"] = layer.renorm_clipping
            settings["renorm_momentum"] = layer.renorm_momentum
        twin = cls(**settings, dtype=layer.variable_dtype)
        if layer.built:
            twin.set_weights(layer.get_weights())
        return twin

    def _create_weights(self, channels: int) -> None:
        for name in self.weight_names:
            if name in self._initializers:
                setattr(self, name, self._initial(name, channels))
        if self.renorm:
            stddev = np.sqrt(self.moving_variance)
            self.moving_stddev, self.renorm_stddev = stddev, stddev.copy()
        self.built = True

    def _initial(self, name: str, channels: int) -> Array:
        initializer = self._initializers[name]
        if callable(initializer):
            value = np.array(initializer((channels,)), self.dtype)
            if value.shape != (channels,):
                raise ValueError(
                    f"{name}_initializer must return shape ({channels},), got {value.shape}"
                )
            return value
        if initializer not in ("zeros", "ones"):
            raise ValueError(
                f"{name}_initializer must be 'zeros', 'ones' or a function of a shape, "
                f"got {initializer!r}"
            )
        return np.full(channels, initializer == "ones", self.dtype)

    def _normalize_by_batch(self, x: Array, mask: ArrayLike | None) -> Array:
        if self.renorm:
            return self._renormalize_by_batch(x, mask)
        y, cache = batch_norm_forward(
            x, self.gamma, self.beta, axis=self.axis, epsilon=self.epsilon, mask=mask
        )
        moments = cache.moments
        unbiased = x.ndim in self.unbiased_ranks
        variance = moments.unbiased_variance if unbiased else moments.variance
        self._update("moving_mean", moments.mean)
        self._update("moving_variance", variance)
        self._last = _BatchPass(cache)
        return y

    def _renormalize_by_batch(self, x: Array, mask: ArrayLike | None) -> Array:
        """Return gamma (x_hat r + d) + beta, which is one batch norm with scale gamma r."""
        r, d = self._renorm_correction(batch_moments(x, self.axis, mask))
        gamma = np.ones_like(r) if self.gamma is None else self.gamma
        shift = gamma * d if self.beta is None else gamma * d + self.beta
        y, cache = batch_norm_forward(
            x, gamma * r, shift, axis=self.axis, epsilon=self.epsilon, mask=mask
        )
        self._update_renorm(cache)
        self._last = _BatchPass(cache, (r, d))
        return y

    def _batch_backward(self, dy: ArrayLike, last: _BatchPass) -> Array:
        dx, dgamma, dbeta = batch_norm_backward(dy, last.cache)
        if last.correction is not None and dgamma is not None and dbeta is not None:
            r, d = last.correction  # the scale was gamma r, the shift gamma d + beta
            dgamma = (r * dgamma + d * dbeta).astype(dgamma.dtype)
        return self._leave_gradients(dx, dgamma, dbeta)

    @np.errstate(all="ignore")
    def _renorm_correction(self, moments: Moments) -> tuple[Array, Array]:
        limits = self.renorm_clipping
        std = np.sqrt(moments.variance + self.epsilon)
        renorm_std = np.maximum(self.renorm_stddev, np.sqrt(self.epsilon))
        r = np.clip(std / renorm_std, limits.get("rmin", 0), limits.get("rmax", np.inf))
        d = (moments.mean - self.renorm_mean) / renorm_std
        dmax = limits.get("dmax", np.inf)
        return r, np.clip(d, -dmax, dmax)

    @np.errstate(all="ignore")
    def _update_renorm(self, cache: BatchNormCache) -> None:
        mean, variance = cache.moments.mean, cache.moments.variance
        std = np.sqrt(variance + self.epsilon)
        self._update("renorm_mean", mean, self.renorm_momentum)
        self._update("renorm_stddev", std, self.renorm_momentum)
        self._update("moving_mean", mean)
        self._update("moving_stddev", std)
        self.moving_variance = np.maximum(self.moving_stddev**2 - self.epsilon, 0)

    def _update(self, name: str, batch: Array, momentum: float | None = None) -> None:
        momentum = self.momentum if momentum is None else momentum
        with np.errstate(all="ignore"):  # inf, and what overflows the dtype of the weights
            average = moving_average(getattr(self, name), batch, momentum)
            setattr(self, name, average.astype(self.dtype))

    def _normalize_by_moving_statistics(self, x: Array) -> Array:
        mean, variance = self.moving_mean.copy(), self.moving_variance.copy()
        gamma = None if self.gamma is None else self.gamma.copy()
        self._last = _InferencePass(x, mean, variance, gamma)
        return batch_norm_inference(
            x, mean, variance, gamma, self.beta, axis=self.axis, epsilon=self.epsilon
        )

    def _inference_backward(self, dy: ArrayLike, last: _InferencePass) -> Array:
        gradients = batch_norm_inference_backward(
            dy, last.x, last.mean, last.variance, last.gamma, axis=self.axis, epsilon=self.epsilon
        )
        return self._leave_gradients(*gradients)

    def _leave_gradients(self, dx: Array, dgamma: Array | None, dbeta: Array | None) -> Array:
        self.gradients = {}
        if self.gamma is not None and dgamma is not None:
            self.gradients["gamma"] = dgamma
        if self.beta is not None and dbeta is not None:
            self.gradients["beta"] = dbeta
        return dx


def _check_clipping(clipping: Mapping[str, float] | None) -> dict[str, float]:
    """Return the limits that are set; Keras takes a limit of None for no limit."""
    limits = {key: value for key, value in (clipping or {}).items() if value is not None}
    unknown = set(limits) - {"rmin", "rmax", "dmax"}
    if unknown:
        raise ValueError(f"renorm_clipping takes rmin, rmax and dmax, got {sorted(unknown)}")
    if limits.get("rmin", 0) > limits.get("rmax", np.inf):
        raise ValueError(f"renorm_clipping needs rmin <= rmax, got {limits}")
    if limits.get("dmax", 0) < 0:
        raise ValueError(f"renorm_clipping needs dmax >= 0, got {limits['dmax']}")
    return limits
