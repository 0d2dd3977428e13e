# SPDX-License-Identifier: Apache-2.0
"""Which processes are virtual machines, what they are called, and what their monitors told last.

A VM is a process of QEMU; its command line is read once in its life. Names are given for that life, too: who comes
second with a name that is taken is told apart by its UUID, and stays so when the first has gone.
"""

import glob
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from memsculpt.domain.settings import VmSettings
from memsculpt.domain.vm import NO_UUID, VmId, VmReading, VmState, vm_id
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.host.linux import procfs, qemu
from memsculpt.host.linux.expected_balloons import ExpectedBalloons
from memsculpt.host.linux.libvirt_monitors import LibvirtMonitors
from memsculpt.host.linux.monitors import Monitors, Target, Told, connect
from memsculpt.host.linux.processes import Reading
from memsculpt.host.linux.qemu import CommandLine

GLOBS_EVERY_S = 10.0

LIBVIRTS = 'its monitor belongs to libvirtd (fix: libvirt = "qemu:///system" in [vms])'
NO_MONITOR = "it has no QMP monitor (fix: start QEMU with -qmp unix:/run/NAME.qmp,server=on,wait=off)"
NOT_DISCOVERED = "discover = false in [vms], and none of its sockets names it"
NOT_YET = "its monitor was not asked yet"

is_qemu = lru_cache(maxsize=1024)(qemu.is_qemu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VM's process."""

    process: Instance
    id: VmId
    name: str
    workload: WorkloadId
    uuid: str  # "" where it was started without one
    command: CommandLine
    folder: str  # that its relative paths begin in


class VirtualMachines:
    """Finds them, and has their monitors asked from the first one on."""

    def __init__(
        self,
        settings: VmSettings,
        *,
        interval_s: float,
        proc: str = "/proc",
        open_monitors: Callable[[], Monitors] | None = None,
        open_libvirt: Callable[[], LibvirtMonitors] | None = None,
        on_foreign_balloon: Callable[[], None] | None = None,
    ) -> None:
        """Know no VM yet; `open_monitors` starts what asks them, `open_libvirt` what asks libvirt for its VMs.

        `on_foreign_balloon` is called, from another thread, when a balloon moves that nobody here has asked to.
        """
        self._settings, self._proc, self._interval_s = settings, proc, interval_s
        self._expected = ExpectedBalloons()
        self._open_monitors = open_monitors or (
            lambda: Monitors(
                timeout_s=settings.timeout_s,
                interval_s=self._interval_s,
                dirty_every_s=settings.dirty_every_s,
                proc=proc,
                expected=self._expected,
                on_foreign_balloon=on_foreign_balloon,
            )
        )
        self._open_libvirt = open_libvirt or (
            lambda: LibvirtMonitors(
                settings.libvirt,
                timeout_s=settings.timeout_s,
                interval_s=self._interval_s,
                expected=self._expected,
                on_foreign_balloon=on_foreign_balloon,
            )
        )
        self._libvirt: LibvirtMonitors | None = None
        self._machines: dict[Instance, Machine] = {}
        self._monitors: Monitors | None = None
        self._extra: dict[str, int] = {}  # sockets that the configuration names, and who listens (0: not to be seen)
        self._extra_at_s = float("-inf")
        self._followed: tuple[object, object] = (None, None)  # of what what is asked was made

    def pace(self, interval_s: float) -> None:
        """Ask so often from now on."""
        self._interval_s = interval_s
        for asker in (self._libvirt, self._monitors):
            if asker is not None:
                asker.interval_s = interval_s

    def find(self, readings: Iterable[Reading], now_s: float) -> Mapping[Instance, Machine]:
        """Return the VMs among these processes, and have them asked from now on."""
        found = [one for one in readings if is_qemu(one.detail.exe)]
        if not found and not self._machines:
            return self._machines
        living = {one.instance for one in found}
        if living != self._machines.keys():
            self._machines = {one: machine for one, machine in self._machines.items() if one in living}
            for one in sorted(living - self._machines.keys(), key=lambda each: (each.start_ticks, each.pid)):
                machine = self._read(one)
                if machine is not None:
                    self._machines[one] = machine
        extra = self._extra_sockets(now_s)
        if self._followed[0] is not self._machines or self._followed[1] is not extra:
            self._followed = self._machines, extra
            self._follow(extra)
        return self._machines

    def readings(self) -> tuple[VmReading, ...]:
        """Return what is known of each VM now, by workload: one reading for each identity.

        While a VM migrates within this host there are two processes of it: the one that runs is told.
        """
        told: dict[Instance, Told] = {}
        for asker in (self._libvirt, self._monitors):  # a monitor of our own tells more
            told |= asker.told() if asker is not None else {}
        found: dict[VmId, VmReading] = {}
        for machine in self._machines.values():
            reading = self._reading(machine, told.get(machine.process))
            before = found.get(machine.id)
            if before is None or _rank(reading) < _rank(before):
                found[machine.id] = reading
        return tuple(sorted(found.values(), key=lambda one: one.workload))

    def get(self, vm: VmId) -> Machine | None:
        """Return the process that runs a VM now."""
        running = {reading.id: reading.process for reading in self.readings()}
        return self._machines.get(running[vm]) if vm in running else None

    def asker_of(self, machine: Machine) -> Monitors | LibvirtMonitors | None:
        """Return what asks a VM's monitor; None where nobody does."""
        return self._libvirt if self._is_asked_by_libvirt(machine) else self._monitors

    def expect_balloon(self, process: Instance, from_bytes: int, to_bytes: int) -> None:
        """Take note that a balloon is being asked to move: what lies between is no news."""
        self._expected.expect(process, from_bytes, to_bytes)

    @property
    def timeout_s(self) -> float:
        """How long one answer of a monitor may take."""
        return self._settings.timeout_s

    @property
    def monitors(self) -> Monitors | None:
        """What asks monitors of their own; None while there is no such VM."""
        return self._monitors

    @property
    def is_asking(self) -> bool:
        """Whether anything asks monitors: not while there is no VM."""
        return self._monitors is not None or self._libvirt is not None

    def close(self) -> None:
        """End the asking."""
        if self._libvirt is not None:
            self._libvirt.close()
            self._libvirt = None
        if self._monitors is not None:
            self._monitors.close()
            self._monitors = None

    # ---- inside

    def _read(self, process: Instance) -> Machine | None:
        try:
            content = procfs.read_file(f"{self._proc}/{process.pid}/cmdline", qemu.MOST_BYTES)
            folder = os.readlink(f"{self._proc}/{process.pid}/cwd")
        except OSError:  # ended, or another user's: without its command line it is no VM to us
            return None
        command = qemu.parse_command_line(content)
        uuid = command.uuid if command.uuid != NO_UUID else ""
        name = command.name or (f"qemu-{uuid[:8]}" if uuid else f"qemu-{process.pid}")
        identity, workload = self._named(vm_id(uuid, name), name, uuid, process)
        return Machine(
            process=process, id=identity, name=name, workload=workload, uuid=uuid, command=command, folder=folder
        )

    def _named(self, identity: VmId, name: str, uuid: str, process: Instance) -> tuple[VmId, WorkloadId]:
        for other in self._machines.values():
            if other.id == identity and uuid:  # the same VM, as it migrates within this host
                return identity, other.workload
        taken = {other.workload for other in self._machines.values()}
        workload = WorkloadId(f"vm:{name}")
        if workload in taken:
            workload = WorkloadId(f"vm:{name}#{uuid[:8] or process.pid}")
            identity = identity if uuid else VmId(f"{identity}#{process.pid}")
        return identity, workload

    def _follow(self, extra: Mapping[str, int]) -> None:
        targets = {
            one: _target_of(machine, sockets)
            for one, machine in self._machines.items()
            if not self._is_asked_by_libvirt(machine) and (sockets := self._sockets(machine, extra))
        }
        libvirts = {
            one: _target_of(machine) for one, machine in self._machines.items() if self._is_asked_by_libvirt(machine)
        }
        if self._libvirt is None and libvirts:
            self._libvirt = self._open_libvirt()
        if self._libvirt is not None:
            self._libvirt.follow(libvirts)
        if self._monitors is None and targets:
            self._monitors = self._open_monitors()
        if self._monitors is not None:
            self._monitors.follow(targets)

    def _is_asked_by_libvirt(self, machine: Machine) -> bool:
        """Tell whether libvirt has its only monitor, and is to be asked."""
        return bool(self._settings.libvirt) and machine.command.is_libvirts and not machine.command.monitors

    def _sockets(self, machine: Machine, extra: Mapping[str, int]) -> tuple[str, ...]:
        own = machine.command.monitors if self._settings.discover else ()
        found = [one if one.startswith("@") else os.path.join(machine.folder, one) for one in own]
        found += [path for path, pid in extra.items() if pid == machine.process.pid]
        if not found:
            found += [path for path, pid in extra.items() if pid == 0]
        return tuple(dict.fromkeys(found))

    def _extra_sockets(self, now_s: float) -> Mapping[str, int]:
        if self._settings.sockets and now_s - self._extra_at_s >= GLOBS_EVERY_S:
            self._extra_at_s = now_s
            paths = sorted({path for each in self._settings.sockets for path in glob.glob(each)})
            alive = {one.pid for one in self._machines}
            known = {path: pid for path, pid in self._extra.items() if pid in alive}
            self._extra = {path: known.get(path) or listener_of(path) for path in paths}
        return self._extra

    def _reading(self, machine: Machine, told: Told | None) -> VmReading:
        if told is None:
            return VmReading(
                id=machine.id,
                name=machine.name,
                workload=machine.workload,
                process=machine.process,
                state=VmState.UNREACHABLE,
                read_at_s=float("-inf"),
                via="libvirt" if machine.command.is_libvirts else "qmp",
                problem=self._why_not_asked(machine),
            )
        facts = told.facts
        refused = "; ".join(f"{name}: {words}" for name, words in sorted(facts.refusals.items()))
        received, sent = told.network_bytes or (None, None)
        return VmReading(
            id=machine.id,
            name=machine.name,
            workload=machine.workload,
            process=machine.process,
            state=facts.state if told.is_reached else VmState.UNREACHABLE,
            read_at_s=told.read_at_s,
            via="libvirt" if self._is_asked_by_libvirt(machine) else "qmp",
            ram_bytes=facts.ram_bytes,
            balloon_bytes=facts.balloon_bytes if facts.features.balloon else None,
            guest=facts.guest,
            features=facts.features,
            vcpu_s=told.vcpu_s,
            read_bytes=facts.read_bytes,
            written_bytes=facts.written_bytes,
            received_bytes=received,
            sent_bytes=sent,
            dirtied_bytes_per_s=facts.dirtied_bytes_per_s,
            problem=told.problem or refused,
        )

    def _why_not_asked(self, machine: Machine) -> str:
        command = machine.command
        if command.monitors:
            return NOT_YET if self._settings.discover else NOT_DISCOVERED
        if command.is_libvirts:
            return NOT_YET if self._settings.libvirt else LIBVIRTS
        return "; ".join(command.unreachable) or NO_MONITOR


def _target_of(machine: Machine, sockets: tuple[str, ...] = ()) -> Target:
    return Target(
        id=machine.id,
        name=machine.name,
        uuid=machine.uuid,
        process=machine.process,
        sockets=sockets,
        taps=machine.command.taps,
    )


def listener_of(path: str) -> int:
    """Return the process that listens on a Unix socket; 0 where it is not to be seen, or nobody does."""
    try:
        with connect(path) as found:
            return struct.unpack("3i", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:  # no socket, nobody there, or its queue is full
        return 0


def _rank(reading: VmReading) -> tuple[bool, int]:
    """Order the processes of one VM: who arrives only comes after who runs; the older first."""
    return reading.state is VmState.ARRIVING, reading.process.start_ticks
