"""A sweep makes the same steps on JAX as on TensorFlow."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

PROGRAM = """
import json
import numpy as np
from bnkit.experiments.sweep import Sweep
rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (200, 30), dtype=np.uint8), rng.integers(0, 10, 200).astype("int32")
batches = rng.integers(0, 200, (110, 3, 16)).astype("int32")
factors = np.linspace(1, 0, 110)
sweep = Sweep(x, y, widths=[8, 8], rates=[0.1, 0.3, 0.3], stddevs=[0.3, 0.3, 0.1],
              activation="sigmoid", batch_norm=BATCH_NORM, seed=[0, 0, 1])
losses = sweep.train(batches, factors)
precise = sweep.predict(x, statistics=sweep.statistics(x))
print(json.dumps([losses.tolist(), sweep.predict(x).tolist(), precise.tolist()]))
"""


def curves(backend, batch_norm):
    """Losses and logits of a fresh process, since Keras has one backend a process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("BATCH_NORM", str(batch_norm))],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.array(each) for each in json.loads(done.stdout)]


@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_jax_and_tensorflow_give_the_same_curves(batch_norm):
    for got, want in zip(curves("jax", batch_norm), curves("tensorflow", batch_norm), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4)


def test_other_backends_are_refused(monkeypatch):
    import keras

    from bnkit.experiments import engines

    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="tensorflow or jax, got the backend torch"):
        engines.engine()
