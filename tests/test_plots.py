"""The book's colours are those that matplotlib calls petroff6, which its older releases lack."""

import matplotlib as mpl
import pytest

from bnkit import plots


def test_colours_are_the_sequence_petroff6():
    if "petroff6" not in mpl.color_sequences:
        pytest.skip("matplotlib has petroff6 from 3.11 on")
    assert list(mpl.color_sequences["petroff6"]) == plots.COLORS


def test_each_colour_has_a_dash_of_its_own():
    assert len({str(dash) for dash in plots.DASHES}) == len(set(plots.COLORS)) == 6
