"""What the tests of the book's sources share: its pages, in reading order."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jupytext
import pytest
import yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Page:
    """One source of the book, and its place: 0 is the front page, chapters count from 1."""

    number: int
    path: Path

    @cached_property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def cells(self):
        return jupytext.reads(self.text, fmt="md:myst").cells

    @cached_property
    def code(self):
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @cached_property
    def prose(self):
        """The Markdown between the code cells, less its fenced blocks."""
        markdown = (cell.source for cell in self.cells if cell.cell_type == "markdown")
        return re.sub(r"^```.*?^```", "", "\n\n".join(markdown), flags=re.MULTILINE | re.DOTALL)

    def __str__(self):
        return self.path.relative_to(ROOT / "book").as_posix()


def pages_in_reading_order():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    names = [toc["root"], *chapters]
    return [Page(number, ROOT / f"{name}.md") for number, name in enumerate(names)]


PAGES = pages_in_reading_order()
CHAPTERS = [page for page in PAGES if page.path.parent.name != "book"]


@pytest.fixture(scope="session")
def pages():
    return PAGES


@pytest.fixture(scope="session")
def chapters():
    return CHAPTERS


def pytest_generate_tests(metafunc):
    """A test that asks for a page, or a chapter, runs for each of them."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES, ids=str)
    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", CHAPTERS, ids=str)
