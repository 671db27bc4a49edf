"""Claims have one form, a known name and one home, so that a table of them can be made."""

import re

HOW_MANY = {"W": 9, "T": 8, "B": 7, "I": 5, "C": 2, "G": 7, "P": 2}
KNOWN = {f"{letter}{k}" for letter, last in HOW_MANY.items() for k in range(1, last + 1)}

FORM = re.compile(
    r"\*\*Claim (?P<name>[A-Z]\d)\.\*\* \*(?P<claim>[^*].*?)\* "
    r"\*\*Verdict: (?P<verdict>proved|measured|corrected|disputed)\.\*\* (?P<why>\S.*)"
)


def claims(page):
    """The quotations of a page that speak of a claim, each on one line."""
    quotes = re.findall(r"(?:^>.*\n?)+", page.prose, flags=re.MULTILINE)
    lines = [re.sub(r"\s*^>\s*", " ", quote, flags=re.MULTILINE).strip() for quote in quotes]
    return [line for line in lines if re.match(r"\W*Claim\b", line)]


def names(page):
    return [found["name"] for line in claims(page) if (found := FORM.fullmatch(line))]


def test_claims_have_the_one_form(page):
    assert [line for line in claims(page) if not FORM.fullmatch(line)] == []


def test_claims_stand_in_quotations(page):
    assert page.prose.count("**Claim ") == len(claims(page))


def test_claims_are_known(page):
    assert set(names(page)) <= KNOWN


def test_no_claim_has_two_homes(pages):
    every = [name for page in pages for name in names(page)]
    assert len(every) == len(set(every))


def test_chapters_settle_claims(pages):
    assert any(claims(page) for page in pages)
