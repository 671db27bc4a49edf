"""Two devices that share a batch make the steps of one that has all of it."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnkit.experiments import devices, placement, results, runner
from bnkit.experiments.__main__ import main
from bnkit.gradcheck import relative_error

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SECONDS = 120  # more than any run takes on a busy machine


@pytest.fixture(scope="module")
def start():
    """Start the command line in a process of its own."""
    started = []

    def start(folder, *options, count=1, backend="tensorflow", **environment):
        command = [sys.executable, str(HERE / "several_devices.py"), str(count), *options]
        paths = os.pathsep.join([str(ROOT), str(HERE)])
        known = {"PYTHONPATH": paths, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(
            [*command, "--output", str(folder)],
            env={**os.environ, **known, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process, folder):
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return results.read(folder / "several-devices.json")


@pytest.fixture(scope="module")
def one_device(start, tmp_path_factory):
    """The record of one device with the whole batch."""
    folder = tmp_path_factory.mktemp("one")
    return finished(start(folder), folder).runs[0].record


def assert_same_steps(got, want):
    assert len(want["losses"]) == 8
    assert len(want["weights"]) == 7  # kernels, γ, β, moving mean and variance, bias
    assert want["losses"][-1] < want["losses"][0]
    for one, other in zip(got["weights"], want["weights"], strict=True):
        assert relative_error(np.array(one), np.array(other)) < 1e-4
    for what in ("losses", "logits", "runs", "runs_logits"):
        assert relative_error(np.array(got[what]), np.array(want[what])) < 1e-4


def test_mirrored_devices_make_the_steps_of_one(start, tmp_path, one_device):
    result = finished(start(tmp_path, "--strategy", "mirrored", count=2), tmp_path)
    assert result.provenance["strategy"] == "mirrored, 2 devices"
    assert_same_steps(result.runs[0].record, one_device)


def test_two_workers_make_the_steps_of_one_process(start, tmp_path, one_device):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = [
        start(
            tmp_path,
            *("--strategy", "multi-worker"),
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]
    result = finished(processes[0], tmp_path)
    said, _ = processes[1].communicate(timeout=SECONDS)
    assert processes[1].returncode == 0, said
    assert result.provenance["strategy"] == "multi-worker, 2 devices"
    assert_same_steps(result.runs[0].record, one_device)


def free_ports(count):
    """Ports that nobody listens on, held together so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.peers
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
def test_jax_devices_make_the_steps_of_one(start, tmp_path):
    records = []
    for count, options in ((1, []), (2, ["--strategy", "jax"])):
        folder = tmp_path / str(count)
        result = finished(start(folder, *options, count=count, backend="jax"), folder)
        records.append(result.runs[0].record)
    assert result.provenance["strategy"] == "jax, 2 devices"
    assert_same_steps(records[1], records[0])


@pytest.mark.parametrize(
    ("name", "strategy", "message"),
    [
        ("placement", "mirrored", "at least two devices, found 1"),
        ("placement", "multi-worker", "needs the addresses of all workers in TF_CONFIG"),
        ("placement", "jax", "needs KERAS_BACKEND=jax, got tensorflow"),
        ("placement", "ring", "strategy must be none, mirrored, multi-worker, jax, got 'ring'"),
        ("depth", "mirrored", "works with: placement$"),
    ],
)
def test_strategy_that_cannot_be_used_is_explained(name, strategy, message):
    with pytest.raises(ValueError, match=message):
        runner.run(name, strategy=strategy)


def test_workers_do_not_resume():
    with pytest.raises(ValueError, match="resume does not work with multi-worker"):
        runner.run("placement", strategy="multi-worker", resume=True)


def test_only_the_first_worker_writes(monkeypatch):
    for index in range(2):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"task": {"type": "worker", "index": index}}))
        assert devices.is_chief("multi-worker") == (index == 0)
        assert devices.is_chief("none")


def test_batch_that_cannot_be_shared_is_an_error():
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(ValueError, match="batch size 8 cannot be divided by 3 devices"):
        devices.split(Three(), np.zeros((5, 8), "int32"))


def test_mixed_precision_learns_and_is_named(tmp_path, monkeypatch):
    import keras

    tiny = placement.Config(
        activations=("relu",),
        places=("before",),
        rates=(0.1,),
        depth=1,
        width=16,
        steps=200,
        jit=False,
        seeds=1,
    )
    monkeypatch.setitem(placement.PRESETS, "quick", tiny)
    before = keras.config.dtype_policy()
    try:
        assert main(["run", "placement", "--mixed-precision", "--output", str(tmp_path)]) == 0
        model = placement.make_model("before", 1, 16, "relu")
        assert model.layers[0].compute_dtype == "bfloat16"
        assert model.layers[0].kernel.dtype == "float32"
    finally:
        keras.config.set_dtype_policy(before)
    result = results.read(tmp_path / "placement.json")
    assert result.provenance["precision"] == "mixed_bfloat16"
    assert result.values("relu", "before", "loss").item() < 0.6 * np.log(10)  # guessing
