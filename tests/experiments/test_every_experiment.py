"""Each experiment has what the command line, the book and the status page ask of it."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from bnkit import experiments
from bnkit.experiments import results
from bnkit.experiments.__main__ import changes, main, parse

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
def test_experiment_has_both_presets_and_seeds_enough(name):
    """Three show that the quick one runs; what the book shows has at least five."""
    module = experiments.load(name)
    assert set(module.PRESETS) == {"quick", "full"}
    assert module.PRESETS["quick"] != module.PRESETS["full"]
    for config in module.PRESETS.values():
        assert isinstance(config, module.Config)
        assert module.Config.__dataclass_params__.frozen
        assert config.seeds >= 3
    assert module.PRESETS["full"].seeds >= 5


@every_experiment
def test_recorded_run_is_that_of_the_full_preset(name):
    result = results.read(ROOT / results.RECORDED / f"{name}.json")
    full = experiments.load(name).PRESETS["full"]
    assert (result.experiment, result.preset) == (name, "full")
    assert result.config == results.plain(dataclasses.asdict(full))
    assert 5 <= len(result.seeds) <= full.seeds
    assert f"run {name} --preset full" in result.provenance["command"]
    assert "/tmp" not in result.provenance["command"]


@every_experiment
def test_recorded_run_names_a_commit_of_the_history(name):
    """So that anybody can run again what was run."""
    commit = results.read(ROOT / results.RECORDED / f"{name}.json").provenance["commit"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    if git("rev-parse", "--is-shallow-repository").stdout.strip() == "false":
        assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0


def git(*arguments):
    """Git in the repository, if there is one: an archive of the files has no history."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


@every_experiment
def test_recorded_run_has_a_chapter(name):
    assert f'"{name}"' in CHAPTERS


def test_recorded_runs_belong_to_experiments():
    names = {path.stem for path in (ROOT / results.RECORDED).glob("*.json")}
    assert names == set(experiments.EXPERIMENTS)


def test_gpu_records_are_experiments():
    """`make record-gpu` names what runs on JAX."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^RECORDS \?= (.*)$", makefile, re.MULTILINE)
    assert set(names.split()) <= set(experiments.EXPERIMENTS)


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(experiments.EXPERIMENTS)


@pytest.mark.parametrize(
    ("name", "data"),
    [("five-variants", "mnist"), ("paper-figure", ("mnist",)), ("recipe", "mnist")],
)
def test_data_can_be_chosen_on_the_command_line(name, data):
    options = parse(["run", name, "--preset", "full", "--data", "mnist"])
    assert changes(options) == {"data": data}
    assert changes(parse(["run", name])) == {}
