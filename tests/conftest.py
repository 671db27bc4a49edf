"""What all tests share: the environment, repeatable examples, and what "close" means."""

import os

import numpy as np
import pytest
from hypothesis import settings

from bnkit.gradcheck import relative_error

# Before any test module imports Keras.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# The same examples in every run; the machine may be slow or shared. HYPOTHESIS_PROFILE=random draws
# others, by the seed that `pytest --hypothesis-seed` names.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("random", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "repeatable")

TOLERANCES = {"bfloat16": 4e-3, "float16": 5e-4, "float32": 5e-7, "float64": 1e-13}


@pytest.fixture
def rng():
    return np.random.default_rng(20150211)


@pytest.fixture(scope="session")
def assert_close():
    """Assert that two arrays agree in norm, to the tolerance of the first one's dtype."""

    def check(got, want, tolerance=None):
        tolerance = TOLERANCES[np.asarray(got).dtype.name] if tolerance is None else tolerance
        error = relative_error(got, want)
        assert error <= tolerance, f"relative error {error:.3g} is above {tolerance:g}"

    return check
