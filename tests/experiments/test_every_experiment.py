"""Each experiment has what the command line, the book and the status page ask of it."""

import dataclasses
from pathlib import Path

import pytest

from bnkit import experiments
from bnkit.experiments import results
from bnkit.experiments.__main__ import main

ROOT = Path(__file__).parents[2]
CHAPTERS = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("book/*/*.md"))
every_experiment = pytest.mark.parametrize("name", list(experiments.EXPERIMENTS))


@every_experiment
def test_experiment_has_its_parts(name):
    module = experiments.load(name)
    assert module.__doc__
    assert module.TITLE
    assert experiments.question(name) == module.QUESTION
    assert "?" in module.QUESTION
    assert module.PUBLISHED is None or module.PUBLISHED
    assert callable(module.run_seed)
    assert callable(module.plot)


@every_experiment
def test_experiment_has_both_presets_and_three_seeds(name):
    module = experiments.load(name)
    assert set(module.PRESETS) == {"quick", "full"}
    assert module.PRESETS["quick"] != module.PRESETS["full"]
    for config in module.PRESETS.values():
        assert isinstance(config, module.Config)
        assert module.Config.__dataclass_params__.frozen
        assert config.seeds >= 3


@every_experiment
def test_recorded_run_is_that_of_the_full_preset(name):
    result = results.read(ROOT / results.RECORDED / f"{name}.json")
    full = experiments.load(name).PRESETS["full"]
    assert (result.experiment, result.preset) == (name, "full")
    assert result.config == results.plain(dataclasses.asdict(full))
    assert len(result.seeds) >= 3
    assert f"run {name} --preset full" in result.provenance["command"]
    assert "/tmp" not in result.provenance["command"]


@every_experiment
def test_recorded_run_has_a_chapter(name):
    assert f'"{name}"' in CHAPTERS


def test_recorded_runs_belong_to_experiments():
    names = {path.stem for path in (ROOT / results.RECORDED).glob("*.json")}
    assert names == set(experiments.EXPERIMENTS)


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(experiments.EXPERIMENTS)
