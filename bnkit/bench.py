"""How long a batch normalization takes, here and elsewhere: ``python -m bnkit.bench``.

Every peer is timed in its best form, in one process, with the same number of threads, and in turn:
one sample of each, then the next sample of each, so that a slow moment of the machine hits all.
There are two modes. "installed": every library allocates as it does by default. "fair": memory
that was freed stays with the process, for all of them, so that nobody pays for first touching it.
What is not installed is skipped, and named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bnkit
from bnkit.arguments import Array

EPSILON = 1e-3
SAMPLE_SECONDS = 0.02
MODES = {
    "installed": {},
    # All memory from the heap, and none of it given back.
    "fair": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BNKIT_THREADS")
DENSE = [(60, 100), (256, 128), (1024, 512), (4096, 1024), (65536, 256)]
NHWC = [(128, 16, 16, 64), (32, 56, 56, 64), (64, 112, 112, 32)]
NCHW = [(128, 64, 16, 16), (32, 64, 56, 56)]
CASES = [(shape, -1, "float32") for shape in DENSE + NHWC]
CASES += [(shape, 1, "float32") for shape in NCHW]
CASES += [(shape, -1, "float64") for shape in DENSE]

Passes = dict[str, Callable[[], Any]]
Peer = Callable[[Array, Array, Array, Array, int], Passes]


def bnkit_numpy(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """Return the passes of this package."""
    _, cache = bnkit.batch_norm_forward(x, gamma, beta, axis=axis)
    mean, variance = cache.mean, cache.variance

    def forward() -> Any:
        return bnkit.batch_norm_forward(x, gamma, beta, axis=axis)

    return {
        "forward": forward,
        "backward": lambda: bnkit.batch_norm_backward(dy, cache),
        "both": lambda: bnkit.batch_norm_backward(dy, forward()[1]),
        "inference": lambda: bnkit.batch_norm_inference(x, mean, variance, gamma, beta, axis=axis),
    }


def textbook(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """Whole arrays in NumPy, as one writes it down first."""
    axes = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    shape = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
    g, b, m = gamma.reshape(shape), beta.reshape(shape), x.size // gamma.size

    def forward() -> tuple[Array, Array, Array]:
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        inv_std = 1 / np.sqrt(variance + x.dtype.type(EPSILON))
        x_hat = (x - mean) * inv_std
        return g * x_hat + b, x_hat, inv_std

    def backward(x_hat: Array, inv_std: Array) -> tuple[Array, Array, Array]:
        dgamma = (dy * x_hat).sum(axes, keepdims=True)
        dbeta = dy.sum(axes, keepdims=True)
        return g * inv_std * (dy - (dbeta + x_hat * dgamma) / m), dgamma, dbeta

    _, x_hat, inv_std = forward()
    mean, std = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
    return {
        "forward": forward,
        "backward": lambda: backward(x_hat, inv_std),
        "both": lambda: backward(*forward()[1:]),
        "inference": lambda: g * ((x - mean) / std) + b,
    }


def pytorch(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """``torch.nn.functional.batch_norm`` with autograd; channels_last memory for NHWC."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def tensor(array: Array) -> Any:
        last = axis == -1 and array.ndim > 2
        return torch.from_numpy(np.moveaxis(array, -1, 1) if last else array)

    inputs = [tensor(x), torch.from_numpy(gamma), torch.from_numpy(beta)]
    for value in inputs:
        value.requires_grad_(True)
    upstream, channels = tensor(dy), len(gamma)
    mean, variance = torch.zeros(channels, dtype=inputs[0].dtype), torch.ones_like(inputs[1])

    def forward() -> Any:
        values, g, b = inputs
        return torch.nn.functional.batch_norm(values, None, None, g, b, True, 0.1, EPSILON)

    def inference() -> Any:
        values, g, b = inputs
        with torch.inference_mode():
            return torch.nn.functional.batch_norm(
                values, mean, variance.detach(), g, b, False, 0.1, EPSILON
            )

    y = forward()
    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True),
        "both": lambda: torch.autograd.grad(forward(), inputs, upstream),
        "inference": inference,
    }


def jax_jit(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """``jax.jit`` of the formula and of its vector-Jacobian product."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    axes = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    shape = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]

    def affine(x: Any, mean: Any, variance: Any, gamma: Any, beta: Any) -> Any:
        scale = gamma.reshape(shape) * jax.lax.rsqrt(variance + EPSILON)
        return (x - mean) * scale + beta.reshape(shape)

    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        mean, variance = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
        return affine(x, mean, variance, gamma, beta)

    def both(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        y, vjp = jax.vjp(normalize, x, gamma, beta)
        return y, vjp(dy)

    inputs, upstream = jax.device_put((x, gamma, beta)), jax.device_put(dy)
    _, vjp = jax.vjp(jax.jit(normalize), *inputs)
    mean, variance = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    jitted, jitted_both = jax.jit(normalize), jax.jit(both)
    apply, infer = jax.jit(lambda vjp, dy: vjp(dy)), jax.jit(affine)
    wait = jax.block_until_ready
    return {
        "forward": lambda: wait(jitted(*inputs)),
        "backward": lambda: wait(apply(vjp, upstream)),
        "both": lambda: wait(jitted_both(*inputs, upstream)),
        "inference": lambda: wait(infer(inputs[0], mean, variance, *inputs[1:])),
    }


def _keras(jit: bool) -> Peer:
    def keras_layer(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
        """``keras.layers.BatchNormalization`` in a ``tf.function``."""
        tf = _tensorflow()
        import keras

        layer = keras.layers.BatchNormalization(axis=axis, epsilon=EPSILON, dtype=x.dtype.name)
        layer.build(x.shape)
        values, upstream = tf.constant(x), tf.constant(dy)
        weights = [weight.value for weight in layer.trainable_variables]

        def forward() -> Any:
            return layer(values, training=True)

        def both() -> Any:
            with tf.GradientTape() as tape:
                tape.watch(values)
                y = layer(values, training=True)
            return y, tape.gradient(y, [values, *weights], upstream)

        functions = {
            "forward": forward,
            "both": both,
            "inference": lambda: layer(values, training=False),
        }
        return {name: tf.function(f, jit_compile=jit) for name, f in functions.items()}

    return keras_layer


def tf_fused(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """TensorFlow's fused operation, which takes float32 and, on a CPU, channels last."""
    tf = _tensorflow()
    if x.dtype != np.float32 or axis != -1:
        raise NotImplementedError
    shape = (-1, 1, 1, len(gamma)) if x.ndim == 2 else x.shape
    values, upstream = tf.constant(x.reshape(shape)), tf.constant(dy.reshape(shape))
    g, b = tf.constant(gamma), tf.constant(beta)
    zeros, ones = tf.zeros_like(g), tf.ones_like(g)

    def forward() -> Any:
        return tf.compat.v1.nn.fused_batch_norm(values, g, b, epsilon=EPSILON)[0]

    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([values, g, b])
            y, *_ = tf.compat.v1.nn.fused_batch_norm(values, g, b, epsilon=EPSILON)
        return y, tape.gradient(y, [values, g, b], upstream)

    def inference() -> Any:
        return tf.compat.v1.nn.fused_batch_norm(
            values, g, b, zeros, ones, epsilon=EPSILON, is_training=False
        )[0]

    functions = {"forward": forward, "both": both, "inference": inference}
    return {name: tf.function(function) for name, function in functions.items()}


def onnxruntime(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """One BatchNormalization node; a channels-last array is given as rows."""
    import onnx
    import onnxruntime as ort

    values = x if axis == 1 else x.reshape(-1, len(gamma))
    element = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    names = ["x", "gamma", "beta", "mean", "variance"]
    constants = dict(zip(names[1:], (gamma, beta, gamma * 0, gamma * 0 + 1), strict=True))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("BatchNormalization", names, ["y"], epsilon=EPSILON)],
        "batch_norm",
        [onnx.helper.make_tensor_value_info("x", element, values.shape)],
        [onnx.helper.make_tensor_value_info("y", element, values.shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 15)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return {"inference": lambda: session.run(None, {"x": values})}


def copies(x: Array, dy: Array, gamma: Array, beta: Array, axis: int) -> Passes:
    """Plain copies into memory that is there: the floor is 2 for forward, 3 for backward."""
    y = np.empty_like(x)
    return {"both": lambda: np.copyto(y, x)}


PEERS: dict[str, tuple[Peer, tuple[str, ...]]] = {
    "bnkit": (bnkit_numpy, ()),
    "bnkit numba": (bnkit_numpy, ("numba",)),
    "textbook": (textbook, ()),
    "pytorch": (pytorch, ("torch",)),
    "jax": (jax_jit, ("jax",)),
    "keras graph": (_keras(jit=False), ("tensorflow", "keras")),
    "keras xla": (_keras(jit=True), ("tensorflow", "keras")),
    "tf fused": (tf_fused, ("tensorflow",)),
    "onnxruntime": (onnxruntime, ("onnx", "onnxruntime")),
    "copy": (copies, ()),
}


def _tensorflow() -> Any:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    threads = int(os.environ["OMP_NUM_THREADS"])
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def measure(mode: str, repeats: int, cases: list[Any]) -> dict[str, Any]:
    """Time every peer on every case, in this process."""
    versions, skipped = _versions()
    results = []
    for shape, axis, dtype in cases:
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
        gamma, beta = np.ones(shape[axis], dtype), np.zeros(shape[axis], dtype)
        seconds: dict[str, dict[str, list[float]]] = {}
        for part in ("forward", "backward", "both", "inference"):
            timers = {}
            for name, (peer, _) in PEERS.items():
                passes = {} if name in skipped else _prepare(name, peer, x, dy, gamma, beta, axis)
                if part in passes:
                    timers[name] = _timer(passes[part], name)
            samples: dict[str, list[float]] = {name: [] for name in timers}
            for _ in range(repeats):
                for name, timer in timers.items():
                    samples[name].append(timer())
            seconds[part] = samples
        medians = {
            part: {name: statistics.median(values) for name, values in samples.items()}
            for part, samples in seconds.items()
        }
        results.append({"shape": shape, "axis": axis, "dtype": dtype, "seconds": medians})
        print(mode, shape, dtype, _ratios(medians["both"], "bnkit"), file=sys.stderr, flush=True)
    return {
        "mode": mode,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "repeats": repeats,
        "machine": machine(),
        "versions": versions,
        "skipped": sorted(skipped),
        "results": results,
        "geometric_means": geometric_means(results),
    }


def _prepare(name: str, peer: Peer, *arguments: Any) -> Passes:
    bnkit.set_backend("numba" if name == "bnkit numba" else "numpy")
    try:
        return peer(*arguments)
    except NotImplementedError:
        return {}


def _timer(call: Callable[[], Any], name: str) -> Callable[[], float]:
    """Return a function that takes one sample: seconds a call, over as many as fill a moment."""
    backend = "numba" if name == "bnkit numba" else "numpy"
    bnkit.set_backend(backend)
    call()
    start = time.perf_counter()
    call()
    count = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start)))

    def sample() -> float:
        bnkit.set_backend(backend)
        call()
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    return sample


def _ratios(seconds: dict[str, float], ours: str) -> dict[str, float]:
    return {name: round(value / seconds[ours], 2) for name, value in seconds.items()}


def geometric_means(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Geometric means over the cases of peer time / ours, for each backend, pass and peer.

    For copies it is the other way round, ours / one copy, over arrays beyond 16 MB.
    """
    means: dict[str, dict[str, dict[str, float]]] = {}
    for ours in ("bnkit", "bnkit numba"):
        for part in ("forward", "backward", "both", "inference"):
            ratios: dict[str, list[float]] = {}
            for result in results:
                seconds = result["seconds"][part]
                size = math.prod(result["shape"]) * np.dtype(result["dtype"]).itemsize
                for name, value in seconds.items():
                    if name == "copy" and size > 16e6 and ours in seconds:
                        ratios.setdefault(name, []).append(seconds[ours] / value)
                    elif not name.startswith(("bnkit", "copy")) and ours in seconds:
                        ratios.setdefault(name, []).append(value / seconds[ours])
            if ratios:
                means.setdefault(ours, {})[part] = {
                    name: round(statistics.geometric_mean(values), 3)
                    for name, values in ratios.items()
                }
    return means


def machine() -> dict[str, Any]:
    """Return what a reader needs to compare: processor, cores, memory; no name, no address."""
    description: dict[str, Any] = {"system": platform.system(), "cores": os.cpu_count()}
    description["python"] = platform.python_version()
    cpu, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpu.exists():
        fields = dict(
            line.split(":", 1)
            for line in cpu.read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        names = ("model name", "cpu family", "model", "cache size")
        description |= {name: fields[name] for name in names if name in fields}
        description["avx512"] = "avx512f" in fields.get("flags", "")
    if memory.exists():
        description["memory GB"] = round(int(memory.read_text().split()[1]) / 1e6)
    return description


def _versions() -> tuple[dict[str, str], set[str]]:
    versions, skipped = {"numpy": np.__version__, "bnkit": bnkit.__version__}, set()
    for name, (_, modules) in PEERS.items():
        for module in modules:
            try:
                versions[module] = str(importlib.import_module(module).__version__)
            except ImportError:
                skipped.add(name)
    return versions, skipped


def main() -> None:
    """Run each mode in a process of its own, print the means, and write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bnkit.bench", description=__doc__)
    parser.add_argument("--mode", choices=[*MODES, "both"], default="both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of cases; all when left out")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        cases = CASES if options.cases is None else [CASES[k] for k in options.cases]
        run = measure(options.mode, options.repeats, cases)
        Path(options.child).write_text(json.dumps(run))
        return
    runs = []
    for mode in MODES if options.mode == "both" else [options.mode]:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "run.json"
            arguments = ["--mode", mode, "--repeats", str(options.repeats), "--child", str(report)]
            if options.cases is not None:
                arguments += ["--cases", *map(str, options.cases)]
            settings = dict.fromkeys(THREAD_SETTINGS, str(options.threads)) | MODES[mode]
            settings["XLA_FLAGS"] = (
                f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'}"
            )
            subprocess.run(
                [*_pinned(options.threads), sys.executable, "-m", "bnkit.bench", *arguments],
                env=os.environ | settings,
                check=True,
            )
            runs.append(json.loads(report.read_text()))
        print(json.dumps({mode: runs[-1]["geometric_means"]}, indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def _pinned(threads: int) -> list[str]:
    """Bind a child to as many cores as it has threads, where the system can do so."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    return ["taskset", "-c", ",".join(map(str, cores))]


if __name__ == "__main__":
    main()
