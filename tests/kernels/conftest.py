"""Both backends; the compiled one where numba is installed."""

import importlib.util

import numpy as np
import pytest

import bnkit

BACKENDS = ["numpy", "numba"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    bnkit.set_backend(request.param)
    yield request.param
    bnkit.set_backend("numpy")
    bnkit.set_threads(1)


@pytest.fixture
def by_definition(monkeypatch):
    """Forward, backward and inference of float64 copies, by the readable definition alone."""

    def run(x, dy, gamma, beta, axis=-1, epsilon=1e-3):
        with monkeypatch.context() as patch:
            for name in ("forward", "moments", "normalize", "backward", "inference_backward"):
                patch.setattr(bnkit.kernels, name, lambda *arguments: None)
            x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
            y, cache = bnkit.batch_norm_forward(x, gamma, beta, axis=axis, epsilon=epsilon)
            dx, dgamma, dbeta = bnkit.batch_norm_backward(dy, cache)
            arguments = cache.moments.mean, cache.moments.variance, gamma
            inferred = bnkit.batch_norm_inference(x, *arguments, beta, axis=axis, epsilon=epsilon)
            others = bnkit.batch_norm_inference_backward(
                dy, x, *arguments, axis=axis, epsilon=epsilon
            )
        names = ["y", "dx", "dgamma", "dbeta", "inferred", "idx", "idgamma", "idbeta"]
        return dict(zip(names, (y, dx, dgamma, dbeta, inferred, *others), strict=True))

    return run
