"""E1: the direction of the effect in a small run, and what the chapter says of the recorded one."""

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import paper_figure, protocol

CHAPTER = Path(__file__).parents[2] / "book" / "05-training" / "paper-figure.md"
RATES = paper_figure.Config().rates
TRAINABLE = RATES[:-1]  # at rate 10 plain nets fail
LEVEL = {"mnist": 0.9, "fashion-mnist": 0.8}


@pytest.fixture(scope="module")
def recorded():
    return experiments.recorded("paper-figure")


def ends(result, data, schedule, part="test", stddev=0.1, depth=3):
    """Final accuracies in percent without BN and with it, (seeds, rates)."""
    how = {"data": data, "schedule": schedule, "depth": depth}
    plain = paper_figure.final_accuracy(
        result, "plain", stddev, part=part.removesuffix(" moving"), **how
    )
    return 100 * plain, 100 * paper_figure.final_accuracy(result, "bn", stddev, part=part, **how)


def gap(*how, **more):
    """The interval of the difference at each rate but the last."""
    plain, bn = ends(*how, **more)
    return protocol.interval((bn - plain)[:, :-1])


def tuned_gap(result, data, schedule="cosine"):
    plain, bn = (
        paper_figure.tuned(result, variant, data=data, schedule=schedule)
        for variant in ("plain", "bn")
    )
    assert plain[2]
    assert bn[2]  # rates inside their grids
    return protocol.interval(100 * (bn[3] - plain[3]))


def steps_to(result, level, data, rate, stddev=0.1, depth=3):
    steps = paper_figure.evaluated(result, depth)
    return [
        paper_figure.steps_to(
            level, steps, paper_figure.accuracy(result, depth, variant, rate, stddev, data=data)
        )
        for variant in ("plain", "bn")
    ]


def medians(*how, **more):
    return [float(np.median(each)) for each in steps_to(*how, **more)]


def factor(*how, **more):
    """The interval of steps without over steps with, as (low, high)."""
    plain, bn = steps_to(*how, **more)
    found = protocol.interval(np.log(plain / bn))
    return np.exp([found.low, found.high])


def test_batch_norm_is_ahead_after_few_steps():
    """Recorded on Fashion-MNIST after 500 steps: about 80 against 30 %."""
    small = {"depths": (3,), "steps": (500,), "rates": (0.1,), "stddevs": (0.1,)}
    result = experiments.run("paper-figure", seeds=1, schedules=("constant",), **small)
    plain, bn = (
        paper_figure.accuracy(result, 3, name, 0.1, 0.1, data="fashion-mnist")[0, -1]
        for name in ("plain", "bn")
    )
    assert bn > plain + 0.2


def test_plot_draws_a_panel_for_each_rate_and_scale(recorded):
    assert len(paper_figure.plot(recorded).axes) == 6
    assert len(paper_figure.plot(recorded, data="fashion-mnist", rates=[2.0]).axes) == 2
    plt.close("all")


def test_recorded_run_has_all_its_seeds_and_names_its_commit(recorded):
    assert len(recorded.seeds) == recorded.config["seeds"] == 5
    assert recorded.provenance["commit"]
    assert recorded.provenance["backend"] == "jax"


def test_recorded_net_is_faster_with_batch_norm_at_every_rate_and_scale(recorded):
    for data, stddev, rate in product(LEVEL, (0.1, 0.01), TRAINABLE):
        assert factor(recorded, LEVEL[data], data, rate, stddev)[0] > 1.5


def test_recorded_steps_to_a_level(recorded):
    assert medians(recorded, 0.9, "mnist", 0.1) == [4700, 600]
    assert medians(recorded, 0.9, "mnist", 2.0) == [900, 300]
    assert medians(recorded, 0.97, "mnist", 2.0) == [5900, 3800]
    assert medians(recorded, 0.98, "mnist", 2.0) == [np.inf, 26300]
    assert np.isinf(steps_to(recorded, 0.98, "mnist", 2.0)[0]).all()
    assert medians(recorded, 0.85, "fashion-mnist", 0.1) == [13800, 4700]
    low, high = factor(recorded, 0.95, "mnist", 2.0)
    assert low < 1 < high


def test_recorded_factor_shrinks_towards_the_end_and_with_the_rate(recorded):
    for data, (early, late) in {"mnist": (0.9, 0.97), "fashion-mnist": (0.8, 0.85)}.items():
        for rate in (0.1, 2.0):
            plain, bn = np.array([medians(recorded, lv, data, rate) for lv in (early, late)]).T
            assert np.diff(plain / bn) < 0
        slow, good = (np.divide(*medians(recorded, early, data, rate)) for rate in (0.1, 2.0))
        assert slow > 1.5 * good


def test_recorded_net_ends_higher_with_batch_norm_on_mnist(recorded):
    for stddev, part in product((0.1, 0.01), ("test", "test moving")):
        assert (gap(recorded, "mnist", "cosine", part, stddev).low > 0).all()
        assert (gap(recorded, "mnist", "constant", part, stddev).low[:-1] > 0).all()
    constant = gap(recorded, "mnist", "constant")
    assert constant.low[-1] < 0 < constant.high[-1]
    assert tuned_gap(recorded, "mnist").low > 0.2
    assert tuned_gap(recorded, "mnist", "constant").low > 0


def test_recorded_nets_end_alike_on_fashion_mnist(recorded):
    for schedule in paper_figure.SCHEDULES:
        found = tuned_gap(recorded, "fashion-mnist", schedule)
        assert found.low < 0 < found.high
    assert tuned_gap(recorded, "fashion-mnist").high < 0.26
    decayed = gap(recorded, "fashion-mnist", "cosine")
    assert decayed.low[0] > 0  # rate 0.1
    assert -0.5 < decayed.low[4] < decayed.high[4] < 0  # rate 2
    others = [1, 2, 3, 5]
    assert (decayed.low[others] < 0).all()
    assert (decayed.high[others] > 0).all()
    constant = gap(recorded, "fashion-mnist", "constant")
    assert (constant.low[:5] < 0).all()
    assert (constant.high[:5] > 0).all()
    assert constant.low[5] > 0


def test_recorded_gap_on_fashion_mnist_is_large_only_with_small_weights_at_small_rates(recorded):
    large = {
        (stddev, rate)
        for stddev in (0.1, 0.01)
        for rate, low in zip(
            TRAINABLE, gap(recorded, "fashion-mnist", "cosine", stddev=stddev).low, strict=True
        )
        if low > 1
    }
    assert large == {(0.01, 0.1), (0.01, 0.2)}


def test_recorded_training_accuracy(recorded):
    mnist = np.concatenate(
        [
            each[:, 2:6].ravel()
            for schedule in paper_figure.SCHEDULES
            for each in ends(recorded, "mnist", schedule, "train")
        ]
    )
    assert mnist.min() > 99.8
    for schedule in paper_figure.SCHEDULES:
        plain, bn = ends(recorded, "fashion-mnist", schedule, "train")
        assert (bn.mean(0) - plain.mean(0) > 2).all()


def test_recorded_plain_nets_fail_at_the_largest_rate_and_others_do_not(recorded):
    failed = {
        (data, schedule): int((ends(recorded, data, schedule)[0][:, -1] < 50).sum())
        for data in LEVEL
        for schedule in paper_figure.SCHEDULES
    }
    assert failed == {
        ("mnist", "constant"): 4,
        ("mnist", "cosine"): 1,
        ("fashion-mnist", "constant"): 5,
        ("fashion-mnist", "cosine"): 5,
    }
    for data, schedule in failed:
        plain, bn = ends(recorded, data, schedule)
        assert plain[:, :-1].min() > 80
        assert bn.min() > 85
    assert np.isfinite(recorded.values("mnist", "3", "plain", "percentiles")).all()


def test_recorded_moving_statistics_cost_a_point_at_constant_rates_on_fashion_mnist(recorded):
    cost = {}
    for data, schedule in product(LEVEL, paper_figure.SCHEDULES):
        precise, moving = (ends(recorded, data, schedule, p)[1] for p in ("test", "test moving"))
        cost[data, schedule] = protocol.interval(precise - moving)
    assert (cost["fashion-mnist", "constant"].low[:-1] > 0).all()
    assert 0.5 < cost["fashion-mnist", "constant"].mean[:-1].mean() < 1.5
    for key in (("fashion-mnist", "cosine"), ("mnist", "constant"), ("mnist", "cosine")):
        assert abs(cost[key].mean[:-1]).max() < 0.1
    at_one = RATES.index(1.0)
    assert gap(recorded, "fashion-mnist", "constant", "test moving").high[at_one] < 0
    precise = gap(recorded, "fashion-mnist", "constant")
    assert -0.3 < precise.low[at_one] < 0 < precise.high[at_one] < 0.3


@pytest.mark.parametrize("data", LEVEL)
def test_recorded_moving_statistics_warm_up(recorded, data):
    curves = {
        kind: 100 * paper_figure.accuracy(recorded, 3, "bn", 0.1, 0.1, data=data, kind=kind)
        for kind in ("accuracy", "own", "moving")
    }
    few = curves["own"].shape[1]
    precise, own, moving = curves["accuracy"][:, :few], curves["own"], curves["moving"][:, :few]
    assert abs(precise - own).max() < 0.5
    assert precise[:, 0].min() > 70
    assert 15 < moving[:, 0].min() < moving[:, 0].max() < 50
    late = paper_figure.evaluated(recorded, 3)[:few] >= 600
    assert abs(np.median(precise - moving, axis=0)[late]).max() < 1


@pytest.mark.parametrize("data", LEVEL)
def test_recorded_inputs_stay_centred_and_spread(recorded, data):
    found = {}
    for variant in ("plain", "bn"):
        units = recorded.values(data, "3", variant, "units")
        assert units.shape == (5, 3, 3, 100)
        low, median, high = np.moveaxis(units, 2, 0)
        spread = high - low
        found[variant] = (
            np.median(spread, axis=(0, 2)),
            np.percentile(abs(median[:, -1]) / spread[:, -1], 90),
            np.median(abs(median[:, -1] - median[:, 1]) / spread[:, -1]),
        )
    (plain_spread, plain_off, plain_way), (spread, off, way) = found["plain"], found["bn"]
    assert plain_spread[0] < 0.1
    assert spread[0] > 2
    assert off < 0.1 < plain_off
    assert 3 * way < plain_way
    assert spread[0] < spread[1] < spread[2]  # it does not stand still
    if data == "fashion-mnist":
        assert abs(np.log(spread[2] / spread[1] / (plain_spread[2] / plain_spread[1]))) < 0.1


@pytest.mark.parametrize("data", LEVEL)
def test_recorded_depth(recorded, data):
    for stddev, rate in product((0.1, 0.01), RATES):
        for depth in (5, 8):
            assert np.isfinite(steps_to(recorded, 0.5, data, rate, stddev, depth)[1]).all()
        assert paper_figure.accuracy(recorded, 8, "plain", rate, stddev, data=data).max() < 0.12
        assert ends(recorded, data, "cosine", stddev=stddev, depth=8)[0].max() < 12
    assert np.isfinite(steps_to(recorded, 0.5, data, 2.0, depth=5)[0]).all()
    assert np.isinf(steps_to(recorded, 0.5, data, 10.0, depth=5)[0]).all()
    third = list(paper_figure.evaluated(recorded, 3)).index(4700)
    for rate in RATES:
        three = paper_figure.accuracy(recorded, 3, "bn", rate, 0.1, data=data)[:, third]
        eight = paper_figure.accuracy(recorded, 8, "bn", rate, 0.1, data=data)[:, -1]
        assert abs(eight.mean() - three.mean()) < 0.02


def test_recorded_five_plain_layers_start_at_some_rates_and_seeds(recorded):
    started = [
        int(np.isfinite(steps_to(recorded, 0.5, "mnist", rate, depth=5)[0]).sum()) for rate in RATES
    ]
    assert started == [2, 5, 5, 4, 5, 5, 0]


def test_evidence_of_the_claim_is_that_of_the_record(recorded):
    def words(low, high, form):
        return f"{low:{form}} to {high:{form}}".replace("-", "−")

    text = CHAPTER.read_text(encoding="utf-8")
    box = " ".join(
        text[text.index("> **Claim G1.") :].split("\n\n")[0].replace("\n> ", " ").split()
    )
    for data, name in (("mnist", " points on MNIST"), ("fashion-mnist", " on Fashion-MNIST")):
        found = tuned_gap(recorded, data)
        assert words(found.low, found.high, "+.2f") + name in box
    for rate in (0.1, 2.0):
        assert f"{words(*factor(recorded, 0.9, 'mnist', rate), '.1f')} at rate {rate:g}" in box
    assert f"{len(recorded.seeds)} of {recorded.config['seeds']} seeds" in box
