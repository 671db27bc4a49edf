"""Batch size: a small run shows the direction by far, and the chapter against the record."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import batch_size, protocol, recorded, run

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "batch-size.md"

PROGRAM = """
import json
from bnkit.experiments import batch_size
config = batch_size.Config(groups=(4, 128), renorm=(4,), levels=("group",), rates=(0.1, 0.3),
    steps=6, filters=(4,), layers=1, precise=128, tested=1664)
record = batch_size.run_seed(config, 0)
print(json.dumps({arm: [each["loss"].tolist(), each["training"]["loss"].tolist(),
    *(each[name]["loss"].tolist() for name in batch_size.STATISTICS)]
    for arm, each in record.items()}))
"""


@pytest.fixture(scope="module")
def result():
    return run("batch-size", seeds=1, groups=(2, 128), renorm=(2,), steps=120)


def test_small_groups_cost_batch_norm_accuracy_in_every_mode(result):
    few, many = ("batch 2", "batch 128")
    for statistics in batch_size.STATISTICS:
        cost = batch_size.accuracy(result, many, statistics=statistics) - batch_size.accuracy(
            result, few, statistics=statistics
        )
        assert np.all(cost > 0.03)


def test_at_one_low_rate_group_norm_lies_between_few_and_many(result):
    few, level, many = (
        batch_size.accuracy(result, arm) for arm in ("batch 2", "group", "batch 128")
    )
    assert np.all(few + 0.02 < level)
    assert np.all(level < many)


def test_modes_differ_for_batch_norm_and_most_for_small_groups(result):
    few, many = (np.abs(batch_size.gap(result, f"batch {size}", "loss")) for size in (2, 128))
    assert np.all(few > 5 * many)
    assert np.all(batch_size.gap(result, "group", "loss") == 0)


def test_the_best_rate_is_said_to_lie_at_the_edge_of_a_grid_of_one(result):
    assert batch_size.best_rate(result, "group") == (0.5, False)
    assert not batch_size.diverged(result, "group").any()


def test_plot_shows_both_modes(result):
    figure = batch_size.plot(result)
    assert len(figure.axes) == 2
    plt.close(figure)


def losses(backend):
    """Those of a fresh process, since Keras has one backend a process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
def test_copies_side_by_side_are_trained_as_those_that_take_turns():
    got, want = losses("jax"), losses("tensorflow")
    assert list(got) == list(want) == ["batch 4", "batch 128", "renorm 4", "group"]
    for arm in got:
        # Only the draw of the weights differs between the backends.
        np.testing.assert_allclose(got[arm], want[arm], rtol=0.1)


@pytest.fixture(scope="module")
def full():
    return recorded("batch-size")


def points(full, first, second, **how):
    """Accuracy of one arm less that of another, in points, over the seeds."""
    values = [batch_size.accuracy(full, arm, **how) for arm in (first, second)]
    return protocol.interval(100 * (values[0] - values[1]))


def at_rate(full, rate, first, second):
    """The same at one rate for both."""
    place = full.config["rates"].index(rate)
    values = [full.values(arm, "precise", "test")[:, place] for arm in (first, second)]
    return protocol.interval(100 * (values[0] - values[1]))


def test_record_is_of_the_full_preset_and_its_rates_lie_inside(full):
    assert (full.preset, len(full.seeds)) == ("full", full.config["seeds"])
    assert list(full.runs[0].record) == [*batch_size.arms(batch_size.Config()), "group", "layer"]
    for arm in full.runs[0].record:
        rate, inside = batch_size.best_rate(full, arm)
        assert inside
        assert (rate == 4) == arm.startswith("batch")


def test_medians_of_the_record_are_those_that_the_figure_is_said_to_show(full):
    medians = {arm: 100 * np.median(batch_size.accuracy(full, arm)) for arm in full.runs[0].record}
    assert round(medians["batch 2"]) == 84
    assert 85 < medians["batch 4"] < 86 < medians["batch 8"] < 86.1
    assert all(86 < medians[f"batch {size}"] < 87 for size in (16, 32, 64, 128))
    assert (round(medians["group"]), round(medians["layer"])) == (83, 81)
    assert 84 < medians["renorm 2"] < medians["renorm 8"] < 85
    by_rate = {arm: 100 * np.median(full.values(arm, "precise", "test"), axis=0) for arm in medians}
    assert (by_rate["group"].argmax(), by_rate["layer"].argmax()) == (2, 2)
    assert max(by_rate["group"][4], by_rate["layer"][4]) < 75
    assert by_rate["renorm 2"][3] > 84 > 56 > by_rate["renorm 2"][4]
    assert min(by_rate, key=lambda arm: by_rate[arm][0]) == "batch 2"
    assert min(by_rate["batch 128"][3:5]) > 86


def test_recorded_training_accuracy_is_a_point_above_test_accuracy(full):
    for arm in full.runs[0].record:
        train, test = (
            100 * batch_size.accuracy(full, arm, part=part).mean() for part in ("train", "test")
        )
        assert 0.7 < train - test < 1.3


def test_only_groups_of_two_cost_something_for_certain_in_the_record(full):
    cost = {size: points(full, "batch 128", f"batch {size}") for size in (2, 4, 8, 16, 32, 64)}
    assert [size for size, found in cost.items() if found.low > 0] == [2]
    assert all(found.high > 0 for found in cost.values())
    assert 2 < cost[2].mean < 2.5
    assert cost[4].high > 2
    assert 0.9 < cost[8].high < 1


def test_every_size_of_groups_is_ahead_of_the_levels_at_its_own_rate_in_the_record(full):
    for size in full.config["groups"]:
        for level in full.config["levels"]:
            assert points(full, f"batch {size}", level).low > 0


def test_group_norm_is_ahead_of_groups_of_two_at_low_rates_in_the_record(full):
    ahead = {rate: at_rate(full, rate, "batch 2", "group") for rate in full.config["rates"]}
    assert [rate for rate, found in ahead.items() if found.high < 0] == [0.25, 0.5]
    assert [rate for rate, found in ahead.items() if found.low > 0] == [2, 4, 8]
    assert ahead[0.25].mean < -5
    cost = [at_rate(full, rate, "batch 128", "batch 2") for rate in full.config["rates"][:5]]
    means = [found.mean for found in cost]
    assert means == sorted(means, reverse=True)
    assert (round(means[0]), round(2 * means[-1])) == (8, 5)
    assert all(found.low > 0 for found in cost)


def test_recorded_arms_fall_beyond_their_best_rate_and_some_runs_diverge(full):
    lost = {arm: batch_size.diverged(full, arm).sum(axis=0) for arm in full.runs[0].record}
    assert {arm for arm, counts in lost.items() if counts[:-1].any()} == {"renorm 8"}
    assert {arm for arm, counts in lost.items() if not counts.any()} == {
        f"batch {size}" for size in (2, 4, 8)
    }
    for arm in lost:
        last = full.values(arm, "precise", "test")[:, -1].mean()
        assert batch_size.accuracy(full, arm).mean() - last > 0.1


def test_recorded_inference_mode_is_better_than_training_mode(full):
    gaps = {size: batch_size.gap(full, f"batch {size}") for size in full.config["groups"]}
    found = {size: protocol.interval(100 * values) for size, values in gaps.items()}
    assert [size for size, each in found.items() if each.high >= 0] == [128]
    means = {size: each.mean for size, each in found.items()}
    assert min(means, key=means.get) == 4
    assert (round(means[2], 1), round(means[4], 1)) == (-0.6, -1.2)
    low = {
        size: (
            full.values(f"batch {size}", "training", "test")
            - full.values(f"batch {size}", "precise", "test")
        )[:, 0].mean()
        for size in gaps
    }
    assert list(low.values()) == sorted(low.values())  # largest with two, at the lowest rate
    for size in gaps:
        assert protocol.interval(batch_size.gap(full, f"batch {size}", "loss")).low > 0


def test_modes_of_the_others_agree_in_the_record(full):
    for size in full.config["renorm"]:
        found = protocol.interval(100 * batch_size.gap(full, f"renorm {size}"))
        assert -0.25 < found.low < found.high < 0.25
    for level in full.config["levels"]:
        assert not batch_size.gap(full, level).any()


def test_statistics_of_inference_are_not_what_is_lost_in_the_record(full):
    for size in full.config["groups"]:
        precise, moving = (
            batch_size.accuracy(full, f"batch {size}", statistics=statistics)
            for statistics in ("precise", "moving")
        )
        found = protocol.interval(100 * (precise - moving))
        assert -0.3 < found.low < found.high < 0.3
    assert points(full, "batch 128", "batch 2", statistics="moving").low > 1
    trained = [
        batch_size.at_best_rate(full, f"batch {size}", "training", "test") for size in (128, 2)
    ]
    assert protocol.interval(100 * (trained[0] - trained[1])).low > 1


def test_what_renormalization_repairs_in_the_record(full):
    shares = [
        at_rate(full, rate, "renorm 2", "batch 2").mean
        / at_rate(full, rate, "batch 128", "batch 2").mean
        for rate in full.config["rates"][:5]
    ]
    assert shares == sorted(shares, reverse=True)
    assert 0.45 < shares[0] < 0.55
    assert all(
        at_rate(full, rate, "renorm 2", "batch 2").low > 0 for rate in full.config["rates"][:4]
    )
    assert at_rate(full, 4, "renorm 2", "batch 2").high < -40
    two, eight = (points(full, f"renorm {size}", f"batch {size}") for size in (2, 8))
    assert two.low < 0 < two.high
    assert eight.high < 0


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8")).replace("−", "-")
    ((name, evidence),) = re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text)
    assert name == "G7"
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    want = [
        points(full, "batch 128", "batch 2"),
        points(full, "batch 2", "group"),
        *(protocol.interval(100 * batch_size.gap(full, arm)) for arm in ("batch 2", "batch 4")),
    ]
    said = re.findall(r"([+-][\d.]+) to ([+-][\d.]+)", evidence)
    assert said == [(f"{each.low:+.2f}", f"{each.high:+.2f}") for each in want]
