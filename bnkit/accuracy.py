r"""How many digits are right, here and elsewhere: ``python -m bnkit.accuracy``.

Each peer of ``bnkit.bench`` normalizes the same float32 values, and sends the same gradient back.
The error of a result r is that of all its values together, :math:`\|r - r_{64}\| / \|r_{64}\|`,
where the 64 stands for the same formulas in float64. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

import bnkit
from bnkit import bench
from bnkit.arguments import Array
from bnkit.gradcheck import relative_error

CASES = [(0.0, 1.0), (1e3, 1.0), (1e3, 1e-2), (1e4, 1.0), (1e4, 1e-1), (3e5, 10.0)]  # mean, std
SHAPE = (1 << 16, 16)


def installed() -> list[str]:
    """Return the names of the peers of ``bench`` that can be held to account here."""
    return [
        name
        for name, (_, modules) in bench.PEERS.items()
        if name not in ("copy", "onnxruntime")  # which do not compute a gradient
        and all(map(importlib.util.find_spec, modules))
    ]


def errors(name: str, mean: float, std: float) -> dict[str, float]:
    """Relative errors of y and dx, by one peer, for values of this mean and spread."""
    rng = np.random.default_rng(0)
    x = (mean + std * rng.standard_normal(SHAPE)).astype(np.float32)
    dy = rng.standard_normal(SHAPE, np.float32)
    gamma, beta = np.ones(SHAPE[1], np.float32), np.zeros(SHAPE[1], np.float32)
    exact = (v.astype(np.float64) for v in (x, dy, gamma, beta))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bnkit.set_backend("numba" if name == "bnkit numba" else "numpy")
    try:
        got, want = _results(name, x, dy, gamma, beta), _results("textbook", *exact)
    finally:
        bnkit.set_backend("numpy")
    return {key: relative_error(got[key], want[key]) for key in want}


def _results(name: str, x: Array, dy: Array, gamma: Array, beta: Array) -> dict[str, Array]:
    logging.getLogger("tensorflow").setLevel("ERROR")  # it advises against tracing so often
    peer, _ = bench.PEERS[name]
    passes = peer(x, dy, gamma, beta, -1)
    y, both = passes["forward"](), passes["both"]()
    gradients = both[1] if isinstance(both[1], (list, tuple)) else both  # some return y as well
    return {"y": _array(y[0] if isinstance(y, tuple) else y), "dx": _array(gradients[0])}


def _array(result: Any) -> Array:
    values = result.detach() if hasattr(result, "detach") else result
    return np.asarray(values).reshape(SHAPE)


def main() -> None:
    """Measure every peer that is installed, print the errors, and write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bnkit.accuracy", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    names, results = installed(), []
    for mean, std in CASES:
        found = {name: errors(name, mean, std) for name in names}
        results.append({"mean": mean, "std": std, "errors": found})
        print(mean, std, {name: f"{error['y']:.0e}" for name, error in found.items()})
    if options.output:
        versions, _ = bench._versions()
        run = {"shape": SHAPE, "machine": bench.machine(), "versions": versions, "results": results}
        options.output.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
