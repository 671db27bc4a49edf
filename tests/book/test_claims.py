"""Claims have one form, a known name and one home, so that a table of them can be made."""

from book import claims_table
from book.claims_table import FORM, KNOWN, quotations


def claims(page):
    """The quotations of a page that speak of a claim, each on one line."""
    return quotations(page.prose)


def names(page):
    return [found["name"] for line in claims(page) if (found := FORM.fullmatch(line))]


def test_claims_have_the_one_form(page):
    assert [line for line in claims(page) if not FORM.fullmatch(line)] == []


def test_claims_stand_in_quotations(page):
    assert page.prose.count("**Claim ") == len(claims(page))


def test_claims_are_known(page):
    assert set(names(page)) <= set(KNOWN)


def test_no_claim_has_two_homes(pages):
    every = [name for page in pages for name in names(page)]
    assert len(every) == len(set(every))


def test_table_lists_every_claim_of_the_chapters_in_its_order(pages):
    listed = [claim.name for claim in claims_table.claims()]
    assert sorted(listed) == sorted(name for page in pages for name in names(page))
    assert listed == [name for name in KNOWN if name in listed]


def test_table_gives_the_verdict_and_the_chapter_of_a_claim(chapters):
    for claim in claims_table.claims():
        page = chapters[claim.number - 1]
        (line,) = (line for line in claims(page) if FORM.fullmatch(line)["name"] == claim.name)
        assert claim.verdict == FORM.fullmatch(line)["verdict"]
        assert f"## {claim.section}\n" in page.prose or f"# {claim.section}\n" in page.prose


def test_a_claim_without_a_home_is_named(monkeypatch):
    settled = [claim for claim in claims_table.claims() if claim.name != "B2"]
    monkeypatch.setattr(claims_table, "claims", lambda: settled)
    assert "No chapter settles claim B2." in claims_table.faults()


def test_chapters_settle_claims(pages):
    assert any(claims(page) for page in pages)
