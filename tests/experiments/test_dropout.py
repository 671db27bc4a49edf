"""Dropout before a normalization moves its variance, as predicted; the chapter and the record."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import dropout, protocol

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "dropout.md"
SIZES = (500, 2000, 10_000)
HALF = 0.5  # the fraction dropped


@pytest.fixture(scope="module")
def result():
    return experiments.run("dropout", steps=600, seeds=2)


def of(result, variant, dropped, *names):
    """Shape (seeds, …), with the one number of images and the one rate."""
    return dropout.values(result, variant, dropped, *names)[:, 0, 0]


def test_variance_in_inference_is_smaller_behind_dropout(result):
    """Without dropout the ratio is within 0.05 of 1."""
    assert np.all(of(result, "bn", HALF, "ratio")[:, 1:] < 0.8)
    np.testing.assert_allclose(of(result, "bn", 0.0, "ratio"), 1, atol=0.15)


def test_variance_behind_dropout_is_the_predicted_one(result):
    found = of(result, "bn", HALF, "ratio")[:, 1]
    np.testing.assert_allclose(found, of(result, "bn", HALF, "predicted"), atol=0.12)


def test_dropout_after_the_last_normalization_shifts_no_variance(result):
    np.testing.assert_allclose(of(result, dropout.LAST, HALF, "ratio"), 1, atol=0.15)


def test_dropout_brings_training_and_test_together_but_hardly_moves_the_accuracy(result):
    """Seen: without it the training loss is below a fifth of the test loss, with it over a half."""
    change = {
        name: of(result, "bn", HALF, "precise", name) - of(result, "bn", 0.0, "precise", name)
        for name in ("test loss", "test", "train loss")
    }
    assert np.all(change["train loss"] > change["test loss"] + 0.1)
    assert np.all(np.abs(change["test"]) < 0.06)


def test_statistics_with_and_without_dropout_differ_only_behind_dropout(result):
    for name in ("test", "test loss"):
        kinds = [of(result, "bn", HALF, kind, name) for kind in ("precise", "repaired", "moving")]
        assert np.all(kinds[0] != kinds[1])
        np.testing.assert_allclose(kinds[0], kinds[2], atol=0.05)
    assert set(result.runs[0].record["bn"]["0"]) == {"loss", "moving", "ratio", "precise"}
    assert set(result.runs[0].record["plain"]["0.5"]) == {"loss", "precise"}


def test_rate_is_chosen_by_what_is_judged(result):
    assert dropout.best_rate(result, "bn", HALF, "loss") == [(0, False)]
    for measure, name in (("accuracy", "test"), ("loss", "test loss")):
        found = dropout.at_best_rate(result, dropout.LAST, 0.0, measure)
        np.testing.assert_array_equal(found[:, 0], of(result, "bn", 0.0, "precise", name))


def test_all_variants_begin_with_the_same_linear_maps():
    kernels = []
    for variant in dropout.LABELS:
        for dropped in (0.0, 0.5):
            keras.utils.set_random_seed(0)
            model = dropout.make_model(variant, dropped, 2, 8)
            kernels.append([each.kernel.numpy() for each in model.layers if "dense" in each.name])
    for one in kernels[1:]:
        for kernel, want in zip(one, kernels[0], strict=True):
            np.testing.assert_array_equal(kernel, want)


def test_each_seed_has_images_of_its_own():
    one, other = (set(dropout.draw_images(50_000, seed)[:500]) for seed in (0, 1))
    assert len(one) == len(other) == 500
    assert len(one & other) < 50


def test_scores_are_those_of_each_run():
    logits = np.log([[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.5, 0.5]]]).astype("float32")
    accuracy, loss = dropout.scores(logits, np.array([0, 1], "int32"))
    assert accuracy.tolist() == [0.5, 0]
    np.testing.assert_allclose(loss, -np.log([0.9 * 0.4, 0.2 * 0.5]) / 2, rtol=1e-5)


@pytest.fixture(scope="module")
def full():
    return experiments.recorded("dropout")


def at(full, variant, fraction, measure, part="test", statistics=dropout.PRECISE):
    """Points of accuracy, or loss, of shape (seeds, numbers of images), at the best rate."""
    found = dropout.at_best_rate(full, variant, fraction, measure, part, statistics)
    return 100 * found if measure == "accuracy" else found


def effect(full, measure, first, second):
    """The interval of the first (variant, fraction) less the second, by number of images."""
    return protocol.interval(at(full, *first, measure) - at(full, *second, measure))


def signs(found):
    """+1 or −1 where the interval leaves out zero, and 0 where it does not."""
    return (np.sign(found.low) * (np.sign(found.low) == np.sign(found.high))).astype(int).tolist()


def test_record_is_of_the_full_preset(full):
    assert (full.preset, full.seeds) == ("full", [0, 1, 2, 3, 4])
    assert full.config["seeds"] == 5
    assert tuple(full.config["images"]) == SIZES
    epochs = [full.config["steps"] * full.config["batch_size"] / size for size in SIZES]
    assert epochs == [240, 60, 12]
    assert full.provenance["commit"]


def test_chosen_rates_of_the_record_lie_inside_their_grid(full):
    for variant in dropout.LABELS:
        for fraction in full.config["dropped"]:
            for measure in ("accuracy", "loss"):
                best = dropout.best_rate(full, variant, fraction, measure)
                assert [inside for _, inside in best] == [True] * 3


def test_only_recorded_nets_without_batch_norm_diverge_and_all_at_the_two_highest_rates(full):
    for variant in dropout.LABELS:
        for fraction in full.config["dropped"]:
            lost = ~np.isfinite(dropout.values(full, variant, fraction, "loss"))
            assert not lost[..., :-2].any()
            assert (lost[..., -2:] == (variant == "plain")).all()


def test_recorded_shift_is_the_predicted_one_and_falls_with_the_rate(full):
    for fraction in (0.2, HALF):
        ratio = dropout.values(full, "bn", fraction, "ratio")
        predicted = dropout.values(full, "bn", fraction, "predicted")
        assert abs(ratio[..., 1] - predicted).max() < 0.07
        assert (np.diff(predicted, axis=2) > 0).all()
        assert (np.diff(ratio[..., 1:].mean(axis=(0, 1)), axis=0) > 0).all()
    for variant, fraction in (("bn", 0.0), (dropout.LAST, 0.2), (dropout.LAST, HALF)):
        ratio = dropout.values(full, variant, fraction, "ratio")
        np.testing.assert_allclose(ratio.mean(axis=(0, 1, 2)), 1.02, atol=0.02)
    np.testing.assert_allclose(dropout.values(full, "bn", HALF, "ratio")[..., 0], 1.015, atol=0.03)


def test_which_recorded_nets_overfit(full):
    train = {
        (variant, fraction): at(full, variant, fraction, "accuracy", "train").mean(axis=0)
        for variant in ("plain", "bn")
        for fraction in full.config["dropped"]
    }
    test = [at(full, *net, "accuracy").mean(axis=0) for net in train]
    assert min(each[0] for each in train.values()) > 98
    assert max(each[0] for each in test) < 80
    few = {net: each[1] for net, each in train.items()}
    assert 88.5 < few.pop(("plain", HALF)) < 89.5
    assert min(few.values()) > 96
    assert 90 < train["plain", 0.0][2] < 91
    assert max(train["plain", 0.2][2], train["plain", HALF][2]) < 90
    assert 97 < train["bn", 0.0][2] < 98
    for fraction in full.config["dropped"]:
        precise, moving = (
            at(full, "bn", fraction, "accuracy", statistics=kind).mean(axis=0)
            for kind in (dropout.PRECISE, dropout.MOVING)
        )
        np.testing.assert_allclose(precise, moving, atol=0.1)


def test_what_batch_norm_alone_does_in_the_record(full):
    nets = ("bn", 0.0), ("plain", 0.0)
    assert signs(effect(full, "loss", *nets)) == [1, 1, 1]
    assert signs(effect(full, "accuracy", *nets)) == [-1, 0, 1]
    train, test = ([at(full, *net, "loss", part) for net in nets] for part in ("train", "test"))
    assert (protocol.interval(train[0] - train[1]).high < 0).all()
    gap = protocol.interval(test[0] - train[0] - test[1] + train[1])
    assert (gap.low > 0).all()


def test_what_dropout_does_in_the_record(full):
    found = {
        (variant, fraction, measure): effect(full, measure, (variant, fraction), (variant, 0.0))
        for variant in ("bn", "plain")
        for fraction in (0.2, HALF)
        for measure in ("accuracy", "loss")
    }
    assert {key: signs(each) for key, each in found.items()} == {
        ("bn", 0.2, "accuracy"): [1, 0, 0],
        ("bn", 0.2, "loss"): [-1, -1, -1],
        ("bn", HALF, "accuracy"): [0, 0, -1],
        ("bn", HALF, "loss"): [-1, -1, 0],
        ("plain", 0.2, "accuracy"): [0, 0, -1],
        ("plain", 0.2, "loss"): [0, 0, 1],
        ("plain", HALF, "accuracy"): [0, -1, -1],
        ("plain", HALF, "loss"): [0, 1, 1],
    }
    assert found["bn", 0.2, "accuracy"].low[0] < 0.1  # "only just"
    assert found["bn", 0.2, "accuracy"].high.max() < 1
    assert -2.1 < found["bn", HALF, "accuracy"].mean[2] < -1.8
    assert -4.1 < found["plain", HALF, "accuracy"].mean[2] < -3.8


def test_dropout_does_more_beside_batch_norm_in_the_record(full):
    for fraction, accuracy in ((0.2, [0, 0, 1]), (HALF, [1, 1, 1])):
        for measure, want in (("accuracy", accuracy), ("loss", [-1, -1, -1])):
            bn, plain = (
                at(full, variant, fraction, measure) - at(full, variant, 0.0, measure)
                for variant in ("bn", "plain")
            )
            assert signs(protocol.interval(bn - plain)) == want
    for measure, sign in (("accuracy", 1), ("loss", -1)):
        plain, bn = (
            np.argmax(
                [
                    sign * at(full, variant, fraction, measure, "validation").mean(axis=0)
                    for fraction in full.config["dropped"]
                ],
                axis=0,
            )
            for variant in ("plain", "bn")
        )
        assert (bn >= plain).all()


def test_what_repairing_the_shift_does_in_the_record(full):
    """By rate with half dropped; then at the best rates."""
    accuracy, loss = (
        protocol.interval(
            dropout.values(full, "bn", HALF, "repaired", name)
            - dropout.values(full, "bn", HALF, "precise", name)
        )
        for name in ("test", "test loss")
    )
    assert (accuracy.low[:, 0] > 0).all()
    assert np.all((accuracy.mean[:, 0] > 0.009) & (accuracy.mean[:, 0] < 0.014))
    assert accuracy.mean[:, 3:].max() < 0.003
    np.testing.assert_allclose(loss.mean[:, 0], -0.2, atol=0.03)
    assert (loss.low[:, 3:] > 0).all()
    assert (np.diff(loss.mean[:, 3:], axis=0) < 0).all()
    assert loss.mean[0, 3:].min() > 0.15
    for fraction in (0.2, HALF):
        for measure, want in (("accuracy", [0, 0, 0]), ("loss", [1, 1, 1])):
            repaired = at(full, "bn", fraction, measure, statistics=dropout.REPAIRED)
            found = protocol.interval(repaired - at(full, "bn", fraction, measure))
            assert signs(found) == want
            if measure == "accuracy":
                assert np.abs([found.low, found.high]).max() < 0.2


def test_dropout_after_the_last_batch_norm_in_the_record(full):
    few, many = (
        effect(full, "loss", (dropout.LAST, fraction), ("bn", fraction)) for fraction in (0.2, HALF)
    )
    assert signs(few) == [1, 1, 1]
    assert signs(many) == [1, 0, -1]
    assert effect(full, "accuracy", (dropout.LAST, HALF), ("bn", HALF)).low[2] > 1


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    ((name, evidence),) = re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text)
    assert name == "G5"
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    found = [
        (effect(full, "loss", ("bn", 0.0), ("plain", 0.0)), 3),
        (effect(full, "loss", ("bn", 0.2), ("bn", 0.0)), 3),
        (effect(full, "loss", ("plain", 0.2), ("plain", 0.0)), 3),
        (effect(full, "accuracy", ("bn", 0.2), ("bn", 0.0)), 2),
    ]
    said = re.findall(r"([+−][\d.]+) to ([+−][\d.]+)", evidence)
    assert [tuple(float(each.replace("−", "-")) for each in pair) for pair in said] == [
        (round(low, digits), round(high, digits))
        for gain, digits in found
        for low, high in zip(gain.low, gain.high, strict=True)
    ]
