"""Claims have one form, a known name and one home, so that a table of them can be made."""

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


def test_chapters_settle_claims(pages):
    assert any(claims(page) for page in pages)
