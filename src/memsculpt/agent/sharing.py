# SPDX-License-Identifier: Apache-2.0
"""Identical pages of trusting VMs: looked for, merged, told. Puts the rooms together; off without a `[[trust]]`.

    sweeps (profile) -> groups and who offers memory (host) -> plan/sharing.py -> an action of the tick's plan -> act

Where merging may not be had at all (no KSM, a kernel that does not tell who offers memory) that is said once, and it
is left at that.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from memsculpt import act, plan
from memsculpt.agent.sweeping import Place, Sweeping
from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import Plan, SetSharing
from memsculpt.domain.settings import Settings, TrustGroup
from memsculpt.domain.sharing import Group, GroupGain, Member, Merging, Offerer, Phase, SharingReport, SharingStep
from memsculpt.domain.vm import Backing, GuestRam, VmId, VmReading, VmState
from memsculpt.errors import MemsculptError, Unavailable, Vanished
from memsculpt.host.protocol import Host

log = logging.getLogger(__name__)

LOOK_RATIO = 0.01  # of one processor, that looking through memory takes
LOOK_AGAIN_S = 1800.0  # memory that was not worth merging is looked through anew
RAM_AGAIN_S = 60.0  # where a guest's memory lies, and whether it is offered
PAGE_BYTES = 4096


class Sharing:
    """The trust groups of one host. Not for two threads at once."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        *,
        rules: plan.SharingRules | None = None,
        seat: act.SharingSeat | None = None,
        rest_s: float | None = None,
        look_ratio: float = LOOK_RATIO,
    ) -> None:
        """Begin with nothing known. `seat` keeps `exec --share` off while pages are merged."""
        self._host, self._settings, self._seat = host, settings, seat
        unwatched_s = act.lease_for(settings.interval_s) + 5.0  # and what restoring takes
        self._rules = rules or plan.SharingRules(unwatched_s=unwatched_s)
        self._rest_s, self._look_ratio = rest_s, look_ratio
        self._state = plan.SharingState()
        self._view: plan.SharingView | None = None
        self._rams: dict[VmId, tuple[float, GuestRam]] = {}
        self._sweeps: dict[str, Sweeping] = {}
        self._gains: dict[str, tuple[frozenset[object], GroupGain, Mapping[VmId, int]]] = {}
        self._is_foreign = False
        self._zeros_before: dict[VmId, int] = {}  # pages of zeros of each VM when merging began
        self._zeros: dict[VmId, int] = {}  # and since
        self._zeros_scan = -1
        self._unavailable = ""
        self.report: SharingReport | None = SharingReport() if settings.vms.trust else None

    def choose(self, chosen: Plan, observation: Observation) -> Plan:
        """Go on looking, and return the plan with what is to be done about sharing."""
        if not self._settings.vms.trust or self._unavailable:
            return chosen
        now_s = observation.time_s
        try:
            merging = self._host.merging()
            groups = tuple(self._group(one, observation, merging) for one in self._settings.vms.trust)
            is_near = self._state.phase is not Phase.IDLE or any(one.gain is not None for one in groups)
            offerers = self._host.offerers() if is_near else ()
        except Unavailable as error:
            self._unavailable = str(error)
            self.report = SharingReport(reason=f"{error.problem}; fix: {error.fix}")
            log.warning("pages are not merged: %s", error)
            return chosen
        self._follow_zeros(groups, merging)
        groups = tuple(_with_savings(one, merging, offerers, self._zeros) for one in groups)
        self._view = plan.SharingView(
            now_s=now_s,
            groups=groups,
            merging=merging,
            offerers=offerers,
            zeros_pages=sum(self._zeros.values()),
            is_foreign=self._is_foreign,
        )
        self._state, action, held_back = plan.choose_sharing(self._state, self._view, self._rules)
        reason = "" if held_back is None else plan.explain_reason(held_back)
        if action is not None and action.step is SharingStep.MERGE and (refusal := self._take_seat(action.group)):
            action, reason = None, refusal
        if action is not None and action.step is SharingStep.MERGE and self._state.phase is Phase.IDLE:
            self._begin_zeros(action.group, groups)
        self.report = SharingReport(
            phase=self._state.phase,
            group=self._state.group,
            groups=groups,
            saved_bytes=plan.saved_pages(self._view) * PAGE_BYTES if self._state.phase is not Phase.IDLE else 0,
            forecast=self._state.forecast,
            cpu_ratio=self._state.cpu_ratio,
            reason=reason or (plan.explain_reason(action.reason) if action is not None else self.report_reason()),
        )
        return replace(
            chosen,
            actions=chosen.actions if action is None else (*chosen.actions, action),
            held_back=chosen.held_back if held_back is None else (*chosen.held_back, held_back),
        )

    def report_reason(self) -> str:
        """Return why it was as it is when that was last said."""
        return "" if self.report is None else self.report.reason

    def note(self, applied: Sequence[Applied]) -> None:
        """Take note of how the action went."""
        for one in applied:
            if not isinstance(one.action, SetSharing) or self._view is None:
                continue
            if one.status is Status.REHEARSED:
                continue
            self._is_foreign = self._is_foreign or one.status is Status.LEFT_ALONE
            is_done = one.status in {Status.DONE, Status.PARTIAL}
            view = replace(self._view, merging=self._host.merging())
            self._state = plan.after_sharing(self._state, one.action, view, self._rules, is_done=is_done)
            if one.problem and self.report is not None:
                self.report = replace(self.report, reason=one.problem)
            if self._state.phase is Phase.IDLE:
                self._zeros.clear()
                self._zeros_before.clear()
                self._leave()
                self._gains.pop(one.action.group, None)

    def close(self) -> None:
        """Let go of what is held; what was changed is undone by the journal."""
        self._leave()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _group(self, trust: TrustGroup, observation: Observation, merging: Merging) -> Group:
        earlier = self._settings.vms.trust[: self._settings.vms.trust.index(trust)]
        taken = {one.id for each in earlier for one in observation.vms if _is_in(each, one)}
        readings = [
            one
            for one in observation.vms
            if _is_in(trust, one) and one.id not in taken and one.state is not VmState.ENDING
        ]
        rams = {one.id: ram for one in readings if (ram := self._ram(one, observation.time_s)) is not None}
        gain, sizes, looked_ratio = self._look(trust.name, rams, observation.time_s, merging)
        members = tuple(
            Member(
                vm=one.id,
                name=one.name,
                process=one.process,
                resident_pages=sizes.get(one.id, 0),
                is_private=one.id in rams and rams[one.id].backing is Backing.PRIVATE,
                is_offered=one.id in rams and rams[one.id].is_mergeable,
            )
            for one in readings
        )
        return Group(name=trust.name, members=members, gain=gain, looked_ratio=looked_ratio)

    def _ram(self, reading: VmReading, now_s: float) -> GuestRam | None:
        known = self._rams.get(reading.id)
        if known is not None and known[1].process == reading.process and now_s - known[0] < RAM_AGAIN_S:
            return known[1]
        try:
            found = self._host.guest_ram(reading.id)
        except MemsculptError as error:  # no monitor, or a silent one: what is known stays
            log.info("where the memory of %s lies is not known: %s", reading.workload, error)
            return known[1] if known is not None and known[1].process == reading.process else None
        self._rams[reading.id] = now_s, found
        return found

    def _look(
        self, name: str, rams: Mapping[VmId, GuestRam], now_s: float, merging: Merging
    ) -> tuple[GroupGain | None, Mapping[VmId, int], float]:
        """Return the gain of a group, pages by VM, and how far the look is that is under way."""
        who: frozenset[object] = frozenset(
            (ram.process, ram.host_ranges()) for ram in rams.values() if ram.backing is Backing.PRIVATE
        )
        known = self._gains.get(name)
        is_merged = self._state.phase is not Phase.IDLE and self._state.group == name
        if known is not None and (is_merged or known[0] == who) and (is_merged or now_s - known[1].at_s < LOOK_AGAIN_S):
            return known[1], known[2], 1.0
        if len(who) < 2:
            self._sweeps.pop(name, None)
            return None, {}, 0.0
        places = tuple(
            Place(vm=vm, process=ram.process, ranges=np.array(ram.host_ranges(), np.int64).reshape(-1, 2))
            for vm, ram in rams.items()
            if ram.backing is Backing.PRIVATE
        )
        sweep = self._sweeps.get(name)
        if sweep is None or {one.process for one in sweep.places} != {one.process for one in places}:
            sweep = Sweeping(self._host, places, **({} if self._rest_s is None else {"rest_s": self._rest_s}))
            self._sweeps[name] = sweep
        try:
            gain = sweep.go_on(now_s, self._look_ratio * self._settings.interval_s, merging)
        except Vanished:
            del self._sweeps[name]
            return None, {}, 0.0
        if gain is not None:
            self._gains[name] = who, gain, sweep.mergeable_pages
            del self._sweeps[name]
        return gain, sweep.mergeable_pages, sweep.looked_ratio

    def _begin_zeros(self, group: str, groups: Sequence[Group]) -> None:
        """Count the pages of zeros that a group has before it is merged."""
        self._zeros_before = self._count_zeros(group, groups)
        self._zeros, self._zeros_scan = {}, -1

    def _follow_zeros(self, groups: Sequence[Group], merging: Merging) -> None:
        """Count them again once for each full scan: what has come since is saved."""
        if self._state.phase is Phase.IDLE or merging.full_scans == self._zeros_scan:
            return
        self._zeros_scan = merging.full_scans
        now = self._count_zeros(self._state.group, groups)
        self._zeros = {vm: max(0, count - self._zeros_before.get(vm, count)) for vm, count in now.items()}

    def _count_zeros(self, name: str, groups: Sequence[Group]) -> dict[VmId, int]:
        found: dict[VmId, int] = {}
        for member in (one for group in groups if group.name == name for one in group.members):
            known = self._rams.get(member.vm)
            if known is None or not member.is_private:
                continue
            ranges = np.array(known[1].host_ranges(), np.int64).reshape(-1, 2)
            try:
                found[member.vm] = self._host.zero_pages(member.process, ranges)
            except Vanished:  # its row drops out with the next observation
                continue
        return found

    def _take_seat(self, group: str) -> str:
        return "" if self._seat is None else self._seat.take(group)

    def _leave(self) -> None:
        if self._seat is not None:
            self._seat.leave()


def _is_in(trust: TrustGroup, reading: VmReading) -> bool:
    return any(fnmatchcase(reading.name, glob) for glob in trust.vms)


def _with_savings(group: Group, merging: Merging, offerers: Sequence[Offerer], given_up: Mapping[VmId, int]) -> Group:
    """Return the group with each VM's part of what is saved, by its uses of merged pages."""
    uses = {one.process: one.merging_pages for one in offerers}
    zeros = {one.process: one.zero_pages for one in offerers}
    every = sum(uses.values())
    part = merging.sharing_pages / every if every else 0.0
    return replace(
        group,
        members=tuple(
            replace(
                one,
                saved_bytes=int(uses.get(one.process, 0) * part + zeros.get(one.process, 0) + given_up.get(one.vm, 0))
                * PAGE_BYTES,
            )
            for one in group.members
        ),
    )
