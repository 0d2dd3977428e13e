# SPDX-License-Identifier: Apache-2.0
"""One value of the configuration: from what TOML gives to what the settings hold, or a complaint with its fix."""

import math
import re
from collections.abc import Callable
from enum import Enum
from ipaddress import ip_address
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar, cast

from memsculpt.domain.units import (
    format_bytes,
    format_duration_s,
    parse_duration_s,
    parse_rate_bytes_per_s,
    parse_ratio,
    parse_size_bytes,
)

Read: TypeAlias = Callable[[Any], Any]
"""Takes a value as TOML gave it; raises Wrong."""

_E = TypeVar("_E", bound=Enum)

_SOCKET_PATH_BYTES = 107  # sizeof(sun_path) less the NUL, unix(7)
_DECIMAL = re.compile(r"([0-9.]+\s*)([kKMGTP])[bB]?$")


class Wrong(Exception):
    """What is wrong with a value and what would be right; the place is added by the one who knows it."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix


def show(value: object) -> str:
    """Print a value nearly as the configuration has it, but not at any length."""
    text = {True: "true", False: "false"}.get(value, "") if isinstance(value, bool) else ""
    text = text or (f'"{value}"' if isinstance(value, str) else repr(value))
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= 60 else text[:57] + "..."


def text(example: str) -> Read:
    """Read a text that is not empty."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise Wrong(f"{show(value)} is not a text", f"write it in quotes, such as {example}")
        if not value or "\0" in value:
            raise Wrong("is empty" if not value else "contains a NUL byte", f"write something such as {example}")
        return value

    return read


def cgroup_glob(value: Any) -> str:
    """Read a glob of cgroup names, relative to the memory controller's root."""
    example = '"system.slice/redis*.service"'
    glob = cast("str", text(example)(value))
    if glob.startswith("/") or glob.endswith("/"):
        raise Wrong(
            f"{show(glob)} begins or ends with a slash",
            f"write it as it stands below the memory controller's root, such as {example}",
        )
    return glob


def flag(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise Wrong(f"{show(value)} is neither true nor false", "write true or false, without quotes")
    return value


def number(low: float, high: float) -> Read:
    """Read a plain number above `low`, and at most `high`."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"{show(value)} is not a number", f"write a number up to {high:g}, without quotes")
        if not low < value <= high:  # also false for nan
            raise Wrong(f"{show(value)} is out of bounds", f"write a number above {low:g} and at most {high:g}")
        return float(value)

    return read


def count(low: int, high: int) -> Read:
    """Read a whole number within bounds."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong(f"{show(value)} is no number that fits here", f"write a whole number from {low} to {high}")
        return value

    return read


def pid(value: Any) -> int:
    """Read a process number."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 22:
        raise Wrong(f"{show(value)} is no process id", "write the number of a process, such as 4711")
    return value


def choice(kind: type[_E]) -> Callable[[Any], _E]:
    """Read one of the words of an Enum."""
    words = [str(each.value) for each in kind]

    def read(value: Any) -> _E:
        if value not in words:
            raise Wrong(f"{show(value)} is not known", "write " + " or ".join(f'"{word}"' for word in words))
        return kind(value)

    return read


def size(*, low_bytes: int = 0) -> Read:
    """Read "512MiB"."""
    return _quantity(parse_size_bytes, "a size", '"512MiB" or "2GiB"', low=low_bytes)


def rate(*, low_bytes_per_s: float) -> Read:
    """Read "256MiB/s"."""
    return _quantity(parse_rate_bytes_per_s, "a rate", '"256MiB/s"', low=low_bytes_per_s)


def duration(low_s: float, high_s: float) -> Read:
    """Read "500ms" within bounds."""

    def read(value: Any) -> float:
        duration_s = cast("float", _quantity(parse_duration_s, "a duration", '"1s" or "5min"')(value))
        if not low_s <= duration_s <= high_s:
            problem = f"{show(value)} is out of bounds"
            raise Wrong(problem, f"write from {format_duration_s(low_s)} to {format_duration_s(high_s)}")
        return duration_s

    return read


def ratio(low: float, high: float) -> Read:
    """Read "90%" within bounds, which are ratios."""

    def read(value: Any) -> float:
        share = cast("float", _quantity(parse_ratio, "a share", '"90%"')(value))
        share = round(share, 12)  # "99.9%" is 0.999, not 0.9990000000000001
        if not low <= share <= high:
            raise Wrong(f"{show(value)} is out of bounds", f'write from "{low * 100:g}%" to "{high * 100:g}%"')
        return share

    return read


def ratio_or_size(value: Any) -> float | int:
    """Read "90%" as 0.9, "20GiB" as an int."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return cast("float", ratio(0.01, 1.0)(value))
    return cast("int", _quantity(parse_size_bytes, "a size or a share", '"20GiB" or "90%"', low=1 << 20)(value))


def rising(read_one: Read, example: str, *, most: int) -> Read:
    """Read a list without repetitions, from small to large."""

    def read(value: Any) -> tuple[float, ...]:
        items = cast("list[Any]", value) if isinstance(value, list) else []
        if not items:
            raise Wrong(f"{show(cast('object', value))} is no list of values", f"write a list such as {example}")
        if len(items) > most:
            raise Wrong(f"{len(items)} entries are too many", f"write at most {most}")
        found = tuple(read_one(item) for item in items)
        if any(later <= earlier for earlier, later in pairwise(found)):
            raise Wrong("its entries do not rise", f"write each once, from small to large, such as {example}")
        return found

    return read


def texts(example: str, *, most: int, read_one: Read | None = None) -> Read:
    """Read a list of texts, none of them twice; it may not be empty."""
    read_text = read_one or text(example)

    def read(value: Any) -> tuple[str, ...]:
        items = cast("list[Any]", value) if isinstance(value, list) else []
        if not items:
            raise Wrong(f"{show(cast('object', value))} is no list of texts", f"write a list such as [{example}]")
        if len(items) > most:
            raise Wrong(f"{len(items)} entries are too many", f"write at most {most}")
        found = tuple(cast("str", read_text(item)) for item in items)
        if len(set(found)) != len(found):
            raise Wrong("has an entry twice", "write each once")
        return found

    return read


def libvirt_uri(value: Any) -> str:
    """Read the URI of a libvirt host, or "" for none."""
    if value == "":
        return ""
    uri = cast("str", text('"qemu:///system"')(value))
    if not uri.startswith("qemu") or "://" not in uri:
        problem = f"{show(uri)} is no URI of a QEMU host of libvirt"
        raise Wrong(problem, 'write "qemu:///system", or leave it out')
    if not uri.partition("://")[2].startswith("/"):
        problem = f"{show(uri)} is another machine's: its memory cannot be managed from here"
        raise Wrong(problem, 'run memsculpt there, and write "qemu:///system"')
    return uri


def often_or_never(low_s: float, high_s: float) -> Read:
    """Read "1min" within bounds, or "never" as 0."""

    def read(value: Any) -> float:
        return 0.0 if value == "never" else cast("float", duration(low_s, high_s)(value))

    return read


def absolute_path(example: str, *, is_socket: bool = False) -> Read:
    """Read a path that does not depend on where the agent was started."""

    def read(value: Any) -> str:
        path = cast("str", text(example)(value))
        if not path.startswith("/"):
            raise Wrong(f"{show(path)} is not absolute", f"write the whole path, such as {example}")
        if is_socket and len(path.encode("utf-8", "surrogateescape")) > _SOCKET_PATH_BYTES:
            raise Wrong(f"is longer than a socket's path may be ({_SOCKET_PATH_BYTES} bytes)", "choose a shorter path")
        return path

    return read


def loopback(value: Any) -> str:
    """Read "127.0.0.1:8472"; other interfaces are refused, because there is no authentication on TCP."""
    address = cast("str", text('"127.0.0.1:8472"')(value))
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 1 << 16:
        raise Wrong(f"{show(address)} is not an address with a port", 'write one such as "127.0.0.1:8472"')
    try:
        is_loopback = host == "localhost" or ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        problem = f"{show(host)} is not an address of the loopback interface, and the API asks nobody for a password"
        raise Wrong(problem, 'write "127.0.0.1:8472", and put a proxy that authenticates in front of it')
    return address


def _quantity(parse: Callable[[str], float], what: str, example: str, *, low: float = 0) -> Read:
    def read(value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise Wrong(f"{show(value)} is a bare number", f"write {what} with its unit, such as {example}")
        if not isinstance(value, str):
            raise Wrong(f"{show(value)} is not {what}", f"write {what} in quotes, such as {example}")
        try:
            quantity = parse(value)
        except (ValueError, OverflowError) as error:
            raise _from_units(value, str(error), what, example) from error
        if not math.isfinite(quantity) or quantity < low:
            least = format_bytes(low).replace(" ", "") if what.startswith("a size") else f"{low:g}"
            raise Wrong(f"{show(value)} is too small", f"write {what} of at least {least}, such as {example}")
        return quantity

    return read


def _from_units(value: str, complaint: str, what: str, example: str) -> Wrong:
    """Part the one sentence of `domain.units` into problem and fix."""
    decimal = _DECIMAL.match(value.strip().removesuffix("/s"))
    if decimal is not None and what != "a duration":
        letter = decimal[2].upper() if decimal[2] != "k" else "K"
        tail = "/s" if value.strip().endswith("/s") else ""
        problem = f"{show(value)} has a decimal unit, which half of the world means otherwise"
        return Wrong(problem, f'write "{decimal[1].strip()}{letter}iB{tail}" if 1024 is meant')
    problem, _, units = complaint.partition(": ")[2].partition("; ")
    also = f" ({units})" if units.startswith("write one of") else ""
    return Wrong(f"{show(value)}: {problem}" if problem else complaint, f"write {what} such as {example}{also}")
