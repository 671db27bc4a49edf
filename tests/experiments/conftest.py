"""An experiment that costs nothing, under a name of its own."""

import sys
from importlib import import_module

import matplotlib as mpl
import pytest

from bnkit import experiments

SOURCE = '''
"""Counts."""
import os
import time
from dataclasses import dataclass

TITLE = "Counting"
QUESTION = "How far does it count?"
PUBLISHED = None


@dataclass(frozen=True)
class Config:
    last: int = 3
    wait: float = 0.0
    seeds: int = 2


PRESETS = {"quick": Config(), "full": Config(last=9)}


def run_seed(config, seed):
    time.sleep(config.wait)
    return {"count": [seed + k for k in range(config.last)]}
'''


# What the runner asks of Keras, for processes that a test starts many of.
KERAS = """
from types import SimpleNamespace

__version__ = "3.15.1"
backend = SimpleNamespace(backend=lambda: "numpy")
policy = SimpleNamespace(name="float32")
config = SimpleNamespace(dtype_policy=lambda: policy, set_dtype_policy=lambda policy: None)
utils = SimpleNamespace(clear_session=lambda: None, set_random_seed=lambda seed: None)
"""


@pytest.fixture(autouse=True)
def matplotlib_as_it_comes():
    """Titles stand where matplotlib puts them, whatever style an earlier test has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """The name of the experiment."""
    (tmp_path / "counting.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    monkeypatch.setitem(sys.modules, "counting", import_module("counting"))
    monkeypatch.setitem(experiments.EXPERIMENTS, "counting", "counting")
    return "counting"


@pytest.fixture
def folder_of_processes(counting, tmp_path):
    """What processes need on their path to know the experiment and to start at once."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "counting.py").write_text(SOURCE, encoding="utf-8")
    (folder / "keras.py").write_text(KERAS, encoding="utf-8")
    return folder
