"""Placement: a small run shows what a large rate does, and the chapter against the record."""

import re
from pathlib import Path
from statistics import NormalDist

import keras
import numpy as np
import pytest

from bnkit import experiments
from bnkit.experiments import placement, protocol, training
from bnkit.experiments.results import Run
from bnkit.keras import probes

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "placement.md"


@pytest.fixture(scope="module")
def result():
    return experiments.run("placement", steps=150, seeds=2)


def accuracy(result, place, rate, part="validation"):
    column = result.config["rates"].index(rate)
    return result.values("relu", place, part)[:, column]


@pytest.mark.parametrize("place", ["before", "after", "input", "scaled"])
def test_every_place_trains_at_a_usual_rate(result, place):
    """Seeds lie within 0.7 and 0.85 after 150 steps; guessing is 0.1."""
    for part in ("validation", "test", "train"):
        assert np.all(accuracy(result, place, 0.1, part) > 0.4)


def test_before_the_nonlinearity_a_large_rate_harms_least(result):
    """Seen: above 0.7 before it; elsewhere seeds diverge, or recover as the rate decays."""
    for place in ("after", "input"):
        assert np.all(accuracy(result, place, 3.0) < accuracy(result, "before", 3.0) - 0.1)


def test_after_it_survives_too_when_the_output_layer_gets_as_little(result):
    assert np.all(accuracy(result, "scaled", 3.0) > 0.3)


def test_without_normalization_only_the_usual_rate_trains(result):
    np.testing.assert_array_equal(placement.trained(result, "relu", "none"), [[True, False]] * 2)
    assert np.all(placement.largest_rate(result, "relu", "none") == 0.1)


@pytest.fixture
def small():
    """Two seeds, three rates."""
    one = {"validation": [0.5, 0.8, 0.7], "test": [0.1, 0.2, 0.3], "loss": [0.1, 2.3, None]}
    other = {"validation": [0.5, 0.6, 0.7], "test": [0.4, 0.5, 0.6], "loss": [0.1, 0.2, 1e6]}
    runs = tuple(Run(k, 1.0, {"relu": {"before": each}}) for k, each in enumerate((one, other)))
    return experiments.Result("placement", "full", {"rates": [0.1, 0.2, 0.4]}, {}, runs)


def test_rate_is_chosen_for_all_seeds_by_the_validation_part(small):
    assert placement.best_rate(small, "relu", "before") == (1, True)
    assert placement.best_test_accuracy(small, "relu", "before").tolist() == [0.2, 0.5]


def test_loss_of_no_number_and_a_huge_one_have_diverged(small):
    assert placement.diverged(small, "relu", "before").tolist() == [[False, False, True]] * 2


def test_all_places_begin_with_the_same_linear_maps():
    kernels = []
    for place in placement.LABELS:
        keras.utils.set_random_seed(0)
        model = placement.make_model(place, 3, 8, "relu")
        flat = [each for each in model._flatten_layers() if isinstance(each, keras.layers.Dense)]
        kernels.append(sorted((each.kernel.numpy() for each in flat), key=lambda k: k.sum()))
    for one in kernels[1:]:
        for kernel, want in zip(one, kernels[0], strict=True):
            np.testing.assert_array_equal(kernel, want)


@pytest.mark.parametrize("place", ["residual", "pre-activation"])
def test_shortcut_hands_on_what_the_pair_does_not_change(place):
    """With γ and the maps of the pair at zero only the shortcut is left of it."""
    model = placement.make_model(place, 3, 8, "relu")
    pair = next(each for each in model.layers[2:] if isinstance(each, keras.Sequential))
    for weight in pair.trainable_variables:
        weight.assign(keras.ops.zeros_like(weight))
    total = next(each for each in model.layers if isinstance(each, keras.layers.Add))
    before, after = keras.Model(model.input, [total.input[0], total.output])(np.ones((2, 784)))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", lambda z: np.maximum(z, 0)), ("sigmoid", lambda z: 1 / (1 + np.exp(-z)))],
)
def test_the_scale_is_the_root_mean_square_of_the_nonlinearity(activation, function):
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    mean_square = np.sum(weights * function(z) ** 2) / np.sum(weights)
    np.testing.assert_allclose(
        placement.ROOT_MEAN_SQUARE[activation], np.sqrt(mean_square), rtol=1e-3
    )


def test_sums_are_near_to_normal_and_relus_are_not_and_sigmoids_are_nearly():
    """After 100 steps; the chapter trains 300 and finds the same."""
    data, gaps = training.fashion_mnist(), {}
    for activation in ("relu", "sigmoid"):
        keras.utils.set_random_seed(0)
        net = placement.make_model("before", 5, 100, activation)
        trainer = training.Trainer(
            net, keras.optimizers.SGD(0.3), data.x_train, data.y_train, jit=False
        )
        trainer.train(training.draw_batches(len(data.x_train), 60, 100, seed=0))
        for kind in (keras.layers.Dense, keras.layers.Activation):
            names = [each.name for each in net.layers if isinstance(each, kind)][:5]
            images = training.as_float(data.x_validation[:1000])
            seen = probes.outputs_of(net, images, names, training=True)
            gaps[activation, kind.__name__] = [median_gap(seen[name]) for name in names]
    assert min(gaps["relu", "Activation"]) > 0.25
    assert max(gaps["relu", "Dense"] + gaps["sigmoid", "Dense"]) < 0.08
    assert max(gaps["sigmoid", "Activation"]) < 0.12


def median_gap(values):
    """Of each column's distribution function to the normal one: the median over the columns."""
    z = np.sort((values - values.mean(0)) / (values.std(0) + 1e-12), axis=0)
    normal, rank = np.vectorize(NormalDist().cdf)(z), np.arange(len(z))[:, None]
    return np.median(np.maximum((rank + 1) / len(z) - normal, normal - rank / len(z)).max(axis=0))


@pytest.fixture(scope="module")
def full():
    return experiments.recorded("placement")


def gain(full, activation, place, other="before"):
    """Test accuracy less that of another place, in points, over the seeds."""
    one, two = (placement.best_test_accuracy(full, activation, each) for each in (place, other))
    return protocol.interval(100 * (one - two)), one > two


def test_record_is_of_ten_seeds_and_its_epochs(full):
    assert len(full.seeds) == full.config["seeds"] == 10
    seen = full.config["steps"] * full.config["batch_size"]
    assert seen / len(training.fashion_mnist().x_train) == 3.6


def test_one_recorded_best_rate_lies_at_the_edge_where_two_peaks_are_equally_high(full):
    edges = [
        (activation, place)
        for activation in full.config["activations"]
        for place in placement.LABELS
        if not placement.best_rate(full, activation, place)[1]
    ]
    assert edges == [("sigmoid", "before")]
    scores = 100 * full.values("sigmoid", "before", "validation").mean(axis=0)
    peak = full.config["rates"].index(0.32)
    assert scores[:-1].argmax() == peak
    assert abs(scores[-1] - scores[peak]) < 0.1
    assert scores[peak:].min() < scores[peak] - 0.4


def test_with_relu_the_recorded_place_of_the_paper_beats_the_one_after_alone(full):
    after, each = gain(full, "relu", "after")
    assert not each.any()
    assert -0.7 < after.low < after.high < -0.3
    found = {place: gain(full, "relu", place)[0] for place in ("input", "pixels", "residual")}
    assert all(interval.low < 0 < interval.high for interval in found.values())
    assert gain(full, "relu", "pre-activation")[0].low > 0.1


def test_with_sigmoids_both_other_recorded_places_beat_that_of_the_paper(full):
    for place in ("after", "input", "scaled", "pre-activation"):
        interval, each = gain(full, "sigmoid", place)
        assert each.all()
        assert interval.low > 0.85
        assert 1 < interval.mean < 1.5
    highest = full.values("sigmoid", "before", "test").max(axis=1)  # of any rate, by hindsight
    after = placement.best_test_accuracy(full, "sigmoid", "after")
    assert protocol.interval(100 * (after - highest)).low > 0.8
    pixels, _ = gain(full, "sigmoid", "pixels")
    assert pixels.low < 0 < pixels.high


def test_recorded_pairs_that_differ_by_one_thing(full):
    for activation in full.config["activations"]:
        twins, _ = gain(full, activation, "input", "after")
        assert 0.2 < twins.low < twins.high < 0.7  # "some tenths"
        scaled, _ = gain(full, activation, "scaled", "after")
        assert scaled.low < 0 < scaled.high
        assert gain(full, activation, "pre-activation", "residual")[0].low > 0.05
    shortcuts, _ = gain(full, "sigmoid", "residual")
    assert 0.1 < shortcuts.low < shortcuts.high < 0.4
    assert gain(full, "sigmoid", "pre-activation", "residual")[0].low >= 1
    assert 1.5 < gain(full, "relu", "before", "none")[0].mean < 2
    rates = full.config["rates"]
    high, low = (
        rates[placement.best_rate(full, "sigmoid", place)[0]]
        for place in ("pre-activation", "residual")
    )
    assert high == 16 * low
    plain = placement.best_test_accuracy(full, "sigmoid", "none")
    assert 0 < (plain < 0.2).sum() < 5  # "some of the seeds do not learn at all"


def test_recorded_training_accuracy_and_moving_statistics(full):
    for activation in full.config["activations"]:
        for place in placement.LABELS:
            test, moving, train = (
                100 * placement.best_test_accuracy(full, activation, place, part).mean()
                for part in ("test", "test moving", "train")
            )
            assert abs(moving - test) < 0.1
            assert place == "none" or 2 < train - test < 3.2


def test_where_the_recorded_lines_break_off(full):
    """The alternative text of the figure: medians, of which guessing is 0.1."""
    falls = {
        (activation, place): [
            rate
            for rate, score in zip(
                full.config["rates"],
                np.median(full.values(activation, place, "validation"), axis=0),
                strict=True,
            )
            if score < 0.2
        ]
        for activation in full.config["activations"]
        for place in placement.LABELS
    }
    first = {key: rates[0] if rates else None for key, rates in falls.items()}
    relu = {place: first["relu", place] for place in placement.LABELS}
    assert (relu["none"], relu["input"], relu["after"], relu["before"]) == (0.64, 2.56, 5.12, 10.24)
    assert (relu["scaled"], relu["residual"]) == (5.12, 10.24)
    lost = {place: first["sigmoid", place] for place in placement.LABELS if place != "none"}
    want = {"after": 2.56, "input": 5.12, "scaled": 5.12}
    assert {place: rate for place, rate in lost.items() if rate} == want


def test_how_the_recorded_nets_are_lost(full):
    for activation in full.config["activations"]:
        after, before = (
            (
                ~placement.trained(full, activation, place),
                placement.diverged(full, activation, place),
            )
            for place in ("after", "before")
        )
        np.testing.assert_array_equal(*after)  # each failure is a divergence
        assert not before[1].any()
        assert full.values(activation, "before", "loss")[before[0]].max(initial=0) < 2.31
    diverge = [
        place for place in placement.LABELS if placement.diverged(full, "sigmoid", place).any()
    ]
    assert diverge == ["after", "scaled"]
    seven = placement.trained(full, "relu", "after")[:, full.config["rates"].index(2.56)]
    ten = placement.trained(full, "relu", "scaled")[:, full.config["rates"].index(2.56)]
    assert (seven.sum(), ten.sum()) == (7, 10)


def test_a_part_of_the_recorded_lead_in_rate_is_the_scale_of_the_end(full):
    def steps(activation, one, other):
        rates = (placement.largest_rate(full, activation, each) for each in (one, other))
        return np.log2(np.divide(*rates))

    assert np.all(steps("sigmoid", "scaled", "after") == 1)
    assert np.all(steps("sigmoid", "before", "scaled") == 2)
    assert placement.largest_rate(full, "sigmoid", "before").min() == full.config["rates"][-1]
    scaled = protocol.interval(steps("relu", "scaled", "after"))
    assert scaled.low < 0 < scaled.mean
    for other in ("after", "input", "scaled"):
        assert protocol.interval(steps("relu", "before", other)).low > 0


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    ((name, evidence),) = re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text)
    assert name == "T7"
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    said = re.findall(r"([−+][\d.]+) to ([−+][\d.]+)", evidence)
    gains = [
        gain(full, activation, place)[0]
        for place in ("after", "input")
        for activation in full.config["activations"]
    ]
    assert [tuple(float(end.replace("−", "-")) for end in each) for each in said] == [
        (round(each.low, 2), round(each.high, 2)) for each in gains
    ]
