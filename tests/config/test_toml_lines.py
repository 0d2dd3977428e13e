# SPDX-License-Identifier: Apache-2.0
"""Every key of a TOML text is found on the line on which it stands."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.config.toml_lines import locate

bare_keys = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
# JSON's escapes of a basic string are TOML's; U+007F and surrogates are not allowed bare.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8)
quoted_keys = texts.map(json.dumps)
literal_keys = st.from_regex(r"'[ a-z.#=\[\]\"]{0,6}'", fullmatch=True)
keys = st.one_of(bare_keys, quoted_keys, literal_keys)
multi_line = st.lists(
    st.sampled_from(["a", "[x]", "k = 1", "# no", "\n", " ", '"', "\\\\", '\\"', "]"]), max_size=8
).map("".join)
scalars = st.one_of(
    st.sampled_from(["1", "-2.5", "true", "1979-05-27 07:32:00", "0x1F", "inf"]),
    texts.map(json.dumps),
    multi_line.filter(lambda text: '"""' not in text and not text.endswith('"')).map(lambda text: f'"""{text}"""'),
    multi_line.filter(lambda text: "'''" not in text).map(lambda text: f"'''{text}'''"),
)
gaps = st.sampled_from(["", "\n", " # c ]\n", "\n\n", "\n# x = 1\n"])


@st.composite
def lists(draw, values):
    items = [draw(gaps) + draw(values) + draw(gaps) for _ in range(draw(st.integers(0, 3)))]
    return "[" + ",".join(items) + draw(st.sampled_from(["", ","]) if items else st.just("")) + draw(gaps) + "]"


@st.composite
def inline_tables(draw, values):
    pairs = [f" {draw(keys)} = {draw(values)} " for _ in range(draw(st.integers(0, 3)))]
    return "{" + ",".join(pairs) + "}"


values = st.recursive(scalars, lambda inner: st.one_of(lists(inner), inline_tables(inner)), max_leaves=6)


@st.composite
def documents(draw):
    """Valid TOML in all spellings, with the line of each statement known; None for what tomllib refuses."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 8))):
        lines += draw(st.sampled_from([[], [""], ["# [no]"], ["  # x = 1"]]))
        dotted = ".".join(draw(st.lists(keys, min_size=1, max_size=3)))
        kind = draw(st.sampled_from(["pair", "pair", "pair", "table", "array"]))
        statement = {"pair": f"{dotted} = {draw(values)}", "table": f"[ {dotted} ]", "array": f"[[{dotted}]] # t"}[kind]
        try:
            tomllib.loads("\n".join([*lines, statement]))
        except tomllib.TOMLDecodeError:
            continue  # a key twice, and the like: the document goes on without it
        lines.append(statement)
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


def paths_of(value, path=()):
    """Every path of tomllib's result."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from paths_of(each, (*path, key))


@pytest.mark.timeout(60)
@settings(max_examples=60)
@given(document=documents(), line_end=st.sampled_from(["\n", "\r\n"]))
def test_exactly_the_keys_of_the_text_are_found(document, line_end):
    """The paths are those of tomllib's result, no more and no fewer, however they are spelled."""
    if line_end == "\r\n" and "\r" in document:
        return
    text = document.replace("\n", line_end)
    assert set(locate(text)) == set(paths_of(tomllib.loads(text)))


@pytest.mark.timeout(60)
@settings(max_examples=60)
@given(document=documents())
def test_a_key_begins_on_its_line(document):
    """The text above the line of a key does not have it yet; the text up to that line does, where it is whole."""
    rows = document.split("\n")
    for path, line in locate(document).items():
        for upto, is_there in ((line - 1, False), (line, True)):
            try:
                found = set(paths_of(tomllib.loads("\n".join(rows[:upto]))))
            except tomllib.TOMLDecodeError:
                continue  # the cut went through a value of several lines
            assert (path in found) is is_there, (path, line)


def test_each_spelling_by_hand():
    """One text with every construct, lines counted by eye."""
    text = '''# comment
a = 1
"b c".'d' = """
[not.a.table]
x = 1
"""
[agent] # here
mode = { deep = [1, "2", # one

  3] }

[[partition]]
name = "x"
[partition.match]
exe = 'y'
[[partition]]
name = "z"
match.cgroup = "c"
'''
    lines = locate(text)
    assert lines["a",] == 2
    assert lines["b c", "d"] == 3
    assert lines["agent",] == 7
    assert lines["agent", "mode", "deep"] == 8
    assert lines["agent", "mode", "deep", 2] == 10
    assert lines["partition",] == 12
    assert lines["partition", 0, "name"] == 13
    assert lines["partition", 0, "match"] == 14
    assert lines["partition", 0, "match", "exe"] == 15
    assert lines["partition", 1] == 16
    assert lines["partition", 1, "match", "cgroup"] == 18


def test_a_table_whose_header_comes_after_its_child_begins_with_the_child():
    """As everywhere: a key begins where the text first has it."""
    assert locate("[a.b]\nx = 1\n[a]\ny = 2\n") == {("a",): 1, ("a", "b"): 1, ("a", "b", "x"): 2, ("a", "y"): 4}
