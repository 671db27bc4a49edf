"""The figures that answer to the reader's hand compute what bnkit computes."""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

import bnkit
from bnkit import experiments

FOLDER = Path(__file__).parents[2] / "book" / "assets" / "static" / "explorables"
RECORDED = {
    "rates": [0.01, 0.1, 1],
    "scales": [0.5, 2],
    "variants": [
        {"title": "plain", "accuracy": [[0.1, 0.8, 0.1], [0.2, 0.3, 0.4]]},
        {"title": "BN", "accuracy": [[0.7, 0.8, 0.9], [0.5, 0.6, 0.65]]},
    ],
}


@pytest.fixture
def place(browser, tmp_path):
    """Open a page that holds one element, with the data given to it."""
    pages = []

    def place(name, data=None):
        inner = f'<script type="application/json">{json.dumps(data)}</script>' if data else ""
        scripts = "".join(
            f'<script src="{(FOLDER / f"{each}.js").as_uri()}"></script>'
            for each in ("explorable", name)
        )
        html = f'<!doctype html><meta charset="utf-8"><bn-{name}>{inner}</bn-{name}>{scripts}'
        path = tmp_path / f"{name}.html"
        path.write_text(html, encoding="utf-8")
        pages.append(browser.new_page())
        pages[-1].goto(path.as_uri())
        return pages[-1]

    yield place
    for page in pages:
        page.close()


def values(page, name):
    return page.evaluate(f"document.querySelector('bn-{name}').values")


def put(page, control, value):
    page.locator(f"input[name={control}]").fill(str(value))


@pytest.mark.parametrize("function", ["sigmoid", "tanh", "ReLU"])
@pytest.mark.parametrize("normalize", [False, True])
def test_saturation_counts_what_numpy_counts(place, function, normalize):
    page = place("saturation")
    page.locator("select").select_option(label=function)
    for control, value in {"mu": -2.5, "sigma": 3, "gamma": 2, "beta": 0.5}.items():
        put(page, control, value)
    page.locator("input[type=checkbox]").set_checked(normalize)

    x = np.array([[NormalDist(-2.5, 3).inv_cdf((k + 0.5) / 400)] for k in range(400)])
    z = bnkit.batch_norm_forward(x, [2.0], [0.5])[0] if normalize else x
    f, slope = {
        "sigmoid": (1 / (1 + np.exp(-z)), np.exp(-z) / (1 + np.exp(-z)) ** 2 / 0.25),
        "tanh": (np.tanh(z), 1 - np.tanh(z) ** 2),
        "ReLU": (np.maximum(z, 0), (z > 0).astype(float)),
    }[function]
    steepest = 0.25 if function == "sigmoid" else 1
    got = values(page, "saturation")
    assert got["saturated"] == pytest.approx((slope < 0.1).mean(), abs=1e-9)
    assert got["gradient"] == pytest.approx(steepest * slope.mean(), abs=1e-6)
    assert got["mean"] == pytest.approx(f.mean(), abs=1e-6)
    assert got["variance"] == pytest.approx(f.var(), abs=1e-5)


def test_batch_normalizes_and_differentiates_as_bnkit_does(place):
    page = place("batch")
    put(page, "epsilon", 0.25)
    page.locator("[data-handle='2']").press("ArrowRight")
    got = values(page, "batch")
    x = np.array(got["x"])[:, None]
    assert x[2, 0] == pytest.approx(0.3)
    _, cache = bnkit.batch_norm_forward(x, epsilon=0.25)
    row, _, _ = bnkit.batch_norm_backward(np.eye(6)[:, [2]], cache)
    assert got["x_hat"] == pytest.approx(cache.x_hat[:, 0])
    assert got["row"] == pytest.approx(row[:, 0])
    assert got["mean"] == pytest.approx(cache.mean[0])
    assert got["variance"] == pytest.approx(cache.variance[0])


def test_a_value_follows_the_mouse(place):
    page = place("batch")
    box = page.locator("[data-handle='5']").bounding_box()
    before = values(page, "batch")["x"][5]
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 60, box["y"])
    page.mouse.up()
    after = values(page, "batch")["x"][5]
    page.mouse.move(box["x"] + 60, box["y"])
    assert after < before - 0.5
    assert values(page, "batch")["x"][5] == after


def test_backward_lets_through_what_bnkit_lets_through(place):
    page = place("backward")
    put(page, "gamma", -1.5)
    page.locator("[data-handle='7']").press("ArrowDown")
    got = values(page, "backward")
    x, dy = (np.array(got[name])[:, None] for name in ("x", "dy"))
    assert dy[7, 0] == pytest.approx(0.5)
    dx, _, _ = bnkit.batch_norm_backward(dy, bnkit.batch_norm_forward(x, [-1.5])[1])
    assert got["dx"] == pytest.approx(dx[:, 0])


def test_moving_mean_moves_as_that_of_bnkit(place):
    page = place("moving")
    for control, value in {"which": 1, "steps": 60, "size": 9, "sigma": 1.5}.items():
        put(page, control, value)
    got = values(page, "moving")
    moving = 0.0
    for batch in got["batches"]:
        moving = bnkit.moving_average(moving, batch, 0.9)
    assert len(got["batches"]) == 60
    assert got["moving"] == pytest.approx(float(moving))
    assert got["kept"] == pytest.approx(0.9**60)
    assert got["expected"] == pytest.approx(1 - 0.9**60)
    weights = 0.1 * 0.9 ** np.arange(60)
    assert got["noise"] == pytest.approx(1.5 / 3 * np.sqrt((weights**2).sum()))


def test_landscape_shows_what_was_recorded(place):
    page = place("landscape", RECORDED)
    put(page, "rate", 2)
    put(page, "scale", 1)
    assert values(page, "landscape") == {"rate": 1, "scale": 2, "accuracy": [0.4, 0.65]}
    assert "plain 40.0 %, BN 65.0 %" in page.locator("p").inner_text()


def test_landscape_takes_the_recorded_grid(place):
    """All of its rates can be chosen, and every cell stays wide enough to see."""
    full = experiments.recorded("learning-rate")
    accuracy = np.median(full.values("bn", "validation"), axis=0)
    grid = {key: full.config[key] for key in ("rates", "scales")}
    page = place(
        "landscape", {**grid, "variants": [{"title": "BN", "accuracy": accuracy.tolist()}]}
    )
    for k, rate in enumerate(grid["rates"]):
        put(page, "rate", k)
        found = values(page, "landscape")
        assert found["rate"] == rate
        assert found["accuracy"] == [accuracy[len(grid["scales"]) // 2, k]]
    widths = page.locator("rect.cell").evaluate_all(
        "cells => cells.map(c => c.width.baseVal.value)"
    )
    assert len(widths) == accuracy.size
    assert min(widths) > 10


def test_the_keyboard_keeps_its_place(place):
    page = place("backward")
    page.locator("[data-handle='3']").focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.handle") == "3"
    assert values(page, "backward")["dy"][3] == pytest.approx(1.4)


STAND = {
    "saturation": "01-why/why-normalize",
    "batch": "03-backward/closed-form",
    "backward": "03-backward/closed-form",
    "moving": "04-inference/training-and-inference",
    "landscape": "06-effects/learning-rate",
}


@pytest.mark.parametrize("figure", STAND)
def test_figure_of_the_book_answers_on_a_server_and_in_a_folder(page, folder, figure):
    for start in ("", f"{folder.as_uri()}/"):
        page.goto(f"{start}book/{STAND[figure]}.html")
        element = page.locator(f"bn-{figure}")
        before = element.evaluate("figure => JSON.stringify(figure.values)")
        element.locator("[data-handle], input[type=range]").first.press("ArrowRight")
        assert element.evaluate("figure => JSON.stringify(figure.values)") != before


@pytest.mark.parametrize("figure", STAND)
def test_figure_of_the_book_has_a_picture_where_no_script_runs(folder, figure):
    text = (folder / "book" / f"{STAND[figure]}.html").read_text(encoding="utf-8")
    element = text.partition(f"<bn-{figure}>")[2].partition(f"</bn-{figure}>")[0]
    assert '<div class="picture"><svg' in element
