"""What the kernels take: memory, threads, a backend."""

import os
import re
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import bnkit
from bnkit import batch_norm_backward, batch_norm_forward, kernels

MEGABYTE = 1 << 20


def step(x, dy, out):
    _, cache = batch_norm_forward(x, out=out)
    return batch_norm_backward(dy, cache, out=out)


def extra(call):
    """Bytes that a call had allocated at most, beyond what there was."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mean", [0, 1e4])
@pytest.mark.parametrize(("shape", "axis"), [((2**17, 64), -1), ((16, 64, 8192), 1)])
def test_a_pass_takes_a_few_blocks_and_never_a_copy_of_x(rng, backend, shape, axis, mean):
    x = rng.normal(mean, 1, shape).astype(np.float32)
    dy, out = x - np.float32(mean), np.empty_like(x)
    _, cache = batch_norm_forward(x, axis=axis)
    assert x.nbytes == 32 * MEGABYTE
    assert extra(lambda: batch_norm_forward(x, axis=axis, out=out)) < 2 * MEGABYTE
    assert extra(lambda: batch_norm_backward(dy, cache, out=out)) < 2 * MEGABYTE
    assert extra(lambda: bnkit.batch_norm_inference(x, *[np.ones(64)] * 2, axis=axis, out=out)) < (
        2 * MEGABYTE
    )


PEAK = """
import resource, sys
import numpy as np
import bnkit
bnkit.set_backend(sys.argv[1])

def step(x, dy, out):
    _, cache = bnkit.batch_norm_forward(x, out=out)
    bnkit.batch_norm_backward(dy, cache, out=out)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

x, dy, out = (np.full((2**18, 64), k, np.float32) for k in (1, 2, 3))
x[::2] += 1e4
step(*(array[:5000] for array in (x, dy, out)))
before = peak()
step(x, dy, out)
print(1024 * (peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_the_process_grows_by_a_few_blocks_and_never_by_a_copy_of_x(backend):
    run = [sys.executable, "-c", PEAK, backend]
    done = subprocess.run(run, check=True, timeout=120, capture_output=True, text=True)
    assert int(done.stdout) < 8 * MEGABYTE  # x has 64


def test_ten_thousand_calls_leave_nothing_behind(rng, backend):
    x, dy = rng.normal(size=(2, 60, 10)).astype(np.float32)
    out = np.empty_like(x)
    for _ in range(100):
        step(x, dy, out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10_000):
            step(x, dy, out)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_results_do_not_depend_on_the_number_of_threads(rng, backend, assert_close):
    for shape, axis in (((2**16, 33), -1), ((40, 3, 100, 101), 1), ((6, 7, 50000), 1)):
        x, dy = rng.normal(3, 2, (2, *shape)).astype(np.float32)
        results = []
        for threads in (1, 2, 5):
            bnkit.set_threads(threads)
            y, cache = batch_norm_forward(x, axis=axis)
            results.append([y, *cache.moments.mean, *batch_norm_backward(dy, cache)[:1]])
        for other in results[1:]:
            for got, want in zip(other, results[0], strict=True):
                assert_close(np.asarray(got), want, 1e-7)


def test_eight_threads_at_once_get_their_own_results(rng, backend):
    bnkit.set_threads(2)
    arrays = [rng.normal(k, 1 + k, (2**15, 40)).astype(np.float32) for k in range(8)]
    arrays[3][5, 7] = np.nan
    wanted = [step(x, x[::-1].copy(), np.empty_like(x)) for x in arrays]
    got, errors = [None] * 8, []

    def work(k):
        try:
            for _ in range(3):
                x = arrays[k]
                got[k] = step(x, x[::-1].copy(), np.empty_like(x))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for mine, theirs in zip(got, wanted, strict=True):
        assert np.array_equal(mine[0], theirs[0], equal_nan=True)


FORKED = """
import os, sys
import numpy as np
import bnkit
bnkit.set_backend(sys.argv[1])
bnkit.set_threads(2)
x = np.arange(2.0**21, dtype=np.float32).reshape(-1, 64)
want, _ = bnkit.batch_norm_forward(x)
child = os.fork()
if child == 0:
    got, _ = bnkit.batch_norm_forward(x)
    os._exit(0 if np.array_equal(got, want) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_worker_computes_as_its_parent_does(backend):
    subprocess.run([sys.executable, "-c", FORKED, backend], check=True, timeout=120)


def test_a_backend_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"backend must be one of \['numba', 'numpy'\], got 'gpu'"):
        bnkit.set_backend("gpu")


def test_numba_that_is_not_installed_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs numba: pip install numba"):
        bnkit.set_backend("numba")


@pytest.mark.parametrize("count", [0, -1, "many", None])
def test_a_number_of_threads_that_makes_no_sense_is_refused(count):
    wanted = f"must be an integer of 1 or more, got {re.escape(repr(count))}"
    with pytest.raises(ValueError, match=wanted):
        bnkit.set_threads(count)


def test_numpys_buffer_is_as_it_was_afterwards():
    """It stayed as small as the blocks of the last call, also where `errstate` did not end."""
    usual = np.getbufsize()
    kernels.moments(np.ones((4096, 512), "float32"), 1)
    assert np.getbufsize() == usual


def test_the_environment_chooses_backend_and_threads(backend):
    code = "from bnkit import kernels; print(kernels._backend.__name__, kernels._threads)"
    module = {"numpy": "blocked", "numba": "compiled"}[backend]
    chosen = run_python(code, BNKIT_BACKEND=backend, BNKIT_THREADS="3")
    assert chosen.split() == [f"bnkit.kernels.{module}", "3"]
    empty = run_python(code, BNKIT_BACKEND="", BNKIT_THREADS="")
    assert empty.split() == ["bnkit.kernels.blocked", "1"]


def test_numba_without_a_folder_for_its_cache_compiles_all_the_same():
    """The import failed, for example in an installation that belongs to somebody else."""
    pytest.importorskip("numba")
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []; "
        "import bnkit; print(bnkit.batch_norm_forward([[1.0], [3.0]], epsilon=0.0)[0].tolist())"
    )
    assert run_python(code, BNKIT_BACKEND="numba").strip() == "[[-1.0], [1.0]]"


def run_python(code, **environment):
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
