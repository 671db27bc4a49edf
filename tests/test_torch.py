"""The PyTorch module of the book is PyTorch's own, and the recorded results are still true."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch", reason="torch is not installed")

from bnkit.torch import BatchNorm, BatchNormFunction, report  # noqa: E402  # needs torch

RECORDED = Path(__file__).parents[1] / "book" / "results" / "pytorch.json"


@pytest.fixture(scope="module")
def results():
    return report()


def test_results_are_those_of_torch_to_rounding(results):
    assert results["gradcheck"]
    for row in results["differences"]:
        assert max(value for value in row.values() if isinstance(value, float)) < 1e-13


def test_record_has_not_drifted(results):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert list(recorded) == list(results)
    assert recorded["version"] == results["version"]
    assert recorded["state_dict"] == results["state_dict"]
    assert recorded["gradcheck"] == results["gradcheck"]
    for then, now in zip(recorded["differences"], results["differences"], strict=True):
        assert list(then) == list(now)
        assert (then["module"], then["shape"]) == (now["module"], list(now["shape"]))
    for name, losses in results["losses"].items():
        assert np.allclose(losses, recorded["losses"][name], rtol=1e-6)


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_state_is_exchanged_in_both_directions(kind):
    theirs, ours = getattr(torch.nn, kind)(3), BatchNorm(3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_cumulative_average_is_that_of_torch():
    theirs, ours = torch.nn.BatchNorm1d(3, momentum=None), BatchNorm(3, momentum=None)
    for seed in range(4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        theirs(x), ours(x)
    assert torch.allclose(ours.running_var, theirs.running_var)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-7)


def test_one_value_a_channel_is_refused_in_training_alone():
    with pytest.raises(ValueError, match="2 values a channel"):
        BatchNorm(3)(torch.ones(1, 3))
    assert BatchNorm(3).eval()(torch.ones(1, 3)).shape == (1, 3)


def test_second_derivative_is_an_error_and_not_wrong():
    x = torch.randn(4, 3, requires_grad=True)
    y, _, _ = BatchNormFunction.apply(x, torch.ones(3), torch.zeros(3), 1e-5)
    (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()
