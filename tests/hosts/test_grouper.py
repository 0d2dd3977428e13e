# SPDX-License-Identifier: Apache-2.0
"""What every host's cgroups of our own must do."""

import pytest

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import MemsculptError, Refused, Transient, Vanished
from tests.hosts.stages import MIB, Stage, offers


@offers("cgroup_limits")
def test_create_move_and_remove(stage: Stage):
    """A process lives where it was put; what it has stays charged to where it came from, and the answer says so."""
    own = stage.own_cgroup()
    stage.host.create_cgroup(own)
    stays_bytes = stage.host.move_process(stage.process, own)

    assert stage.host.cgroup_of(stage.process) == own
    assert stays_bytes == pytest.approx(stage.memory_bytes, abs=stage.slack_bytes)

    with pytest.raises(Transient):
        stage.host.remove_cgroup(own)
    stage.host.move_process(stage.process, stage.cgroup)
    stage.host.remove_cgroup(own)

    assert stage.host.cgroup_of(stage.process) == stage.cgroup
    with pytest.raises(Vanished):
        stage.host.read_limit(own, LimitKind.LIMIT)


@offers("cgroup_limits")
def test_creating_twice_is_no_error_and_keeps_budgets(stage: Stage):
    """An existing cgroup is left as it is."""
    own = stage.own_cgroup()
    stage.host.create_cgroup(own)
    held = stage.host.write_limit(own, LimitKind.HARD, 100 * MIB)
    stage.host.create_cgroup(own)

    assert stage.host.read_limit(own, LimitKind.HARD) == held
    stage.host.remove_cgroup(own)


@offers("cgroup_limits")
def test_only_empty_cgroups_in_our_folder_are_swept(stage: Stage):
    """Innermost first, the folder itself last; who lives in one keeps it, and nobody else's is touched."""
    name = stage.own_cgroup().replace("/", "_")
    empty, lived_in = CgroupPath(f"memsculpt/{name}/inner"), CgroupPath(f"memsculpt/{name}-lived-in")
    for cgroup in (empty, lived_in):
        stage.host.create_cgroup(cgroup)
    stage.host.move_process(stage.process, lived_in)
    first = stage.host.sweep()
    stage.host.move_process(stage.process, stage.cgroup)
    second = stage.host.sweep()

    assert list(first) == [empty, f"memsculpt/{name}"]
    assert list(second) == [lived_in, "memsculpt"]
    assert stage.host.cgroup_of(stage.process) == stage.cgroup
    assert stage.host.sweep() == ()


@offers("cgroup_limits")
def test_only_what_is_ours_is_removed(stage: Stage):
    """A cgroup that memsculpt did not make is not removed, not even an empty one."""
    stage.end_process()

    with pytest.raises(MemsculptError) as caught:
        stage.host.remove_cgroup(stage.cgroup)
    assert isinstance(caught.value, Refused)
    assert stage.host.read_limit(stage.cgroup, LimitKind.LIMIT).text


@offers("cgroup_limits")
def test_a_vanished_process_cannot_be_moved(stage: Stage):
    """Who is gone raises Vanished, wherever it was to go; so does a cgroup that is not there."""
    with pytest.raises(Vanished):
        stage.host.move_process(stage.process, CgroupPath("memsculpt-test-gone"))
    stage.end_process()

    with pytest.raises(Vanished):
        stage.host.cgroup_of(stage.process)
    with pytest.raises(Vanished):
        stage.host.move_process(stage.process, stage.cgroup)
