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
import os
from pathlib import Path
from typing import Any

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.linux.controller import Charge, Controller
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
UNIT_SUFFIXES = (".service", ".scope", ".slice")


def runs_systemd(proc: str = "/proc") -> bool:
    """Tell whether process 1 is systemd."""
    return Path(proc, "1/comm").read_bytes().strip() == b"systemd"


def unit_of(cgroup: CgroupPath) -> str | None:
    """Return the unit that a cgroup is, by its name; None for one below a unit or outside of them."""
    name = cgroup.rpartition("/")[2]
    return name if name.endswith(UNIT_SUFFIXES) else None


class SystemdLimits:
    """A controller whose units' budgets go through systemd; everything else passes straight on."""

    def __init__(self, inner: Controller) -> None:
        self._inner = inner
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
        """Set a unit's property at run time, or write the cgroup where it is no unit's."""
        unit, name = unit_of(cgroup), PROPERTIES.get((self.version, kind))
        if unit is None or name is None:
            self._inner.write_limit(cgroup, kind, text)
            return
        drop_in = DROP_INS / f"{unit}.d" / f"50-{name}.conf"
        mark = MARKS / f"{unit}.{name}"
        if not drop_in.exists() and not mark.exists():
            MARKS.mkdir(parents=True, exist_ok=True)
            mark.write_text(self._inner.read_limit(cgroup, kind).text)
        _set_property(unit, name, text)
        if mark.exists() and mark.read_text() == self._inner.read_limit(cgroup, kind).text:
            # As it was before our first change: what systemd kept of it goes, too.
            drop_in.unlink(missing_ok=True)
            mark.unlink()
            _reload()

    def reclaim(self, cgroup: CgroupPath, size_bytes: int) -> Moved:
        """Have the kernel take bytes from the cgroup; no setting is changed by it on v2."""
        return self._inner.reclaim(cgroup, size_bytes)

    def create(self, cgroup: CgroupPath) -> None:
        """Make a cgroup of our own."""
        self._inner.create(cgroup)

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process into a cgroup."""
        return self._inner.move(pid, cgroup)


def _set_property(unit: str, name: str, text: str) -> None:
    value = INFINITY if text in {"max", "-1"} else int(text)
    _call("SetUnitProperties", "sba(sv)", (unit, True, [(name, ("t", min(value, INFINITY)))]))


def _reload() -> None:
    _call("Reload", "", ())


def _call(method: str, signature: str, body: tuple[Any, ...]) -> None:
    """Call systemd's manager. Raises OSError with its words, as a failed write would."""
    # Imported late: only hosts that systemd runs need it, and it ships no types.
    jeepney: Any = importlib.import_module("jeepney")
    blocking: Any = importlib.import_module("jeepney.io.blocking")
    wrappers: Any = importlib.import_module("jeepney.wrappers")
    manager = jeepney.DBusAddress(PATH, bus_name=BUS_NAME, interface=INTERFACE)
    message = jeepney.new_method_call(manager, method, signature or None, body)
    connection = blocking.open_dbus_connection("SYSTEM")
    try:
        wrappers.unwrap_msg(connection.send_and_get_reply(message, timeout=10.0))
    except wrappers.DBusErrorResponse as error:
        number = errno.ENOENT if error.name.endswith(".NoSuchUnit") else errno.EPERM
        raise OSError(number, f"systemd: {error.name} {error.data}") from error
    except TimeoutError as error:
        raise OSError(errno.EAGAIN, "systemd did not answer within 10 s") from error
    finally:
        connection.close()


def marks_left() -> list[str]:
    """Return the units whose drop-ins are still to be removed, for tests and doctor."""
    return sorted(os.listdir(MARKS)) if MARKS.exists() else []
