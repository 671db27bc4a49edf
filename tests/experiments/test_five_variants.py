"""Five variants: a small run shows the claimed direction, and the chapter against the record."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import five_variants, learning_rate, protocol, recorded, run
from bnkit.experiments.results import Result, Run

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "five-variants.md"
NET = "plain-4"
NETS = (NET, "residual-8")


@pytest.fixture(scope="module")
def result():
    return run(
        "five-variants",
        seeds=1,
        nets=(NET,),
        filters=(8, 8),
        rates=(0.05, 0.1),
        bn_rates=(0.1, 0.2),
        steps=120,
        evaluations=4,
        images=200,
        final_images=500,
    )


def test_batch_norm_ends_above_the_baseline(result):
    """By several points after so few steps."""
    plain, bn = (
        five_variants.tuned(result, NET, name, "constant") for name in ("plain", "bn-best")
    )
    assert (bn - plain).min() > 0.03


def test_the_variants_rates_are_multiples_of_the_baselines(result):
    """BN at the baseline's rate is BN of the grid where the grid has that rate."""
    rate = result.values(NET, "rate")[0]
    assert rate in result.config["rates"]
    if rate in result.config["bn_rates"]:
        place = result.config["bn_rates"].index(rate)
        grid = result.values(NET, "bn-grid", "constant", "test")[0, place]
        assert result.values(NET, "bn", "test")[0] == pytest.approx(grid, abs=0.02)


def test_plot_shows_all_variants(result):
    figure = five_variants.plot(result)
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert len(labels) == len(five_variants.VARIANTS)
    plt.close(figure)


def made(plain, bn):
    """A result of one seed with these curves at two rates, of which the second is best."""

    def tried(curve):
        curves = {"test": [[0.1] * 3, curve], "validation": [[0.1] * 3, curve]}
        return {"constant": {"validation": [0.1, 0.9], "curves": curves, "loss": [None, 0.1]}}

    record = {
        "plain": tried(plain),
        "bn-grid": tried(bn),
        "bn-x5": {"curves": {"test": bn}, "loss": None},
    }
    config = {"steps": 1000, "evaluations": 3, "rates": [0.1, 0.2], "bn_rates": [0.1, 0.2]}
    return Result("five-variants", "full", config, {}, (Run(0, 1.0, {NET: record}),))


def test_steps_to_a_level_and_what_is_not_reached():
    some = made([0.2, 0.6, 0.8], [0.6, 0.7, 0.7])
    np.testing.assert_array_equal(five_variants.evaluated(some), [10, 100, 1000])
    assert five_variants.steps_to(some, NET, "plain", 0.6) == 100
    assert five_variants.steps_to(some, NET, "bn-x5", 0.6) == 10
    assert five_variants.speed_up(some, NET, "bn-best", 0.6) == 10
    assert five_variants.steps_to(some, NET, "bn-x5", 0.8) == np.inf
    assert five_variants.speed_up(some, NET, "bn-x5", 0.8) == 0
    assert np.isnan(five_variants.speed_up(some, NET, "bn-x5", 0.9))


def test_a_best_rate_at_the_edge_and_a_run_that_diverged_are_counted():
    some = made([0.2, 0.6, 0.8], [0.6, 0.7, 0.7])
    assert five_variants.chosen(some, NET, "plain")[1] == 0
    assert five_variants.diverged(some, NET, "bn-x5") == 1
    assert five_variants.diverged(some, NET, "plain") == 0


def test_fewest_steps_are_those_of_the_rate_that_is_fastest_on_the_validation_part():
    some = made([0.2, 0.6, 0.8], [0.6, 0.7, 0.7])
    steps, places = five_variants.fewest_steps(some, NET, "plain", 0.6)
    assert (steps, places) == (100, 1)
    steps, places = five_variants.fewest_steps(some, NET, "plain", 0.9)
    assert (steps, places) == (np.inf, 0)


@pytest.fixture(scope="module")
def full():
    return recorded("five-variants")


def _factor(result, net, variant, level, steps=five_variants.steps_to):
    """Geometric mean and interval of the baseline's steps over the variant's."""
    ratio = steps(result, net, "plain", level) / steps(result, net, variant, level)
    return protocol.Interval(*2 ** np.array(protocol.interval(np.log2(ratio))))


def test_record_is_of_the_full_preset(full):
    assert (full.preset, len(full.seeds), full.config["nets"]) == ("full", 5, list(NETS))
    config = full.config
    assert config["steps"] * config["batch_size"] / 50_000 == pytest.approx(10, abs=0.01)
    steps = five_variants.evaluated(full)
    assert np.all(steps[8:] / steps[7:-1] < 1.38)


def test_recorded_best_rates_lie_inside_their_grids(full):
    for net in NETS:
        for variant in ("plain", "bn-best"):
            for schedule in five_variants.SCHEDULES:
                assert five_variants.chosen(full, net, variant, schedule)[1] == 5


def test_levels_that_the_recorded_baselines_reach(full):
    reached = {
        (net, level): int(np.isfinite(five_variants.steps_to(full, net, "plain", level)).sum())
        for net in NETS
        for level in full.config["levels"]
    }
    assert list(reached.values()) == [5, 5, 5, 0, 5, 5, 5, 4]
    for variant, seeds in {"bn": 4, "bn-x5": 5, "bn-best": 5}.items():
        steps = five_variants.steps_to(full, NET, variant, 0.88)
        assert np.isfinite(steps).sum() == seeds


def test_factors_of_the_record(full):
    """Two to three for BN, 2.5 to 4.2 at five times the rate, about one for sigmoids."""
    found = {
        variant: [_factor(full, net, variant, level) for net in NETS for level in (0.7, 0.8, 0.85)]
        for variant in ("bn", "bn-x5", "bn-x5-sigmoid")
    }
    assert min(each.mean for each in found["bn"]) > 2.0
    assert max(each.mean for each in found["bn"]) < 3.3
    assert [each.low > 1 for each in found["bn"]].count(False) == 1
    means = [round(float(each.mean), 1) for each in found["bn-x5"]]
    assert (min(means), max(means)) == (2.5, 4.2)
    assert all(each.low < 1 < each.high for each in found["bn-x5-sigmoid"])


def test_five_times_the_rate_is_settled_at_one_recorded_level(full):
    settled = []
    for net in NETS:
        for level in full.config["levels"]:
            steps = [five_variants.steps_to(full, net, v, level) for v in ("bn", "bn-x5")]
            if np.isfinite(steps).all():
                ratio = np.log2(steps[0] / steps[1])
                settled += [(net, level)] if protocol.interval(ratio).low > 0 else []
    assert settled == [(NET, 0.85)]


def test_factors_at_the_fastest_recorded_rates_are_of_the_same_size(full):
    means = [
        _factor(full, net, "bn-best", level, lambda *k: five_variants.fewest_steps(*k)[0]).mean
        for net in NETS
        for level in (0.7, 0.8, 0.85)
    ]
    assert 2 < min(means) < max(means) < 4.2


def test_fourteen_could_have_shown_and_does_not(full):
    largest = 0
    for net in NETS:
        for level in full.config["levels"]:
            steps = five_variants.steps_to(full, net, "plain", level)
            assert steps.min() / five_variants.evaluated(full)[0] > 50
            for variant in five_variants.VARIANTS:
                factors = five_variants.speed_up(full, net, variant, level)
                largest = max(largest, *factors[np.isfinite(factors)], 0)
    assert round(largest, 1) == 7.6
    assert largest * 1.38 < 14  # as far as the distance of the evaluations goes


def test_recorded_final_accuracy(full):
    """2.5 to 4 points, on the training images too; at constant rates moving ones hide it."""
    for net in NETS:
        for part in ("train", "test", "moving"):
            gains = five_variants.tuned(full, net, "bn-best", part=part) - five_variants.tuned(
                full, net, "plain", part=part
            )
            gain = protocol.interval(100 * gains)
            assert 2.4 < gain.low < gain.high < 4.3
        precise, moving = (
            five_variants.tuned(full, net, "bn-best", part=part) for part in ("test", "moving")
        )
        assert np.abs(precise - moving).max() < 0.0025
        train = five_variants.tuned(full, net, "bn-best", part="train")
        assert (train - precise).max() < 0.02
        ratio = np.divide(
            *(
                np.take(
                    five_variants.grid_of(full, name),
                    five_variants.chosen(full, net, name, "cosine")[0],
                )
                for name in ("bn-best", "plain")
            )
        )
        assert 3.9 < ratio.min() < ratio.max() < 16.1
    moving = [
        five_variants.tuned(full, "residual-8", name, "constant", "moving")
        for name in ("bn-best", "plain")
    ]
    assert protocol.interval(moving[0] - moving[1]).low < 0


def test_a_badly_chosen_baseline_gives_the_factor(full):
    """At 0.0125, with 32 times that rate, four convolutions, to 70 percent: 14."""
    grids = [five_variants.grid_of(full, name) for name in ("plain", "bn-best")]
    assert (grids[0][0], grids[1][3]) == (0.0125, 0.4)
    assert full.values(NET, "rate").min() >= 8 * grids[0][0]

    def factor(net, k, shift):
        plain, bn = (
            five_variants.first_at(
                full,
                five_variants.values(full, net, name, "constant", "curves", "test")[:, place],
                0.7,
            )
            for name, place in (("plain", k), ("bn-best", k + shift))
        )
        return 2 ** np.array(protocol.interval(np.log2(plain / bn)))

    mean, low, high = factor(NET, 0, 3)
    assert round(mean) == 14
    assert low < 14 < high
    for net in NETS:
        falling = [factor(net, k, 3)[0] for k in range(4)]
        assert falling == sorted(falling, reverse=True)


def test_runs_on_either_side_of_the_recorded_border(full):
    thirty, ends = [], []
    for net in NETS:
        rates = np.array(full.config["bn_rates"])
        validation = five_variants.values(full, net, "bn-best", "constant", "validation")
        trains = (validation > 0.5).sum(axis=0)
        assert (trains[rates <= 3.2] == 5).all()
        assert trains[-1] == {NET: 1, "residual-8": 0}[net]
        plain = five_variants.values(full, net, "plain", "constant", "validation") > 0.5
        border = full.config["rates"][np.flatnonzero(plain.all(axis=0)).max()]
        assert 3.2 / border == pytest.approx({NET: 8, "residual-8": 16}[net])
        for schedule in five_variants.SCHEDULES:
            best = five_variants.chosen(full, net, "plain", schedule)[0]
            assert np.take(full.config["rates"], best).min() >= border / 4
        thirty += list(30 * full.values(net, "rate"))
        ends += list(full.values(net, "bn-x30", "validation"))
        assert five_variants.diverged(full, net, "bn-x30") == 0
    thirty, ends = np.round(thirty, 3), np.array(ends)
    assert set(thirty) == {3, 6, 12}
    assert [int((ends[thirty == rate] > 0.5).sum()) for rate in (3, 6, 12)] == [3, 3, 0]
    assert [int((thirty == rate).sum()) for rate in (3, 6, 12)] == [4, 5, 1]
    dense = recorded("learning-rate")
    trains = learning_rate.trained(dense, "bn")[:, dense.config["scales"].index(1)].sum(axis=0)
    found = dict(zip(dense.config["rates"], trains.tolist(), strict=True))
    assert (found[2.048], found[4.096], found[8.192]) == (5, 1, 0)


def test_recorded_curves_are_as_the_figure_is_described(full):
    steps = five_variants.evaluated(full)
    for net in NETS:
        median = {
            name: np.median(100 * five_variants.curves(full, net, name), axis=0)
            for name in five_variants.VARIANTS
        }
        for name in ("bn", "bn-x5", "bn-best"):
            assert 27 < median[name][0] < 34
            assert median[name][steps == 210] > 60
            assert median[name][-1] > 88
        for name, start in (("plain", 10), ("bn-x5-sigmoid", 16)):
            assert abs(median[name][0] - start) < 2
            assert median[name][steps == 350] > 50
            assert median["bn"][-1] - 4 < median[name][-1] < median["bn"][-1]
        at = five_variants.curves(full, net, "plain")[:, steps == 350]
        assert at.min() > 0.3
    ends = {n: np.sort(100 * five_variants.curves(full, n, "bn-x30")[:, -1]).round() for n in NETS}
    assert ends[NET].tolist()[1:] == [37, 64, 83, 90]
    assert ends["residual-8"].tolist()[2:] == [78, 86, 88]
    assert ends[NET][0] < 12
    assert ends["residual-8"][1] < 12


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    found = dict(re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text))
    assert set(found) == {"G2", "G6"}
    evidence = found["G2"]
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    said = [(float(a), float(b)) for a, b in re.findall(r"([\d.]+) to \+?([\d.]+)", evidence)]
    factors = [_factor(full, net, variant, 0.85) for variant in ("bn", "bn-x5") for net in NETS]
    gains = [
        protocol.interval(
            100
            * (five_variants.tuned(full, net, "bn-best") - five_variants.tuned(full, net, "plain"))
        )
        for net in NETS
    ]
    assert said == [(round(each.low, 1), round(each.high, 1)) for each in factors + gains]
