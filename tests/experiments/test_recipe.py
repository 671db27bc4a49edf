"""The recipe: no part is inert by construction, and the chapter against the record."""

import re
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import five_variants, protocol, recipe, recorded, run
from bnkit.experiments.moving_statistics import EQUAL
from bnkit.experiments.recipe import Brightness, LocalResponseNormalization

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "five-variants.md"


@pytest.fixture(scope="module")
def result():
    return run("recipe", seeds=2, train=200, steps=60, filters=(8, 8), rates=(0.1, 0.4), images=300)


def test_every_part_can_be_taken_back_and_changes_the_result(result):
    whole = result.values("none", "test loss")
    for taken_back in recipe.TAKEN_BACK:
        assert result.values(taken_back, "train").max(axis=1).min() > 0.2  # guessing is 0.1
        if taken_back != "none":
            assert np.abs(result.values(taken_back, "test loss") - whole).min() > 1e-4
    figure = recipe.plot(result)
    plt.close(figure)


def test_a_fifth_of_the_rate_learns_less_in_so_few_steps(result):
    assert result.values("rate", "train").mean() < result.values("none", "train").mean() - 0.05


def test_differences_are_taken_at_the_rate_best_for_each(result):
    best, inside = recipe.chosen(result, "dropout")
    assert not inside  # a grid of two has no inside
    test = result.values("dropout", "test")[:, best]
    expected = test - result.values("none", "test")[:, recipe.chosen(result, "none")[0]]
    np.testing.assert_allclose(recipe.differences(result, "dropout"), expected)
    assert recipe.chosen(result, "rate") == recipe.chosen(result, "none")


def test_seeds_draw_their_images(result):
    first, second = result.values("none", "train")
    assert not np.array_equal(first, second)


def test_fixed_batches_keep_their_members():
    config = recipe.Config(train=64, batch_size=32, steps=6)
    members = [sorted(batch) for batch in recipe.batches(config, 0, "fixed-batches").tolist()]
    assert len({tuple(batch) for batch in members}) == 2
    fresh = [tuple(sorted(batch)) for batch in recipe.batches(config, 0, "none").tolist()]
    assert len(set(fresh)) == 6


def test_local_response_norm_equals_its_formula_and_is_no_constant_factor():
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 3, 17)).astype("float32")
    y = keras.ops.convert_to_numpy(LocalResponseNormalization()(x))
    channel = 8
    near = np.square(x[..., 3:14]).sum(axis=-1)
    np.testing.assert_allclose(y[..., channel], x[..., channel] / np.sqrt(1 + near), rtol=1e-5)
    assert np.std(y / x) > 0.05


def test_brightness_changes_training_only():
    x = np.random.default_rng(0).uniform(0, 1, (4, 5, 5, 1)).astype("float32")
    layer = Brightness()
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    assert np.abs(y - x).max() > 0.05
    assert y.min() >= 0
    assert y.max() <= 1
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x, training=False)), x)


def test_lowest_loss_is_that_of_one_rate_for_all_seeds(result):
    loss, place, inside = recipe.lowest_loss(result, "none")
    np.testing.assert_array_equal(loss, result.values("none", "test loss")[:, place])
    assert loss.mean() == result.values("none", "test loss").mean(axis=0).min()
    assert not inside


@pytest.fixture(scope="module")
def full():
    return recorded("recipe")


def _points(full, taken_back):
    return protocol.interval(100 * recipe.differences(full, taken_back))


def _loss(full, taken_back):
    return protocol.interval(recipe.differences(full, taken_back, "test loss"))


def test_record_is_of_the_full_preset(full):
    config = full.config
    assert (full.preset, len(full.seeds), config["seeds"]) == ("full", 6, 10)
    assert config["steps"] * config["batch_size"] == 60 * config["train"] == 120_000


def test_recorded_rates_lie_inside_and_the_net_fits_its_images(full):
    rate = full.config["rates"][recipe.chosen(full, "none")[0]]
    assert rate == 3.2
    for taken_back in recipe.TAKEN_BACK:
        assert recipe.chosen(full, taken_back)[1]
        train = recipe.at_best(full, taken_back, "train").mean()
        assert train > (0.98 if taken_back == "dropout" else 0.999)
    assert 1 - recipe.at_best(full, "none").mean() == pytest.approx(1 / 6, abs=0.005)
    race = recorded("five-variants")
    plain = five_variants.values(race, "plain-4", "plain", "constant", "validation") > 0.5
    border = race.config["rates"][np.flatnonzero(plain.all(axis=0)).max()]
    assert rate >= 8 * border


def test_what_accuracy_settles_in_the_record(full):
    points = {name: _points(full, name) for name in recipe.TAKEN_BACK if name != "none"}
    assert [name for name, each in points.items() if each.high < 0] == ["rate", "slow-decay"]
    assert -1.1 < points["rate"].mean < -0.9
    assert -1.5 < points["slow-decay"].mean < -1.3
    within = [name for name, each in points.items() if -EQUAL < each.low < each.high < EQUAL]
    assert within == ["weight-decay", "fixed-batches"]
    assert not any(each.low > 0 for each in points.values())


def test_what_loss_settles_in_the_record(full):
    losses = {name: _loss(full, name) for name in recipe.TAKEN_BACK if name != "none"}
    assert [n for n, each in losses.items() if each.low > 0] == ["rate", "slow-decay"]
    assert [n for n, each in losses.items() if each.high < 0] == [
        "dropout",
        "weight-decay",
        "distortion",
    ]


def test_what_lowest_losses_settle_in_the_record(full):
    whole, place, inside = recipe.lowest_loss(full, "none")
    assert (place, inside) == (0, False)
    lost = recipe.at_best(full, "none").mean() - full.values("none", "test")[:, 0].mean()
    assert 0.02 < lost < 0.025
    found = {
        name: protocol.interval(recipe.lowest_loss(full, name)[0] - whole)
        for name in recipe.TAKEN_BACK
        if name not in ("none", "rate")
    }
    assert [n for n, each in found.items() if each.low > 0] == ["slow-decay", "fixed-batches"]
    assert [n for n, each in found.items() if each.high < 0] == ["weight-decay"]
    assert 0 < found["dropout"].high < 0.001


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8")).replace("−", "-")
    evidence = dict(re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text))["G6"]
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    said = re.findall(r"([-+][\d.]+) to ([-+][\d.]+)", evidence)
    accuracy = ("rate", "slow-decay", "weight-decay", "fixed-batches")
    accuracy += ("dropout", "distortion", "response-norm")
    found = [_points(full, name) for name in accuracy]
    found += [_loss(full, name) for name in ("weight-decay", "dropout", "distortion")]
    assert [tuple(map(float, each)) for each in said] == [
        (float(f"{each.low:.2g}"), float(f"{each.high:.2g}")) for each in found
    ]
