# SPDX-License-Identifier: Apache-2.0
"""Undo what an agent left behind, from the journal alone: on exit, at the next start, and by `memsculpt restore`.

Order. Budgets that go up come first, so that the squeezed breathe before anyone else is asked to give; then merged
pages are taken apart, for which there is room then; then pages come back from a slow node and processes go back to
where they were, then budgets go down, and last the cgroups of our own are removed. Within one cgroup, and for processes
and cgroups, the newest change is undone first (v1 keeps LIMIT and HARD in one file: the order counts).

Whatever holds another value than the one we left is somebody else's by now: it is left alone and reported.
"""

from dataclasses import dataclass
from enum import Enum

from memsculpt.act import knobs
from memsculpt.act.journal import Journal
from memsculpt.act.records import (
    BalloonAsked,
    BalloonKey,
    CgroupCreated,
    Change,
    KnobTurned,
    LimitChange,
    ProcessMoved,
    SentToSlowNode,
    Undone,
    key_of,
)
from memsculpt.domain.units import format_bytes
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import Refused, Transient, Unavailable, Vanished
from memsculpt.host.protocol import Host

ADDRESSES_END = 1 << 56  # of any process, with five levels of page tables, too
BALLOON_STEP_BYTES = 2 << 20  # guests move their balloons by 1 MiB
_TRIES = 3  # v1 answers EBUSY while it shrinks; each try reclaims some more


class Outcome(Enum):
    """What became of one change."""

    RESTORED = "restored"
    LEFT_ALONE = "left-alone"  # changed by somebody else since
    GONE = "gone"  # its cgroup or process does not exist any more
    FAILED = "failed"  # stays in the journal; `problem` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """One change and what became of it."""

    what: str  # "limit of cgroup 'batch'", "pid 812", "cgroup 'memsculpt-batch'"
    outcome: Outcome
    value: str = ""  # what it holds now, for people
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """Everything that was to be undone."""

    changes: tuple[Restored, ...] = ()
    notes: tuple[str, ...] = ()
    paged_out_bytes: int = 0  # pages come back when they are touched; nothing is to undo
    paged_in_bytes: int = 0

    def count(self, outcome: Outcome) -> int:
        """Return how many changes ended so."""
        return sum(change.outcome is outcome for change in self.changes)

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left in the journal."""
        return self.count(Outcome.FAILED) == 0


def restore(host: Host, journal: Journal) -> RestoreReport:
    """Put back everything that the journal names, each value byte for byte, and empty the journal.

    Works in a fresh process, and again after it was interrupted anywhere. What the host refuses for now stays in the
    journal as FAILED. A journal that cannot be written is no hindrance: undoing twice does no harm.
    """
    undo = _Undo(host, journal)
    done = [undo.one(change) for change in undo.in_order()]
    done += undo.sweep()
    ledger = journal.ledger
    report = RestoreReport(
        changes=tuple(done),
        notes=journal.notes,
        paged_out_bytes=ledger.out_bytes,
        paged_in_bytes=ledger.in_bytes,
    )
    if report.is_complete:
        ledger.out_bytes = ledger.in_bytes = 0
    journal.compact()
    return report


def give_up_balloon(journal: Journal, vm: VmId) -> None:
    """Take a balloon off the journal: somebody else has set it since, so it is not ours to put back."""
    if journal.ledger.balloon(vm) is not None:
        journal.forget(Undone(change=BalloonKey(vm=vm)))


class _Undo:
    def __init__(self, host: Host, journal: Journal) -> None:
        self._host = host
        self._journal = journal

    def in_order(self) -> list[Change]:
        """Return all changes, first to undo first."""
        newest_first = self._journal.ledger.changes[::-1]
        limits: dict[CgroupPath, list[LimitChange]] = {}
        for change in newest_first:
            if isinstance(change, LimitChange):
                limits.setdefault(change.cgroup, []).append(change)
        raising = {cgroup for cgroup, group in limits.items() if self._raises(group)}
        return [
            *(change for change in newest_first if isinstance(change, BalloonAsked)),
            *(change for cgroup, group in limits.items() if cgroup in raising for change in group),
            *knobs.in_order(one for one in newest_first if isinstance(one, KnobTurned)),
            *(change for change in newest_first if isinstance(change, SentToSlowNode)),
            *(change for change in newest_first if isinstance(change, ProcessMoved)),
            *(change for cgroup, group in limits.items() if cgroup not in raising for change in group),
            *(change for change in newest_first if isinstance(change, CgroupCreated)),
        ]

    def one(self, change: Change) -> Restored:
        """Undo one change and take it off the journal, unless it failed."""
        try:
            done = self._undo(change)
        except Vanished:
            done = Restored(what=_name(change), outcome=Outcome.GONE)
        except (Transient, Unavailable, Refused) as error:
            return Restored(what=_name(change), outcome=Outcome.FAILED, problem=str(error))
        if done.outcome is not Outcome.FAILED:
            text = change.old_text if isinstance(change, LimitChange) and done.outcome is Outcome.RESTORED else ""
            self._journal.forget(Undone(change=key_of(change), text=text))
        return done

    def sweep(self) -> list[Restored]:
        """Remove what no change names: the folder above our cgroups, what `exec` made, and files that systemd keeps."""
        try:
            removed = self._host.sweep()
        except (Transient, Unavailable, Refused) as error:
            return [Restored(what="what is left besides values", outcome=Outcome.FAILED, problem=str(error))]
        return [Restored(what=f"cgroup {one!r}", outcome=Outcome.RESTORED, value="removed") for one in removed]

    def _undo(self, change: Change) -> Restored:
        match change:
            case LimitChange():
                return self._restore_limit(change)
            case ProcessMoved():
                return self._move_back(change)
            case KnobTurned():
                return self._turn_back(change)
            case CgroupCreated():
                return self._remove(change)
            case BalloonAsked():
                return self._restore_balloon(change)
            case SentToSlowNode():
                return self._bring_back(change)

    def _restore_limit(self, change: LimitChange) -> Restored:
        what = _name(change)
        present = self._host.read_limit(change.cgroup, change.kind)
        if present.text == change.old_text:
            return Restored(what=what, outcome=Outcome.RESTORED, value=present.text.strip())
        if not self._journal.ledger.is_ours(change.cgroup, present):
            problem = f"it holds {present.text.strip()!r}, which memsculpt did not write"
            return Restored(what=what, outcome=Outcome.LEFT_ALONE, value=present.text.strip(), problem=problem)
        for tries_left in reversed(range(_TRIES)):
            try:
                present = self._host.restore_limit(change.cgroup, change.kind, change.old_text)
                break
            except Transient:
                if not tries_left:
                    raise
        if present.text != change.old_text:
            problem = f"the kernel holds {present.text!r} after {change.old_text!r} was written"
            return Restored(what=what, outcome=Outcome.FAILED, value=present.text.strip(), problem=problem)
        return Restored(what=what, outcome=Outcome.RESTORED, value=present.text.strip())

    def _move_back(self, change: ProcessMoved) -> Restored:
        what = _name(change)
        where = self._host.cgroup_of(change.process)
        if where not in (change.from_cgroup, change.via_cgroup, change.to_cgroup):
            problem = f"somebody else moved it to cgroup {where!r}"
            return Restored(what=what, outcome=Outcome.LEFT_ALONE, value=where, problem=problem)
        if where != change.from_cgroup:
            self._host.move_process(change.process, change.from_cgroup)
        return Restored(what=what, outcome=Outcome.RESTORED, value=change.from_cgroup)

    def _restore_balloon(self, change: BalloonAsked) -> Restored:
        """Ask for what the guest had; it takes it at its own pace. Memory it had is never less than it has now."""
        what, old = _name(change), format_bytes(change.old_bytes)
        present_bytes = self._host.read_balloon(change.vm)
        low_bytes, high_bytes = change.low_bytes - BALLOON_STEP_BYTES, change.high_bytes + BALLOON_STEP_BYTES
        if not low_bytes <= present_bytes <= high_bytes:
            problem = f"it leaves the guest {format_bytes(present_bytes)}, which memsculpt did not ask for"
            return Restored(what=what, outcome=Outcome.LEFT_ALONE, value=format_bytes(present_bytes), problem=problem)
        self._host.set_balloon(change.vm, change.old_bytes)
        return Restored(what=what, outcome=Outcome.RESTORED, value=old)

    def _bring_back(self, change: SentToSlowNode) -> Restored:
        """Bring back what lies on a slow node. What cannot come, works there as well."""
        done = self._host.from_slow_node(change.process, [(0, ADDRESSES_END)])
        return Restored(
            what=_name(change), outcome=Outcome.RESTORED, value=f"{format_bytes(done.moved_bytes)} came back"
        )

    def _remove(self, change: CgroupCreated) -> Restored:
        """Remove a cgroup of our own; with processes in it, it stays (without a limit), and in the journal."""
        self._host.remove_cgroup(change.cgroup)
        return Restored(what=_name(change), outcome=Outcome.RESTORED, value="removed")

    def _turn_back(self, change: KnobTurned) -> Restored:
        what = _name(change)
        done = knobs.put_back(self._host, self._journal, change)
        if done.problem:
            return Restored(what=what, outcome=Outcome.FAILED, value=done.text.strip(), problem=done.problem)
        if not done.is_ours:
            problem = f"it holds {done.text.strip()!r}, which memsculpt did not write"
            return Restored(what=what, outcome=Outcome.LEFT_ALONE, value=done.text.strip(), problem=problem)
        return Restored(what=what, outcome=Outcome.RESTORED, value=done.text.strip())

    def _raises(self, group: list[LimitChange]) -> bool:
        """Tell whether undoing gives the cgroup more: its first-made change is what it ends up with."""
        first = group[-1]
        try:
            present = self._host.read_limit(first.cgroup, first.kind)
        except (Vanished, Transient, Unavailable, Refused):
            return False  # `one` meets the same and reports it
        return present.size_bytes < first.old_bytes


def _name(change: Change) -> str:
    match change:
        case LimitChange():
            return f"{change.kind.value} of cgroup {change.cgroup!r}"
        case ProcessMoved():
            return f"pid {change.process.pid}"
        case KnobTurned():
            return change.knob.describe()
        case CgroupCreated():
            return f"cgroup {change.cgroup!r}"
        case BalloonAsked():
            return f"balloon of vm {change.vm!r}"
        case SentToSlowNode():
            return f"pages of pid {change.process.pid} on a slow node"
