"""Formulas, icons, keyboard and search, as a reader meets them."""

import io

import pytest
from PIL import Image

from book.claims_table import KNOWN

FORMULAS = """() => [...document.querySelectorAll(".math mjx-container > svg")]
  .map((svg) => svg.getBoundingClientRect().width)"""
MISSING_OUTLINES = """() => [...document.querySelectorAll("mjx-container use")]
  .filter((use) => !document.getElementById(use.getAttribute("href").slice(1))).length"""
BARE_ICONS = """() => [...document.querySelectorAll("[class*=' fa-']")]
  .filter((icon) => getComputedStyle(icon, "::before").maskImage === "none")
  .map((icon) => icon.className)"""
TO_REACH = """() => [...document.querySelectorAll(
  "article a[href], article button, article summary, article [tabindex='0']")]
  .filter((each) => each.checkVisibility() && each.tabIndex >= 0)
  .forEach((each) => { each.dataset.toReach = "" })"""
LEFT = "document.querySelectorAll('[data-to-reach]').length"
ARRIVE = "delete document.activeElement.dataset.toReach"


@pytest.fixture(scope="module")
def without_scripts(browser):
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


def test_formulas_are_seen_without_scripts_and_from_a_file(without_scripts, folder, chapter):
    without_scripts.goto((folder / chapter).as_uri())
    widths = without_scripts.evaluate(FORMULAS)
    assert all(width > 2 for width in widths)
    assert widths or 'class="math' not in (folder / chapter).read_text(encoding="utf-8")
    assert without_scripts.evaluate(MISSING_OUTLINES) == 0


def test_formulas_have_words_for_those_who_listen(without_scripts, folder, chapter):
    without_scripts.goto((folder / chapter).as_uri())
    silent = "document.querySelectorAll('mjx-container:not(:has(math))').length"
    assert without_scripts.evaluate(silent) == 0


def test_icons_are_drawn(without_scripts, folder, chapter):
    without_scripts.goto((folder / chapter).as_uri())
    assert without_scripts.evaluate(BARE_ICONS) == []


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_figures_have_the_ground_of_the_theme(page, chapters, theme, dark):
    """A picture takes the theme that was chosen on the page, whatever the system prefers."""
    page.emulate_media(color_scheme="light" if dark else "dark")
    page.goto(chapters[0])
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    figure = page.locator(".cell_output img").first
    figure.scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    corner = Image.open(io.BytesIO(figure.screenshot())).convert("L").getpixel((2, 2))
    assert corner < 40 if dark else corner > 240


def test_verdicts_have_colours_of_their_own(page, chapters):
    page.goto(next(chapter for chapter in chapters if chapter.endswith("/claims.html")))
    colors = page.evaluate(
        "[...document.querySelectorAll('td .verdict')].map((each) => getComputedStyle(each).color)"
    )
    assert len(colors) == len(KNOWN)
    assert len(set(colors)) == 4


def test_keyboard_reaches_all_that_can_be_used(page, chapters):
    page.goto(chapters[1])
    page.evaluate(TO_REACH)
    stops = page.evaluate(LEFT)
    assert stops > 10
    for _ in range(stops + 200):
        page.keyboard.press("Tab")
        page.evaluate(ARRIVE)
    assert page.evaluate(LEFT) == 0


def test_what_scrolls_on_a_phone_takes_the_focus(page):
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto("book/03-backward/closed-form.html")  # derivations are wide
    page.wait_for_timeout(100)
    boxes = """[...document.querySelectorAll("div.math > .formula")]
      .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.tabIndex)"""
    assert set(page.evaluate(boxes)) == {0}


def test_search_finds_the_jacobian_on_a_server(page):
    page.goto("search.html?q=jacobian")
    page.wait_for_selector("#search-results li a")
    assert "Jacobian" in page.inner_text("#search-results")


def test_search_finds_the_jacobian_in_a_folder(page, folder):
    page.goto(f"{folder.as_uri()}/search.html?q=jacobian")
    page.wait_for_selector("#search-results li a")
    assert "Jacobian" in page.inner_text("#search-results")
