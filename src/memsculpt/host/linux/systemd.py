# SPDX-License-Identifier: Apache-2.0
"""Units are changed through systemd, never behind its back.

A value written into the cgroup is lost at the next daemon-reload. Source: org.freedesktop.systemd1(5),
SetUnitProperties with runtime=true.

Undoing takes more than the old value: SetUnitProperties leaves a drop-in in /run/systemd/system.control.
Where there was none before our first change, it is deleted again and the daemon reloaded. A drop-in that
somebody else made is kept and only the value goes back.
"""

import errno
import importlib
import json
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.linux.controller import Charge, Controller
from memsculpt.host.linux.errnos import is_gone
from memsculpt.host.protocol import LimitValue, Moved

PATH, BUS_NAME = "/org/freedesktop/systemd1", "org.freedesktop.systemd1"
INTERFACE = "org.freedesktop.systemd1.Manager"
PROPERTIES = {
    (2, LimitKind.GUARANTEE): "MemoryMin",
    (2, LimitKind.LIMIT): "MemoryHigh",
    (2, LimitKind.HARD): "MemoryMax",
    (1, LimitKind.LIMIT): "MemoryLimit",
    (1, LimitKind.HARD): "MemoryLimit",
}
DROP_INS = Path("/run/systemd/system.control")
MARKS = Path("/run/memsculpt/units")
INFINITY = (1 << 64) - 1
Call: TypeAlias = Callable[[str, str, tuple[Any, ...]], None]  # method, signature, body
SHOWN_TRIES, SHOWN_EVERY_S = 25, 0.02
UNIT_SUFFIXES = (".service", ".scope", ".slice")


def runs_systemd(proc: str = "/proc") -> bool:
    """Tell whether process 1 is systemd."""
    return Path(proc, "1/comm").read_bytes().strip() == b"systemd"


def unit_of(cgroup: CgroupPath) -> str | None:
    """Return the unit of the system's manager that a cgroup is, by its name; None for any other.

    Below a service or scope a unit's name means nothing: a user's own manager has units of the same names there.
    """
    *above, name = cgroup.split("/")
    is_top = all(each.endswith(".slice") for each in above)
    return name if is_top and name.endswith(UNIT_SUFFIXES) else None


def call_manager(method: str, signature: str, body: tuple[Any, ...]) -> None:
    """Call systemd's manager over D-Bus. Raises OSError with its words, as a failed write would."""
    # Imported late: only hosts that systemd runs need it, and it ships no types.
    jeepney: Any = importlib.import_module("jeepney")
    blocking: Any = importlib.import_module("jeepney.io.blocking")
    wrappers: Any = importlib.import_module("jeepney.wrappers")
    manager = jeepney.DBusAddress(PATH, bus_name=BUS_NAME, interface=INTERFACE)
    message = jeepney.new_method_call(manager, method, signature or None, body)
    try:
        connection = blocking.open_dbus_connection("SYSTEM")
    except OSError as error:  # ENOENT here does not mean that the unit is gone
        raise OSError(errno.ECONNREFUSED, f"systemd cannot be reached over D-Bus: {error}") from error
    try:
        wrappers.unwrap_msg(connection.send_and_get_reply(message, timeout=10.0))
    except wrappers.DBusErrorResponse as error:
        number = errno.ENOENT if error.name.endswith(".NoSuchUnit") else errno.EPERM
        raise OSError(number, f"systemd: {error.name} {error.data}") from error
    except TimeoutError as error:
        raise OSError(errno.EAGAIN, "systemd did not answer within 10 s") from error
    finally:
        connection.close()


class SystemdLimits:
    """A controller whose units' budgets go through systemd; everything else passes straight on.

    Of each property that had no run-time drop-in before our first change a mark in /run tells what it held, so that
    `settle`, in this process or another, knows which drop-ins are ours.
    """

    def __init__(
        self, inner: Controller, marks: Path = MARKS, drop_ins: Path = DROP_INS, call: Call = call_manager
    ) -> None:
        self._inner = inner
        self._marks, self._drop_ins, self._call = marks, drop_ins, call
        self.version = inner.version
        self.root = inner.root

    def folder(self, cgroup: CgroupPath) -> str:
        """Return the cgroup's folder."""
        return self._inner.folder(cgroup)

    def read_charge(self, cgroup: CgroupPath) -> Charge:
        """Read what the cgroup holds."""
        return self._inner.read_charge(cgroup)

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget, from the kernel: it is what holds."""
        return self._inner.read_limit(cgroup, kind)

    def text_of(self, size_bytes: int) -> str:
        """Return how a budget is written."""
        return self._inner.text_of(size_bytes)

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> None:
        """Set a unit's property at run time, or write the cgroup where it is no unit's.

        Raises OSError, EAGAIN when systemd agreed and the kernel does not show it.
        """
        unit, name = unit_of(cgroup), PROPERTIES.get((self.version, kind))
        if unit is None or name is None:
            self._inner.write_limit(cgroup, kind, text)
            return
        self._mark(unit, name, cgroup, kind)
        value = INFINITY if text.strip() in {"max", "-1"} else int(text)
        self._call("SetUnitProperties", "sba(sv)", (unit, True, [(name, ("t", min(value, INFINITY)))]))
        for _ in range(SHOWN_TRIES):
            shown = self._inner.read_limit(cgroup, kind).size_bytes
            if shown == value // mmap.PAGESIZE * mmap.PAGESIZE or min(shown, value) >= UNLIMITED_BYTES:
                return
            time.sleep(SHOWN_EVERY_S)
        raise OSError(errno.EAGAIN, f"systemd took {name} of {unit}, and the kernel does not show it")

    def settle(self) -> None:
        """Remove the drop-ins that are ours and say what holds without them, and those of units that have stopped.

        What is still changed keeps its own. systemd is told once, and not at every limit that goes up again.
        """
        is_changed = False
        for mark in sorted(self._marks.glob("[!.]*")):
            kept = json.loads(mark.read_text(encoding="ascii"))
            try:
                present = self._inner.read_limit(CgroupPath(kept["cgroup"]), LimitKind(kept["kind"])).text
            except OSError as error:
                if not is_gone(error):
                    raise
                present = kept["text"]
            if present != kept["text"]:
                continue
            drop_in = self._drop_ins / f"{kept['unit']}.d" / f"50-{kept['name']}.conf"
            drop_in.unlink(missing_ok=True)
            if drop_in.parent.is_dir() and not any(drop_in.parent.iterdir()):
                drop_in.parent.rmdir()
            mark.unlink()
            is_changed = True
        if is_changed:
            self._call("Reload", "", ())

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Have the kernel take bytes from the cgroup; no setting is changed by it on v2."""
        return self._inner.reclaim(cgroup, size_bytes, only_cache=only_cache)

    def create(self, cgroup: CgroupPath) -> None:
        """Make a cgroup of our own."""
        self._inner.create(cgroup)

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process into a cgroup."""
        return self._inner.move(pid, cgroup)

    def _mark(self, unit: str, name: str, cgroup: CgroupPath, kind: LimitKind) -> None:
        mark = self._marks / f"{unit}.{name}"
        if mark.exists() or (self._drop_ins / f"{unit}.d" / f"50-{name}.conf").exists():
            return
        self._marks.mkdir(parents=True, exist_ok=True)
        text = self._inner.read_limit(cgroup, kind).text
        kept = {"unit": unit, "name": name, "cgroup": cgroup, "kind": kind.value, "text": text}
        whole = self._marks / f".{unit}.{name}"  # a mark is there in whole or not at all
        whole.write_text(json.dumps(kept), encoding="ascii")
        whole.replace(mark)
