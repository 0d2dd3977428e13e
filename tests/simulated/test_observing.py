# SPDX-License-Identifier: Apache-2.0
"""Who is a workload on the simulated host, where no other host can be asked without touching the machine."""

from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath, Match
from memsculpt.host.simulated import Constant, SimulatedHost

MIB = 1 << 20
OWN = CgroupPath("memsculpt/batch")


def test_a_partitions_own_cgroup_is_shown_and_its_process_keeps_its_identity():
    """It is there once it is made, also empty; who moves into it is the same workload, its charge stays behind."""
    host = SimulatedHost(1, workloads=(Constant(name="worker", cgroup="jobs", size_bytes=64 * MIB),))
    host.watch([PartitionSettings(name="batch", match=Match(exe="*/worker"), create=True)])
    host.wait_until(1005.0)
    (worker,) = host.instances("worker")
    before = host.observe()
    host.create_cgroup(OWN)
    (empty,) = host.observe().cgroups
    stays_bytes = host.move_process(worker, OWN)
    after = host.observe()

    assert before.cgroups == ()
    assert (empty.cgroup, empty.partition, empty.is_own, empty.used_bytes) == (OWN, "batch", True, 0)
    assert stays_bytes == 64 * MIB
    assert before.workloads.ids == after.workloads.ids == ("exe:/usr/bin/worker",)
    assert after.workloads.partitions == ("batch",)
    assert after.cgroups[0].used_bytes == 0
    assert int(after.workloads.anon_bytes[0]) == 64 * MIB


def test_a_stray_is_accounted_by_its_executable():
    """In the root cgroup nothing but the executable tells programs apart; elsewhere their cgroup does."""
    host = SimulatedHost(
        1, workloads=(Constant(name="stray", size_bytes=MIB), Constant(name="unit", cgroup="a/b", size_bytes=MIB))
    )
    seen = host.observe().workloads

    assert seen.ids == ("a/b", "exe:/usr/bin/stray")
    assert seen.cgroups == ("a/b", None)
