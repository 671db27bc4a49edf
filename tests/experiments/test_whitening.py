"""Whitening: what the matrices do, the effect in a small run, the chapter against the record."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import recorded, run, whitening
from bnkit.experiments.protocol import interval
from bnkit.keras import load_fashion_mnist

CHAPTER = Path(__file__).parents[2] / "book" / "01-why" / "whitening.md"
WHITENED = ("pca", "zca", "zca bare")


@pytest.fixture
def covariance(rng):
    rows = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    return np.cov(rows.T, ddof=0)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitened_rows_have_the_identity_as_covariance(covariance, kind):
    matrix = whitening.whitening_matrix(covariance, kind, epsilon=0.0)
    np.testing.assert_allclose(matrix.T @ covariance @ matrix, np.eye(4), atol=1e-10)


def test_zca_is_symmetric_and_pca_a_rotation_away_from_it(covariance):
    pca, zca = (whitening.whitening_matrix(covariance, k, epsilon=1e-3) for k in ("pca", "zca"))
    np.testing.assert_allclose(zca, zca.T, atol=1e-12)
    rotation = np.linalg.solve(zca, pca)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(4), atol=1e-10)


def test_normalizing_each_feature_leaves_the_correlations(covariance):
    matrix = whitening.whitening_matrix(covariance, "normalized", epsilon=0.0)
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(
        matrix.T @ covariance @ matrix, covariance / np.outer(std, std), atol=1e-12
    )


def test_epsilon_bounds_what_a_constant_feature_is_multiplied_by():
    matrix = whitening.whitening_matrix(np.zeros((2, 2)), "zca", epsilon=1e-4)
    np.testing.assert_allclose(matrix, 100 * np.eye(2))


@pytest.fixture(scope="module")
def result():
    changes = {"kinds": ("raw", "normalized", "zca"), "rates": (0.03, 0.1, 0.3), "steps": 200}
    return run("whitening", seeds=2, train=3000, hidden=(50,), last=60, **changes)


@pytest.mark.parametrize("net", whitening.NETS)
def test_normalized_inputs_train_faster_than_raw_ones(result, net):
    ratio = _ratio(result, net, "normalized", "raw")
    assert ratio.max() < 0.9  # four seeds lie between 0.5 and 0.77


def test_whitened_inputs_fit_the_training_images_fastest(result):
    ratio = _ratio(result, "deep", "zca", "normalized")
    assert ratio.max() < 0.5  # four seeds lie between 0.13 and 0.17


def _ratio(result, net, kind, other):
    return whitening.loss_at_end(result, net, kind) / whitening.loss_at_end(result, net, other)


def test_seeds_side_by_side_are_the_seeds_one_by_one():
    config = whitening.Config(
        ("zca",), (0.03, 0.1), hidden=(20,), train=1000, steps=100, last=50, seeds=2
    )
    together = whitening.run_seeds(config, [0, 1])
    for seed, record in enumerate(together):
        alone = whitening.run_seed(config, seed)
        for net in whitening.NETS:
            for name, values in alone[net]["zca"].items():
                np.testing.assert_allclose(record[net]["zca"][name], values, atol=2e-3)


def test_fresh_losses_are_those_of_the_first_epoch(result):
    """3,000 images in batches of 60 are 50 steps: two windows of 20, fewer than `last` asks for."""
    np.testing.assert_array_equal(
        whitening.final_loss(result, "deep", "raw", fresh=True),
        result.values("deep", "raw", "loss")[:, :, :2].mean(axis=2),
    )


def test_plot_shows_each_net_and_where_an_epoch_ends(result):
    figure = whitening.plot(result)
    assert [ax.get_title() for ax in figure.axes] == list(whitening.NETS.values())
    for ax in figure.axes:
        upright = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
        np.testing.assert_allclose(upright, [50, 100, 150])
    plt.close(figure)


@pytest.fixture(scope="module")
def pixels():
    (images, _), _ = load_fashion_mnist()
    return images[:10_000].reshape(-1, 784) / 255


def test_the_mean_of_the_pixels_is_the_steepest_direction(pixels):
    """Formula (2.1) before and after the mean is taken away: about 112 and 19.9."""
    rows = np.c_[pixels, np.ones(len(pixels))]
    raw = np.linalg.eigvalsh(rows.T @ rows / len(rows))[-1]
    centred = np.linalg.eigvalsh(np.cov(pixels.T, ddof=0))[-1]
    assert (round(raw), round(centred, 1)) == (112, 19.9)
    assert raw / centred > 5


def test_a_batch_of_whitened_pixels_is_steep(pixels):
    """The largest eigenvalue of all is below 1, of batches of 60 above 20: 32 in the median."""
    mean, covariance = pixels.mean(0), np.cov(pixels.T, ddof=0)
    white = (pixels - mean) @ whitening.whitening_matrix(covariance, "zca", 1e-3)
    batches = white[:1200].reshape(20, 60, 784)
    assert np.median(np.linalg.norm(batches, 2, axis=(1, 2)) ** 2 / 60) > 20


@pytest.fixture(scope="module")
def full():
    return recorded("whitening")


def less(full, net, kind, other="raw", *, fresh=False):
    """The interval of how far the loss of a kind lies below that of another."""
    ends = (whitening.loss_at_end(full, net, each, fresh=fresh) for each in (other, kind))
    return interval(next(ends) - next(ends))


def more(full, net, kind, other="raw"):
    """The interval of how far the test accuracy of a kind lies above another's, in points."""
    seen = (whitening.accuracy(full, net, each, "test") for each in (kind, other))
    return interval(100 * (next(seen) - next(seen)))


def test_recorded_run_has_all_its_seeds_and_names_its_commit(full):
    assert len(full.seeds) == full.config["seeds"] == 10
    assert full.provenance["commit"]
    epoch = full.config["train"] / full.config["batch_size"]
    assert [round(epoch), round(2 * epoch)] == [833, 1667]
    assert full.config["steps"] / epoch == pytest.approx(2.4)


@pytest.mark.parametrize("net", whitening.NETS)
@pytest.mark.parametrize("by", ["loss", "fresh", "validation"])
def test_recorded_rates_lie_inside_the_grid(full, net, by):
    assert all(whitening.chosen(full, net, kind, by)[1] for kind in whitening.KINDS)


@pytest.mark.parametrize("net", whitening.NETS)
def test_recorded_loss_of_every_version_ends_below_that_of_raw_pixels(full, net):
    assert all(less(full, net, kind).low > 0 for kind in whitening.KINDS if kind != "raw")


def test_recorded_linear_layer_gains_most_by_centring(full):
    others = set(whitening.KINDS) - {"centred"}
    assert all(less(full, "linear", "centred", other).low > 0 for other in others)


def test_recorded_rates_of_the_linear_layer(full):
    """And what centred pixels gain at the rate of raw ones: about half."""
    rates = full.config["rates"]
    found = {k: rates[whitening.chosen(full, "linear", k, "loss")[0]] for k in whitening.KINDS}
    assert [found[k] for k in ("raw", "centred", "normalized", "zca")] == [0.1, 0.3, 0.03, 0.1]
    raw, centred = (whitening.final_loss(full, "linear", k).mean(0) for k in ("raw", "centred"))
    same = centred[rates.index(0.1)]
    assert same == pytest.approx(0.455, abs=1e-3)
    gained = (same - centred.min()) / (raw.min() - centred.min())
    assert 0.4 < gained < 0.6


@pytest.mark.parametrize("net", whitening.NETS)
def test_recorded_whitened_inputs_start_slowest(full, net):
    curves = {kind: whitening.losses(full, net, kind) for kind in whitening.KINDS}
    slowest = max(curves[kind][:, 0].max() for kind in ("raw", "centred", "normalized"))
    assert all(curves[kind][:, 0].min() > slowest for kind in WHITENED)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_recorded_whitened_inputs_fall_where_an_epoch_ends_and_rise_after(full, kind):
    """Windows of 50 steps: 15 ends the first epoch, 17 begins the second, 32 ends it."""
    for net in whitening.NETS:
        curve = whitening.losses(full, net, kind).mean(0)
        assert curve[15] - curve[17] > 0.04
        assert curve[31] - curve[17] > 0.01
        assert curve[31] - curve[34] > 0.04
    others = [whitening.losses(full, "deep", k).mean(0) for k in ("raw", "centred", "normalized")]
    assert all(curve[31] < curve[17] for curve in others)


def test_recorded_steps_of_the_deeper_net_to_a_level(full):
    def median(kind, level):
        return np.median(np.nan_to_num(whitening.steps_to(full, "deep", kind, level), nan=np.inf))

    for kind in WHITENED:
        assert median(kind, 0.6) > median("raw", 0.6)
        assert median(kind, 0.5) > median("raw", 0.5)
        assert 833 < median(kind, 0.4) < 900 < median("raw", 0.4)


def test_recorded_losses_on_new_images(full):
    for net in whitening.NETS:
        assert all(less(full, net, k, fresh=True).low > 0.04 for k in ("centred", "normalized"))
        assert less(full, net, "zca bare", fresh=True).high < 0
    for kind in ("pca", "zca"):
        assert less(full, "linear", kind, fresh=True).low > 0
        assert less(full, "linear", kind, fresh=True).high < 0.03
        shown = less(full, "deep", kind, fresh=True)
        assert shown.low < 0 < shown.high
        assert all(
            less(full, net, "centred", kind, fresh=True).low > 0.04 for net in whitening.NETS
        )


@pytest.mark.parametrize("net", whitening.NETS)
def test_recorded_gap_between_training_and_test_is_largest_on_whitened_inputs(full, net):
    gap = {
        kind: np.subtract(
            *(whitening.accuracy(full, net, kind, part).mean() for part in ("train", "test"))
        )
        for kind in whitening.KINDS
    }
    least = min(gap[kind] for kind in WHITENED)
    assert least > 1.5 * max(gap[kind] for kind in ("raw", "centred", "normalized"))


def test_recorded_accuracy_on_test_images(full):
    for net in whitening.NETS:
        for kind in ("centred", "normalized"):
            assert all(more(full, net, kind, other).low > 0 for other in ("raw", *WHITENED))
    for kind in ("pca", "zca"):
        assert more(full, "linear", kind).low > 0
        assert more(full, "linear", kind).high < 1
        assert more(full, "deep", kind).low < 0 < more(full, "deep", kind).high < 0.6
    assert more(full, "deep", "zca bare").high < 0


@pytest.mark.parametrize("net", whitening.NETS)
def test_recorded_pca_and_zca_do_the_same(full, net):
    for found in (less(full, net, "pca", "zca"), more(full, net, "pca", "zca")):
        assert found.low < 0 < found.high


def test_evidence_of_the_claim(full):
    """Its ends of intervals, in their order, to within what another processor changes."""
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    (evidence,) = re.findall(r"\*\*Claim W8\.\*\*.*?\*Evidence: (.*?)\*\n", text)
    assert evidence.startswith("10 of 10 seeds")
    written = re.findall(r"([+−]?\d+\.\d+) (?:to|and) ([+−]?\d+\.\d+)", evidence)
    ends = [[float(end.replace("−", "-")) for end in pair] for pair in written]
    losses = [less(full, net, kind) for kind in ("centred", "zca") for net in whitening.NETS]
    losses += [less(full, "deep", kind, fresh=True) for kind in ("centred", "zca")]
    points = [more(full, "deep", kind) for kind in ("centred", "zca")]
    np.testing.assert_allclose(ends[:6], [found[1:] for found in losses], atol=3e-3)
    np.testing.assert_allclose(ends[6:], [found[1:] for found in points], atol=0.11)
    assert len(ends) == 8
