# SPDX-License-Identifier: Apache-2.0
"""What processes wait for pages: a burst counts for long, and what is brought ahead counts as if it had waited."""

from memsculpt.agent.waits import FAULT_S, QUICK_S, SLOW_S, Waits, row_of
from memsculpt.domain.workload import Instance
from memsculpt.host.simulated import Cycle, SimulatedHost

MIB = 1 << 20
LIMITS = {"job": 40 * MIB}
JOB = Cycle(name="job", cgroup="job", size_bytes=64 * MIB, period_s=60.0, work_s=4.0, offset_s=1.0, touch_hz=2.0)
IDLE = Cycle(name="idle", cgroup="idle", size_bytes=8 * MIB, period_s=1e6, offset_s=1.0)


def watched(host: SimulatedHost, waits: Waits, seconds: float) -> list[float]:
    """The job's ratio second by second."""
    found: list[float] = []
    for _ in range(int(seconds)):
        host.wait_until(host.now_s() + 1.0)
        processes = [*host.instances("job"), *host.instances("idle")]
        waits.follow(host.observe(), processes)
        found.append(max(waits.ratio(process) for process in processes))
    return found


def test_a_burst_of_faults_is_remembered_for_minutes():
    """At once it is as high as what is lost; a minute later a swapping job still counts, one without faults never."""
    host, waits = SimulatedHost(1, workloads=(JOB, IDLE), limits=LIMITS), Waits()
    ratios = watched(host, waits, 55.0)
    faults = host.record("job").major_faults_count

    assert faults > 1000
    assert max(ratios) > 0.3 * faults * FAULT_S / QUICK_S
    assert 0.5 * faults * FAULT_S / SLOW_S < ratios[-1] < max(ratios) / 3
    (idle,) = host.instances("idle")
    assert waits.ratio(idle) == 0.0


def test_what_is_spared_counts_as_if_it_had_been_waited_for():
    host, waits = SimulatedHost(1, workloads=(IDLE,)), Waits()
    watched(host, waits, 3.0)
    (idle,) = host.instances("idle")
    waits.spare(idle, 1000.0)

    assert waits.ratio(idle) == 1000.0 * FAULT_S / QUICK_S
    stranger = Instance(pid=1, start_ticks=1)
    waits.spare(stranger, 1000.0)
    assert waits.ratio(stranger) == 0.0


def test_who_is_gone_is_forgotten():
    host, waits = SimulatedHost(1, workloads=(IDLE,)), Waits()
    watched(host, waits, 2.0)
    (idle,) = host.instances("idle")
    waits.spare(idle, 10.0)
    again = Instance(pid=idle.pid, start_ticks=idle.start_ticks + 1)
    waits.follow(host.observe(), [again])

    assert (waits.ratio(idle), waits.ratio(again)) == (0.0, 0.0)
    assert row_of(host.observe(), again) is None
