"""Depth: a small run shows the claimed direction by far, and the chapter against the record."""

import re
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from bnkit.experiments import depth, protocol, recorded, run
from bnkit.experiments.layerwise import measure
from bnkit.experiments.sweep import Sweep
from bnkit.experiments.training import as_float, draw_batches, fashion_mnist
from bnkit.keras import probes

CHAPTER = Path(__file__).parents[2] / "book" / "06-effects" / "depth.md"
DEEP = 8
CHANCE = 0.2  # what has learnt nothing lies below
DEPTHS = (2, 4, 6, 8, 20)


@pytest.fixture(scope="module")
def result():
    return run(
        "depth",
        seeds=2,
        depths=(2, DEEP),
        activations=("sigmoid",),
        rates=(0.1, 0.3),
        scales=("glorot", "4 glorot"),
        steps=(300,),
        evaluated=(100,),
        width=60,
    )


def test_deep_sigmoid_net_trains_only_with_batch_norm(result):
    plain = depth.accuracy(result, "sigmoid", "plain")[:, 1]
    bn = depth.accuracy(result, "sigmoid", "bn")[:, 1]
    assert plain.max() < 0.2  # seeds lie within 0.01 of guessing
    assert bn.min() > 0.4  # seeds lie above 0.55


def test_larger_weights_bring_the_plain_net_of_two_layers_ahead(result):
    found = depth.tuned(result, "sigmoid", "plain", 2)
    assert (found.scale, found.place[0]) == ("4 glorot", 1)
    assert (found.test > depth.tuned(result, "sigmoid", "plain", 2, ["glorot"]).test + 0.05).all()


def test_plain_sigmoid_gradient_vanishes_and_normalized_does_not(result):
    assert depth.gradient_ratio(result, "sigmoid", "plain", DEEP).max() < 1e-3
    assert depth.gradient_ratio(result, "sigmoid", "bn", DEEP).min() > 0.3


@pytest.mark.parametrize("when", ["start", "end"])
def test_plain_sigmoid_net_dies_without_saturating(result, when):
    assert depth.by_layer(result, "sigmoid", "plain", DEEP, "saturated", when).max() < 0.01


def test_evaluations_on_the_way_end_with_the_last_step(result):
    on_the_way = depth.on_the_way(result, "sigmoid", "bn", 2, "glorot")
    assert on_the_way.shape == (2, 2)
    np.testing.assert_array_equal(
        on_the_way[:, -1], depth.tuned(result, "sigmoid", "bn", 2, ["glorot"]).test
    )
    assert depth.diverged(result, "sigmoid", "bn", 2).tolist() == [[0, 0]]


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_nets_side_by_side_are_those_of_keras(activation, batch_norm):
    config = depth.Config(rates=(0.1,), scales=("glorot",), width=8)
    kinds = [("tanh" if activation == "relu" else "relu", 1), (activation, 2), (activation, 4)]
    nets = depth.Nets(config, [0, 3], kinds, batch_norm)
    data = fashion_mnist()
    x, y = as_float(data.x_test[:50]), data.y_test[:50]
    nets.train(draw_batches(len(data.x_train), 60, 100, 0))
    logits = nets.predict(x)
    for run_number, (name, layers) in enumerate(kinds * 2):
        model = depth.build_model(layers, 8, name, batch_norm)
        weights = nets.weights_of(run_number)
        model.set_weights(weights)
        want = keras.ops.convert_to_numpy(model(x))
        np.testing.assert_allclose(logits[run_number], want, atol=2e-5)
        check_measured(model, measure(weights, name, batch_norm, x, y), x, y, name)


def check_measured(model, found, x, y, activation):
    names = [each.name for each in model.layers if each.name.startswith("activation")]
    kernels = [name.replace("activation", "dense") for name in names]
    norms = probes.gradient_norms(model, x, y, kernels)
    moments = probes.moments(model, x, names, training=True)
    spread = [np.sqrt(moments[name][1]).mean() for name in names]
    np.testing.assert_allclose(found["gradient"], list(norms.values()), rtol=0.01)
    np.testing.assert_allclose(found["spread"], spread, rtol=0.01)
    if activation != "relu":
        fractions = probes.saturated_fraction(model, x, names, training=True)
        np.testing.assert_allclose(found["saturated"], list(fractions.values()), atol=0.005)


def test_nets_of_few_layers_are_one_program_and_deeper_ones_another():
    config = depth.Config(depths=(2, 20), deep_steps=2000)
    assert depth.programs(config) == [
        (10_000, [("sigmoid", 2)]),
        (2_000, [("sigmoid", 20), ("tanh", 20), ("relu", 20)]),
        (3_000, [("tanh", 2), ("relu", 2)]),
    ]


def test_plots_show_each_activation(result):
    for figure in (depth.plot(result), depth.plot_layers(result, DEEP, "gradient", "norm")):
        assert [ax.get_title() for ax in figure.axes] == ["sigmoid"]
        plt.close(figure)


def test_plain_net_of_eight_layers_stays_at_chance_saturated_or_not():
    """1,000 and 3,000 steps give the same counts."""
    config = depth.Config(rates=(0.1, 1.0, 3.0, 10.0), scales=("glorot",))
    nets = depth.Nets(config, [0], [("sigmoid", DEEP)], batch_norm=False)
    nets.advance(0, 500, 10_000)
    assert nets.evaluated(nets.data.x_test, nets.data.y_test, None).max() < CHANCE
    saturated = np.stack([nets.measured(0, 0, k)["saturated"] for k in range(4)])
    assert not saturated[:2].any()
    assert saturated[2:, -1].min() > 0.8
    assert saturated[2:, :-2].max() < 0.05


def test_weights_of_eight_times_glorots_scale_train_twenty_plain_layers():
    """300 steps at rate 0.03: 0.4 in the seeds tried, and 0.1 at four times the scale."""
    data, sizes = fashion_mnist(), [784, *[100] * 20, 10]
    glorot = depth.initial_stddevs("glorot", sizes)
    nets = Sweep(
        data.x_train,
        data.y_train,
        widths=sizes[1:-1],
        rates=[0.03, 0.03],
        stddevs=np.stack([4 * glorot, 8 * glorot]),
        activation="sigmoid",
    )
    assert 0.3 < _measured(nets.weights_of(1))["saturated"].mean() < 0.45
    nets.train(draw_batches(len(data.x_train), 60, 300, 0))
    four, eight = nets.accuracy(data.x_test, data.y_test)
    assert four < CHANCE < 0.3 < eight


def _measured(weights):
    data = fashion_mnist()
    return measure(
        weights, "sigmoid", False, as_float(data.x_validation[:500]), data.y_validation[:500]
    )


@pytest.fixture(scope="module")
def full():
    return recorded("depth")


def _gain(full, activation, layers, scales):
    """Accuracy with BN less without, in points, over the seeds."""
    bn = depth.tuned(full, activation, "bn", layers).test
    return protocol.interval(
        100 * (bn - depth.tuned(full, activation, "plain", layers, scales).test)
    )


def test_record_is_of_the_full_preset(full):
    assert (full.preset, len(full.seeds), full.config["depths"]) == ("full", 5, list(DEPTHS))


def test_which_recorded_sigmoid_nets_learn(full):
    for layers, scale in [(8, 0), (8, 1), (20, 0), (20, 1), (20, 2)]:
        test = full.values("sigmoid", "plain", str(layers), "test")
        assert test[:, :, scale].max() < CHANCE  # at every rate, seed and evaluated step
    for layers, scale in [(6, "glorot"), (6, "he"), (8, "4 glorot")]:
        assert depth.tuned(full, "sigmoid", "plain", layers, [scale]).test.min() > 0.6
    bn = depth.accuracy(full, "sigmoid", "bn")
    assert bn.min() > 0.86
    lower = 100 * (bn[:, :-1].mean(axis=0) - bn[:, -1].mean())
    assert 1 < lower.min() < lower.max() < 2.2  # "one or two points" at twenty layers


def test_largest_recorded_scale_is_the_best_for_plain_sigmoid_nets(full):
    for layers in DEPTHS[:-1]:
        assert depth.tuned(full, "sigmoid", "plain", layers).scale == full.config["scales"][-1]


def test_recorded_rates_at_the_edge_for_sigmoid_nets_with_batch_norm(full):
    found = [depth.tuned(full, "sigmoid", "bn", layers) for layers in DEPTHS]
    assert [each.rate for each in found if not each.inside] == [10, 0.03]
    assert not found[2].inside
    assert not found[4].inside
    six, twenty = (
        100 * full.values("sigmoid", "bn", layers, "validation")[:, 0].mean(axis=0)
        for layers in ("6", "20")
    )
    assert np.ptp(six) < 1
    assert twenty[0] - twenty[1] < 0.1


def test_how_late_recorded_plain_nets_start(full):
    four, six = (depth.on_the_way(full, "sigmoid", "plain", layers, "glorot") for layers in (4, 6))
    assert four[:, 0].mean() < CHANCE < 0.6 < four[:, 1].min()
    assert six[:, 1].max() < CHANCE
    assert (six[:, 2] < CHANCE).sum() >= 3
    assert six[:, 3].min() > 0.6
    last = full.values("sigmoid", "plain", "6", "test")[:, -1, 0]
    assert (last.max(axis=0) > CHANCE).tolist() == [False] * 4 + [True, False]


def test_recorded_saturation_before_and_after_training(full):
    for layers in DEPTHS:
        assert not depth.by_layer(full, "sigmoid", "plain", layers, "saturated").any()
        assert depth.by_layer(full, "sigmoid", "bn", layers, "saturated").max() <= 4e-5
    after = {
        (variant, layers): 100
        * depth.by_layer(full, "sigmoid", variant, layers, "saturated", "end").mean(axis=0)
        for variant in depth.VARIANTS
        for layers in DEPTHS
    }
    learned = [after["plain", layers] for layers in (2, 4, 6)]
    assert all(60 < each[0] < 72 for each in learned)
    later = np.concatenate([each[1:] for each in learned]).round()
    assert (later.min(), later.max()) == (18, 41)
    assert all(after["bn", layers].max() > 10 for layers in (2, 4, 6))
    assert all(after["bn", layers].max() < 0.1 for layers in (8, 20))
    for layers in (8, 20):
        assert full.values("sigmoid", "plain", str(layers), "rate")[0] == 10
        assert after["plain", layers][-2:].min() > 40
        assert after["plain", layers][:-2].max() < 2


def test_recorded_units_of_the_deepest_plain_net_collapse(full):
    start, end = (
        depth.by_layer(full, "sigmoid", "plain", 20, "spread", when).mean(axis=0)
        for when in ("start", "end")
    )
    assert (start < np.spacing(np.float32(0.5))).argmax() == 10  # the eleventh layer
    np.testing.assert_allclose(start[1:] / start[:-1], 0.25, atol=0.06)
    assert np.isclose(start, end, rtol=0.01, atol=0).sum() > 10
    assert end[-1] < start[-1] / 1000


def test_recorded_gradients_shrink_by_a_quarter_a_layer_and_with_batch_norm_do_not(full):
    for layers in DEPTHS:
        ratio = np.median(depth.gradient_ratio(full, "sigmoid", "plain", layers))
        assert 1 / 2.2 < ratio / 0.25 ** (layers - 1) < 2.2
        assert 1 < np.median(depth.gradient_ratio(full, "sigmoid", "bn", layers)) < 4
    norm = depth.by_layer(full, "sigmoid", "plain", 20, "gradient")[:, 0].mean()
    weight = depth.initial_stddevs("glorot", [784, 100])[0]
    assert 10 * norm / np.sqrt(78_400) < 1e-5 * np.spacing(np.float32(weight))


def test_plain_nets_leave_chance_in_the_order_of_their_first_gradient(full):
    found = []
    for layers in DEPTHS:
        sizes = [784, *[100] * layers, 10]
        for scale in full.config["scales"]:
            ratios = []
            for seed in range(3):
                rng, weights = np.random.default_rng(seed), []
                stddevs = depth.initial_stddevs(scale, sizes)
                for stddev, n, m in zip(stddevs, sizes[:-1], sizes[1:], strict=True):
                    weights += [rng.normal(0, stddev, (n, m)), np.zeros(m)]
                norms = _measured(weights)["gradient"]
                ratios.append(norms[0] / norms[-1])
            steps = full.values("sigmoid", "plain", str(layers), "steps")[0]
            above = depth.on_the_way(full, "sigmoid", "plain", layers, scale).min(axis=0) > CHANCE
            found.append((np.median(ratios), steps[above][0] if above.any() else np.inf))
    left = [step for _, step in sorted(found)]
    assert left == sorted(left, reverse=True)


def test_what_batch_norm_gains_in_the_record(full):
    """Everywhere, but for six sigmoid layers at Glorot's scale, and four and six at the best."""
    unsettled = [
        (activation, layers, scales is None)
        for activation in full.config["activations"]
        for layers in DEPTHS
        for scales in (["glorot"], None)
        if _gain(full, activation, layers, scales).low <= 0
    ]
    assert unsettled == [("sigmoid", 4, True), ("sigmoid", 6, False), ("sigmoid", 6, True)]
    plain, bn = (depth.tuned(full, "sigmoid", v, 6, ["glorot"]).test for v in depth.VARIANTS)
    assert (bn > plain).all()
    assert max(_gain(full, "tanh", layers, None).high for layers in DEPTHS) < 1


def test_recorded_tanh_units_saturate_more_at_the_start_with_batch_norm(full):
    for layers in DEPTHS:
        plain, bn = (
            depth.by_layer(full, "tanh", variant, layers, "saturated").mean(axis=0).max()
            for variant in depth.VARIANTS
        )
        assert bn > 2 * plain


def test_only_plain_relu_nets_diverge_in_the_record(full):
    lost = {
        (activation, variant): sum(
            depth.diverged(full, activation, variant, layers).sum() for layers in DEPTHS
        )
        for activation in full.config["activations"]
        for variant in depth.VARIANTS
    }
    assert [key for key, count in lost.items() if count] == [("relu", "plain")]
    dead = [
        full.values(activation, "plain", str(layers), "test")[:, -1, :, -1] < CHANCE
        for activation in ("sigmoid", "tanh")
        for layers in DEPTHS
    ]
    assert np.mean(dead) > 0.95  # "nearly all" at rate 10


def test_evidence_of_the_claim_is_that_of_the_record(full):
    text = re.sub(r"\n> ?", " ", CHAPTER.read_text(encoding="utf-8"))
    ((name, evidence),) = re.findall(r"\*\*Claim (\w+)\.\*\*.*?\*Evidence: (.*?)\*\n", text)
    assert name == "G4"
    assert evidence.startswith(f"{len(full.seeds)} of {full.config['seeds']} seeds")
    gains = [
        _gain(full, "sigmoid", 8, ["glorot"]),
        _gain(full, "sigmoid", 8, None),
        _gain(full, "tanh", 20, None),
    ]
    said = [(float(a), float(b)) for a, b in re.findall(r"(\+[\d.]+) to (\+[\d.]+)", evidence)]
    assert said == [(round(gain.low, 2), round(gain.high, 2)) for gain in gains]
    for variant in depth.VARIANTS:
        assert depth.tuned(full, "sigmoid", variant, 8).inside
    assert not depth.tuned(full, "tanh", "plain", 20).inside
