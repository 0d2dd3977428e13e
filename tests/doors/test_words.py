# SPDX-License-Identifier: Apache-2.0
"""Words for people: aligned, harmless to a terminal, coloured only where that is welcome."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.doors import words

# What os.fsdecode makes of any bytes: text with surrogates for what is no UTF-8.
NAMES = st.binary(max_size=60).map(lambda name: name.decode("utf-8", "surrogateescape"))


@given(NAMES)
def test_a_name_is_one_harmless_line(name):
    """Nothing that moves the cursor, colours, or ends the line reaches a terminal; it can be encoded."""
    shown = words.printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")


@given(NAMES)
def test_a_name_keeps_what_it_says(name):
    """As JSON text it is valid Unicode, and a name that was that already stays as it is."""
    told = words.text_of(name)
    told.encode("utf-8")
    if not any("\ud800" <= letter <= "\udfff" for letter in name):
        assert told == name


@given(NAMES, st.integers(1, 80))
def test_a_shortened_name_fits(name, width):
    """At most so wide, and its end is kept."""
    shown = words.shortened(name, width)
    assert len(shown) <= width
    assert words.printable(name).endswith(shown.removeprefix("…"))


def test_a_table_is_aligned():
    """Names to the left, figures to the right, no blanks at the end."""
    shown = words.table(("NAME", "SIZE"), [("a", "1 B"), ("longer", "100 GiB")])
    assert shown == "NAME       SIZE\na           1 B\nlonger  100 GiB"


def test_a_table_without_rows_is_its_head():
    """An empty list is no error."""
    assert words.table(("NAME", "SIZE"), []) == "NAME  SIZE"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "told", "paints"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_only_where_it_is_welcome(stream, told, paints):
    """On a terminal that can, unless NO_COLOR says no (no-color.org: empty counts as not set)."""
    assert words.paints(stream, told) is paints


def test_percent_is_said_here_only():
    """A ratio becomes percent with its sign; a level keeps its digits."""
    assert words.percent(0.0061) == "0.6 %"
    assert [words.level_name(level) for level in (0.5, 0.99, 0.999)] == ["50 %", "99 %", "99.9 %"]
