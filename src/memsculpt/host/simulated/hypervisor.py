# SPDX-License-Identifier: Apache-2.0
"""The simulated host's virtual machines. Fulfils host.protocol.Hypervisor."""

from dataclasses import replace

from memsculpt.domain.vm import BalloonSet, GuestRam, GuestRange, VmId, VmReading, VmState, vm_id
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import Refused, Transient, Vanished
from memsculpt.host.simulated.faults import FaultSchedule
from memsculpt.host.simulated.guests import Driver, Guest
from memsculpt.host.simulated.living import Process
from memsculpt.host.simulated.looking import HEAP_START
from memsculpt.host.simulated.machine import Machine

RETRY_IN_S = 1.0
HOLE_START, HOLE_END = 2 << 30, 4 << 30  # as q35 has it
SILENT = "no answer within 2 s (an injected fault)"


class SimulatedHypervisor:
    """Monitors that answer at once, but for faults."""

    _machine: Machine
    _faults: FaultSchedule
    _last_readings: dict[VmId, VmReading]

    def _at_s(self) -> float:
        """Return the time since the host's start; the host says how."""
        raise NotImplementedError

    def guest_ram(self, vm: VmId) -> GuestRam:
        """Return where the guest's memory lies; see the protocol."""
        process, guest = self._answering(vm)
        ram = guest.machine.ram_bytes
        low = min(ram, HOLE_START)
        ranges = [GuestRange(guest_start=0, host_start=HEAP_START, size_bytes=low)]
        if ram > low:
            ranges.append(GuestRange(guest_start=HOLE_END, host_start=HEAP_START + low, size_bytes=ram - low))
        return GuestRam(
            id=vm,
            process=process.instance,
            ranges=tuple(ranges),
            backing=guest.machine.backing,
            is_mergeable=True,
        )

    def read_balloon(self, vm: VmId) -> int:
        """Return what the balloon leaves the guest; see the protocol."""
        _, guest = self._answering(vm)
        if not guest.machine.features.balloon:
            raise Refused(place=f'VM "{guest.machine.name}"', problem="has no balloon", fix="give it one: features")
        return guest.balloon_bytes

    def set_balloon(self, vm: VmId, size_bytes: int) -> BalloonSet:
        """Ask a balloon; see the protocol."""
        _, guest = self._answering(vm)
        place = f'VM "{guest.machine.name}"'
        if not guest.machine.features.balloon:
            raise Refused(place=place, problem="has no balloon", fix="give it one: features")
        if guest.state is not VmState.RUNNING:
            raise Refused(place=place, problem=f"is {guest.state}, not running", fix="none needed; it is asked later")
        if not 0 < size_bytes <= guest.machine.ram_bytes:
            problem = f"{size_bytes} bytes are not within its memory of {guest.machine.ram_bytes} bytes"
            raise Refused(place=place, problem=problem, fix="ask for no more than it was built with")
        if guest.machine.driver is Driver.ABSENT:
            raise Refused(place=place, problem="no balloon driver in the guest", fix="driver=Driver.WILLING")
        before_bytes = guest.balloon_bytes
        guest.ask_balloon(size_bytes)
        return BalloonSet(asked_bytes=size_bytes, before_bytes=before_bytes)

    # ---- for the host

    def read_vms(self) -> tuple[VmReading, ...]:
        """Return what is known of each VM, by workload; of a silent one what it told before."""
        readings: dict[VmId, VmReading] = {}
        for process, guest in guests_of(self._machine):
            identity = id_of(guest)
            if self._faults.is_silent(guest.machine.name, self._at_s()):
                before = self._last_readings.get(identity) or _unread(process, guest)
                readings[identity] = replace(before, state=VmState.UNREACHABLE, problem=SILENT)
            else:
                readings[identity] = self._reading(process, guest)
        self._last_readings = readings
        return tuple(sorted(readings.values(), key=lambda one: one.workload))

    def set_vm_state(self, name: str, state: VmState) -> None:
        """Pause a VM, let it run, or have it migrate, as its operator would."""
        for _, guest in guests_of(self._machine):
            if guest.machine.name == name:
                guest.state = state

    # ---- inside

    def _reading(self, process: Process, guest: Guest) -> VmReading:
        return replace(
            _unread(process, guest),
            state=guest.state,
            read_at_s=self._machine.now_s,
            ram_bytes=guest.machine.ram_bytes,
            balloon_bytes=guest.balloon_bytes if guest.machine.features.balloon else None,
            guest=guest.statistics(),
            features=guest.machine.features,
            vcpu_s=guest.run_s,
            problem="",
        )

    def _answering(self, vm: VmId) -> tuple[Process, Guest]:
        for process, guest in guests_of(self._machine):
            if id_of(guest) == vm:
                if self._faults.is_silent(guest.machine.name, self._at_s()):
                    raise Transient(place=f'VM "{guest.machine.name}"', problem=SILENT, retry_in_s=RETRY_IN_S)
                return process, guest
        raise Vanished(place=f"VM {vm}")


def guests_of(machine: Machine) -> list[tuple[Process, Guest]]:
    """Return the living VMs, by pid."""
    return [(one, one.life) for one in machine.processes.values() if isinstance(one.life, Guest)]


def id_of(guest: Guest) -> VmId:
    """Return what a VM is known by for good."""
    return vm_id(guest.machine.vm_uuid, guest.machine.name)


def _unread(process: Process, guest: Guest) -> VmReading:
    return VmReading(
        id=id_of(guest),
        name=guest.machine.name,
        workload=WorkloadId(f"vm:{guest.machine.name}"),
        process=process.instance,
        state=VmState.UNREACHABLE,
        read_at_s=float("-inf"),
        problem="its monitor was not asked yet",
    )
