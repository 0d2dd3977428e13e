# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line: which VM a process runs, and where its monitors listen.

Source: QEMU's man page (-name, -uuid, -qmp, -chardev, -mon, -netdev) and its option parser (util/keyval.c,
util/qemu-option.c): `key=value` between commas, a comma doubled where it is meant, or one JSON object.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

PROGRAMS = ("qemu-system-", "qemu-kvm", "kvm")  # the last two are what Red Hat and Debian call it, too
LIBVIRT_CHARDEV = "charmonitor"  # the monitor that libvirtd keeps for itself (src/qemu/qemu_command.c)
MOST_BYTES = 1 << 20  # of a command line that is read; libvirt's are a few kB


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What the command line of a QEMU says of its VM."""

    name: str = ""
    uuid: str = ""
    monitors: tuple[str, ...] = ()  # paths of Unix sockets that speak QMP, as written; "@NAME": an abstract one
    unreachable: tuple[str, ...] = ()  # monitors that nobody else can open, in words
    is_libvirts: bool = False
    taps: tuple[str, ...] = ()  # host interfaces of its network devices


def is_qemu(exe: str) -> bool:
    """Tell whether an executable is QEMU's system emulator; `exe` as /proc/PID/exe gives it."""
    name = os.path.basename(exe)
    return name.startswith(PROGRAMS[0]) or name in PROGRAMS[1:]


def parse_command_line(content: bytes) -> CommandLine:
    """Return what /proc/PID/cmdline says; what is not understood is passed over."""
    arguments = [os.fsdecode(each) for each in content.split(b"\0")]
    name = uuid = ""
    monitors: list[str] = []
    unreachable: list[str] = []
    taps: list[str] = []
    chardevs: dict[str, Mapping[str, str]] = {}
    controls: list[str] = []
    for option, value in _options(arguments):
        if option == "name":
            name = options_of(value, implied="guest").get("guest", name)
        elif option == "uuid":
            uuid = value
        elif option == "chardev":
            found = _chardev(value)
            chardevs[found.get("id", "")] = found
        elif option == "mon":
            found = options_of(value, implied="chardev")
            if found.get("mode") == "control":
                controls.append(found.get("chardev", ""))
        elif option in {"qmp", "qmp-pretty"}:
            if value.startswith("chardev:"):
                controls.append(value.removeprefix("chardev:"))
            else:
                _take(_short_form(value), monitors, unreachable)
        elif option in {"netdev", "nic", "net"}:
            found = options_of(value, implied="type")
            if found.get("type") == "tap" and found.get("ifname"):
                taps.append(found["ifname"])
    is_libvirts = LIBVIRT_CHARDEV in controls
    for one in controls:
        if one == LIBVIRT_CHARDEV:
            continue
        _take(chardevs.get(one, {"backend": f"chardev {one}"}), monitors, unreachable)
    return CommandLine(
        name=name,
        uuid=uuid.lower(),
        monitors=tuple(dict.fromkeys(monitors)),
        unreachable=tuple(unreachable),
        is_libvirts=is_libvirts,
        taps=tuple(taps),
    )


def options_of(value: str, implied: str) -> Mapping[str, str]:
    """Return the keys and values of one option; the first word without a key belongs to `implied`."""
    if value.lstrip().startswith("{"):
        try:
            return dict(_flattened(json.loads(value)))
        except (ValueError, RecursionError):
            return {}
    found: dict[str, str] = {}
    for number, part in enumerate(_parts(value)):
        key, equals, text = part.partition("=")
        if not equals and number == 0:
            found[implied] = key
        elif not equals:  # a flag as older QEMUs wrote them: "server", "nowait"
            found[key.removeprefix("no") if key in {"nowait", "nodelay"} else key] = (
                "off" if key in {"nowait", "nodelay"} else "on"
            )
        else:
            found[key] = text
    return found


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option that has a value, without its dashes."""
    for option, value in pairwise(arguments[1:]):
        if option.startswith("-") and len(option) > 1:
            yield option.removeprefix("-").removeprefix("-"), value


def _parts(value: str) -> list[str]:
    """Split at single commas; two of them mean one."""
    parts: list[str] = []
    at, current = 0, ""
    while at < len(value):
        if value[at] != ",":
            current += value[at]
        elif value[at : at + 2] == ",,":
            current += ","
            at += 1
        else:
            parts.append(current)
            current = ""
        at += 1
    return [*parts, current]


def _flattened(value: object) -> Iterator[tuple[str, str]]:
    """Yield the scalars of a JSON object by their own keys, outermost first: no key means two things in what we ask."""
    if not isinstance(value, dict):
        return
    inner: list[Any] = []
    for key, each in cast("dict[str, Any]", value).items():
        if isinstance(each, dict):
            inner.append(cast("dict[str, Any]", each))
        else:
            yield key, {True: "on", False: "off"}[each] if isinstance(each, bool) else str(each)
    for each in reversed(inner):
        yield from _flattened(each)


def _chardev(value: str) -> Mapping[str, str]:
    """Return a character device; of the JSON form (`id`, `backend.type`, `backend.data.addr`) what the other has."""
    found = dict(options_of(value, implied="backend"))
    if value.lstrip().startswith("{"):
        try:
            backend = cast("dict[str, Any]", json.loads(value)).get("backend", {})
        except (ValueError, RecursionError, AttributeError):
            return {}
        kind = cast("dict[str, Any]", backend).get("type", "") if isinstance(backend, dict) else backend
        found["backend"] = str(kind)
        found.setdefault("server", "on")  # its default there
    return found


def _short_form(value: str) -> Mapping[str, str]:
    """Return what `-qmp unix:PATH,server=on` and its like mean as a character device."""
    if value.startswith("unix:"):
        path, *rest = _parts(value.removeprefix("unix:"))
        return {"backend": "socket", **options_of(",".join(["socket", *rest]), "backend"), "path": path}
    return {"backend": value.partition(":")[0]}


def _take(found: Mapping[str, str], monitors: list[str], unreachable: list[str]) -> None:
    path, kind = found.get("path", ""), found.get("backend", "")
    if kind != "socket" or not path:
        where = f"file descriptor {found['fd']}" if "fd" in found else kind
        unreachable.append(f"its monitor is on {where}, which nobody else can open")
    elif found.get("server", "off") != "on":
        unreachable.append(f"its monitor calls {path} by itself (server=off)")
    else:
        monitors.append(f"@{path}" if found.get("abstract") == "on" else path)
