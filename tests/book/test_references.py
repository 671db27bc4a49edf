"""Equations are numbered in order, and what the text points at exists."""

import re
from pathlib import Path

from pybtex.database import parse_file

BIBLIOGRAPHY = Path(__file__).parents[2] / "book" / "references.bib"


def tags(text):
    return re.findall(r"\\tag\{(.*?)\}", text)


def test_equations_are_numbered_in_order_of_appearance(page):
    got = tags(page.prose)
    assert got == [f"{page.number}.{k}" for k in range(1, len(got) + 1)]


def test_equations_that_the_text_names_exist(page, pages):
    known = {tag for each in pages for tag in tags(each.prose)}
    # A bare number of this form in parentheses names an equation: "by (3.3)".
    named = set(re.findall(r"(?<=\s)\(([1-9]\d?\.\d{1,2})\)", page.prose))
    assert named <= known


def anchor(title):
    """What a link to a section of this title ends with."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def test_links_to_sections_lead_to_a_heading(page, pages):
    headings = {
        each.path: {anchor(t) for t in re.findall(r"^#{1,2} (.+)$", each.prose, re.MULTILINE)}
        for each in pages
    }
    links = re.findall(r"\]\(([^)\s:]*)#([^)\s]+)\)", page.prose)
    here = [((page.path.parent / to).resolve() if to else page.path, name) for to, name in links]
    assert [(to.name, name) for to, name in here if name not in headings.get(to, ())] == []


def test_every_citation_stands_in_the_bibliography_and_every_entry_is_cited(pages):
    cited = {
        key.strip()
        for page in pages
        for keys in re.findall(r"\{cite(?::\w+)?\}`(.+?)`", page.prose)
        for key in keys.split(",")
    }
    assert cited == set(parse_file(BIBLIOGRAPHY).entries)
