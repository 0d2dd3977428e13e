# SPDX-License-Identifier: Apache-2.0
"""Pools of VMs on the simulated host: what they are called, when they are left alone, what cannot be done and why."""

import pytest

from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.pool import ColdZone, HotZone, Prefetch, SculptStats, Verdict, Zone
from memsculpt.domain.settings import Mode, PartitionSettings, PlanSettings, Settings
from memsculpt.domain.vm import Backing, VmState
from memsculpt.domain.workload import Match
from memsculpt.errors import UsageError
from memsculpt.host.simulated import SilentMonitor, SimulatedHost, VirtualMachine

MIB = 1 << 20
SETTINGS = Settings(
    mode=Mode.APPLY,
    partitions=(PartitionSettings(name="web", match=Match(vm="web-*")),),
    plan=PlanSettings(page_out_bytes_per_s=512.0 * MIB),
)
COLD = ColdZone(size_bytes=512 * MIB)


def a_vm(name: str = "web-1", **more) -> VirtualMachine:
    """A guest whose programs needed 256 MiB for a minute, and a quarter of that ever since."""
    demand = more.pop("demand", lambda at_s: (256 if at_s < 60.0 else 64) * MIB)
    return VirtualMachine(name=name, ram_bytes=512 * MIB, demand=demand, **more)


class Scene:
    """VMs looked at every ten seconds."""

    def __init__(self, *vms: VirtualMachine, **more) -> None:
        self.host = SimulatedHost(1, total_bytes=4 << 30, workloads=vms, **more)
        self.host.watch(SETTINGS.partitions)
        self.host.wait_until(self.host.now_s() + 5.0)
        self.sculpting = Sculpting(self.host, SETTINGS)

    def watch(self, seconds: float) -> list[SculptStats]:
        settled: list[SculptStats] = []
        end_s, next_look_s = self.host.now_s() + seconds, self.host.now_s()
        while self.host.now_s() < end_s:
            self.host.wait_until(self.host.now_s() + 1.0)
            observation = self.host.observe()
            if self.host.now_s() >= next_look_s:
                self.sculpting.look(observation)
                next_look_s += 10.0
            settled.extend(self.sculpting.settle(observation, may_act=True))
        return settled

    def sculpt(self, pool: str, request=COLD) -> SculptStats:
        return self.sculpting.sculpt(pool, request, self.host.observe(), may_act=True)


def test_a_vms_pool_goes_by_name_and_uuid():
    """All three name one pool, in whatever letters the UUID is written; a VM that is in no partition says so."""
    scene = Scene(a_vm(), a_vm("db-1"))
    scene.watch(30)
    (reading,) = (one for one in scene.host.observe().vms if one.name == "web-1")
    for name in ("vm:web-1", "web-1", reading.id, reading.id.upper()):
        stats = scene.sculpting.stats(name)
        assert stats.pool == "vm:web-1"
        assert stats.guest is not None
        assert (stats.guest.vm, stats.guest.name) == (reading.id, "web-1")
    with pytest.raises(UsageError, match="in no partition"):
        scene.sculpting.stats("db-1")
    wrong = reading.id[:-1] + ("0" if reading.id[-1] != "0" else "1")
    with pytest.raises(UsageError, match="none of this name or UUID"):
        scene.sculpt(wrong)


def test_what_a_guest_freed_leaves_and_its_place_is_told_as_the_guest_has_it():
    """The cold zone lies within the RAM, in guest-physical addresses, and is as large as what left."""
    scene = Scene(a_vm())
    scene.watch(240)
    stats = scene.sculpt("web-1")
    assert stats.verdict is Verdict.UNDER_WAY
    assert stats.paged_out_bytes >= 96 * MIB
    assert stats.guest is not None
    cold = [(start, end) for start, end, zone in stats.guest.zones if zone is Zone.COLD]
    assert sum(end - start for start, end in cold) == stats.zone_bytes[Zone.COLD]
    assert all(0 <= start < end <= 512 * MIB for start, end in cold)
    assert scene.sculpting.pools()[0].guest.zones == ()  # a list of all pools stays small


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.MIGRATING, VmState.ARRIVING, VmState.ENDING])
def test_a_vm_that_does_not_run_is_left_alone(state):
    """Every kind of sculpt is refused with the state as the reason, nothing is moved, nothing judged meanwhile."""
    scene = Scene(a_vm())
    scene.watch(240)
    before = scene.sculpt("web-1", ColdZone(size_bytes=32 * MIB)).paged_out_bytes
    scene.host.set_vm_state("web-1", state)
    for request in (COLD, HotZone(size_bytes=64 * MIB), Prefetch(window_s=30.0)):
        stats = scene.sculpt("web-1", request)
        assert stats.verdict is Verdict.REFUSED
        assert "VM" in stats.reason
        assert stats.paged_out_bytes == before
    assert scene.watch(700) == []
    scene.host.set_vm_state("web-1", VmState.RUNNING)
    assert scene.sculpt("web-1").verdict is not Verdict.REFUSED
    assert scene.watch(700)


def test_without_an_answer_of_its_monitor_nothing_is_moved():
    """Where its memory lies is not known: not a byte of QEMU's own is taken for it. It is asked again later."""
    scene = Scene(a_vm(), faults=(SilentMonitor(program="web-1", from_s=0.0, until_s=120.0),))
    scene.watch(100)
    stats = scene.sculpt("web-1")
    assert stats.verdict is Verdict.REFUSED
    assert "monitor" in stats.reason
    assert stats.moved_bytes == 0
    scene.watch(240)
    assert scene.sculpt("web-1").paged_out_bytes > 0


def test_huge_tlb_memory_is_neither_moved_nor_gathered():
    """The verdict says why, and so does the list of pools; no plan counts on it."""
    scene = Scene(a_vm(backing=Backing.HUGETLB))
    scene.watch(240)
    for request in (COLD, HotZone(size_bytes=64 * MIB)):
        stats = scene.sculpt("web-1", request)
        assert stats.verdict is Verdict.REFUSED
        assert "huge TLB" in stats.reason
    assert len(scene.sculpting.pools()[0].guest.cannot) == 2
    assert all(one.cold_bytes == one.hot_bytes == 0 for one in scene.sculpting.summaries(scene.host.observe()))
