# SPDX-License-Identifier: Apache-2.0
"""A plan, made true on the host: for each action read the old value, journal it, write, and look at what came of it.

Actions are taken in the plan's order (what frees first, what grows last). One that fails does not stop the others, but
what grows is cut by what did not come free (`budget`). A budget that somebody else has written since our last write is
theirs from then on: it is reported and not touched again in this run.
"""

from dataclasses import dataclass

from memsculpt.act.budget import Budget
from memsculpt.act.journal import Journal
from memsculpt.act.ledger import first_old, widen
from memsculpt.act.records import BalloonAsked, CgroupCreated, LimitChange, LimitKept, Origin, ProcessMoved, Undone
from memsculpt.act.sculpt import Sculptor
from memsculpt.act.sharing import share
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import (
    Action,
    CreateCgroup,
    LimitKind,
    MoveProcess,
    PageIn,
    PageOut,
    Plan,
    Reclaim,
    SculptPool,
    SetBalloon,
    SetLimit,
    SetSharing,
)
from memsculpt.domain.pool import ColdZone, HotZone, Prefetch, Promote
from memsculpt.domain.units import format_bytes
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import JournalUnwritable, Refused, Transient, Unavailable, Vanished
from memsculpt.host.protocol import Host, LimitValue, Moved

ROUNDING_BYTES = 64 << 10
"""The largest page of the kernels we run on; what is missing by less than this was rounded away, not refused."""


class ActionIds:
    """Numbers for actions, counting up over the agent's life; `explain` takes them."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def take(self) -> int:
        """Return the next number."""
        taken, self._next = self._next, self._next + 1
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """How one action went, before it is stamped with number and time."""

    status: Status
    done_bytes: int = 0
    cpu_s: float = 0.0
    problem: str = ""


def apply(
    host: Host,
    journal: Journal,
    plan: Plan,
    ids: ActionIds,
    *,
    budget: Budget | None = None,
    sculptor: Sculptor | None = None,
) -> tuple[Applied, ...]:
    """Carry out the plan and return how each action went, in the plan's order.

    Raises nothing of the host's: what one action meets stands in its `problem`. Without a budget only the plan's own
    arithmetic is checked (growing is cut by what did not come free). Without a sculptor no pool is sculpted.
    """
    run = _Run(host, journal, budget or Budget(), sculptor)
    applied: list[Applied] = []
    for action in plan.actions:
        action_id = ids.take()
        at_s = host.now_s()
        done = run.carry_out(action, Origin(action_id=action_id, at_s=at_s, why=action.reason.code, boot=journal.boot))
        applied.append(
            Applied(
                action_id=action_id,
                action=action,
                status=done.status,
                at_s=at_s,
                done_bytes=done.done_bytes,
                duration_s=host.now_s() - at_s,
                cpu_s=done.cpu_s,
                problem=done.problem,
            )
        )
    return tuple(applied)


def rehearse(plan: Plan, now_s: float, ids: ActionIds) -> tuple[Applied, ...]:
    """Return what would have been done, touching nothing."""
    return tuple(
        Applied(
            action_id=ids.take(),
            action=action,
            status=Status.REHEARSED,
            at_s=now_s,
            done_bytes=0,
            duration_s=0.0,
            cpu_s=0.0,
        )
        for action in plan.actions
    )


class _Run:
    """One plan on its way."""

    def __init__(self, host: Host, journal: Journal, budget: Budget, sculptor: Sculptor | None) -> None:
        self._host = host
        self._journal = journal
        self._budget = budget
        self._sculptor = sculptor

    def carry_out(self, action: Action, origin: Origin) -> _Done:
        """Do one action; what went wrong with it is in the result."""
        try:
            match action:
                case PageOut():
                    return self._page_out(action)
                case PageIn():
                    return self._page_in(action)
                case SculptPool():
                    return self._sculpt(action)
                case Reclaim():
                    return self._reclaim(action, origin)
                case SetLimit():
                    return self._set_limit(action, origin)
                case SetBalloon():
                    return self._set_balloon(action, origin)
                case CreateCgroup():
                    return self._create(action, origin)
                case MoveProcess():
                    return self._move(action, origin)
                case SetSharing():
                    return self._share(action, origin)
        except (Vanished, Transient, Unavailable, Refused, JournalUnwritable) as error:
            self._count_failure(action)
            return _Done(status=Status.FAILED, problem=str(error))

    def _count_failure(self, action: Action) -> None:
        match action:
            case Reclaim(only_cache=True):
                pass
            case SculptPool() if action.is_demotion:
                pass
            case PageOut() | Reclaim() | SculptPool(request=ColdZone()):
                self._budget.paged_out(asked_bytes=action.size_bytes, done_bytes=0)
            case SetLimit() if action.kind is not LimitKind.GUARANTEE:
                self._budget.lowered(asked_bytes=action.from_bytes - action.to_bytes, done_bytes=0)
            case _:
                pass

    # --- pages: contents never change, so there is nothing to undo; only sums are journalled -------------------------

    def _page_out(self, action: PageOut) -> _Done:
        granted_bytes = self._budget.grant_page_out(action.size_bytes)
        if granted_bytes <= 0:
            self._budget.paged_out(asked_bytes=action.size_bytes, done_bytes=0)
            return _Done(status=Status.FAILED, problem="this second's budget for paging out (or the swap's) is spent")
        moved = self._host.page_out(action.process, granted_bytes)
        self._journal.count_pages(out_bytes=moved.moved_bytes)
        self._budget.paged_out(asked_bytes=action.size_bytes, done_bytes=moved.moved_bytes)
        return _outcome(action.size_bytes, moved)

    def _page_in(self, action: PageIn) -> _Done:
        granted_bytes = self._budget.grant_page_in(action.size_bytes)
        if granted_bytes <= 0:
            self._budget.paged_in(asked_bytes=action.size_bytes, granted_bytes=0, done_bytes=0)
            return _Done(
                status=Status.FAILED, problem="the room for it was not freed, or this second's budget is spent"
            )
        moved = self._host.page_in(action.process, granted_bytes)
        self._journal.count_pages(in_bytes=moved.moved_bytes)
        self._budget.paged_in(asked_bytes=action.size_bytes, granted_bytes=granted_bytes, done_bytes=moved.moved_bytes)
        return _outcome(action.size_bytes, moved)

    def _sculpt(self, action: SculptPool) -> _Done:
        """Have the sculptor do it: it knows the blocks, judges what came of it and takes it back."""
        if self._sculptor is None:
            self._count_failure(action)
            return _Done(status=Status.FAILED, problem="there is no sculptor here")
        granted_bytes = self._granted_sculpt(action)
        if granted_bytes <= 0:
            self._count_failure(action)
            return _Done(status=Status.FAILED, problem="this second's budget for paging (or the swap's) is spent")
        done = self._sculptor(action, granted_bytes)
        match action.request:
            case ColdZone() if action.is_demotion:
                self._budget.demoted(done.moved_bytes)
            case ColdZone():
                self._journal.count_pages(out_bytes=done.moved_bytes)
                self._budget.paged_out(asked_bytes=action.size_bytes, done_bytes=done.moved_bytes)
            case Prefetch():
                self._journal.count_pages(out_bytes=done.left_bytes, in_bytes=done.moved_bytes)
                # Nobody else counts on what leaves for it.
                self._budget.paged_out(asked_bytes=0, done_bytes=done.left_bytes)
                self._budget.paged_in(
                    asked_bytes=action.size_bytes, granted_bytes=granted_bytes, done_bytes=done.moved_bytes
                )
            case Promote():
                self._budget.promoted(done.moved_bytes)
            case HotZone():
                pass
        if done.moved_bytes <= 0:
            return _Done(status=Status.FAILED, cpu_s=done.cpu_s, problem=done.reason)
        complete = done.moved_bytes > action.size_bytes - ROUNDING_BYTES
        return _Done(
            status=Status.DONE if complete else Status.PARTIAL,
            done_bytes=done.moved_bytes,
            cpu_s=done.cpu_s,
            problem="" if complete else done.reason,
        )

    def _granted_sculpt(self, action: SculptPool) -> int:
        match action.request:
            case ColdZone() if action.is_demotion:
                return self._budget.grant_slow(action.size_bytes)
            case ColdZone():
                return self._budget.grant_page_out(action.size_bytes)
            case Promote():
                return min(action.size_bytes, self._budget.page_in_bytes)
            case Prefetch():
                # What there is no budget for to leave makes no room.
                leaving_bytes = self._budget.grant_page_out(action.leaving_bytes)
                fits_bytes = action.size_bytes - (action.leaving_bytes - leaving_bytes)
                return self._budget.grant_page_in(fits_bytes)
            case HotZone():
                return action.size_bytes

    def _reclaim(self, action: Reclaim, origin: Origin) -> _Done:
        """Reclaim from a cgroup; on v1 the host does it by a brief step of the limit, so the limit is journalled."""
        grant = self._budget.grant_cache if action.only_cache else self._budget.grant_page_out
        granted_bytes = grant(action.size_bytes)
        if granted_bytes <= 0:
            self._count_failure(action)
            return _Done(status=Status.FAILED, problem="this second's budget for paging out (or the swap's) is spent")
        present = self._host.read_limit(action.cgroup, LimitKind.LIMIT)
        if self._is_theirs(action.cgroup, LimitKind.LIMIT, present):
            return self._leave_alone(action.cgroup, LimitKind.LIMIT, present)
        was_touched = self._journal.ledger.limit(action.cgroup, LimitKind.LIMIT) is not None
        self._expect(action.cgroup, LimitKind.LIMIT, present, low_bytes=0, squeezes=False, origin=origin)
        try:
            moved = self._host.reclaim(action.cgroup, granted_bytes, only_cache=action.only_cache)
        finally:
            kept = self._keep(action.cgroup, LimitKind.LIMIT)
            if not was_touched and kept.text == present.text:
                self._journal.forget(Undone(change=(action.cgroup, LimitKind.LIMIT)))
        if action.only_cache:
            self._budget.dropped(moved.moved_bytes)
        else:
            self._budget.paged_out(asked_bytes=action.size_bytes, done_bytes=moved.moved_bytes)
        return _outcome(action.size_bytes, moved)

    # --- budgets ------------------------------------------------------------------------------------------------------

    def _set_limit(self, action: SetLimit, origin: Origin) -> _Done:
        cgroup, kind = action.cgroup, action.kind
        present = self._host.read_limit(cgroup, kind)
        if self._is_theirs(cgroup, kind, present):
            return self._leave_alone(cgroup, kind, present)
        to_bytes = self._covered(action, present)
        if to_bytes is None:
            return _Done(
                status=Status.FAILED,
                done_bytes=present.size_bytes,
                problem="not raised: the limits that were to come down first did not",
            )
        squeezes = action.lift_at_s is not None
        self._expect(cgroup, kind, present, low_bytes=to_bytes, squeezes=squeezes, origin=origin)
        try:
            kept = self._host.write_limit(cgroup, kind, to_bytes)
        except (Transient, Unavailable, Refused):
            # A host may shrink in steps; what it got to is what we must recognise later.
            self._keep(cgroup, kind)
            raise
        self._journal.append(LimitKept(cgroup=cgroup, kind=kind, text=kept.text), durable=False)
        if kind is not LimitKind.GUARANTEE:
            self._budget.lowered(
                asked_bytes=present.size_bytes - action.to_bytes, done_bytes=present.size_bytes - kept.size_bytes
            )
        if abs(kept.size_bytes - action.to_bytes) < ROUNDING_BYTES:
            return _Done(status=Status.DONE, done_bytes=kept.size_bytes)
        problem = f"asked for {format_bytes(action.to_bytes)}, the kernel holds {format_bytes(kept.size_bytes)}"
        return _Done(status=Status.PARTIAL, done_bytes=kept.size_bytes, problem=problem)

    def _covered(self, action: SetLimit, present: LimitValue) -> int | None:
        """Return how far the limit may go: all the way, but for a raise that lowered limits were to pay for.

        A squeeze is always lifted: leaving it in place hurts the squeezed, and that is worse than a full host.
        """
        asked_bytes = action.to_bytes - present.size_bytes
        limit = self._journal.ledger.limit(action.cgroup, action.kind)
        is_squeezed = limit is not None and limit.change.squeezes
        if action.kind is LimitKind.GUARANTEE or asked_bytes <= 0 or is_squeezed:
            return action.to_bytes
        granted_bytes = self._budget.grant_raise(asked_bytes)
        self._budget.raised(asked_bytes=asked_bytes, granted_bytes=granted_bytes)
        return present.size_bytes + granted_bytes if granted_bytes > 0 else None

    def _expect(
        self,
        cgroup: CgroupPath,
        kind: LimitKind,
        present: LimitValue,
        *,
        low_bytes: int,
        squeezes: bool,
        origin: Origin,
    ) -> None:
        """Journal, durably, that a budget is about to be written; from here on it can be undone."""
        limit = self._journal.ledger.limit(cgroup, kind)
        old = first_old(limit, present)
        change = LimitChange(
            cgroup=cgroup,
            kind=kind,
            old_text=old.text,
            old_bytes=old.size_bytes,
            low_bytes=min(low_bytes, present.size_bytes),
            high_bytes=max(low_bytes, present.size_bytes),
            squeezes=squeezes,
            origin=origin,
        )
        self._journal.append(widen(change, limit))

    def _keep(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read what the kernel holds now and journal it as ours."""
        kept = self._host.read_limit(cgroup, kind)
        self._journal.append(LimitKept(cgroup=cgroup, kind=kind, text=kept.text), durable=False)
        return kept

    def _is_theirs(self, cgroup: CgroupPath, kind: LimitKind, present: LimitValue) -> bool:
        if (cgroup, kind) in self._journal.left_alone:
            return True
        touched = self._journal.ledger.limit(cgroup, kind) is not None
        return touched and not self._journal.ledger.is_ours(cgroup, present)

    def _leave_alone(self, cgroup: CgroupPath, kind: LimitKind, present: LimitValue) -> _Done:
        if (cgroup, kind) not in self._journal.left_alone:
            self._journal.left_alone.add((cgroup, kind))
            self._journal.forget(Undone(change=(cgroup, kind)))
        problem = (
            f"the {kind.value} of cgroup {cgroup!r} now holds {present.text.strip()!r}, which memsculpt did not write: "
            "it is left alone until memsculpt is started again"
        )
        return _Done(status=Status.LEFT_ALONE, done_bytes=present.size_bytes, problem=problem)

    def _share(self, action: SetSharing, origin: Origin) -> _Done:
        done = share(self._host, self._journal, action, origin)
        status = Status.LEFT_ALONE if done.is_left_alone else Status.PARTIAL if done.problem else Status.DONE
        return _Done(status=status, done_bytes=done.saved_bytes, problem=done.problem)

    # --- balloons -----------------------------------------------------------------------------------------------------

    def _set_balloon(self, action: SetBalloon, origin: Origin) -> _Done:
        """Ask a balloon; what it leaves the guest now is the plan's reading."""
        to_bytes = action.to_bytes
        if to_bytes < action.from_bytes:
            to_bytes = action.from_bytes - self._budget.grant_balloon(action.from_bytes - to_bytes)
            if to_bytes == action.from_bytes:
                return _Done(status=Status.FAILED, problem="this second's budget for taking memory is spent")
        earlier = self._journal.ledger.balloon(action.vm)
        known = (action.from_bytes, to_bytes) if earlier is None else (earlier.low_bytes, earlier.high_bytes, to_bytes)
        self._journal.append(
            BalloonAsked(
                vm=action.vm,
                process=action.process,
                old_bytes=action.from_bytes if earlier is None else earlier.old_bytes,
                low_bytes=min(known),
                high_bytes=max(known),
                origin=origin,
            )
        )
        asked = self._host.set_balloon(action.vm, to_bytes)
        self._budget.ballooned(max(0, action.from_bytes - to_bytes))
        if asked.asked_bytes == action.to_bytes:
            return _Done(status=Status.DONE, done_bytes=asked.asked_bytes)
        problem = f"asked for {format_bytes(asked.asked_bytes)} instead of {format_bytes(action.to_bytes)}"
        return _Done(status=Status.PARTIAL, done_bytes=asked.asked_bytes, problem=problem)

    # --- cgroups of our own -------------------------------------------------------------------------------------------

    def _create(self, action: CreateCgroup, origin: Origin) -> _Done:
        self._journal.append(CgroupCreated(cgroup=action.cgroup, origin=origin))
        self._host.create_cgroup(action.cgroup)
        return _Done(status=Status.DONE)

    def _move(self, action: MoveProcess, origin: Origin) -> _Done:
        where = self._host.cgroup_of(action.process)
        if where == action.to_cgroup:
            return _Done(status=Status.DONE)
        earlier = self._journal.ledger.moved(action.process)
        ours = (action.from_cgroup,) if earlier is None else (earlier.via_cgroup, earlier.to_cgroup)
        if where not in ours or action.process in self._journal.left_alone:
            self._journal.left_alone.add(action.process)
            problem = f"pid {action.process.pid} is in cgroup {where!r}: somebody else moved it there, so it stays"
            return _Done(status=Status.LEFT_ALONE, problem=problem)
        self._journal.append(
            ProcessMoved(
                process=action.process,
                from_cgroup=where if earlier is None else earlier.from_cgroup,
                via_cgroup=where,
                to_cgroup=action.to_cgroup,
                origin=origin,
            )
        )
        stays_bytes = self._host.move_process(action.process, action.to_cgroup)
        return _Done(status=Status.DONE, done_bytes=max(0, action.charged_bytes - stays_bytes))


def _outcome(asked_bytes: int, moved: Moved) -> _Done:
    complete = moved.moved_bytes > asked_bytes - ROUNDING_BYTES
    return _Done(status=Status.DONE if complete else Status.PARTIAL, done_bytes=moved.moved_bytes, cpu_s=moved.cpu_s)
