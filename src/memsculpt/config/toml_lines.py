# SPDX-License-Identifier: Apache-2.0
"""Which line of a TOML text each key stands on, which tomllib does not tell. docs/decisions/0022 has the reasons.

The text has been accepted by tomllib before it comes here, so this only follows it: what cannot occur in a valid text
is not looked for. Paths are the keys and list indices that lead to a value in tomllib's result.
"""

import re
import tomllib
from bisect import bisect_right
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # multi-line basic: up to two quotes may precede the closing three
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)


def locate(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of every table, key and list element of a valid TOML text."""
    return _Follower(text.replace("\r\n", "\n")).follow()


class _Follower:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self._lines: dict[KeyPath, int] = {}
        self._lengths: dict[KeyPath, int] = {}  # arrays of tables, so far

    def follow(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip(_BLANK) and self._at < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header(brackets=2)
            elif self._text[self._at] == "[":
                table = self._header(brackets=1)
            else:
                self._pair(table)
        return self._lines

    def _header(self, *, brackets: int) -> KeyPath:
        line = self._line()
        self._at += brackets
        keys = self._keys()
        self._at += brackets
        path: KeyPath = ()
        for index, key in enumerate(keys):
            path = (*path, key)
            is_last = index == len(keys) - 1
            if is_last and brackets == 2:
                self._lengths[path] = self._lengths.get(path, 0) + 1
            self._lines.setdefault(path, line)
            if path in self._lengths:  # a header goes on in the array's last table
                path = (*path, self._lengths[path] - 1)
                self._lines.setdefault(path, line)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._at += 1  # "="
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        start = self._text[self._at]
        if start in "\"'":
            self._skip(_STRING)
        elif start == "[":
            self._list(path)
        elif start == "{":
            self._inline_table(path)
        else:
            self._skip(_BARE_VALUE)

    def _list(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._skip(_BLANK) and self._text[self._at] != "]":
            element = (*path, index)
            self._lines[element] = self._line()
            self._value(element)
            index += 1
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._skip(_BLANK) and self._text[self._at] != "}":
            self._pair(path)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _keys(self) -> list[str]:
        """Read `a."b c".d` and the blanks around it."""
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            start = self._at
            if self._text[start] in "\"'":
                self._skip(_STRING)
                keys.append(tomllib.loads("key = " + self._text[start : self._at])["key"])
            else:
                self._skip(_BARE_KEY)
                keys.append(self._text[start : self._at])
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go behind what the pattern finds here; always True, so that it can stand in a condition."""
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return True
