"""The built book in chromium. Each page is opened once, and many tests ask about it."""

import http.server
import os
import shutil
import threading
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")

# The front door, which only sends on, is no page of its own.
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if path.relative_to(SITE).parts[0] not in ("_static", "index.html")
)
CHAPTERS = [page for page in PAGES if page.count("/") == 2]

SCREENSHOTS = ROOT / "_build" / "screenshots"

# What axe is asked, at which width and in which theme. Contrast takes most of its time, and
# depends on the theme alone; all else depends on the width alone.
CONTRAST = "color-contrast"
RULES = {
    (1280, "light"): {"rules": {"label-content-name-mismatch": {"enabled": True}}},
    (1280, "dark"): {"runOnly": [CONTRAST]},
    (390, "dark"): {
        "rules": {"label-content-name-mismatch": {"enabled": True}, CONTRAST: {"enabled": False}}
    },
}
FIND_VIOLATIONS = """async (rules) => {
  const found = await axe.run(document, { resultTypes: ["violations"], preload: false, ...rules });
  return found.violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html}`));
}"""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Visit:
    """What was seen when a page was opened, at both widths and in both themes."""

    requests: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    violations: dict = field(default_factory=dict)
    sideways: dict = field(default_factory=dict)

    def went_wrong(self):
        seen = (*self.violations.values(), *self.sideways.values())
        return any((self.failures, self.errors, *seen))


def watch(page):
    """Write down what the page asks for, and what goes wrong."""
    visit = Visit()
    page.on("request", lambda request: visit.requests.append(request.url))
    page.on("requestfailed", lambda request: visit.failures.append(request.url))
    page.on("response", lambda got: got.status >= 400 and visit.failures.append(got.url))
    page.on("console", lambda said: said.type == "error" and visit.errors.append(said.text))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    return visit


def look_closely(page, visit):
    """Run axe and measure the page at both widths, in both themes."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for (width, theme), rules in RULES.items():
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        page.wait_for_timeout(50)  # for the script that marks what scrolls
        visit.sideways[width] = page.evaluate(SIDEWAYS)
        visit.violations[width, theme] = page.evaluate(FIND_VIOLATIONS, rules)


def pytest_collection_modifyitems(items):
    """Without chromium or a built book there is nothing to see, unless it was promised."""
    if os.environ.get("BNKIT_BROWSER") == "required" or (CHROMIUM and CHAPTERS):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs chromium, and the book: make book"))


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", PAGES)
    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", CHAPTERS)


@pytest.fixture(scope="session")
def chapters():
    return CHAPTERS


@pytest.fixture(scope="session")
def folder():
    """Where the built book lies."""
    return SITE


@pytest.fixture(scope="session")
def site():
    """The address of a server of the built book."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def visited(browser, site):
    """Open a page, once, and tell what was seen."""

    @cache
    def visit(name):
        page = browser.new_page(reduced_motion="reduce")
        seen = watch(page)
        page.goto(site + name)
        look_closely(page, seen)
        if seen.went_wrong():
            page.screenshot(path=SCREENSHOTS / f"{name.replace('/', '-')}.png", full_page=True)
        page.close()
        return seen

    return visit


@pytest.fixture
def page(browser, site, request):
    """A page of its own for a test; what it showed is kept where the test fails."""
    page = browser.new_page(base_url=site, reduced_motion="reduce")
    failed_before = request.session.testsfailed
    yield page
    if request.session.testsfailed > failed_before:
        page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    page.close()
