# SPDX-License-Identifier: Apache-2.0
"""Stacks with weights -> functions, flame graph, speedscope."""

import json
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.growth import GrowthStack
from memsculpt.profile.growth import by_function, by_module, flame_svg, page, speedscope

NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff"), max_size=30)
STACKS = st.lists(
    st.builds(
        GrowthStack,
        frames=st.lists(st.tuples(NAMES, NAMES), max_size=6).map(tuple),
        kind=st.sampled_from(["anonymous", "shared"]),
        touched_bytes=st.integers(0, 1 << 40),
        held_bytes=st.just(0),
        fault_count=st.integers(0, 1000),
    ),
    max_size=12,
)


def stack(size, *frames, held=0):
    return GrowthStack(
        frames=tuple((name, "prog") for name in frames),
        kind="anonymous",
        touched_bytes=size,
        held_bytes=held,
        fault_count=1,
    )


def test_self_and_total():
    """What a function does itself, and what it calls; recursion counts once."""
    stacks = [stack(10, "leaf", "main"), stack(5, "leaf", "again", "again", "main", held=2), stack(3, "main")]
    found = {one.function: one for one in by_function(stacks)}
    assert (found["leaf"].self_bytes, found["leaf"].total_bytes) == (15, 15)
    assert (found["again"].self_bytes, found["again"].total_bytes) == (0, 5)
    assert (found["main"].self_bytes, found["main"].total_bytes) == (3, 18)
    assert (found["leaf"].held_bytes, found["main"].held_total_bytes) == (2, 2)
    assert by_function(stacks)[0].function == "main"


@given(STACKS)
def test_nothing_is_lost_or_made_up(stacks):
    whole = sum(one.touched_bytes for one in stacks)
    known = sum(one.touched_bytes for one in stacks if one.frames)
    assert sum(one.self_bytes for one in by_function(stacks)) == known
    assert sum(touched for touched, _ in by_module(stacks).values()) == whole
    document = json.loads(speedscope(stacks, "x"))
    profile = document["profiles"][0]
    assert sum(profile["weights"]) == whole
    frames = document["shared"]["frames"]
    assert all(0 <= number < len(frames) for sample in profile["samples"] for number in sample)


@given(STACKS, NAMES)
def test_drawings_are_well_formed_whatever_the_names(stacks, title):
    root = ET.fromstring(flame_svg(stacks, title))
    boxes = [one for one in root.iter("{http://www.w3.org/2000/svg}g") if one.get("data-x")]
    assert len(boxes) >= 1
    assert page(stacks, title, ["<b>"]).count("<b>") == 0


def test_children_lie_inside_their_parents():
    stacks = [stack(60, "a", "main"), stack(30, "b", "main"), stack(10, "c", "d", "main")]
    root = ET.fromstring(flame_svg(stacks, "t"))
    widths = {one.get("data-n"): float(one.get("data-w")) for one in root.iter() if one.get("data-n")}
    assert widths["main"] == 1200.0
    assert widths["a"] == 720.0
    assert widths["d"] == widths["c"] == 120.0
