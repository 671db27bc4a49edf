"""What holds of each page of the built book."""

import re


def test_page_asks_nothing_of_others(visited, site, name):
    foreign = [url for url in visited(name).requests if not url.startswith((site, "data:"))]
    assert foreign == []


def test_page_finds_all_that_it_asks_for(visited, name):
    assert visited(name).failures == []


def test_console_stays_empty(visited, name):
    assert visited(name).errors == []


def test_page_is_accessible_at_both_widths_in_both_themes(visited, name):
    found = visited(name).violations
    assert {where: what for where, what in found.items() if what} == {}


def test_page_does_not_scroll_sideways(visited, name):
    assert set(visited(name).sideways.values()) == {0}


def test_page_describes_itself(folder, name):
    text = (folder / name).read_text(encoding="utf-8")
    (description,) = re.findall(r'<meta name="description" content="([^"]*)"', text)
    assert 20 < len(description) < 400


def test_figures_are_no_wider_than_text_that_a_phone_can_show(folder, chapter):
    """In a wider one, letters of eleven points come to less than seven pixels there."""
    text = (folder / chapter).read_text(encoding="utf-8")
    widths = re.findall(r'_images/[^"]+\.svg" width="(\d+)"', text)
    assert all(int(width) < 720 for width in widths)
    assert len(widths) == len(re.findall(r'src="[^"]+\.svg"', text))


def test_equation_has_one_anchor_which_its_number_leads_to(folder, chapter):
    text = (folder / chapter).read_text(encoding="utf-8")
    anchors = re.findall(r'id="(equation-[\d-]+)"', text)
    numbers = re.findall(r'<a class="eqno" href="#([^"]*)"', text)
    assert anchors == numbers
    assert len(set(anchors)) == len(anchors)


def test_chapters_lead_back_and_on(folder, chapter):
    text = (folder / chapter).read_text(encoding="utf-8")
    assert 'class="left-prev"' in text
    assert 'class="right-next"' in text
