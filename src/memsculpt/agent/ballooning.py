# SPDX-License-Identifier: Apache-2.0
"""What the agent does when somebody else moves a balloon: the guest's memory is another, so what remains is sculpted.

The forecast needs nothing done to it: the tick that the monitor's event brought has taken in the guest's new figures.
"""

import logging
from collections.abc import Mapping

from memsculpt import act
from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.observation import Observation
from memsculpt.domain.pool import ColdZone, HotZone
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Sculpt, Settings
from memsculpt.domain.units import format_bytes
from memsculpt.domain.vm import GuestRam, VmId, VmReading, VmState
from memsculpt.domain.workload import Instance
from memsculpt.errors import Refused, Transient, Unavailable, UsageError, Vanished
from memsculpt.host.protocol import Host
from memsculpt.plan import Balloon

log = logging.getLogger(__name__)

MEASURE_EVERY_S = 60.0
UNDER_WAY_S = 5.0  # a balloon that moves again within so long is on the same way


def notes_of(observation: Observation, profiles: Profiles) -> tuple[str, ...]:
    """Return what people should know of the partitions' VMs: who tells nothing, and whose memory moves otherwise."""
    inside = {
        one
        for one, name in zip(observation.workloads.ids, observation.workloads.partitions, strict=True)
        if name is not None
    }
    notes: list[str] = []
    for reading in observation.vms:
        demand = profiles.guests.get(reading.workload)
        if reading.workload not in inside or demand is None:
            continue
        if demand.problem:
            notes.append(f"{reading.workload}: {demand.problem}")
        if not reading.features.balloon and reading.balloon_bytes is None:
            notes.append(f"{reading.workload}: it has no balloon, so its memory moves by page-out alone")
        if reading.features.virtio_mem:
            notes.append(f"{reading.workload}: it has virtio-mem; what is plugged there is left as it is")
    return tuple(notes)


class Ballooning:
    """Follows the planner's balloons; `measure` is called at the begin of a tick, `follow` after the plan was made."""

    def __init__(self, host: Host, settings: Settings, sculpting: Sculpting) -> None:
        self._host = host
        self._rams: dict[Instance, GuestRam] = {}
        self._due_s: dict[Instance, float] = {}  # when what is QEMU's own is measured next
        self.overheads: Mapping[VmId, int] = {}
        self._sculpt = settings.plan.sculpt
        self._sculpting = sculpting
        self._foreign_at_s: dict[VmId, float] = {}

    def follow(
        self,
        observation: Observation,
        balloons: Mapping[VmId, Balloon],
        journal: "act.Journal | None",
        *,
        may_act: bool,
    ) -> tuple[str, ...]:
        """Give up what is somebody else's now, and sculpt what remains; return the pools that were asked for."""
        asked: list[str] = []
        for reading in observation.vms:
            balloon = balloons.get(reading.id)
            if balloon is not None and balloon.asked_bytes is None and journal is not None:
                earlier = journal.ledger.balloon(reading.id)
                if earlier is not None and earlier.process != reading.process:  # another life: its balloon began anew
                    act.give_up_balloon(journal, reading.id)
            if balloon is None or balloon.foreign_at_s <= self._foreign_at_s.get(reading.id, float("-inf")):
                continue
            is_new = balloon.foreign_at_s - self._foreign_at_s.get(reading.id, float("-inf")) > UNDER_WAY_S
            if is_new:  # or it is still on its way to what was asked for
                self._foreign_at_s[reading.id] = balloon.foreign_at_s
            if balloon.asked_bytes is None and journal is not None:
                act.give_up_balloon(journal, reading.id)
            if not is_new:
                continue
            size = format_bytes(balloon.seen_bytes)
            log.info("%s: its balloon was moved by somebody else, to %s", reading.workload, size)
            asked += self._ask(reading, balloon.seen_bytes)
        if asked:
            self._sculpting.answer(observation, may_act=may_act)
        return tuple(asked)

    def measure(self, observation: Observation) -> Mapping[VmId, int]:
        """Return what each QEMU holds beside its guest's memory; that of one VM is measured anew, if it is due.

        It is what the workload holds less what the page tables show in the guest's ranges.
        """
        rows = {one: row for row, one in enumerate(observation.workloads.ids)}
        inside = [
            one
            for one in observation.vms
            if one.state is VmState.RUNNING and observation.workloads.partitions[rows.get(one.workload, 0)] is not None
        ]
        living = {one.process for one in inside}
        self._rams = {one: ram for one, ram in self._rams.items() if one in living}
        self._due_s = {one: self._due_s.get(one, observation.time_s) for one in living}
        self.overheads = {one.id: self.overheads[one.id] for one in inside if one.id in self.overheads}
        due = min(inside, key=lambda one: self._due_s[one.process], default=None)
        if due is None or self._due_s[due.process] > observation.time_s or due.workload not in rows:
            return self.overheads
        self._due_s[due.process] = observation.time_s + MEASURE_EVERY_S
        try:
            held_bytes = self._guest_bytes(due)
        except (Vanished, Unavailable, Transient, Refused) as error:  # the profile's estimate serves
            log.info("%s: what QEMU holds of its own is not measured: %s", due.workload, error)
            return self.overheads
        row, seen = rows[due.workload], observation.workloads
        whole = seen.anon_bytes[row] + seen.shmem_bytes[row] + seen.swapped_bytes[row] + seen.kernel_bytes[row]
        whole += max(int(seen.file_bytes[row]) - int(seen.reclaimable_bytes[row]), 0)
        self.overheads = {**self.overheads, due.id: max(int(whole) - held_bytes, 0)}
        return self.overheads

    def _guest_bytes(self, reading: VmReading) -> int:
        """Return how much of the guest's memory is in memory or swapped."""
        ram = self._rams.get(reading.process)
        if ram is None:
            ram = self._rams[reading.process] = self._host.guest_ram(reading.id)
        frames = self._host.frames(reading.process, ram.host_ranges())
        return int(frames.resident_bytes.sum() + frames.swapped_bytes.sum())

    def _ask(self, reading: VmReading, size_bytes: int) -> list[str]:
        if self._sculpt is Sculpt.OFF:
            return []
        requests = [ColdZone(size_bytes=size_bytes), HotZone(size_bytes=size_bytes)]
        try:
            for request in requests[: 2 if self._sculpt is Sculpt.ALL else 1]:
                self._sculpting.ask(reading.workload, request)
        except UsageError as error:  # its pages have not been looked at yet
            log.info("%s: %s; nothing of it is sculpted", error.place, error.problem)
            return []
        return [reading.workload]
