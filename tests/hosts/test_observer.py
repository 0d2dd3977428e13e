# SPDX-License-Identifier: Apache-2.0
"""What every host's observation must be, whatever it looks at."""

from dataclasses import replace

import numpy as np
import pytest

from memsculpt.domain.observation import Observation
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import Match
from memsculpt.errors import ConfigError
from tests.hosts.stages import MIB, Stage, offers

WORKLOAD_COUNTERS = (
    "minor_faults_count",
    "major_faults_count",
    "refaults_count",
    "cpu_s",
    "read_bytes",
    "written_bytes",
    "some_stall_s",
    "full_stall_s",
    "oom_kills_count",
    "limit_hits_count",
)
PROCESS_COUNTERS = ("cpu_s", "minor_faults_count", "major_faults_count")


@pytest.fixture
def watched(stage: Stage) -> Stage:
    stage.host.watch([stage.partition()])
    return stage


@offers("cgroup_limits")
def test_rows_are_sorted_and_joined(watched: Stage):
    """Workloads are ordered by identity, processes by pid, and each process belongs to a workload."""
    seen = watched.host.observe()

    assert list(seen.workloads.ids) == sorted(set(seen.workloads.ids))
    assert (np.diff(seen.processes.pids) > 0).all()
    assert (seen.processes.workload_index >= 0).all()
    assert (seen.processes.workload_index < len(seen.workloads.ids)).all()


@offers("cgroup_limits")
def test_nothing_is_below_zero(watched: Stage):
    """Sizes and counters are never negative."""
    seen = watched.host.observe()

    for columns in (seen.workloads, seen.processes):
        for name in columns.__slots__:
            values = getattr(columns, name)
            if isinstance(values, np.ndarray) and values.dtype != np.bool_:
                assert (values >= 0).all(), name
    for state in seen.cgroups:
        assert min(state.used_bytes, state.swapped_bytes, state.limit_bytes, state.guarantee_bytes) >= 0


@offers("cgroup_limits")
def test_the_scene_is_seen_in_its_size(watched: Stage):
    """A process that filled so much memory is seen with so much, and so are its workload and its cgroup."""
    seen = watched.host.observe()
    row, process_row = watched.row(seen), watched.process_row(seen)
    (state,) = (state for state in seen.cgroups if state.cgroup == watched.cgroup)

    assert seen.processes.workload_index[process_row] == row
    assert seen.processes.start_ticks[process_row] == watched.process.start_ticks
    for size_bytes in (seen.processes.anon_bytes[process_row], seen.workloads.anon_bytes[row], state.used_bytes):
        assert size_bytes == pytest.approx(watched.memory_bytes, abs=watched.slack_bytes)
    assert seen.workloads.partitions[row] == state.partition == "scene"
    assert seen.workloads.process_count[row] == 1
    assert state.is_own is False


@offers("cgroup_limits")
def test_kinds_of_memory_fit_into_the_whole(watched: Stage):
    """Reclaimable is file memory, what is told apart adds up to resident, and all of it fits into the machine."""
    seen = watched.host.observe()
    workloads, memory = seen.workloads, seen.memory

    assert (workloads.reclaimable_bytes <= workloads.file_bytes).all()
    kinds_bytes = workloads.anon_bytes + workloads.file_bytes + workloads.shmem_bytes
    assert (kinds_bytes <= workloads.resident_bytes + MIB).all()
    assert 0 <= memory.free_bytes <= memory.total_bytes
    assert 0 <= memory.available_bytes <= memory.total_bytes
    assert 0 <= memory.swap_free_bytes <= memory.swap_total_bytes
    assert int(workloads.anon_bytes[watched.row(seen)]) <= memory.total_bytes - memory.free_bytes


@offers("cgroup_limits")
def test_counters_never_fall(watched: Stage):
    """Within one instance every counter only grows, whatever happens to the memory meanwhile."""
    before = watched.host.observe()
    watched.touch_all()
    after = watched.host.observe()

    assert after.time_s > before.time_s
    for name in WORKLOAD_COUNTERS:
        assert_grown(name, workload_rows(before, name), workload_rows(after, name))
    for name in PROCESS_COUNTERS:
        assert_grown(name, process_rows(before, name), process_rows(after, name))


def workload_rows(seen: Observation, name: str) -> dict[object, float]:
    keys = zip(seen.workloads.ids, seen.workloads.instance_keys.tolist(), strict=True)
    return dict(zip(keys, getattr(seen.workloads, name).tolist(), strict=True))


def process_rows(seen: Observation, name: str) -> dict[object, float]:
    keys = zip(seen.processes.pids.tolist(), seen.processes.start_ticks.tolist(), strict=True)
    return dict(zip(keys, getattr(seen.processes, name).tolist(), strict=True))


def assert_grown(name: str, before: dict[object, float], after: dict[object, float]) -> None:
    fell = {key: (value, after[key]) for key, value in before.items() if key in after and after[key] < value}
    assert not fell, f"{name} fell"


@offers("cgroup_limits")
def test_a_process_that_sleeps_uses_no_processor(watched: Stage):
    """An idle process's processor time stands still: that is what "cold" rests on."""
    before = watched.host.observe()
    watched.host.wait_until(watched.host.now_s() + 0.3)
    after = watched.host.observe()

    assert before.processes.cpu_s[watched.process_row(before)] == after.processes.cpu_s[watched.process_row(after)]


@offers("cgroup_limits")
def test_observing_changes_nothing(watched: Stage):
    """However often somebody looks: the scene's memory, faults, processor time and budgets stay as they are."""

    def state() -> tuple[int, tuple[object, ...]]:
        seen = watched.host.observe()
        row, process_row = watched.row(seen), watched.process_row(seen)
        (cgroup,) = (cgroup for cgroup in seen.cgroups if cgroup.cgroup == watched.cgroup)
        counters = [getattr(seen.processes, name)[process_row] for name in PROCESS_COUNTERS]
        rest = replace(cgroup, used_bytes=0)
        return cgroup.used_bytes, (seen.workloads.anon_bytes[row], seen.workloads.swapped_bytes[row], *counters, rest)

    used_bytes, first = state()
    for _ in range(20):
        watched.host.observe()

    used_after_bytes, after = state()
    assert after == first
    # Charges wait in batches of 64 pages on each processor (mm/memcontrol.c), and come and go by themselves.
    assert used_after_bytes == pytest.approx(used_bytes, abs=MIB)


@offers("cgroup_limits")
def test_an_ended_process_is_a_row_less(watched: Stage):
    """What is gone is no longer seen, its cgroup still is, and nothing raises."""
    watched.end_process()
    seen = watched.host.observe()

    assert watched.process.pid not in seen.processes.pids
    assert seen.workloads.process_count[watched.row(seen)] == 0


@offers("cgroup_limits")
def test_columns_cannot_be_written(watched: Stage):
    """An observation is a fact: nobody changes it afterwards."""
    seen = watched.host.observe()

    with pytest.raises(ValueError, match="read-only"):
        seen.workloads.anon_bytes[0] = 1


@offers("cgroup_limits")
def test_a_rule_for_an_absent_cgroup_is_refused(stage: Stage):
    """A partition that adopts a cgroup which does not exist is a mistake in the configuration."""
    absent = PartitionSettings(name="absent", match=Match(cgroup="memsculpt-test-no-such-cgroup"))

    with pytest.raises(ConfigError, match="absent"):
        stage.host.watch([stage.partition(), absent])


@offers("cgroup_limits")
def test_two_rules_for_one_cgroup_are_refused(stage: Stage):
    """Two partitions cannot both own a workload."""
    twin = PartitionSettings(name="twin", match=Match(cgroup=f"{stage.cgroup[:-1]}?"))

    with pytest.raises(ConfigError, match="twin"):
        stage.host.watch([stage.partition(), twin])


@offers("cgroup_limits")
def test_a_cgroup_above_anothers_is_refused(stage: Stage):
    """A cgroup is adopted with all below it, so nobody else can own a part."""
    inner = stage.own_cgroup()
    stage.host.create_cgroup(inner)
    outer, _, _ = inner.rpartition("/")
    rules = [PartitionSettings(name=name, match=Match(cgroup=path)) for name, path in (("a", outer), ("b", inner))]

    with pytest.raises(ConfigError, match="as well"):
        stage.host.watch(rules)


@offers("cgroup_limits")
def test_a_glob_may_fit_nothing_and_is_noted(stage: Stage):
    """What a pattern names may come later: no error, and every observation says that nothing fits."""
    stage.host.watch([PartitionSettings(name="later", match=Match(cgroup="memsculpt-test-no-such-*"))])

    assert any("later" in note for note in stage.host.observe().notes)


@offers("cgroup_limits")
def test_a_rule_by_process_takes_it_out_of_its_cgroup(stage: Stage):
    """A process that a partition names is accounted by its executable, in that partition, wherever it lives."""
    stage.host.watch([PartitionSettings(name="one", match=Match(pid=stage.process.pid))])
    seen = stage.host.observe()
    row = int(seen.processes.workload_index[stage.process_row(seen)])

    assert seen.workloads.ids[row].startswith("exe:/")
    assert seen.workloads.partitions[row] == "one"
    assert seen.workloads.cgroups[row] is None
    assert seen.workloads.anon_bytes[row] == seen.processes.anon_bytes[stage.process_row(seen)]
    assert seen.cgroups == ()


@offers("cgroup_limits")
def test_two_rules_for_one_process_are_refused(stage: Stage):
    """Neither two rules by process, nor one beside a rule that adopts its cgroup."""
    by_pid = [PartitionSettings(name=name, match=Match(pid=stage.process.pid)) for name in ("one", "other")]

    for rules in (by_pid, [by_pid[0], stage.partition()]):
        with pytest.raises(ConfigError, match="as well"):
            stage.host.watch(rules)


@offers("cgroup_limits")
def test_capabilities_are_named_and_reasoned(stage: Stage):
    """Each capability carries its own name, says why, and what would help where it is missing."""
    found = stage.host.capabilities()

    assert {"page_out", "page_in", "cgroup_limits", "psi"} <= set(found)
    for name, capability in found.items():
        assert capability.name == name
        assert capability.reason
        assert capability.available or capability.fix
