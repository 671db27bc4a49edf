"""The parts of bnkit that work with Keras.

Names are looked up when they are first used, so ``import bnkit.keras`` does not import Keras.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnkit.keras.data import load_cifar10, load_fashion_mnist, load_mnist
    from bnkit.keras.folding import fold_batch_norms

__all__ = ["fold_batch_norms", "load_cifar10", "load_fashion_mnist", "load_mnist"]

_HOME_OF = {
    "fold_batch_norms": "bnkit.keras.folding",
    "load_cifar10": "bnkit.keras.data",
    "load_fashion_mnist": "bnkit.keras.data",
    "load_mnist": "bnkit.keras.data",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
