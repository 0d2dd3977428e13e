# SPDX-License-Identifier: Apache-2.0
"""Ticks of an agent that only watches are as far apart as its budget of processor time makes them."""

import threading
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.agent import Agent, Pace
from memsculpt.domain.settings import Mode, PartitionSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.host.simulated import Cycle, SimulatedHost

MIB = 1 << 20
WATCHING = Settings()
PARTITIONS = (PartitionSettings(name="jobs", match=Match(cgroup="job")),)
JOB = Cycle(name="job", cgroup="job", size_bytes=8 * MIB, period_s=30.0, work_s=4.0, offset_s=1.0)


@dataclass
class Meter:
    """Processor time that the test spends."""

    used_s: float = 0.0

    def __call__(self) -> float:
        return self.used_s

    def tick(self, pace: Pace, cost_s: float, times: int = 1) -> float:
        for _ in range(times):
            self.used_s += cost_s
            pace.follow()
        return pace.interval_s


@pytest.mark.parametrize(
    ("cost_s", "interval_s"), [(0.004, 1.0), (0.0089, 1.0), (0.0095, 1.5), (0.0215, 2.5), (0.5, 3.0)]
)
def test_a_tick_that_costs_more_comes_less_often(cost_s: float, interval_s: float):
    """In steps of half an interval, up to the first horizon: 21.5 ms are 0.86 % of one processor every 2.5 s."""
    meter = Meter()
    pace = Pace(WATCHING, meter)
    assert meter.tick(pace, cost_s, 60) == interval_s
    assert bool(pace.note) == (interval_s > 1.0)


def test_it_comes_back_when_ticks_are_cheap_again():
    meter = Meter()
    pace = Pace(WATCHING, meter)
    assert meter.tick(pace, 0.02, 40) == 2.5
    assert meter.tick(pace, 0.004, 40) == 1.0
    assert pace.note == ""


def test_a_start_and_a_single_dear_tick_change_nothing():
    """Imports and the first full look are no part of steady cost; a flush now and then is, with its share only."""
    meter = Meter()
    pace = Pace(WATCHING, meter)
    assert meter.tick(pace, 0.4, 3) == 1.0
    meter.tick(pace, 0.004, 20)
    assert meter.tick(pace, 0.05) == 1.0


@given(cost_ms=st.floats(0.1, 40.0), jitter=st.lists(st.floats(0.97, 1.03), min_size=50, max_size=50))
def test_it_settles(cost_ms: float, jitter: list[float]):
    """The same cost, but for what measuring wavers, does not make it go to and fro; nor is the budget passed."""
    meter = Meter()
    pace = Pace(WATCHING, meter)
    settled_s = meter.tick(pace, cost_ms / 1000.0, 80)
    for one in jitter:
        assert abs(meter.tick(pace, cost_ms / 1000.0 * one) - settled_s) <= 0.5
    assert pace.interval_s == 3.0 or cost_ms / 1000.0 / pace.interval_s <= 0.01


@pytest.mark.parametrize(
    "settings",
    [
        replace(WATCHING, mode=Mode.APPLY),
        replace(WATCHING, partitions=PARTITIONS),
        replace(WATCHING, budget_ratio=0.0),
    ],
)
def test_who_acts_or_plans_keeps_its_interval(settings: Settings):
    meter = Meter()
    assert meter.tick(Pace(settings, meter), 0.5, 60) == 1.0


def test_an_agent_goes_at_its_pace_and_says_so():
    """Each tick is said to have cost 17 ms: they end up 2 s apart, and the notes tell; asking calls one at once."""
    meter = Meter()

    def used_s() -> float:
        meter.used_s += 0.017
        return meter.used_s

    host = SimulatedHost(1, workloads=(JOB,))
    agent = Agent(host=host, settings=WATCHING, pace=Pace(WATCHING, used_s))
    stamps: list[float] = []
    agent.on_tick = stamps.append
    agent.run(threading.Event(), 40.0)

    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    assert gaps[0] == pytest.approx(1.0, abs=0.01)
    assert gaps[-3:] == pytest.approx([2.0] * 3, abs=0.01)
    assert any("every 2 s, not every 1 s" in note for note in agent.report.notes)
    assert agent.report.late_count == 0
    before_s = host.now_s()
    host.wake()
    agent.run(threading.Event(), 1.0)
    assert stamps[-1] - before_s < 1.0
    agent.close()
