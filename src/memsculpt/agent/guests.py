# SPDX-License-Identifier: Apache-2.0
"""The VMs among the pools: where their RAM lies, what their pools are called, and when they are to be left alone."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memsculpt import profile
from memsculpt.domain.observation import Observation
from memsculpt.domain.pool import Blocks, GuestPool, HotZone, SculptRequest, Zone
from memsculpt.domain.vm import GuestRam, VmReading, VmState
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError
from memsculpt.host.protocol import Host

log = logging.getLogger(__name__)

RAM_AGAIN_S = 10.0  # where a monitor did not tell, it is asked again after so long
WHY_LEFT: Mapping[VmState, str] = {
    VmState.PAUSED: "the VM is paused: what it will touch when it goes on is not known",
    VmState.MIGRATING: "the VM is migrating: its memory is being read, and soon it is gone from here",
    VmState.ARRIVING: "the VM waits for a migration to arrive",
    VmState.ENDING: "the VM is ending",
    VmState.UNREACHABLE: "the VM's monitor does not answer: whether it is migrating is not known",
}
ZONES_MOST = 4096  # stretches that are told


@dataclass(slots=True)
class _Guest:
    """A VM, and what is known of its RAM."""

    reading: VmReading
    ram: GuestRam | None = None
    found_for_bytes: int = -1  # what it had when its RAM was found: memory may be plugged in
    problem: str = ""  # why it is not known where its RAM lies
    asked_at_s: float = float("-inf")


class Guests:
    """Follows the VMs of one host. Their monitors are asked where RAM lies, and nothing else."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[Instance, _Guest] = {}

    def follow(self, observation: Observation) -> None:
        """Take note of who is there. Who has gone is forgotten."""
        seen = {one.process: one for one in observation.vms}
        for process in self._known.keys() - seen.keys():
            del self._known[process]
            self._host.forget_guest(process)
        for process, reading in seen.items():
            self._known.setdefault(process, _Guest(reading)).reading = reading

    def find_ram(self, pools: Iterable[Instance], now_s: float) -> None:
        """Find out where the RAM of those lies that are pools, once, and again when it has another size.

        Only their monitors are asked, and none that does not answer: who is asked here is waited for.
        """
        for process in pools:
            guest = self._known.get(process)
            if (
                guest is not None
                and guest.reading.ram_bytes != guest.found_for_bytes
                and guest.reading.state is not VmState.UNREACHABLE
                and now_s - guest.asked_at_s >= RAM_AGAIN_S
            ):
                guest.asked_at_s = now_s
                self._find_ram(guest)

    def is_guest(self, process: Instance) -> bool:
        """Tell whether a process runs a VM."""
        return process in self._known

    def name_of(self, process: Instance) -> str:
        """Return what the VM's pool is called."""
        return self._known[process].reading.workload

    def find(self, name: str) -> Instance | None:
        """Return the process of the VM of that UUID or name, with or without `vm:`; None where there is none.

        Of two VMs of one name neither is meant by the name alone.
        """
        found = [
            process
            for process, guest in self._known.items()
            if name.lower() == guest.reading.id or name in {guest.reading.name, f"vm:{guest.reading.name}"}
        ]
        return found[0] if len(found) == 1 else None

    def ranges(self, process: Instance, ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Return what of a process's ranges is its guest's RAM: nothing as long as that is not known."""
        ram = self._known[process].ram
        return () if ram is None else profile.ranges_within(ranges, ram.host_ranges())

    def is_shared(self, process: Instance) -> bool:
        """Tell whether the page tables do not know what of it is swapped."""
        guest = self._known.get(process)
        return guest is not None and guest.ram is not None and guest.ram.is_shared

    def refusal(self, process: Instance, request: type[SculptRequest]) -> str:
        """Return why a VM is left alone now, "" where it need not be."""
        guest = self._known.get(process)
        if guest is None:
            return ""
        if why := WHY_LEFT.get(guest.reading.state):
            return why
        if guest.ram is None:
            return guest.problem or "where its memory lies is not known yet"
        return guest.ram.why_not_gathered if request is HotZone else guest.ram.why_not_moved

    def is_left_alone(self, process: Instance) -> bool:
        """Tell whether it is not running, so that nothing is done and nothing judged."""
        guest = self._known.get(process)
        return guest is not None and guest.reading.state in WHY_LEFT

    def told(self, process: Instance, blocks: Blocks | None = None) -> GuestPool | None:
        """Return what is said of a VM beside its pool's stats; with `blocks`, where its zones lie for the guest."""
        guest = self._known.get(process)
        if guest is None or guest.ram is None:
            return None
        ram = guest.ram
        cannot = {"leave or come back": ram.why_not_moved, "be gathered in huge pages": ram.why_not_gathered}
        return GuestPool(
            vm=guest.reading.id,
            name=guest.reading.name,
            backing=ram.backing,
            state=guest.reading.state,
            cannot=tuple(f"{what}: {why}" for what, why in cannot.items() if why),
            zones=() if blocks is None else _zones_of(blocks, ram),
        )

    def _find_ram(self, guest: _Guest) -> None:
        try:
            guest.ram, guest.found_for_bytes = self._host.guest_ram(guest.reading.id), guest.reading.ram_bytes
        except MemsculptError as error:  # a monitor that does not answer now: what was known stays, and is asked again
            guest.problem = f"where its memory lies is not known: {error.place}: {error.problem}"
            log.info("vm %s: %s", guest.reading.name, guest.problem)
            return
        guest.problem = ""
        self._host.know_guest(guest.ram)


def _zones_of(blocks: Blocks, ram: GuestRam) -> tuple[tuple[int, int, Zone], ...]:
    found = [
        (start, end, zone)
        for zone in (Zone.HOT, Zone.COLD, Zone.PREFETCH)
        for start, end in ram.guest_ranges(profile.ranges_of_zone(blocks, zone))
    ]
    largest = sorted(found, key=lambda one: one[0] - one[1])[:ZONES_MOST]
    return tuple(sorted(largest))
