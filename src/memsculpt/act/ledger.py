# SPDX-License-Identifier: Apache-2.0
"""What the journal's records add up to: which changes are to be undone, and which values are ours. Pure, in memory."""

import os
from dataclasses import dataclass, replace

from memsculpt.act.records import (
    BalloonAsked,
    BalloonKey,
    CgroupCreated,
    Change,
    ChangeKey,
    KnobKept,
    KnobTurned,
    LimitChange,
    LimitKept,
    LimitKey,
    PagesMoved,
    ProcessMoved,
    Record,
    SentToSlowNode,
    SlowKey,
    Undone,
    key_of,
)
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.sharing import Knob
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.host.protocol import LimitValue

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")  # what kernels round a written budget to


@dataclass(slots=True, kw_only=True)
class Limit:
    """One budget that we changed: how it was, and what we left there."""

    change: LimitChange
    last_text: str | None = None  # None: the write is in flight (or the agent died in it)


class Ledger:
    """The changes that are not undone yet, in the order in which each was first made."""

    def __init__(self) -> None:
        self._limits: dict[LimitKey, Limit] = {}
        self._changes: dict[ChangeKey, Change] = {}
        self._put_back: dict[CgroupPath, set[str]] = {}
        self._kept: dict[Knob, str] = {}
        self.out_bytes = 0
        self.in_bytes = 0

    @property
    def changes(self) -> tuple[Change, ...]:
        """Return what is to be undone, first made first."""
        return tuple(self._changes.values())

    def limit(self, cgroup: CgroupPath, kind: LimitKind) -> Limit | None:
        """Return the budget's entry, None when it is as we found it."""
        return self._limits.get((cgroup, kind))

    def moved(self, process: Instance) -> ProcessMoved | None:
        """Return the process's entry, None when it is where we found it."""
        change = self._changes.get(process)
        return change if isinstance(change, ProcessMoved) else None

    def turned(self, knob: Knob) -> KnobTurned | None:
        """Return the knob's entry, None when it is as we found it."""
        change = self._changes.get(knob)
        return change if isinstance(change, KnobTurned) else None

    def is_ours_on(self, knob: Knob, text: str) -> bool:
        """Tell whether a knob holds what we left there, rather than what somebody wrote after us."""
        change = self.turned(knob)
        if change is None:
            return False
        kept = self._kept.get(knob)
        if kept is not None:
            return text == kept
        return text.strip() in {change.old_text.strip(), change.present_text.strip(), change.new_text.strip()}

    def balloon(self, vm: VmId) -> BalloonAsked | None:
        """Return the balloon's entry, None when it is as we found it."""
        change = self._changes.get(BalloonKey(vm=vm))
        return change if isinstance(change, BalloonAsked) else None

    def is_on_slow_node(self, process: Instance) -> bool:
        """Tell whether pages of a process were sent to a slow node."""
        return SlowKey(process=process) in self._changes

    def fold(self, record: Record) -> None:
        """Take in one record, oldest first."""
        match record:
            case LimitChange():
                key = (record.cgroup, record.kind)
                self._limits[key] = Limit(change=record)
                self._changes[key] = record
            case CgroupCreated() | ProcessMoved() | BalloonAsked() | SentToSlowNode():
                self._changes[key_of(record)] = record
            case KnobTurned():
                self._changes[record.knob] = record
                self._kept.pop(record.knob, None)
            case KnobKept():
                if record.knob in self._changes:
                    self._kept[record.knob] = record.text
            case LimitKept():
                limit = self._limits.get((record.cgroup, record.kind))
                if limit is not None:  # its change may have been lost to bit rot; then there is nothing to undo it with
                    limit.last_text = record.text
            case Undone():
                self._forget(record)
            case PagesMoved():
                self.out_bytes += record.out_bytes
                self.in_bytes += record.in_bytes

    def drop_other_boots(self, boot: str) -> int:
        """Forget what was changed in another boot, for it ended with that boot; return how many changes."""
        gone = [key for key, change in self._changes.items() if change.origin.boot != boot]
        for key in gone:
            self._forget(Undone(change=key))
        return len(gone)

    def is_ours(self, cgroup: CgroupPath, value: LimitValue) -> bool:
        """Tell whether a budget of `cgroup` holds what we wrote, rather than what somebody wrote after us.

        All kinds of the cgroup count, because two kinds may be one file (v1: LIMIT and HARD).
        """
        if value.text in self._put_back.get(cgroup, ()):
            return True
        for limit in (self._limits.get((cgroup, kind)) for kind in LimitKind):
            if limit is None:
                continue
            if limit.last_text == value.text:
                return True
            low_bytes, high_bytes = limit.change.low_bytes - _PAGE_BYTES, limit.change.high_bytes
            if limit.last_text is None and low_bytes < value.size_bytes <= high_bytes:
                return True
        return False

    def records(self) -> list[Record]:
        """Return the fewest records that add up to this ledger."""
        records: list[Record] = []
        for key, change in self._changes.items():
            records.append(change)
            limit = self._limits.get(key) if isinstance(key, tuple) else None
            if limit is not None and limit.last_text is not None:
                cgroup, kind = limit.change.cgroup, limit.change.kind
                records.append(LimitKept(cgroup=cgroup, kind=kind, text=limit.last_text))
            if isinstance(change, KnobTurned) and change.knob in self._kept:
                records.append(KnobKept(knob=change.knob, text=self._kept[change.knob]))
        # What was put back matters only while another budget of the same cgroup is still to be undone.
        for cgroup, texts in self._put_back.items():
            kinds = [kind for kind in LimitKind if (cgroup, kind) not in self._limits]
            if kinds and len(kinds) < len(LimitKind):
                records += [Undone(change=(cgroup, kinds[0]), text=text) for text in sorted(texts)]
        if self.out_bytes or self.in_bytes:
            records.append(PagesMoved(out_bytes=self.out_bytes, in_bytes=self.in_bytes))
        return records

    def _forget(self, record: Undone) -> None:
        self._changes.pop(record.change, None)
        if isinstance(record.change, Knob):
            self._kept.pop(record.change, None)
        if isinstance(record.change, tuple):
            self._limits.pop(record.change, None)
            cgroup = record.change[0]
            if record.text:
                self._put_back.setdefault(cgroup, set()).add(record.text)
            if not any((cgroup, kind) in self._limits for kind in LimitKind):
                self._put_back.pop(cgroup, None)


def first_old(limit: Limit | None, present: LimitValue) -> LimitValue:
    """Return what to put back in the end: the value from before our first write."""
    if limit is None:
        return present
    return LimitValue(text=limit.change.old_text, size_bytes=limit.change.old_bytes)


def widen(change: LimitChange, limit: Limit | None) -> LimitChange:
    """Return the change so that a value in flight from an earlier, unfinished write stays ours."""
    if limit is None or limit.last_text is not None:
        return change
    earlier = limit.change
    return replace(
        change,
        low_bytes=min(change.low_bytes, earlier.low_bytes),
        high_bytes=max(change.high_bytes, earlier.high_bytes),
    )
