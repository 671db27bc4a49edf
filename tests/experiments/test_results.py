"""A file of results: its form, and that it is whole or not there."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest

from bnkit.experiments import results
from bnkit.experiments.results import Result, Run


@pytest.fixture
def result():
    provenance = {
        "command": "python -m bnkit.experiments run counting",
        "date": "2026-01-02T03:04:05Z",
        "commit": None,
        "device": "a processor",
        "cores": 2,
        "backend": "tensorflow",
        "precision": "float32",
        "strategy": "none",
        "versions": {"python": "3.11.7", "numpy": "2.4.6", "keras": "3.15.1"},
    }
    runs = (Run(0, 1.5, {"a": {"loss": [1.0, np.inf]}}), Run(1, 2.5, {"a": {"loss": [3.0, 4.0]}}))
    return Result("counting", "quick", {"steps": 2}, provenance, runs)


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(results.SCHEMA)


def test_file_gives_back_what_was_saved(result, tmp_path):
    result.save(tmp_path / "deep" / "counting.json")
    got = results.read(tmp_path / "deep" / "counting.json")
    assert replace(got, runs=()) == replace(result, runs=())
    assert got.seeds == [0, 1]
    assert got.seconds == 4
    np.testing.assert_array_equal(got.values("a", "loss"), [[1, np.nan], [3, 4]])


def test_provenance_of_a_run_fits_the_schema(result):
    made = replace(
        result, provenance=results.provenance("python -m bnkit.experiments run counting")
    )
    content = results.plain({"format": 1, **made.__dict__, "runs": []})
    jsonschema.validate(content, results.SCHEMA)
    assert made.provenance["versions"]["keras"].startswith("3.")


def test_versions_are_those_of_the_modules_whatever_package_brought_them(monkeypatch):
    module = ModuleType("tensorflow")  # tensorflow-cpu brings a module of this name, for one
    module.__version__ = "2.99.0+cpu"
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    assert results.versions()["tensorflow"] == "2.99.0+cpu"
    monkeypatch.delitem(sys.modules, "tensorflow")
    assert "tensorflow" not in results.versions()


def change(content, *keys, to):
    for key in keys[:-1]:
        content = content[key]
    if to is None:
        del content[keys[-1]]
    else:
        content[keys[-1]] = to


@pytest.mark.parametrize(
    ("keys", "to"),
    [
        (["format"], 2),
        (["preset"], "fast"),
        (["config"], None),
        (["provenance", "command"], None),
        (["provenance", "date"], "yesterday"),
        (["provenance", "commit"], "1234567"),
        (["provenance", "cores"], 0),
        (["provenance", "host"], "name of a machine"),
        (["provenance", "versions", "keras"], None),
        (["runs", 0, "seed"], -1),
        (["runs", 0, "record"], [1, 2]),
        (["runs", 1, "seconds"], None),
    ],
)
def test_file_of_another_form_is_rejected(result, tmp_path, keys, to):
    path = tmp_path / "counting.json"
    result.save(path)
    content = json.loads(path.read_text())
    change(content, *keys, to=to)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"counting.json: \$"):
        results.read(path)


def test_half_a_file_is_rejected(result, tmp_path):
    path = tmp_path / "counting.json"
    result.save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="not JSON"):
        results.read(path)


def test_failed_write_leaves_the_old_file_and_nothing_else(result, tmp_path, monkeypatch):
    path = tmp_path / "counting.json"
    result.save(path)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        result.with_run(Run(2, 1.0, {})).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["counting.json"]


def test_commit_is_none_outside_the_checkout(monkeypatch):
    monkeypatch.setattr(results, "ROOT", Path("/"))
    assert results.commit() is None


def test_recorded_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        results.recorded("learning-rate")
