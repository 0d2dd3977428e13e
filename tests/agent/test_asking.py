# SPDX-License-Identifier: Apache-2.0
"""Who asks the agent for memory gets an answer, whatever becomes of the tick."""

from contextlib import closing

import pytest

from memsculpt import act
from memsculpt.agent import Agent
from memsculpt.domain.plan import Request
from memsculpt.domain.settings import Mode, Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.host.simulated import Constant, SimulatedHost

MIB = 1 << 20


class ClockBreaksHost(SimulatedHost):
    """A host whose clock fails once the machine has been looked at: the tick ends in the middle."""

    breaks = False
    has_looked = False

    def observe(self):
        seen = super().observe()
        self.has_looked = True
        return seen

    def now_s(self):
        if self.breaks and self.has_looked:
            raise RuntimeError("the clock broke")
        return super().now_s()


def test_a_tick_that_fails_tells_who_asked():
    """No caller waits for ever; the next tick answers anew."""
    host = ClockBreaksHost(0, workloads=(Constant(name="app", cgroup="app", size_bytes=64 * MIB),))
    agent = Agent(host=host, settings=Settings(), journal=None)
    agent.tick()
    asked = Request(workload=WorkloadId("app"), size_bytes=MIB, within_s=5.0, asked_at_s=host.now_s())
    host.breaks, host.has_looked = True, False
    unlucky = agent.ask(asked)
    with pytest.raises(RuntimeError, match="the clock broke"):
        agent.tick()
    host.breaks = False
    lucky = agent.ask(asked)
    agent.tick()

    with pytest.raises(RuntimeError, match="the clock broke"):
        unlucky.result(timeout=0)
    assert lucky.result(timeout=0).reason.text


def test_a_partition_made_for_a_request_is_there_at_the_next_tick(tmp_path):
    """Applied: its cgroup is made, the process lives in it, and the agent sees it as a partition of its own."""
    host = SimulatedHost(0, workloads=(Constant(name="app", cgroup="app", size_bytes=64 * MIB),))
    with closing(act.Journal.open(tmp_path, machine_lock=None)) as journal:
        agent = Agent(host=host, settings=Settings(mode=Mode.APPLY), journal=journal)
        agent.tick()
        answer = agent.ask(Request(workload=WorkloadId("app"), size_bytes=MIB, within_s=5.0, asked_at_s=host.now_s()))
        agent.tick()
        host.wait_until(host.now_s() + 1.0)
        seen = agent.tick().observation
        (instance,) = host.instances("app")

        assert answer.result(timeout=0).partition == "request-1"
        assert host.cgroup_of(instance) == "memsculpt/request-1"
        assert [state.partition for state in seen.cgroups] == ["request-1"]
        agent.close()


def test_who_gave_up_waiting_hinders_nobody():
    """A cancelled request is passed over, whether a tick or the end comes to it; the one behind it is answered."""
    host = SimulatedHost(0, workloads=(Constant(name="app", cgroup="app", size_bytes=64 * MIB),))
    agent = Agent(host=host, settings=Settings(), journal=None)
    agent.tick()
    asked = Request(workload=WorkloadId("app"), size_bytes=MIB, within_s=5.0, asked_at_s=host.now_s())
    impatient, patient = agent.ask(asked), agent.ask(asked)
    impatient.cancel()
    agent.tick()
    late, last = agent.ask(asked), agent.ask(asked)
    late.cancel()
    agent.close()

    assert patient.result(timeout=0).reason.text
    assert last.exception(timeout=0) is not None
