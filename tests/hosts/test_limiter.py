# SPDX-License-Identifier: Apache-2.0
"""What every host's budgets must do: hold, tell the truth, and go back byte for byte."""

import pytest

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import Vanished
from tests.hosts.stages import MIB, Stage, offers


@pytest.fixture
def watched(stage: Stage) -> Stage:
    stage.host.watch([stage.partition()])
    return stage


@offers("cgroup_limits")
@pytest.mark.parametrize("kind", [LimitKind.LIMIT, LimitKind.HARD])
def test_without_a_limit_it_reads_as_unlimited(watched: Stage, kind: LimitKind):
    """ "max" and v1's LONG_MAX both mean no limit."""
    assert watched.host.read_limit(watched.cgroup, kind).size_bytes == UNLIMITED_BYTES


@offers("cgroup_limits")
@pytest.mark.parametrize("kind", list(LimitKind))
def test_what_is_written_is_read(watched: Stage, kind: LimitKind):
    """A budget of whole pages is kept as it was written, and observed so."""
    written = watched.host.write_limit(watched.cgroup, kind, 200 * MIB)
    (state,) = (state for state in watched.host.observe().cgroups if state.cgroup == watched.cgroup)
    observed_bytes = {
        LimitKind.LIMIT: state.limit_bytes,
        LimitKind.HARD: state.hard_limit_bytes,
        LimitKind.GUARANTEE: state.guarantee_bytes,
    }

    assert written.size_bytes == 200 * MIB
    assert watched.host.read_limit(watched.cgroup, kind) == written
    assert observed_bytes[kind] == 200 * MIB


@offers("cgroup_limits")
def test_the_kernel_keeps_whole_pages(watched: Stage):
    """What is returned is what the kernel holds, not what was asked for."""
    held = watched.host.write_limit(watched.cgroup, LimitKind.HARD, 200 * MIB + 1)

    assert held.size_bytes == 200 * MIB


@offers("cgroup_limits")
@pytest.mark.parametrize("kind", list(LimitKind))
@pytest.mark.parametrize("first_bytes", [None, 300 * MIB])
def test_restoring_is_byte_for_byte(watched: Stage, kind: LimitKind, first_bytes: int | None):
    """Whatever the file held before, limited or not, it holds again, as the very same text."""
    if first_bytes is not None:
        watched.host.write_limit(watched.cgroup, kind, first_bytes)
    before = {each: watched.host.read_limit(watched.cgroup, each) for each in LimitKind}
    watched.host.write_limit(watched.cgroup, kind, 100 * MIB)
    restored = watched.host.restore_limit(watched.cgroup, kind, before[kind].text)

    assert restored == before[kind]
    assert {each: watched.host.read_limit(watched.cgroup, each) for each in LimitKind} == before


@offers("cgroup_limits", "page_out")
def test_a_limit_below_use_sends_memory_out(watched: Stage):
    """A squeeze takes effect at once: what is above the new hard limit leaves."""
    watched.host.write_limit(watched.cgroup, LimitKind.HARD, 32 * MIB)
    (state,) = (state for state in watched.host.observe().cgroups if state.cgroup == watched.cgroup)

    assert state.used_bytes <= 32 * MIB
    assert state.swapped_bytes >= watched.memory_bytes - 32 * MIB - watched.slack_bytes


@offers("cgroup_limits", "page_out")
def test_reclaim_takes_about_what_was_asked(watched: Stage):
    """So much leaves the cgroup, and no budget is different afterwards."""
    before = {kind: watched.host.read_limit(watched.cgroup, kind) for kind in LimitKind}
    moved = watched.host.reclaim(watched.cgroup, 16 * MIB)
    (state,) = (state for state in watched.host.observe().cgroups if state.cgroup == watched.cgroup)

    assert moved.moved_bytes == pytest.approx(16 * MIB, abs=watched.slack_bytes)
    assert state.used_bytes == pytest.approx(watched.memory_bytes - 16 * MIB, abs=2 * watched.slack_bytes)
    assert {kind: watched.host.read_limit(watched.cgroup, kind) for kind in LimitKind} == before


@offers("cgroup_limits", "page_out")
def test_reclaiming_page_cache_sends_no_anonymous_memory_out(watched: Stage):
    """Where only the page cache may go and there is next to none, next to nothing goes; no budget is different."""
    before = {kind: watched.host.read_limit(watched.cgroup, kind) for kind in LimitKind}
    watched.host.reclaim(watched.cgroup, 16 * MIB, only_cache=True)
    (state,) = (state for state in watched.host.observe().cgroups if state.cgroup == watched.cgroup)

    assert state.swapped_bytes <= watched.slack_bytes
    assert {kind: watched.host.read_limit(watched.cgroup, kind) for kind in LimitKind} == before


@offers("cgroup_limits")
def test_a_cgroup_that_is_gone_raises_vanished(watched: Stage):
    """Each call on a cgroup that does not exist says that it is gone."""
    gone = CgroupPath("memsculpt-test-gone")

    with pytest.raises(Vanished):
        watched.host.read_limit(gone, LimitKind.LIMIT)
    with pytest.raises(Vanished):
        watched.host.write_limit(gone, LimitKind.LIMIT, MIB)
    with pytest.raises(Vanished):
        watched.host.restore_limit(gone, LimitKind.LIMIT, "-1")
    with pytest.raises(Vanished):
        watched.host.reclaim(gone, MIB)
