"""Weights that were converted give the same inference in the framework that receives them."""

import numpy as np
import pytest

from bnkit import batch_norm_inference
from bnkit.conventions import convert

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("target", ["keras", "torch", "flax", "onnx"])
def test_inference_with_converted_weights_is_that_of_the_source(rng, assert_close, fresh, target):
    weights = [*rng.uniform(0.5, 2.0, (4, 3)).astype(np.float32)]
    x = rng.normal(size=(5, 3)).astype(np.float32)
    layer = fresh[target]()
    layer.load(convert(weights, "keras", target), x)
    gamma, beta, mean, variance = weights
    wanted = batch_norm_inference(x, mean, variance, gamma, beta, epsilon=layer.epsilon)
    assert_close(layer(x, training=False).y, wanted, 1e-6)


def test_trained_pytorch_goes_to_keras_and_trains_on_there(rng, assert_close, fresh):
    """Both moving variances agree again after one more step, if the count is made known."""
    torch, keras = fresh["torch"](), fresh["keras"]()
    batches = rng.normal(2.0, 3.0, (20, 6, 3)).astype(np.float32)
    for x in batches:
        run = torch(x, training=True)
    start = 0.9 ** len(batches)
    state = torch.layer.state_dict()
    state = {name: value.numpy() for name, value in state.items()}
    keras.load(convert(state, "torch", "keras", count=6, start=start), batches[0])
    variance = batches[-1].var(0)
    moved = keras(batches[-1], training=True).variance
    biased = start + 5 / 6 * (run.variance - start)
    assert_close(moved, 0.99 * biased + 0.01 * variance, 1e-6)
