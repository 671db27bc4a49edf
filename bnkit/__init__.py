"""Batch normalization, derived, implemented and checked, in NumPy alone.

The pure functions are here, and so is the layer with state::

    y, cache = bnkit.batch_norm_forward(x, gamma, beta)
    dx, dgamma, dbeta = bnkit.batch_norm_backward(dy, cache)
    layer = bnkit.BatchNormalization()

What needs more than NumPy is a submodule that says so: ``bnkit.symbolic`` (SymPy),
``bnkit.plots`` (matplotlib), ``bnkit.keras`` (Keras).
"""

from bnkit.functional import (
    BatchNormCache,
    batch_norm_backward,
    batch_norm_double_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from bnkit.kernels import set_backend, set_threads
from bnkit.layer import BatchNormalization
from bnkit.moments import (
    Moments,
    batch_moments,
    merge_moments,
    moving_average,
    population_moments,
)

__version__ = "0.1.0"

__all__ = [
    "BatchNormCache",
    "BatchNormalization",
    "Moments",
    "batch_moments",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "merge_moments",
    "moving_average",
    "population_moments",
    "set_backend",
    "set_threads",
]
