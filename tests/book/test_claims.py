"""Claims have one form, a known name and one home, so that a table of them can be made."""

import pytest

from book import claims_table
from book.claims_table import FORM, KNOWN, OUTCOMES, fault, quotations


def claims(page):
    """The quotations of a page that speak of a claim, each on one line."""
    return quotations(page.prose)


def names(page):
    return [found["name"] for line in claims(page) if (found := FORM.fullmatch(line))]


def test_claims_have_the_one_form(page):
    assert [(line[:20], wrong) for line in claims(page) if (wrong := fault(line))] == []


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
        assert (claim.outcome, claim.ground) == FORM.fullmatch(line).group("outcome", "ground")
        assert claim.first_sentence in line
        assert f"## {claim.section}\n" in page.prose or f"# {claim.section}\n" in page.prose


def test_a_claim_without_a_home_is_named(monkeypatch):
    settled = [claim for claim in claims_table.claims() if claim.name != "B2"]
    monkeypatch.setattr(claims_table, "claims", lambda: settled)
    assert "No chapter settles claim B2." in claims_table.faults()


MEASURED = (
    "**Claim G9.** *It helps.* **Verdict: holds, by measurement.** It does. "
    "*Evidence: 5 of 5 seeds; accuracy with BN less without: +0.4 to +0.9 points (95 % interval).*"
)


def test_a_box_of_the_form_has_no_fault():
    assert fault(MEASURED) is None
    assert FORM.fullmatch(MEASURED)["why"] == "It does."


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("holds, by measurement", "measured"),
        ("holds, by measurement", "mostly holds, by measurement"),
        ("holds, by measurement", "holds, by proof"),
        ("*Evidence", "Evidence"),
        ("5 of 5 seeds; ", ""),
        ("It does. ", ""),
    ],
)
def test_a_box_of_another_form_has_a_fault(written, instead):
    assert fault(MEASURED.replace(written, instead)) is not None


def test_evidence_gives_an_interval_or_what_every_seed_did():
    evidence = {claim.name: claim.evidence for claim in claims_table.claims() if claim.evidence}
    vague = [
        name
        for name, text in evidence.items()
        if not any(words in text for words in ("(95 % interval)", "in every seed"))
    ]
    assert vague == []


def test_evidence_of_rates_says_where_in_their_grid_they_lie():
    said = ("inside", "at the edge of", "none chosen")
    evidence = [claim.evidence for claim in claims_table.claims() if claim.evidence]
    assert [
        text
        for text in evidence
        if "rate" in text.split("(95 % interval)")[-1] and not any(word in text for word in said)
    ] == []


def test_every_outcome_is_reached():
    assert {claim.outcome for claim in claims_table.claims()} == set(OUTCOMES)


def test_chapters_settle_claims(pages):
    assert any(claims(page) for page in pages)
