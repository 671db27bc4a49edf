"""The closing chapter of the book lists the claims as the chapters have settled them."""

from book import claims_table


def test_table_is_what_the_chapters_say():
    page = claims_table.PAGE.read_text(encoding="utf-8")
    assert page == claims_table.page_with_table(), "run `make notebooks`"


def test_every_known_claim_is_settled():
    assert claims_table.faults() == []
