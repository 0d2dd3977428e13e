# SPDX-License-Identifier: Apache-2.0
"""Whatever an agent did, and wherever it died, `restore` gives every value back byte for byte."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.act import ActionIds, Journal, Outcome, apply, restore
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import LimitKind, Plan, Reclaim
from memsculpt.domain.workload import Instance
from tests.act.builders import CGROUPS, JOB, MIB, OWN, VM_BYTES, WHY, create, move, new_host, set_balloon, set_limit
from tests.act.text_host import PAGE_BYTES

# Hundreds of fsyncs: on a shared disk they would take minutes, in memory they take nothing.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Died(BaseException):
    """Stands for kill -9: nothing catches it."""


def open_journal(folder: Path) -> Journal:
    return Journal.open(folder, machine_lock=None)


actions = st.one_of(
    st.builds(
        set_limit,
        cgroup=st.sampled_from([*CGROUPS, OWN]),
        to_bytes=st.integers(0, 16 << 30),
        kind=st.sampled_from(list(LimitKind)),
        lift_at_s=st.sampled_from([None, 5.0]),
    ),
    st.just(create()),
    st.builds(move, to_cgroup=st.sampled_from([OWN, CGROUPS[0]]), from_cgroup=st.sampled_from([*CGROUPS, OWN])),
    st.builds(
        Reclaim, partition=st.just("p"), cgroup=st.sampled_from(CGROUPS), size_bytes=st.just(MIB), reason=st.just(WHY)
    ),
)
actions |= st.builds(set_balloon, to_bytes=st.integers(128 * MIB, VM_BYTES), from_bytes=st.just(VM_BYTES))
plans = st.lists(st.lists(actions, max_size=5), min_size=1, max_size=4)


@pytest.mark.timeout(60)
@given(plans=plans, one_file=st.booleans(), dies_after=st.integers(0, 30), lost=st.floats(0, 1))
def test_restore_gives_back_every_value_wherever_the_agent_died(plans, one_file, dies_after, lost):
    """After any plans and a death at any write, with any later bytes of the journal lost, all is as before.

    What must not be lost is what was on the disk before the last change to the host: that is what fsync is for.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        host = new_host(Path(folder, "host"), one_file=one_file)
        before = host.contents()
        state = Path(folder, "state")
        journal = open_journal(state)
        writes_left = dies_after
        kept_bytes = 0

        def count_write():
            """Die instead of a write, or note how much of the journal was there when it was made."""
            nonlocal writes_left, kept_bytes
            if writes_left == 0:
                raise Died
            writes_left -= 1
            kept_bytes = journal.path.stat().st_size

        host.before_write = count_write
        ids = ActionIds()
        try:
            for each in plans:
                apply(host, journal, Plan(made_at_s=0.0, actions=tuple(each)), ids)
        except Died:
            pass
        journal.close()
        content = journal.path.read_bytes()
        end = kept_bytes + round(lost * (len(content) - kept_bytes)) if kept_bytes <= len(content) else len(content)
        journal.path.write_bytes(content[:end])

        host.before_write = lambda: None
        after_death = open_journal(state)
        report = restore(host, after_death)
        after_death.close()

        assert host.contents() == before, report
        assert report.is_complete
        assert not report.count(Outcome.LEFT_ALONE)


@pytest.mark.timeout(60)
@given(plans=plans, one_file=st.booleans(), stops_after=st.integers(0, 12))
def test_an_interrupted_restore_is_finished_by_the_next(plans, one_file, stops_after):
    """A restore that dies at any of its own writes leaves a journal from which the next one finishes."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        host = new_host(Path(folder, "host"), one_file=one_file)
        before = host.contents()
        journal = open_journal(Path(folder, "state"))
        for each in plans:
            apply(host, journal, Plan(made_at_s=0.0, actions=tuple(each)), ActionIds())
        left = stops_after

        def die():
            nonlocal left
            if left == 0:
                raise Died
            left -= 1

        host.before_write = die
        with contextlib.suppress(Died):
            restore(host, journal)
        journal.close()
        host.before_write = lambda: None
        again = open_journal(Path(folder, "state"))
        report = restore(host, again)
        again.close()

        assert host.contents() == before, report


@pytest.mark.timeout(60)
@given(
    first=st.integers(1, 8 << 30),
    theirs=st.integers(1, 16 << 30).map(lambda size: size // PAGE_BYTES * PAGE_BYTES),
    kind=st.sampled_from(list(LimitKind)),
)
def test_a_value_changed_by_somebody_else_stays(first, theirs, kind):
    """Restore leaves what it did not write, and says so."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        host = new_host(Path(folder, "host"))
        old = host.text("cache", kind)
        journal = open_journal(Path(folder, "state"))
        apply(host, journal, Plan(made_at_s=0.0, actions=(set_limit(to_bytes=first, kind=kind),)), ActionIds())
        ours = host.text("cache", kind)
        host.write_as_somebody_else("cache", kind, f"{theirs}\n")
        report = restore(host, journal)
        journal.close()

        if f"{theirs}\n" == ours:
            assert host.text("cache", kind) == old
        else:
            assert host.text("cache", kind) == f"{theirs}\n"
            expected = Outcome.RESTORED if f"{theirs}\n" == old else Outcome.LEFT_ALONE
            assert [change.outcome for change in report.changes] == [expected]


@pytest.fixture
def host(tmp_path):
    return new_host(tmp_path / "host")


@pytest.fixture
def journal(tmp_path):
    opened = open_journal(tmp_path / "state")
    yield opened
    opened.close()


def run(host, journal, *actions):
    return apply(host, journal, Plan(made_at_s=0.0, actions=actions), ActionIds())


def test_budgets_that_go_up_come_first(host, journal):
    """The squeezed breathe before anyone else gives, whatever order the changes were made in."""
    run(
        host,
        journal,
        set_limit(CGROUPS[0], to_bytes=MIB),  # undoing raises
        set_limit(CGROUPS[1], to_bytes=1 << 30, lift_at_s=None),  # undoing lowers
    )
    report = restore(host, journal)
    assert [change.what for change in report.changes] == ["limit of cgroup 'cache'", "limit of cgroup 'batch'"]
    assert report.count(Outcome.RESTORED) == 2


def test_what_is_gone_is_reported_and_forgotten(host, journal):
    """A cgroup that was removed meanwhile needs no undoing."""
    run(host, journal, create(), set_limit(OWN, to_bytes=MIB))
    host.remove_cgroup(OWN)
    assert [change.outcome for change in restore(host, journal).changes] == [Outcome.GONE, Outcome.GONE]
    assert restore(host, journal).changes == ()


def test_what_the_kernel_refuses_for_now_stays_in_the_journal(host, journal):
    """A budget that cannot come down yet is tried again by the next restore."""
    run(host, journal, set_limit(CGROUPS[1], to_bytes=1 << 30, from_bytes=512 * MIB))
    host.refuse_below_bytes = 1 << 30
    first = restore(host, journal)
    assert [change.outcome for change in first.changes] == [Outcome.FAILED]
    assert "busy" in first.changes[0].problem
    host.refuse_below_bytes = 0
    assert restore(host, journal).count(Outcome.RESTORED) == 1
    assert host.text("batch", LimitKind.LIMIT) == "536870912\n"


def test_an_own_cgroup_with_processes_stays_until_it_is_empty(host, journal):
    """A program started inside our cgroup is not thrown out; the cgroup loses its limit and goes later."""
    run(host, journal, create(), set_limit(OWN, to_bytes=MIB))
    unlimited = host.text("batch/inner", LimitKind.LIMIT)
    guest = Instance(pid=99, start_ticks=5)
    host.add_process(OWN, guest)
    report = restore(host, journal)
    assert not report.is_complete
    assert host.text(OWN, LimitKind.LIMIT) == unlimited
    host.move_process(guest, CGROUPS[0])
    assert restore(host, journal).is_complete
    assert not (host.root / OWN).exists()


def test_a_process_that_somebody_else_moved_stays_there(host, journal):
    """Only processes that are where we put them go back."""
    run(host, journal, create(), move())
    host.move_process(JOB, CGROUPS[0])
    report = restore(host, journal)
    assert report.count(Outcome.LEFT_ALONE) == 1
    assert host.cgroup_of(JOB) == CGROUPS[0]


def test_a_budget_that_somebody_else_wrote_is_not_touched_again(host, journal):
    """It is reported each time, and neither the next plan nor restore writes it."""
    run(host, journal, set_limit(to_bytes=MIB))
    host.write_as_somebody_else("cache", LimitKind.LIMIT, "4294967296\n")
    for _ in range(2):
        (done,) = run(host, journal, set_limit(to_bytes=2 * MIB))
        assert done.status is Status.LEFT_ALONE
        assert "4294967296" in done.problem
    restore(host, journal)
    assert host.text("cache", LimitKind.LIMIT) == "4294967296\n"
