# SPDX-License-Identifier: Apache-2.0
"""Whom a workload that was never seen resembles: itself before a restart, its kin, or what is usual on this host.

The nearest there is gives the newcomer its traits (traits.py), of which its own truths then take the place: partial
pooling, in the simplest form (Gelman and Hill, "Data Analysis Using Regression and Multilevel Models", chapter 12).
Kin are workloads of one family: with the same executable, or whose names differ in numbers and hashes alone, as those
of the instances of a template unit and of containers do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memsculpt.domain.workload import WorkloadId
from memsculpt.forecast.memory import Slots
from memsculpt.forecast.traits import Traits, average, give, read_traits

GROWN_TICKS = 120.0  # who is known for so long may stand for others
REFRESH_TICKS = 30  # so often families are looked at anew
MEMBERS_MOST = 16  # of a family whose traits are averaged; twice as many of all
FAMILIES_MOST = 256

# An interpreter says nothing about what it runs.
_INTERPRETERS = re.compile(r"/(python|perl|ruby|node|java|bash|sh|dash|zsh|env|busybox|systemd)[\d.]*$")
_NUMBERS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{12,}|\d+")


def family_of(workload: WorkloadId, program: str) -> str:
    """Return the name that kin share.

    >>> family_of(WorkloadId("system.slice/system-getty.slice/getty@tty1.service"), "")
    'system.slice/system-getty.slice/getty@tty#.service'
    >>> family_of(WorkloadId("docker/0123456789abcdef"), "/usr/sbin/nginx")
    'exe:/usr/sbin/nginx'
    """
    if program and not _INTERPRETERS.search(program):
        return f"exe:{program}"
    return _NUMBERS.sub("#", workload)


@dataclass(slots=True, eq=False)
class Kinship:
    """What is known of families, of the host as a whole, and of workloads from before a restart."""

    families: dict[str, Traits] = field(default_factory=dict[str, Traits])
    usual: Traits | None = None
    before: dict[WorkloadId, Traits] = field(default_factory=dict[WorkloadId, Traits])
    tick: int = 0

    def recall(self, kept: Mapping[WorkloadId, Traits]) -> None:
        """Take what was kept of workloads before a restart; families and what is usual begin from it."""
        self.before = dict(kept)
        for family in {one.family for one in kept.values()}:
            self._keep(family, [one for one in kept.values() if one.family == family])
        self._find_usual(list(kept.values()))

    def introduce(self, slots: Slots, workload: WorkloadId, program: str, need_bytes: float) -> None:
        """Give a newcomer the traits of the nearest that is known; where nothing is, it keeps what it has."""
        family = family_of(workload, program)
        known = ((self.before.get(workload), True, True), (self.families.get(family), False, True))
        for traits, is_same, is_kin in (*known, (self.usual, False, False)):
            if traits is not None and traits.has_shapes_of(read_traits(slots, slots.of[workload], family)):
                give(slots, slots.of[workload], traits, need_bytes, is_same=is_same, is_kin=is_kin)
                return

    def follow(self, slots: Slots, ids: Sequence[WorkloadId], programs: Sequence[str]) -> None:
        """Look at the families anew, every REFRESH_TICKS; what is known of one without living members is kept."""
        self.tick += 1
        if self.tick % REFRESH_TICKS:
            return
        members: dict[str, list[int]] = {}
        for workload, program in zip(ids, programs or [""] * len(ids), strict=True):
            slot = slots.of[workload]
            if slots.tick_count[slot] >= GROWN_TICKS:
                members.setdefault(family_of(workload, program), []).append(slot)
                self.before.pop(workload, None)  # it stands for itself now
        found = {
            family: [read_traits(slots, slot, family) for slot in those[:MEMBERS_MOST]]
            for family, those in members.items()
        }
        for family, traits in found.items():
            self._keep(family, traits)
        self._find_usual([one for traits in found.values() for one in traits])

    def _keep(self, family: str, traits: list[Traits]) -> None:
        alike = [one for one in traits if one.has_shapes_of(traits[-1])]
        self.families.pop(family, None)  # to the end: the dictionary is in order of last sight
        self.families[family] = average(alike)
        while len(self.families) > FAMILIES_MOST:
            del self.families[next(iter(self.families))]

    def _find_usual(self, traits: list[Traits]) -> None:
        if traits:
            spread_out = traits[:: max(1, len(traits) // (2 * MEMBERS_MOST))]
            self.usual = average([one for one in spread_out if one.has_shapes_of(spread_out[-1])])
