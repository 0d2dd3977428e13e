# SPDX-License-Identifier: Apache-2.0
"""Plans become changes: each journalled before it is made, each reported as it went."""

import pytest

from memsculpt.act import ActionIds, Budget, Journal, PoolMoved, apply, rehearse
from memsculpt.act.records import LimitChange
from memsculpt.domain.observation import HostMemory
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import LimitKind, PageIn, PageOut, Plan, Reason, Reclaim, SculptPool
from memsculpt.domain.pool import Prefetch
from memsculpt.domain.settings import PlanSettings
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from tests.act.builders import CGROUPS, JOB, MIB, OWN, WHY, create, full_disk, move, new_host, set_limit

CACHE, BATCH = CGROUPS[0], CGROUPS[1]
OTHER = Instance(pid=78, start_ticks=5)


def page(kind, process=JOB, size_bytes=8 * MIB):
    return kind(partition="p", workload=WorkloadId("w"), process=process, size_bytes=size_bytes, reason=WHY)


@pytest.fixture
def host(tmp_path):
    made = new_host(tmp_path / "host")
    made.movable_bytes = {JOB: 64 * MIB, OTHER: 64 * MIB}
    return made


@pytest.fixture
def journal(tmp_path):
    opened = Journal.open(tmp_path / "state", machine_lock=None)
    yield opened
    opened.close()


def run(host, journal, *actions, budget=None):
    return apply(host, journal, Plan(made_at_s=0.0, actions=actions), ActionIds(), budget=budget)


def statuses(applied):
    return [done.status for done in applied]


def test_the_old_value_is_on_the_disk_before_the_new_one_is_written(host, journal, tmp_path):
    """At the moment of the write, another reader of the journal's bytes already finds the old text."""
    seen = []

    def look():
        (tmp_path / "look").mkdir(exist_ok=True)
        (tmp_path / "look/journal").write_bytes(journal.path.read_bytes())
        copy = Journal.open(tmp_path / "look", machine_lock=None)
        seen.extend(copy.ledger.changes)
        copy.close()

    host.before_write = look
    (done,) = run(host, journal, set_limit(to_bytes=1 << 30))
    assert done.status is Status.DONE
    (change,) = seen
    assert isinstance(change, LimitChange)
    assert (change.old_text, change.origin.why, change.origin.action_id) == ("8589934592\n", "test", done.action_id)
    assert change.origin.boot == journal.boot


def test_what_the_kernel_kept_is_reported(host, journal):
    """Rounding to pages is no shortfall; the figure is the kernel's."""
    (done,) = run(host, journal, set_limit(to_bytes=(1 << 30) + 5))
    assert (done.status, done.done_bytes) == (Status.DONE, 1 << 30)
    assert host.text("cache", LimitKind.LIMIT) == f"{1 << 30}\n"


def test_one_failure_does_not_stop_the_others(host, journal):
    """What fails says place, problem and fix; the rest is done, and numbers count on."""
    gone = CgroupPath("gone")
    host.refuse_below_bytes = MIB
    applied = run(
        host,
        journal,
        set_limit(gone),
        set_limit(BATCH, to_bytes=4096, from_bytes=512 * MIB),
        page(PageOut, Instance(pid=1, start_ticks=1)),
        page(PageOut),
    )
    assert statuses(applied) == [Status.FAILED, Status.FAILED, Status.FAILED, Status.DONE]
    assert "gone" in applied[0].problem
    assert "busy" in applied[1].problem
    assert [done.action_id for done in applied] == [1, 2, 3, 4]


def test_less_than_asked_is_partial(host, journal):
    """A process that had less to give is reported with what it gave."""
    host.movable_bytes[JOB] = 3 * MIB
    (done,) = run(host, journal, page(PageOut))
    assert (done.status, done.done_bytes) == (Status.PARTIAL, 3 * MIB)
    assert done.cpu_s > 0


def test_what_was_not_freed_is_not_used(host, journal):
    """A page-in that counted on a page-out is cut by what that fell short of, nine tenths of it counting as all."""
    host.movable_bytes[JOB] = 2 * MIB
    applied = run(
        host, journal, page(PageOut, size_bytes=10 * MIB), page(PageIn, OTHER, 8 * MIB), page(PageIn, OTHER, 8 * MIB)
    )
    assert statuses(applied) == [Status.PARTIAL, Status.PARTIAL, Status.DONE]
    assert [done.done_bytes for done in applied] == [2 * MIB, 1 * MIB, 8 * MIB]
    host.movable_bytes[JOB] = 0
    applied = run(host, journal, page(PageOut, size_bytes=64 * MIB), page(PageIn, OTHER, 8 * MIB))
    assert statuses(applied) == [Status.PARTIAL, Status.FAILED]
    assert "not freed" in applied[1].problem


def test_a_raise_waits_for_the_limits_that_were_to_come_down(host, journal):
    """Limits in sum never grow by what did not come free."""
    host.refuse_below_bytes = 256 * MIB
    applied = run(
        host,
        journal,
        set_limit(CACHE, to_bytes=128 * MIB, from_bytes=8 << 30),
        set_limit(BATCH, to_bytes=1 << 30, from_bytes=512 * MIB),
    )
    assert statuses(applied) == [Status.FAILED, Status.FAILED]
    assert "not raised" in applied[1].problem
    assert host.text("batch", LimitKind.LIMIT) == "536870912\n"


def test_a_squeeze_is_lifted_whatever_else_fails(host, journal):
    """Holding somebody below what he uses is worse than a host that is too full."""
    run(host, journal, set_limit(BATCH, to_bytes=64 * MIB, from_bytes=512 * MIB, lift_at_s=5.0))
    host.refuse_below_bytes = 256 * MIB
    applied = run(
        host,
        journal,
        set_limit(CACHE, to_bytes=128 * MIB, from_bytes=8 << 30),
        set_limit(BATCH, to_bytes=512 * MIB, from_bytes=64 * MIB),
    )
    assert statuses(applied) == [Status.FAILED, Status.DONE]


def test_a_reclaim_by_limit_steps_leaves_nothing_to_undo(host, journal):
    """The step is journalled while it is under way, and forgotten when the limit is as before."""
    during = []
    host.before_write = lambda: during.append(len(journal.ledger.changes))
    (done,) = run(host, journal, Reclaim(partition="p", cgroup=CACHE, size_bytes=MIB, reason=WHY))
    assert done.status is Status.DONE
    assert during == [1, 1]
    assert journal.ledger.changes == ()


def test_page_cache_needs_no_swap_and_is_no_shortfall(host, journal):
    """A full swap stops what would go there and not what is dropped; what is not dropped holds nobody back."""
    memory = HostMemory(
        total_bytes=1 << 30,
        available_bytes=1 << 29,
        free_bytes=1 << 29,
        swap_total_bytes=0,
        swap_free_bytes=0,
        some_stall_s=None,
        full_stall_s=None,
    )
    budget = Budget.for_tick(PlanSettings(page_out_bytes_per_s=4.0 * MIB), memory, 1.0)
    whole = Reclaim(partition="p", cgroup=CACHE, size_bytes=MIB, reason=WHY)
    cache = Reclaim(partition="p", cgroup=CACHE, size_bytes=8 * MIB, reason=WHY, only_cache=True)
    applied = run(host, journal, cache, cache, budget=budget)
    short_bytes = budget.short_bytes

    assert statuses(applied) == [Status.PARTIAL, Status.FAILED]
    assert applied[0].done_bytes == 4 * MIB
    assert short_bytes == 0
    assert statuses(run(host, journal, whole, budget=budget)) == [Status.FAILED]
    assert budget.short_bytes > 0


def test_without_a_journal_nothing_is_changed(host, journal):
    """A disk that fills up stops the changes in the middle of a plan, and says so at each."""
    before = host.contents()
    with full_disk(journal.path.stat().st_size + 10):
        applied = run(host, journal, set_limit(), create(), move())
    assert statuses(applied) == [Status.FAILED] * 3
    assert "cannot be written" in applied[0].problem
    assert host.contents() == before


def test_processes_move_once_and_are_not_chased(host, journal):
    """A process that is there already needs nothing; one that somebody else moved is left where it is."""
    applied = run(host, journal, create(), move(), move())
    assert statuses(applied) == [Status.DONE, Status.DONE, Status.DONE]
    assert applied[1].done_bytes == MIB - 4096
    host.move_process(JOB, CACHE)
    (done,) = run(host, journal, move(OWN, BATCH))
    assert done.status is Status.LEFT_ALONE
    assert host.cgroup_of(JOB) == CACHE


def test_the_budget_of_a_tick_is_held_at_the_last_moment(host, journal):
    """Whatever a plan asks, no tick pages out more than its rate and the swap's fill allow."""
    memory = HostMemory(
        total_bytes=1 << 30,
        available_bytes=0,
        free_bytes=0,
        swap_total_bytes=100 * MIB,
        swap_free_bytes=32 * MIB,
        some_stall_s=None,
        full_stall_s=None,
    )
    budget = Budget.for_tick(PlanSettings(page_in_bytes_per_s=4.0 * MIB), memory, 0.5)
    assert budget.page_out_bytes == 12 * MIB
    assert budget.page_in_bytes == 2 * MIB
    applied = run(host, journal, page(PageOut), page(PageOut, OTHER), page(PageOut), budget=budget)
    assert [done.done_bytes for done in applied] == [8 * MIB, 4 * MIB, 0]
    assert "budget" in applied[2].problem


def test_a_prefetch_is_held_to_both_rates_and_counted_both_ways(host, journal):
    """What may not leave makes no room: so much less comes. A sculptor that moves all it is granted stands in."""
    granted = []

    def sculptor(action, size_bytes):
        granted.append(size_bytes)
        room = action.request.room_bytes
        return PoolMoved(moved_bytes=size_bytes, left_bytes=max(0, size_bytes - room), cpu_s=0.1)

    def prefetch(size, room):
        request = Prefetch(window_s=3.0, size_bytes=size * MIB, room_bytes=room * MIB, phase=1)
        return SculptPool(partition="p", workload=WorkloadId("w"), process=JOB, pool="w", request=request, reason=WHY)

    budget = Budget(page_out_bytes=10 * MIB, page_in_bytes=40 * MIB)
    plan = Plan(made_at_s=0.0, actions=(prefetch(20, 12), prefetch(20, 8), prefetch(20, 20)))
    applied = apply(host, journal, plan, ActionIds(), budget=budget, sculptor=sculptor)

    assert granted == [20 * MIB, 10 * MIB, 10 * MIB]  # 8 of 10 are spent by the first; then 20 of 40 are left to come
    assert statuses(applied) == [Status.DONE, Status.PARTIAL, Status.PARTIAL]
    assert journal._uncounted == (10 * MIB, 40 * MIB)
    assert budget.page_out_bytes == budget.page_in_bytes == 0
    assert budget.short_bytes == 0


def test_a_rehearsal_touches_nothing(host):
    """Observe mode: every action is listed with its number and nothing is done."""
    before = host.contents()
    ids = ActionIds()
    plan = Plan(made_at_s=0.0, actions=(set_limit(), create(), page(PageOut)))
    applied = rehearse(plan, 3.0, ids)
    assert statuses(applied) == [Status.REHEARSED] * 3
    assert [done.action for done in applied] == list(plan.actions)
    assert [done.action_id for done in applied] == [1, 2, 3]
    assert ids.take() == 4
    assert host.contents() == before


def test_a_reason_is_kept_by_its_code(host, journal):
    """What the journal says why is the plan's code."""
    assert Reason(code="test", text="because").code == WHY.code
    run(host, journal, set_limit())
    assert journal.ledger.changes[0].origin.why == "test"
