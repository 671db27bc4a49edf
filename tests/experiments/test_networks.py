"""The nets' own layers: images are shifted and mirrored in training, whatever the backend."""

import keras
import numpy as np
import pytest

from bnkit.experiments.ghost import Patchwise
from bnkit.experiments.networks import CropAndFlip, batch_norm, conv_net
from bnkit.experiments.statistics import recompute_statistics

X = np.random.default_rng(0).uniform(0, 1, (40, 12, 10, 3)).astype("float32")


def test_each_image_is_a_crop_of_its_padded_self_and_half_are_mirrored():
    y = keras.ops.convert_to_numpy(CropAndFlip()(X, training=True))
    padded = np.pad(X, [(0, 0), (2, 2), (2, 2), (0, 0)])
    found = []
    for k in range(len(X)):
        places = [
            (i, j, step)
            for i in range(5)
            for j in range(5)
            for step in (1, -1)
            if np.array_equal(padded[k, i : i + 12, j : j + 10][:, ::step], y[k])
        ]
        assert len(places) == 1
        found += places
    rows, columns, steps = (set(each) for each in zip(*found, strict=True))
    assert rows == columns == set(range(5))
    assert steps == {1, -1}


def test_images_stay_in_inference_and_while_statistics_are_recomputed():
    layer = CropAndFlip()
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(X)), X)
    model = keras.Sequential([keras.Input(X.shape[1:]), layer, keras.layers.BatchNormalization()])
    recompute_statistics(model, X)
    mean = keras.ops.convert_to_numpy(keras.ops.copy(model.layers[-1].moving_mean))
    np.testing.assert_allclose(mean, X.mean(axis=(0, 1, 2)), rtol=1e-4)
    assert layer.active


@pytest.mark.parametrize("residual", [False, True])
def test_convolutions_by_patches_give_the_same_net(residual):
    nets = [
        conv_net((4, 6), 4, batch_norm(), residual=residual, convolution=kind, shape=(12, 10, 3))
        for kind in (keras.layers.Conv2D, Patchwise)
    ]
    nets[1].set_weights(nets[0].get_weights())
    got, want = (keras.ops.convert_to_numpy(net(X)) for net in reversed(nets))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
