# SPDX-License-Identifier: Apache-2.0
"""Quantities as people write them: "2GiB", "30s", "90%", "256MiB/s".

Sizes are binary (KiB = 1024 bytes); the decimal units of disk makers (kB, MB) are refused rather
than guessed at, because half of the world means the other thing by them.
"""

import math
import re

UNLIMITED_BYTES = (1 << 63) - 1

_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)")


def parse_size_bytes(text: str) -> int:
    """Return the bytes that "512MiB" or "1.5GiB" or "unlimited" name; ValueError says what would do."""
    if text.strip() == "unlimited":
        return UNLIMITED_BYTES
    number, unit = _split(text, 'a size such as "512MiB" or "2GiB"')
    if unit not in _SIZE_UNITS:
        raise ValueError(
            f"{text!r}: unknown unit {unit!r}; write one of {', '.join(_SIZE_UNITS)}"
            + ("" if unit else " (a bare number has no unit)")
        )
    size = number * _SIZE_UNITS[unit]
    if size >= UNLIMITED_BYTES:
        raise ValueError(f'{text!r}: larger than any memory; write "unlimited" if that is meant')
    return round(size)


def parse_duration_s(text: str) -> float:
    """Return the seconds that "500ms", "1s", "30s", "5min" or "1h" name."""
    number, unit = _split(text, 'a duration such as "1s" or "5min"')
    if unit not in _TIME_UNITS:
        raise ValueError(f"{text!r}: unknown unit {unit!r}; write one of {', '.join(_TIME_UNITS)}")
    return number * _TIME_UNITS[unit]


def parse_ratio(text: str) -> float:
    """Return 0.9 for "90%"."""
    number, unit = _split(text, 'a share such as "90%"')
    if unit != "%":
        raise ValueError(f'{text!r}: write a share with its sign, such as "90%"')
    return number / 100.0


def parse_rate_bytes_per_s(text: str) -> float:
    """Return bytes a second for "256MiB/s"."""
    size, slash, per = text.partition("/")
    if not slash or per.strip() != "s":
        raise ValueError(f'{text!r}: write a rate such as "256MiB/s"')
    return float(parse_size_bytes(size))


def format_bytes(size_bytes: float) -> str:
    """Print a size for people: three digits or so, binary unit."""
    if size_bytes >= UNLIMITED_BYTES:
        return "unlimited"
    magnitude = abs(size_bytes)
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if magnitude >= _SIZE_UNITS[unit]:
            value = size_bytes / _SIZE_UNITS[unit]
            return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration_s(duration_s: float) -> str:
    """Print a duration for people: "120 ms", "3.2 s", "14 min", "2.5 h"."""
    if math.isinf(duration_s):
        return "never"
    if duration_s < 1.0:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 120.0:
        return f"{duration_s:.1f} s"
    if duration_s < 7200.0:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.1f} h"


def _split(text: str, wanted: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r}: is not {wanted}")
    return float(found[1]), found[2]
