# SPDX-License-Identifier: Apache-2.0
"""Words for people: tables, shares in percent, names that cannot harm a terminal.

Only doors print percent; inside, a share is a ratio.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

_GAP = "  "


def text_of(name: str) -> str:
    r"""Return a name from the kernel as valid Unicode: bytes that are not UTF-8 become `\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    r"""Return a name as one harmless line for a terminal: control characters become `\n`, `\x1b`."""
    clean = text_of(name)
    if clean.isprintable():
        return clean
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in clean
    )


def shortened(name: str, width: int) -> str:
    """Return a printable name of at most `width` letters; the end is kept, because it tells most."""
    clean = printable(name)
    return clean if len(clean) <= width else f"…{clean[len(clean) - width + 1 :]}"


def percent(ratio: float, digits: int = 1) -> str:
    """Print a ratio in percent: "0.6 %"."""
    return f"{ratio * 100:.{digits}f} %"


def level_name(level: float) -> str:
    """Print a quantile's level: "50 %", "99.9 %"."""
    return f"{level * 100:g} %"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, paint: bool = False) -> str:
    """Return an aligned table: the first `left` columns to the left, the others, figures, to the right."""
    body = [tuple(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(heads, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return _GAP.join(placed).rstrip()

    head = line(heads)
    return "\n".join([f"\x1b[1m{head}\x1b[0m" if paint else head, *map(line, body)])


def paints(stream: TextIO | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Tell whether bold heads are welcome: on a terminal, and NO_COLOR (no-color.org) is not set."""
    told = os.environ if environment is None else environment
    to = sys.stdout if stream is None else stream
    return not told.get("NO_COLOR") and told.get("TERM") != "dumb" and to.isatty()
