"""Learning rate and scale: the effect in a small run, the chapter against the record."""

import re
from pathlib import Path

import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import learning_rate, protocol

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "learning-rate.md"


@pytest.fixture(scope="module")
def recorded():
    return experiments.recorded("learning-rate")


@pytest.fixture(scope="module")
def evidence():
    """The evidence of each claim of the chapter, on one line."""
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    found = re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text)
    assert {name for name, _ in found} == {"B6", "G3"}
    return dict(found)


def place(result, scale=None, rate=None):
    """An index into (seeds, scales, rates)."""
    row = slice(None) if scale is None else result.config["scales"].index(scale)
    column = slice(None) if rate is None else result.config["rates"].index(rate)
    return np.s_[:, row, column]


def seeds_that_train(result, variant):
    return learning_rate.trained(result, variant).sum(axis=0)


def test_batch_norm_trains_where_the_plain_net_does_not():
    """In every seed of the quick preset the wrong scales are at 10 % plain, above 50 with BN."""
    result = experiments.run(
        "learning-rate", seeds=1, steps=150, rates=(0.3, 30.0), scales=(0.3, 3.0)
    )
    assert learning_rate.largest_rates(result, "plain").tolist() == [[0, 0]]
    assert learning_rate.largest_rates(result, "bn").tolist() == [[0.3, 0.3]]


def test_a_plain_net_with_large_weights_trains_at_a_rate_far_below():
    """300 steps at ten times He's scale: about 65 % at a rate of 2e-6, 10 % at 0.001."""
    config = learning_rate.Config(rates=(2e-6, 0.001), scales=(10.0,), steps=300)
    low, high = learning_rate.run_variant(config, "plain", [0])[0]["validation"][0]
    assert low > 0.5
    assert high < 0.2


def test_both_variants_stand_in_one_record_a_seed():
    config = learning_rate.Config(rates=(0.1,), scales=(1.0, 3.0), steps=100, width=5, depth=1)
    records = learning_rate.run_seeds(config, [0, 1])
    assert len(records) == 2
    for record in records:
        assert list(record) == ["plain", "bn"]
        assert set(record["bn"]) == {"loss", "validation", "test", "moving"}
        assert all(each.shape == (2, 1) for each in record["bn"].values())


def test_recorded_grid_is_the_chapters(recorded):
    """Sixteen rates, each twice the one before, from 0.001 to 32.768; five scales, five seeds."""
    rates = np.array(recorded.config["rates"])
    np.testing.assert_allclose(rates, 0.001 * 2.0 ** np.arange(16))
    assert recorded.config["scales"] == [0.1, 0.3, 1, 3, 10]
    assert len(recorded.seeds) == recorded.config["seeds"] == 5
    assert recorded.provenance["commit"]
    quick = learning_rate.PRESETS["quick"]
    assert (len(quick.rates), quick.seeds, quick.steps) == (8, 3, 200)


def test_recorded_strip_of_the_plain_net(recorded):
    """Alt text: what the red line surrounds, and that the rest is dark."""
    inside = seeds_that_train(recorded, "plain") > 2.5
    rates = np.array(recorded.config["rates"])
    strip = {
        scale: rates[line].tolist()
        for scale, line in zip(recorded.config["scales"], inside, strict=True)
    }
    assert not strip[0.1]
    assert not strip[10]
    assert (strip[0.3][0], strip[0.3][-1]) == (0.064, 0.512)
    assert (strip[1][0], strip[1][-1]) == (0.001, 0.256)
    assert strip[3] == [0.001, 0.002]
    median = np.median(recorded.values("plain", "validation"), axis=0)
    assert median[~inside].max() < 0.5


def test_recorded_region_with_batch_norm(recorded):
    """All rates from 0.002 to 2.048 train in every seed at every scale; most cells above 80 %."""
    found, rates = seeds_that_train(recorded, "bn"), np.array(recorded.config["rates"])
    assert (found[:, (rates >= 0.002) & (rates <= 2.048)] == 5).all()
    assert (found[:4, 0] == 5).all()
    assert found[4, 0] == 0
    median = np.median(recorded.values("bn", "validation"), axis=0)
    assert (median[:, rates <= 2.048] > 0.8).mean() > 0.75


def test_recorded_border_with_batch_norm_is_sharp(recorded):
    """At 4.096 nearly all seeds fail, from 8.192 on every one does, at every scale."""
    found = seeds_that_train(recorded, "bn")
    rates = np.array(recorded.config["rates"])
    assert found[:, rates == 4.096].sum() == 2
    assert not found[:, rates >= 8.192].any()


def test_recorded_border_of_the_plain_net_at_its_scale(recorded):
    """Most seeds fail a step beyond the border, all of them two steps beyond."""
    found = seeds_that_train(recorded, "plain")[recorded.config["scales"].index(1)]
    assert found[recorded.config["rates"].index(0.256)] == 5
    assert found[recorded.config["rates"].index(0.512)] == 2
    assert not found[recorded.config["rates"].index(1.024) :].any()


def test_recorded_losses_stay_finite_with_batch_norm_and_overflow_without(recorded):
    endless = {name: ~np.isfinite(recorded.values(name, "loss")) for name in ("plain", "bn")}
    rates = np.array(recorded.config["rates"])
    assert not endless["bn"][:, :, rates <= 16.384].any()
    assert endless["bn"][:, :, rates >= 4.096].mean() < 0.1
    assert endless["plain"][:, recorded.config["scales"].index(1)][:, rates >= 1.024].all()
    failed = ~learning_rate.trained(recorded, "plain")[place(recorded, 1, 0.512)]
    assert endless["plain"][place(recorded, 1, 0.512)][failed].all()


def test_evidence_of_the_higher_rates(recorded, evidence):
    bn, plain = (learning_rate.largest_rates(recorded, each)[:, 2] for each in ("bn", "plain"))
    factor = bn / plain
    np.testing.assert_allclose([factor.min(), factor.max()], [4, 16])
    assert max(bn) < max(recorded.config["rates"])
    assert min(plain) > min(recorded.config["rates"])
    found = protocol.interval(np.log2(factor))
    interval = f"{2**found.low:.1f} to {2**found.high:.0f} times that without (95 % interval)"
    assert interval in evidence["B6"]
    assert evidence["B6"].startswith("5 of 5 seeds")


def test_evidence_of_the_scales(recorded, evidence):
    bn, plain = (100 * learning_rate.best_test_accuracy(recorded, name) for name in ("bn", "plain"))
    gain = protocol.interval(bn - plain)
    for k, where in ((2, " points at He's scale"), (0, " at a tenth of it")):
        assert f"{gain.low[k]:+.1f} to {gain.high[k]:+.1f}{where}" in evidence["G3"]
    assert evidence["G3"].startswith("5 of 5 seeds")


def test_recorded_best_rates(recorded):
    """With BN inside the grid at every scale, and rising with it; without, at the edge above He."""
    best = {name: learning_rate.best_rates(recorded, name) for name in learning_rate.VARIANTS}
    assert all(inside for _, inside in best["bn"])
    assert (np.diff([k for k, _ in best["bn"]]) > 0).all()
    assert [k for k, _ in best["plain"][3:]] == [0, 0]
    assert all(inside for _, inside in best["plain"][1:3])


def test_recorded_accuracy_hardly_depends_on_the_scale_with_batch_norm(recorded):
    """Within three points with BN, the largest scale the worst; the plain net loses more."""
    bn, plain = (
        100 * learning_rate.best_test_accuracy(recorded, name).mean(axis=0)
        for name in ("bn", "plain")
    )
    assert np.ptp(bn) < 3
    assert bn.argmin() == 4
    assert np.ptp(bn[:4]) < 1
    assert (plain[2] - plain[[0, 1, 3, 4]] > np.ptp(bn)).all()
    assert plain[[0, 4]] == pytest.approx(10, abs=0.1)


def test_recorded_low_rates_of_the_largest_scale_are_the_darkest_of_the_region(recorded):
    median = np.median(recorded.values("bn", "validation"), axis=0)
    inside = median[:, recorded.config["rates"].index(2.048)] > 0.8
    assert inside.all()
    assert (median[:, :4].argmin(axis=0) == 4).all()


def test_recorded_choice_by_test_images_would_gain_tenths(recorded):
    for name in learning_rate.VARIANTS:
        test = recorded.values(name, "test").mean(axis=0)
        gain = 100 * (test.max(axis=1) - learning_rate.best_test_accuracy(recorded, name).mean(0))
        assert gain.max() < 0.5
        best_of_each = 100 * recorded.values(name, "test").max(axis=2)
        chosen = 100 * learning_rate.best_test_accuracy(recorded, name)
        assert (best_of_each - chosen).mean(axis=0).max() < 0.5


def test_recorded_moving_statistics_are_close_after_the_long_run(recorded):
    """Where it trains they cost at most three points in the mean."""
    rates = np.array(recorded.config["rates"])
    cost = (recorded.values("bn", "validation") - recorded.values("bn", "moving")).mean(axis=0)
    assert cost[:, rates <= 2.048].max() < 0.03


def drawn(result):
    import matplotlib.pyplot as plt

    figure = learning_rate.plot(result)
    plt.close(figure)
    return figure


def test_outline_surrounds_what_trains(recorded):
    assert drawn(recorded).axes[1].get_lines()


def test_wide_map_has_a_colour_scale_and_a_narrow_one_numbers(recorded):
    """So that letters stay legible: sixteen columns carry no numbers and every second tick."""
    wide = drawn(recorded)
    assert len(wide.axes) == 3
    assert not wide.axes[0].texts
    assert len(wide.axes[1].get_xticks()) == 8
    narrow = experiments.Result(
        "learning-rate",
        "quick",
        {**recorded.config, "rates": recorded.config["rates"][:8]},
        {},
        tuple(
            type(run)(
                run.seed,
                run.seconds,
                {
                    name: {key: [line[:8] for line in lines] for key, lines in each.items()}
                    for name, each in run.record.items()
                },
            )
            for run in recorded.runs
        ),
    )
    figure = drawn(narrow)
    assert len(figure.axes) == 2
    assert len(figure.axes[0].texts) == 40
    assert figure.get_size_inches()[0] <= 7.2
