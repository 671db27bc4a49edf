r"""How frameworks differ in one and the same layer, as data; and converters of its weights.

Each framework is a ``Convention``, each of its fields a fact that ``tests/test_conventions.py``
finds anew by running that framework, where it is installed. ``TORCH.layer(10)`` is a layer of
bnkit that follows PyTorch's, and ``convert`` carries weights from one framework to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from bnkit.arguments import Array
from bnkit.layer import BatchNormalization

NAMES = ("gamma", "beta", "moving_mean", "moving_variance")

Format = Literal["keras", "torch", "flax", "onnx"]


@dataclass(frozen=True)
class Convention:
    """What a framework does when nothing else is asked for; None where it lays nothing down.

    Attributes:
        name: the framework.
        epsilon: the number added to the variance.
        momentum: as the framework counts it.
        momentum_weighs: which value it weighs in the moving averages, "old" or "new".
        unbiased_ranks: ranks of input for which the moving variance is fed unbiased variances.
            All normalize by the biased one.
        initial_variance: where the moving variance starts; the moving mean starts at 0.
        axis: the axis of the channels.
        half_computed_in: dtype in which float16 input is computed.
        half_returned_as: dtype of the output for float16 input.
        mask: whether a mask of the positions that count can be given.
        freezing: what its switch for "do not train this layer" does to the statistics:
            "inference mode" (they are used and kept), "gradients only" (nothing), or None
            where there is no such switch.
        default_mode: what a plain call does, "training", "inference" or "must be said".
        one_value: what training on one value a channel gives: "beta" or "error".
    """

    name: str
    epsilon: float
    momentum: float
    momentum_weighs: Literal["old", "new"]
    unbiased_ranks: tuple[int, ...]
    initial_variance: float | None
    axis: int
    half_computed_in: str | None
    half_returned_as: str | None
    mask: bool
    freezing: Literal["inference mode", "gradients only"] | None
    default_mode: Literal["training", "inference", "must be said"]
    one_value: Literal["beta", "error"] | None

    def weight_of_old(self, momentum: float) -> float:
        """Turn a momentum of this framework into the weight of the old value, or back.

        >>> TORCH.weight_of_old(0.25), KERAS.weight_of_old(0.75)
        (0.75, 0.75)
        """
        return momentum if self.momentum_weighs == "old" else 1 - momentum

    def layer(self, channels: int, **changes: Any) -> BatchNormalization:
        """Return a built layer of bnkit with the constants of this framework.

        Args:
            channels: C.
            changes: arguments of ``BatchNormalization`` that shall differ. A momentum given
                here weighs the old value, as everywhere in bnkit.

        >>> layer = TORCH.layer(3)
        >>> layer.axis, layer.epsilon, layer.momentum
        (1, 1e-05, 0.9)
        """
        settings: dict[str, Any] = {
            "axis": self.axis,
            "momentum": self.weight_of_old(self.momentum),
            "epsilon": self.epsilon,
            "moving_variance_initializer": "zeros" if self.initial_variance == 0 else "ones",
            "unbiased_ranks": self.unbiased_ranks,
        }
        layer = BatchNormalization(**(settings | changes))
        layer.build((channels, channels))
        return layer


KERAS = Convention(
    name="Keras 3",
    epsilon=1e-3,
    momentum=0.99,
    momentum_weighs="old",
    unbiased_ranks=(),
    initial_variance=1.0,
    axis=-1,
    half_computed_in="float32",
    half_returned_as="float32",  # float16 under the policy "mixed_float16"
    mask=True,
    freezing="inference mode",
    default_mode="inference",
    one_value="beta",
)
KERAS_2 = Convention(
    name="Keras 2",
    epsilon=1e-3,
    momentum=0.99,
    momentum_weighs="old",
    unbiased_ranks=(4, 5),  # those of its fused operator
    initial_variance=1.0,
    axis=-1,
    half_computed_in="float32",
    half_returned_as="float32",
    mask=True,
    freezing="inference mode",
    default_mode="inference",
    one_value="beta",
)
TORCH = Convention(
    name="PyTorch",
    epsilon=1e-5,
    momentum=0.1,
    momentum_weighs="new",
    unbiased_ranks=(2, 3, 4, 5),
    initial_variance=1.0,
    axis=1,
    half_computed_in="float32",
    half_returned_as="float16",
    mask=False,
    freezing="gradients only",
    default_mode="training",
    one_value="error",
)
FLAX = Convention(  # the module of flax.linen; that of flax.nnx trains unless told otherwise
    name="Flax",
    epsilon=1e-5,
    momentum=0.99,
    momentum_weighs="old",
    unbiased_ranks=(),
    initial_variance=1.0,
    axis=-1,
    half_computed_in="float32",
    half_returned_as="float32",
    mask=True,
    freezing=None,
    default_mode="must be said",
    one_value="beta",
)
ONNX = Convention(  # the operator, as the reference implementation runs it
    name="ONNX",
    epsilon=1e-5,
    momentum=0.9,
    momentum_weighs="old",
    unbiased_ranks=(),
    initial_variance=None,  # an input of the operator
    axis=1,
    half_computed_in="float16",
    half_returned_as="float16",
    mask=False,
    freezing=None,
    default_mode="inference",
    one_value="beta",
)
CS231N = Convention(  # the course's exercise: read, not run, because its body is left to fill in
    name="CS231n",
    epsilon=1e-5,
    momentum=0.9,
    momentum_weighs="old",
    unbiased_ranks=(),
    initial_variance=0.0,
    axis=-1,
    half_computed_in=None,
    half_returned_as=None,
    mask=False,
    freezing=None,
    default_mode="must be said",
    one_value=None,
)

CONVENTIONS = (KERAS, KERAS_2, TORCH, FLAX, ONNX, CS231N)

_UNBIASED: Mapping[Format, bool] = {"keras": False, "torch": True, "flax": False, "onnx": False}
_KEYS: Mapping[Format, Sequence[str]] = {  # in the order of NAMES
    "torch": ("weight", "bias", "running_mean", "running_var"),
    "onnx": ("scale", "B", "input_mean", "input_var"),
}
_FLAX_KEYS = {"params": ("scale", "bias"), "batch_stats": ("mean", "var")}


def convert(
    weights: Any,
    source: Format,
    target: Format,
    *,
    count: int | None = None,
    start: float = 0.0,
) -> Any:
    r"""Carry the weights of one layer from one framework to another.

    The formats are those of the frameworks: "keras" a list as of ``get_weights`` (Keras 2 and 3),
    "torch" a state_dict of ``BatchNorm1d`` and its kin, "flax" the collections "params" and
    "batch_stats", "onnx" the operator's inputs by name. Values are copied, with their dtype. A
    layer without gamma and beta is converted to gamma = 1 and beta = 0, which is the same map.

    PyTorch's moving variance is unbiased and that of the others biased. With ``count`` given it is
    corrected by ``to_biased`` or ``to_unbiased``, and without it kept as it is: inference gives
    the same outputs then, and only training that goes on notices. Epsilon and momentum are no
    weights: give them to the layer that receives these (``Convention.weight_of_old``).

    Args:
        weights: in the format of the source.
        source: "keras", "torch", "flax" or "onnx".
        target: one of the same.
        count: values that a channel had in each batch of the training, to correct the variance.
        start: what is left in it of the initial value; see ``to_biased``.

    Returns:
        The weights in the format of the target.

    Raises:
        ValueError: an unknown format, weights that are missing or have different shapes, a count
            below 2.

    >>> state = convert([[2.0], [0.5], [3.0], [4.0]], "keras", "torch")
    >>> {name: value.tolist() for name, value in state.items()}
    {'weight': [2.0], 'bias': [0.5], 'running_mean': [3.0], 'running_var': [4.0]}
    """
    for name, value in (("source", source), ("target", target)):
        if value not in _UNBIASED:
            raise ValueError(f"{name} must be one of {[*_UNBIASED]}, got {value!r}")
    arrays = _read(weights, source)
    if count is not None and _UNBIASED[source] != _UNBIASED[target]:
        correct = to_unbiased if _UNBIASED[target] else to_biased
        arrays[-1] = correct(arrays[-1], count, start).astype(arrays[-1].dtype)
    return _write(arrays, target)


def to_unbiased(moving_variance: ArrayLike, count: int, start: ArrayLike = 0.0) -> Array:
    r"""Moving average of unbiased variances, from that of biased ones: inverse of ``to_biased``.

    .. math:: u = \text{start} + \frac{m}{m - 1} (b - \text{start})

    >>> to_unbiased([4.0], count=5)
    array([5.])
    """
    return _stretch(moving_variance, start, _check_count(count) / (count - 1))


def to_biased(moving_variance: ArrayLike, count: int, start: ArrayLike = 0.0) -> Array:
    r"""Moving average of biased variances, from that of unbiased ones.

    .. math:: b = \text{start} + \frac{m - 1}{m} (u - \text{start})

    It is exact when all batches had the same count m.

    Args:
        moving_variance: u, shape (C,).
        count: m, the values that a channel had in each batch.
        start: the part of u that comes from the initial value and not from a batch: initial
            value times (weight of the old value) to the number of steps; 0 after many.

    Returns:
        b, shape (C,).

    Raises:
        ValueError: count is below 2.

    >>> to_biased([5.0], count=5)
    array([4.])
    """
    return _stretch(moving_variance, start, (_check_count(count) - 1) / count)


def _stretch(values: ArrayLike, about: ArrayLike, factor: float) -> Array:
    about = np.asarray(about)
    return np.asarray(about + (np.asarray(values) - about) * factor)


def _check_count(count: int) -> int:
    if count < 2:
        raise ValueError(f"count must be 2 or more, got {count}")
    return count


def _read(weights: Any, source: Format) -> list[Array]:
    """Return gamma, beta, mean and variance, each of shape (C,)."""
    if source == "keras":
        found = dict(zip(NAMES[-len(weights) :], weights, strict=False))
        if len(weights) not in (2, 4):
            raise ValueError(f"weights must hold {list(NAMES)} or the last two, got {len(weights)}")
    elif source == "flax":
        groups = [(weights.get(group, {}), keys) for group, keys in _FLAX_KEYS.items()]
        values = [part.get(key) for part, keys in groups for key in keys]
        found = dict(zip(NAMES, values, strict=True))
    else:
        found = {name: weights.get(key) for name, key in zip(NAMES, _KEYS[source], strict=True)}
    arrays = {name: np.array(value) for name, value in found.items() if value is not None}
    missing = {"moving_mean", "moving_variance"} - set(arrays)
    if missing:
        raise ValueError(f"weights of {source} lack {sorted(missing)}, got {list(weights)}")
    mean, variance = arrays["moving_mean"], arrays["moving_variance"]
    gamma = arrays.get("gamma", np.ones_like(variance))
    beta = arrays.get("beta", np.zeros_like(mean))
    shapes = [array.shape for array in (gamma, beta, mean, variance)]
    if len(mean.shape) != 1 or len(set(shapes)) > 1:
        raise ValueError(f"weights must all have one shape (C,), got {shapes}")
    return [gamma, beta, mean, variance]


def _write(arrays: list[Array], target: Format) -> Any:
    if target == "keras":
        return arrays
    if target == "flax":
        values = iter(arrays)
        return {group: {key: next(values) for key in keys} for group, keys in _FLAX_KEYS.items()}
    return dict(zip(_KEYS[target], arrays, strict=True))
