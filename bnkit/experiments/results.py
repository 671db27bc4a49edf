"""What an experiment found, as a file: its schema, written whole or not at all, and where it ran.

A result is one JSON file. The unit is the seed: each seed has one record, whose form is the
experiment's own, and the seconds that it took. ``null`` stands for what is not finite, because
JSON has no other word for it; ``Result.values`` gives it back as nan.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from bnkit.arguments import Array

ROOT = Path(__file__).parents[2]
RECORDED = Path("book", "results", "experiments")
SIGNIFICANT_DIGITS = 6
PACKAGES = ("numpy", "keras", "tensorflow", "jax", "torch")

_TEXT = {"type": "string", "minLength": 1}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Result of an experiment of bnkit",
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "experiment", "preset", "config", "provenance", "runs"],
    "properties": {
        "format": {"const": 1},
        "experiment": _TEXT,
        "preset": {"enum": ["quick", "full"]},
        "config": {"type": "object"},
        "provenance": {
            "type": "object",
            "additionalProperties": False,
            "required": [
                *("command", "date", "commit", "device", "cores"),
                *("backend", "precision", "strategy", "versions"),
            ],
            "properties": {
                "command": _TEXT,
                "date": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
                "commit": {"type": ["string", "null"], "pattern": "^[0-9a-f]{40}$"},
                "device": _TEXT,
                "cores": {"type": "integer", "minimum": 1},
                "backend": {"enum": ["tensorflow", "jax", "torch", "numpy"]},
                "precision": _TEXT,
                "strategy": _TEXT,
                "versions": {
                    "type": "object",
                    "required": ["python", "numpy", "keras"],
                    "additionalProperties": _TEXT,
                },
            },
        },
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["seed", "seconds", "record"],
                "properties": {
                    "seed": {"type": "integer", "minimum": 0},
                    "seconds": {"type": "number", "minimum": 0},
                    "record": {"type": "object"},
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Run:
    """One seed: what was recorded, and how long it took."""

    seed: int
    seconds: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """All that a file of results holds.

    Attributes:
        experiment: its name in ``bnkit.experiments.EXPERIMENTS``.
        preset: "quick" or "full".
        config: the fields of the experiment's ``Config``.
        provenance: command, date (UTC), commit, device, cores, backend, precision, versions.
        runs: one ``Run`` a seed, in the order in which they were made.

    >>> runs = (Run(0, 1.5, {"bn": {"loss": [2.0, None]}}), Run(1, 1.4, {"bn": {"loss": [2, 1]}}))
    >>> result = Result("learning-rate", "quick", {}, {}, runs)
    >>> result.values("bn", "loss")
    array([[ 2., nan],
           [ 2.,  1.]])
    """

    experiment: str
    preset: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    runs: tuple[Run, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """The seeds that have finished."""
        return [run.seed for run in self.runs]

    @property
    def seconds(self) -> float:
        """How long all seeds took together."""
        return sum(run.seconds for run in self.runs)

    def values(self, *keys: str) -> Array:
        """The numbers that stand under the keys in every record; the first axis is the seed."""
        found = [run.record for run in self.runs]
        for key in keys:
            found = [record[key] for record in found]
        return np.array(found, dtype=float)

    def with_run(self, run: Run) -> Result:
        """The same result and one seed more."""
        return replace(self, runs=(*self.runs, run))

    def save(self, path: Path) -> None:
        """Write the file whole or not at all: into a temporary file, which is then renamed."""
        content = json.dumps(plain({"format": 1, **asdict(self)}), allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:  # which begins before the file is there, so that no Ctrl-C can leave it behind
            with draft.open("w", encoding="utf-8") as file:
                file.write(content + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def read(path: Path) -> Result:
    """Read a file of results.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not of the form that ``SCHEMA`` describes.
    """
    return parse(path.read_text(encoding="utf-8"), str(path))


def parse(text: str, name: str) -> Result:
    """The result that a JSON text holds; `name` is what an error calls it."""
    import jsonschema

    try:
        content = json.loads(text)
        jsonschema.validate(content, SCHEMA)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    except jsonschema.ValidationError as error:
        raise ValueError(f"{name}: {error.json_path}: {error.message}") from error
    del content["format"]
    return Result(**{**content, "runs": tuple(Run(**run) for run in content["runs"])})


def recorded(name: str, repository: str = "") -> Result:
    """The full run of an experiment that came with the book.

    Args:
        name: a key of ``bnkit.experiments.EXPERIMENTS``.
        repository: web address of the book's repository; asked where bnkit is not in a checkout.

    Raises:
        FileNotFoundError: nothing was recorded, or it cannot be found from here.
    """
    path = RECORDED / f"{name}.json"
    if (ROOT / path).is_file():
        return read(ROOT / path)
    if not repository:
        raise FileNotFoundError(
            f"{path} is not in {ROOT}: run bnkit in a checkout of the book, or name its repository"
        )
    with urlopen(f"{repository}/raw/HEAD/{path.as_posix()}") as page:
        return parse(page.read().decode(), page.url)


def plain(value: Any) -> Any:
    """The same in JSON's own types: arrays as lists, six significant digits, null for nan and inf.

    >>> plain({"loss": np.array([0.123456789, np.inf]), "steps": np.int64(3)})
    {'loss': [0.123457, None], 'steps': 3}
    """
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value


def provenance(command: str, strategy: str = "none") -> dict[str, Any]:
    """Where, when and with what a run is made."""
    import keras

    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "device": device(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        "backend": keras.backend.backend(),
        "precision": keras.config.dtype_policy().name,
        "strategy": strategy,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python, NumPy, Keras and those of its backends that the process has imported."""
    present = [name for name in PACKAGES if name in sys.modules]
    return {
        "python": platform.python_version(),
        **{name: str(sys.modules[name].__version__) for name in present},
    }


def commit() -> str | None:
    """The commit that is checked out, or None where files differ from it or git does not know.

    Where the files are a copy without git, the environment variable BNKIT_COMMIT names it.
    """
    if named := os.environ.get("BNKIT_COMMIT"):
        return named
    asked = (
        ["ls-files", "--error-unmatch", "bnkit"],  # another repository may lie around this package
        ["status", "--porcelain", "--", "bnkit"],
        ["rev-parse", "HEAD"],
    )
    try:
        _, changes, head = (
            subprocess.run(
                ["git", "-C", str(ROOT), *each], check=True, capture_output=True, text=True
            ).stdout
            for each in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return None if changes else head.strip()


def device() -> str:
    """The name of the GPUs that the backend sees, or else of the processor."""
    import keras

    gpus: list[str] = []
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = [
            tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")
        ]
    elif keras.backend.backend() == "jax":
        import jax

        gpus = [each.device_kind for each in jax.devices() if each.platform == "gpu"]
    elif keras.backend.backend() == "torch":
        import torch

        gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return " + ".join(gpus) or processor()


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
