# SPDX-License-Identifier: Apache-2.0
"""Budgets of units, against a systemd of text files that does what tests/vm/test_systemd.py saw the real one do."""

import errno
from pathlib import Path

import pytest

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.linux.cgroup2 import CgroupV2
from memsculpt.host.linux.systemd import SystemdLimits, unit_of

MIB = 1 << 20
UNIT = CgroupPath("system.slice/redis.service")
FILES = {"MemoryHigh": "memory.high", "MemoryMax": "memory.max", "MemoryMin": "memory.min"}


class TextSystemd:
    """Writes whole pages into the unit's cgroup, leaves a drop-in; at a reload what has no drop-in is as configured."""

    def __init__(self, root: Path) -> None:
        self.cgroups, self.drop_ins, self.marks = root / "cgroup", root / "control", root / "marks"
        self.folder = self.cgroups / UNIT
        self.folder.mkdir(parents=True)
        for name in FILES.values():
            (self.folder / name).write_text("max\n")
        self.reloads = 0
        self.limits = self.opened()

    def opened(self) -> SystemdLimits:
        """What a fresh process would have."""
        return SystemdLimits(CgroupV2(str(self.cgroups)), self.marks, self.drop_ins, self.call)

    def call(self, method: str, _signature: str, body: tuple) -> None:
        if method == "Reload":
            self.reloads += 1
            return
        unit, is_runtime, [(name, (kind, value))] = body
        assert (method, is_runtime, kind) == ("SetUnitProperties", True, "t")
        folder = self.drop_ins / f"{unit}.d"
        folder.mkdir(parents=True, exist_ok=True)
        text = "infinity" if value == (1 << 64) - 1 else str(value)
        (folder / f"50-{name}.conf").write_text(f"[Service]\n{name}={text}\n")
        kept = "max" if text == "infinity" else str(value // 4096 * 4096)
        (self.folder / FILES[name]).write_text(f"{kept}\n")

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.drop_ins)) for path in self.drop_ins.rglob("*"))


@pytest.fixture
def systemd(tmp_path):
    return TextSystemd(tmp_path)


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("system.slice/redis.service", "redis.service"),
        ("system.slice", "system.slice"),
        ("machine.slice/docker-ab.scope", "docker-ab.scope"),
        ("system.slice/a\n\udcff.service", "a\n\udcff.service"),
        ("system.slice/redis.service/worker", None),
        ("user.slice/user-1.slice/user@1.service/app.slice/redis.service", None),
        ("user.slice/user-1.slice/session-2.scope/redis.service", None),
        ("memsculpt/batch", None),
        ("", None),
    ],
)
def test_only_the_systems_own_units_are_units(cgroup, unit):
    """A user's own systemd may have a unit of the same name, below a service of the system: that is another one."""
    assert unit_of(CgroupPath(cgroup)) == unit


def test_a_units_limit_goes_through_systemd_and_is_read_from_the_kernel(systemd):
    """The kernel's whole pages are what counts, and the unit gets its drop-in."""
    systemd.limits.write_limit(UNIT, LimitKind.LIMIT, str(200 * MIB + 1))

    assert systemd.limits.read_limit(UNIT, LimitKind.LIMIT).text == str(200 * MIB)
    assert systemd.left() == ["redis.service.d", "redis.service.d/50-MemoryHigh.conf"]


def test_nothing_is_left_when_the_value_is_as_it_was(systemd):
    """Also in a fresh process, and with one reload, however often the limit went up and down before."""
    for text in (str(200 * MIB), "max", str(100 * MIB), "max"):
        systemd.limits.write_limit(UNIT, LimitKind.LIMIT, text)
    systemd.limits.write_limit(UNIT, LimitKind.HARD, str(300 * MIB))
    systemd.limits.write_limit(UNIT, LimitKind.HARD, "max")
    assert systemd.reloads == 0
    systemd.opened().settle()
    systemd.opened().settle()

    assert systemd.reloads == 1
    assert systemd.left() == []


def test_what_is_still_changed_keeps_its_drop_in(systemd):
    """Settling undoes nothing: that is the journal's business."""
    systemd.limits.write_limit(UNIT, LimitKind.LIMIT, str(200 * MIB))
    systemd.limits.settle()

    assert systemd.left() == ["redis.service.d", "redis.service.d/50-MemoryHigh.conf"]
    assert systemd.reloads == 0


def test_a_unit_that_stopped_does_not_start_again_with_our_limit(systemd):
    """Its cgroup is gone, its drop-in would wait for the next start."""
    systemd.limits.write_limit(UNIT, LimitKind.LIMIT, str(200 * MIB))
    for path in systemd.folder.iterdir():
        path.unlink()
    systemd.folder.rmdir()
    systemd.limits.settle()

    assert systemd.left() == []
    assert systemd.reloads == 1


def test_somebody_elses_drop_in_stays(systemd):
    """Who had set the property at run time before us keeps that file."""
    systemd.call("SetUnitProperties", "sba(sv)", ("redis.service", True, [("MemoryHigh", ("t", 400 * MIB))]))
    systemd.limits.write_limit(UNIT, LimitKind.LIMIT, str(200 * MIB))
    systemd.limits.write_limit(UNIT, LimitKind.LIMIT, str(400 * MIB))
    systemd.limits.settle()

    assert systemd.left() == ["redis.service.d", "redis.service.d/50-MemoryHigh.conf"]


def test_a_limit_that_never_shows_is_said(systemd):
    """When systemd agrees and the kernel does not, that is no success."""
    deaf = SystemdLimits(CgroupV2(str(systemd.cgroups)), systemd.marks, systemd.drop_ins, lambda *_: None)

    with pytest.raises(OSError, match="does not show it") as caught:
        deaf.write_limit(UNIT, LimitKind.LIMIT, str(200 * MIB))
    assert caught.value.errno == errno.EAGAIN


def test_what_is_no_unit_is_written_directly(systemd):
    """A cgroup below a unit is the unit's own affair, and systemd knows nothing of it."""
    inner = systemd.folder / "worker"
    inner.mkdir()
    (inner / "memory.high").write_text("max\n")
    systemd.limits.write_limit(CgroupPath(f"{UNIT}/worker"), LimitKind.LIMIT, str(64 * MIB))

    assert (inner / "memory.high").read_text().strip() == str(64 * MIB)
    assert not systemd.drop_ins.exists()
