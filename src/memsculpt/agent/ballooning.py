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
from memsculpt.domain.vm import VmId, VmReading
from memsculpt.errors import UsageError
from memsculpt.plan import Balloon

log = logging.getLogger(__name__)


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
    """Follows the planner's balloons; called once a tick, after the plan was made."""

    def __init__(self, settings: Settings, sculpting: Sculpting) -> None:
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
            if balloon is None or balloon.foreign_at_s <= self._foreign_at_s.get(reading.id, float("-inf")):
                continue
            self._foreign_at_s[reading.id] = balloon.foreign_at_s
            if balloon.asked_bytes is None and journal is not None:
                act.give_up_balloon(journal, reading.id)
            size = format_bytes(balloon.seen_bytes)
            log.info("%s: its balloon was moved by somebody else, to %s", reading.workload, size)
            asked += self._ask(reading, balloon.seen_bytes)
        if asked:
            self._sculpting.answer(observation, may_act=may_act)
        return tuple(asked)

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
