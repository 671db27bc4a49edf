"""The wheel holds bnkit, and ``import bnkit`` asks for NumPy alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the checkout, built without asking a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy, because setuptools leaves a build folder beside what it builds.
    source = folder / "source"
    shutil.copytree(ROOT / "bnkit", source / "bnkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--no-index", "--wheel-dir", folder, source], check=True)
    (built,) = folder.glob("*.whl")
    return built


def run_outside(wheel, folder, code):
    """What the code prints in a fresh Python that sees the wheel and not the checkout."""
    zipfile.ZipFile(wheel).extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "bnkit").rglob("*.py")}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == sources | {"bnkit/py.typed"}


def test_installed_package_normalizes_outside_the_checkout(wheel, tmp_path):
    code = (
        "import bnkit, numpy;"
        "y, _ = bnkit.batch_norm_forward(numpy.array([[1.0], [3.0]]), epsilon=0);"
        "print(bnkit.__file__); print(y.ravel().tolist())"
    )
    file, values = run_outside(wheel, tmp_path, code).splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert values == "[-1.0, 1.0]"


def test_import_brings_numpy_and_nothing_else(wheel, tmp_path):
    code = "import sys; before = set(sys.modules); import bnkit; print(*set(sys.modules) - before)"
    brought = {name.partition(".")[0] for name in run_outside(wheel, tmp_path, code).split()}
    assert brought - sys.stdlib_module_names == {"bnkit", "numpy"}
