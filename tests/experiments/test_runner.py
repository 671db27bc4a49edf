"""A run that is stopped, in whatever way, keeps its finished seeds."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest

from bnkit.experiments import load, results, runner
from bnkit.experiments.__main__ import main

ROOT = Path(__file__).parents[2]


def test_each_seed_has_its_record(counting):
    result = runner.run(counting, last=2)
    assert result.values("count").tolist() == [[0, 1], [1, 2]]
    assert result.config == {"last": 2, "wait": 0.0, "seeds": 2}


def test_resume_makes_only_the_missing_seeds(counting, tmp_path):
    path = tmp_path / "counting.json"
    first = runner.run(counting, seeds=2, path=path)
    again = runner.run(counting, seeds=4, path=path, resume=True)
    assert again.runs[:2] == first.runs
    assert again.seeds == [0, 1, 2, 3]
    assert results.read(path) == again


def test_file_is_not_overwritten_unasked(counting, tmp_path):
    path = tmp_path / "counting.json"
    runner.run(counting, path=path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="resume it, delete it"):
        runner.run(counting, path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"last": 4}, "its last is 3, this run's is 4"),
        ({"preset": "full"}, "its preset is 'quick'"),
    ],
)
def test_runs_that_differ_do_not_share_a_file(counting, tmp_path, changed, message):
    path = tmp_path / "counting.json"
    runner.run(counting, path=path)
    with pytest.raises(ValueError, match=message):
        runner.run(counting, path=path, resume=True, **changed)


def test_other_versions_do_not_share_a_file(counting, tmp_path, monkeypatch):
    path = tmp_path / "counting.json"
    runner.run(counting, path=path)
    monkeypatch.setattr(results, "versions", lambda: {"python": "3", "numpy": "2", "keras": "9"})
    with pytest.raises(ValueError, match="versions"):
        runner.run(counting, path=path, resume=True)


def test_what_is_not_there_is_named(counting):
    with pytest.raises(ValueError, match=r"no experiment is named 'depht'; there are: .*counting"):
        runner.run("depht")
    with pytest.raises(ValueError, match="no preset 'long'; it has quick, full"):
        runner.run(counting, "long")
    with pytest.raises(ValueError, match="width"):
        runner.run(counting, width=3)
    with pytest.raises(ValueError, match="at least one"):
        runner.run(counting, seeds=0)


@pytest.fixture
def start(folder_of_processes):
    """Start a process that runs seeds into a file, one every few milliseconds."""
    started = []

    def start(path, *, resume=False):
        code = (
            # A shell that runs the tests in the background makes its children deaf to Ctrl-C.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from pathlib import Path; from bnkit.experiments import EXPERIMENTS, runner;"
            "EXPERIMENTS['counting'] = 'counting';"
            f"path, resume = Path({str(path)!r}), {resume};"
            "runner.run('counting', seeds=100_000, path=path, resume=resume, wait=0.002)"
        )
        paths = [str(folder_of_processes), str(ROOT)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_more_seeds(process, path, known):
    while process.poll() is None:
        if path.exists() and len(results.read(path).seeds) > known:
            return
        time.sleep(0.01)
    pytest.fail(process.stderr.read().decode())


def test_kill_at_any_point_loses_no_finished_seed(start, tmp_path):
    path, moment, finished = tmp_path / "counting.json", random.Random(0), ()
    for attempt in range(5):
        process = start(path, resume=attempt > 0)
        wait_for_more_seeds(process, path, len(finished))
        time.sleep(moment.uniform(0, 0.05))
        seen = results.read(path).runs
        process.kill()
        process.communicate()
        after = results.read(path).runs
        assert after[: len(seen)] == seen
        assert after[: len(finished)] == finished
        assert [run.seed for run in after] == list(range(len(after)))
        finished = after


def test_ctrl_c_leaves_a_valid_file(start, tmp_path):
    path = tmp_path / "counting.json"
    process = start(path)
    wait_for_more_seeds(process, path, 0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in said
    assert results.read(path).seeds
    assert not list(tmp_path.glob(".counting.json*"))


def test_command_line_writes_the_file_and_its_own_command(counting, tmp_path, capsys):
    arguments = ["run", counting, "--seeds", "1", "--output", str(tmp_path)]
    assert main(arguments) == 0
    result = results.read(tmp_path / "counting.json")
    want = f"python -m bnkit.experiments run {counting} --seeds 1"
    assert result.provenance["command"] == want  # where the file goes is not part of it
    assert "1 seeds" in capsys.readouterr().out


def test_on_jax_the_missing_seeds_are_run_side_by_side(counting, tmp_path, monkeypatch):
    path = tmp_path / "counting.json"
    runner.run(counting, seeds=1, path=path)
    experiment, groups = load(counting), []

    def run_seeds(config, seeds):
        groups.append(seeds)
        return [experiment.run_seed(config, seed) for seed in seeds]

    monkeypatch.setattr(experiment, "run_seeds", run_seeds, raising=False)
    apart = runner.run(counting, seeds=3)
    assert groups == []
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    old = results.read(path)
    replace(old, provenance={**old.provenance, "backend": "jax"}).save(path)
    together = runner.run(counting, seeds=3, path=path, resume=True)
    assert groups == [[1, 2]]
    assert [run.record for run in together.runs] == [run.record for run in apart.runs]


def test_command_line_says_how_to_go_on_after_ctrl_c(counting, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_run_group", interrupt)
    assert main(["run", counting, "--output", str(tmp_path)]) == 130
    assert "Stopped: no seed" in capsys.readouterr().err


def test_command_line_lists_names_and_questions(counting, capsys):
    assert main(["list"]) == 0
    assert "How far does it count?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "depht"], "no experiment is named 'depht'"),
        (["run", "counting", "--seeds", "0"], "at least one"),
    ],
)
def test_command_line_explains_what_is_wrong(counting, tmp_path, arguments, message, capsys):
    output = ["--output", str(tmp_path)]
    assert main([*arguments, *output]) == 2
    assert message in capsys.readouterr().err


def test_import_and_list_need_no_keras():
    code = (
        "import sys; from bnkit.experiments.__main__ import main; main(['list']);"
        "sys.exit('keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=PIPE)
    assert done.returncode == 0
