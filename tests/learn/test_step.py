# SPDX-License-Identifier: Apache-2.0
"""Forecasts scored against what came, actions judged, trust lost and regained."""

import numpy as np
import pytest

from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import LimitKind, PageIn, PageOut, Reason, SetLimit
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.learn import Learner, neutral_corrections, outcomes, scores, step
from tests.profile.test_update import SETTINGS, observation, update
from tests.profile.test_update import ProfileState as State

MIB = 1 << 20
WHY = Reason(code="test", text="test")
JOB = WorkloadId("job")


def forecasts(time_s, top):
    """A forecast whose quantiles are 100, 200 and `top` MiB."""
    values = np.array([100.0, 200.0, top]) * MIB
    return Forecasts(
        made_at_s=time_s,
        ids=(JOB,),
        horizons_s=(3.0,),
        levels=(0.5, 0.9, 0.99),
        quantiles_bytes=values[np.newaxis, np.newaxis, :].copy(),
        historic_peak_bytes=np.zeros(1, np.int64),
        startup_peak_bytes=np.zeros(1, np.int64),
        is_warm=np.ones(1, np.bool_),
        leaders=("test",),
    )


def applied(kind, time_s, size=100, action_id=1):
    process = Instance(pid=7, start_ticks=1)
    if kind is SetLimit:
        action = SetLimit(
            partition="p",
            cgroup=CgroupPath("job"),
            kind=LimitKind.LIMIT,
            from_bytes=900 * MIB,
            to_bytes=size * MIB,
            reason=WHY,
        )
    else:
        action = kind(partition="p", workload=JOB, process=process, size_bytes=size * MIB, reason=WHY)
    return Applied(
        action_id=action_id,
        action=action,
        status=Status.DONE,
        at_s=time_s,
        done_bytes=size * MIB,
        duration_s=0.1,
        cpu_s=0.1,
    )


class Run:
    """Feeds a learner one observation a second."""

    def __init__(self):
        self.learner, self.state, self.time_s, self.cpu_s = Learner(), State(), 0.0, 0.0
        self.corrections = neutral_corrections(())

    def tick(self, *, actions=(), busy=True, top=300.0, **seen):
        self.cpu_s += 0.5 if busy else 0.0
        look = observation(self.time_s, self.cpu_s, **seen)
        self.state, profiles = update(self.state, look, SETTINGS)
        self.learner, self.corrections = step(self.learner, look, profiles, forecasts(self.time_s, top), tuple(actions))
        self.time_s += 1.0
        return self.corrections

    def settle(self, **seen):
        for _ in range(8):
            self.tick(**seen)


def test_neutral_corrections_change_nothing():
    """Every factor is 1, nobody is refused."""
    made = neutral_corrections((JOB,))
    assert made.headroom_ratio[0] == made.page_out_allowed_ratio[0] == made.page_in_useful_ratio[0] == 1.0
    assert made.refused_until_s[0] == 0.0


def test_forecasts_are_scored_when_their_horizon_has_passed():
    """Coverage and pinball loss agree with a count by hand; a start is not scored."""
    run = Run()
    run.settle(anon=150)
    before = scores(run.learner)
    for _ in range(10):
        run.tick(anon=150)
    made = scores(run.learner)
    assert made is not None
    assert made.scored_count > (0 if before is None else before.scored_count)
    np.testing.assert_allclose(made.covered_ratio, [0.0, 1.0, 1.0])
    np.testing.assert_allclose(made.pinball_bytes / MIB, [25.0, 5.0, 1.5])


def test_misses_widen_the_headroom_and_holds_narrow_it():
    """As often as the level promises both cancel out."""
    run = Run()
    run.settle(anon=150)
    for _ in range(10):
        wide = run.tick(anon=250)
    for _ in range(100):
        narrow = run.tick(anon=150)
    assert wide.headroom_ratio[0] > 1.2
    assert narrow.headroom_ratio[0] < wide.headroom_ratio[0]


def test_pages_that_are_needed_at_once_were_the_wrong_ones():
    """The workload is left alone for a while, longer after the next mistake, and trusted again in the end."""
    run = Run()
    run.settle()
    run.tick(actions=[applied(PageOut, run.time_s)])
    made = run.tick(major=100 * 256)
    assert outcomes(run.learner)[-1].verdict == "was-needed-again"
    first_s = made.refused_until_s[0] - run.time_s
    assert first_s > 3
    assert made.page_out_allowed_ratio[0] < 0.6
    run.tick(actions=[applied(PageOut, run.time_s)], major=100 * 256)
    made = run.tick(major=200 * 256)
    assert made.refused_until_s[0] - run.time_s > first_s
    for _ in range(400):
        made = run.tick(major=200 * 256)
    assert made.page_out_allowed_ratio[0] > 0.95


def test_pages_that_stay_out_were_the_right_ones():
    """Nothing is held against the workload."""
    run = Run()
    run.settle()
    run.tick(actions=[applied(PageOut, run.time_s)], busy=False)
    for _ in range(4):
        made = run.tick(busy=False)
    assert outcomes(run.learner)[-1].verdict == "held"
    assert made.refused_until_s[0] == 0.0


def test_what_the_agent_brings_back_is_not_held_against_its_page_outs():
    """The kernel counts those pages as the workload's faults."""
    run = Run()
    run.settle()
    run.tick(actions=[applied(PageOut, run.time_s), applied(PageIn, run.time_s, action_id=2)], busy=False)
    for _ in range(4):
        made = run.tick(busy=False, major=100 * 256)
    assert {one.verdict for one in outcomes(run.learner)} == {"held"}
    assert made.refused_until_s[0] == 0.0


@pytest.mark.parametrize(("busy", "word"), [(True, "was-used"), (False, "was-not-used")])
def test_a_page_in_is_judged_by_use(busy, word):
    """A workload that did not run had no use for it; trust returns with time."""
    run = Run()
    run.settle()
    run.tick(actions=[applied(PageIn, run.time_s)], busy=False)
    lowest = min(run.tick(busy=busy).page_in_useful_ratio[0] for _ in range(14))
    assert outcomes(run.learner)[-1].verdict == word
    assert (lowest > 0.99) == busy
    for _ in range(400):
        later = run.tick(busy=busy)
    assert later.page_in_useful_ratio[0] > 0.95


def test_a_learner_is_a_value():
    """The same history teaches the same."""
    runs = [Run(), Run()]
    for run in runs:
        run.settle()
        run.tick(actions=[applied(PageOut, run.time_s), applied(SetLimit, run.time_s, action_id=2)])
        for _ in range(9):
            run.tick(major=500)
    first, second = (run.corrections for run in runs)
    np.testing.assert_array_equal(first.headroom_ratio, second.headroom_ratio)
    np.testing.assert_array_equal(first.refused_until_s, second.refused_until_s)
    assert outcomes(runs[0].learner) == outcomes(runs[1].learner)
