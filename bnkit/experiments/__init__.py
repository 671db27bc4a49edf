"""The experiments of the book: one module each, run by name.

``python -m bnkit.experiments list`` names them, ``python -m bnkit.experiments run NAME`` runs one.
In Python::

    from bnkit import experiments
    result = experiments.run("learning-rate")            # the quick preset, a minute or less
    full = experiments.recorded("learning-rate")         # the full preset, as it was recorded
    experiments.load("learning-rate").plot(full)

Names are looked up when they are first used, so ``import bnkit.experiments`` does not import Keras.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnkit.experiments.results import Result, recorded
    from bnkit.experiments.runner import run

__all__ = ["EXPERIMENTS", "Result", "load", "question", "recorded", "run"]

EXPERIMENTS = {
    "paper-figure": "bnkit.experiments.paper_figure",
    "learning-rate": "bnkit.experiments.learning_rate",
    "depth": "bnkit.experiments.depth",
    "five-variants": "bnkit.experiments.five_variants",
    "recipe": "bnkit.experiments.recipe",
    "batch-size": "bnkit.experiments.batch_size",
    "detached-statistics": "bnkit.experiments.detached_statistics",
    "weight-norm": "bnkit.experiments.weight_norm",
    "explosion": "bnkit.experiments.explosion",
    "shift-and-smoothness": "bnkit.experiments.shift_and_smoothness",
    "placement": "bnkit.experiments.placement",
    "dropout": "bnkit.experiments.dropout",
    "whitening": "bnkit.experiments.whitening",
    "moving-statistics": "bnkit.experiments.moving_statistics",
    "folding": "bnkit.experiments.folding",
}

_HOME_OF = {
    "Result": "bnkit.experiments.results",
    "recorded": "bnkit.experiments.results",
    "run": "bnkit.experiments.runner",
}


def load(name: str) -> ModuleType:
    """Import the module of an experiment.

    Args:
        name: a key of ``EXPERIMENTS``.

    Raises:
        ValueError: there is no experiment of this name.

    >>> load("learning-rate").TITLE
    'Learning rate and initial scale'
    """
    return importlib.import_module(_module_of(name))


def question(name: str) -> str:
    """The ``QUESTION`` of an experiment, read from its module's source, which is not imported.

    >>> question("learning-rate")
    'How large may the learning rate be, and how much does the initial scale matter?'
    """
    spec = importlib.util.find_spec(_module_of(name))
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "QUESTION":
            return str(ast.literal_eval(node.value))
    raise ValueError(f"{spec.origin} has no QUESTION")


def _module_of(name: str) -> str:
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment is named {name!r}; there are: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
