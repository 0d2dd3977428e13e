# SPDX-License-Identifier: Apache-2.0
"""Forecasts scored against what came, actions judged, trust lost and regained; sizes in MiB, a tick a second."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.outcome import Applied, Corrections, Status
from memsculpt.domain.plan import LimitKind, PageIn, PageOut, Reason, SetLimit
from memsculpt.domain.settings import MIB
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.learn import Learner, neutral_corrections, outcomes, scores, step
from memsculpt.learn.corrections import HEADROOM_LEAST, HEADROOM_MOST, REFUSE_FIRST_S, REFUSE_MOST_S
from tests.forecast.world import profiles
from tests.profile.world import Job, see

WHY = Reason(code="test", text="test", figures={})  # a plain dict: it can be pickled
LEVELS = (0.5, 0.9, 0.99)
PAGES = 256  # in a MiB


def done(kind, size=100, *, status=Status.DONE, workload="job", came=None) -> Applied:
    process = Instance(pid=7, start_ticks=1)
    action = kind(partition="p", workload=WorkloadId(workload), process=process, size_bytes=size * MIB, reason=WHY)
    return applied(action, status, size if came is None else came)


def limited(from_mib, to_mib) -> Applied:
    return applied(
        SetLimit(
            partition="p",
            cgroup=CgroupPath("job"),
            kind=LimitKind.LIMIT,
            from_bytes=from_mib * MIB,
            to_bytes=to_mib * MIB,
            reason=WHY,
        ),
        Status.DONE,
        to_mib,
    )


def applied(action, status, done_mib) -> Applied:
    return Applied(
        action_id=1,
        action=action,
        status=status,
        at_s=0.0,
        done_bytes=done_mib * MIB,
        duration_s=0.1,
        cpu_s=0.1,
    )


class Run:
    """A learner and its clock."""

    def __init__(self):
        self.learner, self.time_s, self.stalled_s = Learner(), 100.0, 0.0
        self.last: Corrections = neutral_corrections(())

    def arguments(
        self, *actions, need=150.0, faulted=0.0, idle=False, stall=0.0, ids=("job",), quantiles=None, **flags
    ):
        """One tick: `faulted` MiB came in by major faults, the host stood still for `stall` of the second."""
        self.time_s += 1.0
        self.stalled_s += stall
        seen = see(self.time_s, *(Job(name=name) for name in ids))
        seen = replace(
            seen,
            memory=replace(seen.memory, full_stall_s=self.stalled_s),
            workloads=replace(seen.workloads, cgroups=tuple(CgroupPath(name) for name in ids)),
        )
        count = len(ids)
        known = profiles(self.time_s, [need] * count, ids=ids, idle_s=[float(idle)] * count, **flags)
        known = replace(known, major_faults_per_s=np.full(count, faulted * PAGES))
        row = np.array(quantiles or (100.0, 200.0, 300.0)) * MIB
        made = Forecasts(
            made_at_s=self.time_s,
            ids=known.ids,
            horizons_s=(3.0, 10.0),
            levels=LEVELS,
            quantiles_bytes=np.tile(row, (count, 2, 1)),
            historic_peak_bytes=np.zeros(count, np.int64),
            startup_peak_bytes=np.zeros(count, np.int64),
            is_warm=np.ones(count, np.bool_),
            leaders=("test",) * count,
        )
        return seen, known, made, tuple(actions)

    def tick(self, *actions, **facts) -> Corrections:
        self.learner, self.last = step(self.learner, *self.arguments(*actions, **facts))
        return self.last

    def ticks(self, count, **facts) -> Corrections:
        for _ in range(count):
            self.tick(**facts)
        return self.last

    def verdicts(self) -> list[str]:
        return [each.verdict for each in outcomes(self.learner)]

    def refused_for_s(self) -> float:
        return float(self.last.refused_until_s[0]) - self.time_s


# --- an empty learner ------------------------------------------------------------------------------------------------


def test_without_experience_nothing_is_corrected():
    """`Learner()` has no scores and no outcomes, and its first corrections are the neutral ones."""
    run = Run()
    assert scores(run.learner) is None
    assert outcomes(run.learner) == ()

    first, neutral = run.tick(), neutral_corrections((WorkloadId("job"),))

    assert first.ids == neutral.ids
    for name in ("headroom_ratio", "page_out_allowed_ratio", "page_in_useful_ratio"):
        assert getattr(first, name).tolist() == getattr(neutral, name).tolist() == [1.0]
    assert first.refused_until_s.tolist() == neutral.refused_until_s.tolist() == [0.0]
    assert first.backoff_until_s == 0.0


def test_a_host_without_workloads_is_learnt_from_too():
    """No rows in, no rows out."""
    run = Run()

    assert run.ticks(5, ids=()).ids == ()
    assert scores(run.learner) is None


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_a_forecast_is_scored_when_its_horizon_has_passed_and_not_before():
    """The first forecast is due at the third tick after it, and then one comes due each second."""
    run, counts = Run(), []
    for _ in range(6):
        run.tick()
        found = scores(run.learner)
        counts.append(0 if found is None else found.scored_count)

    assert counts == [0, 0, 0, 1, 2, 3]


def test_coverage_and_loss_agree_with_a_count_by_hand():
    """Peaks of 150 and 250 against quantiles of 100, 200 and 300 MiB."""
    run = Run()
    run.ticks(4, need=150.0)
    first = scores(run.learner)
    assert first is not None
    # 0.5 x (150 - 100), 0.1 x (200 - 150), 0.01 x (300 - 150)
    assert (first.pinball_bytes / MIB).tolist() == pytest.approx([25.0, 5.0, 1.5])
    assert first.covered_ratio.tolist() == [0.0, 1.0, 1.0]

    run.tick(need=250.0)  # is the peak of the forecast that is due now: the highest of its three seconds
    last = run.last
    second = scores(run.learner)

    assert second is not None
    # the second one: 0.5 x (250 - 100), 0.9 x (250 - 200), 0.01 x (300 - 250)
    assert (second.pinball_bytes / MIB).tolist() == pytest.approx([50.0, 25.0, 1.0])
    assert second.covered_ratio.tolist() == [0.0, 0.5, 1.0]
    assert (second.horizon_s, second.levels) == (3.0, LEVELS)
    assert (last.scored_count[0], last.covered_ratio[0]) == (2, 1.0)
    assert last.pinball_bytes[0] / MIB == pytest.approx(25.0)


def test_forecasts_made_while_starting_are_not_scored():
    """A start is another life; what was forecast in it says nothing."""
    run = Run()
    run.ticks(5, starting=True)
    assert scores(run.learner) is None

    run.ticks(4)

    found = scores(run.learner)
    assert found is not None
    assert found.scored_count == 1


def test_a_workload_that_went_away_is_not_scored():
    """A peak that was seen only in part is no truth; the others are scored as always."""
    run = Run()
    run.ticks(2, ids=("gone", "job"))
    run.ticks(4, ids=("job",))

    found = scores(run.learner)

    assert found is not None
    assert found.scored_count == 3


def test_misses_widen_the_headroom_and_holds_bring_it_back():
    """Both stay within their bounds, and at the level's own share of misses nothing moves for long."""
    run = Run()

    wide = float(run.ticks(40, need=250.0).headroom_ratio[0])
    narrow = float(run.ticks(400, need=150.0).headroom_ratio[0])

    assert wide == HEADROOM_MOST
    assert narrow == HEADROOM_LEAST


def test_headroom_stays_where_it_is_when_one_forecast_in_ten_misses():
    """At the planner's level (0.9) one miss and nine holds cancel out."""
    run = Run()
    run.ticks(4)
    for tick in range(120):
        # a forecast of one second's reach is missed by one peak only
        run.tick(need=250.0 if tick % 30 == 0 else 150.0)

    assert 0.9 <= run.last.headroom_ratio[0] <= 1.1


# --- page-out --------------------------------------------------------------------------------------------------------


def test_pages_missed_at_once_are_a_mistake_and_the_workload_is_left_alone():
    """A fifth of what left coming back by faults within 2.5 s halves the trust and refuses for a while."""
    run = Run()
    run.tick(done(PageOut, 100))
    run.tick(faulted=21.0)

    assert run.verdicts() == ["was-needed-again"]
    assert run.refused_for_s() == REFUSE_FIRST_S
    assert run.last.page_out_allowed_ratio.tolist() == [0.5]
    assert outcomes(run.learner)[0].came_bytes == 79 * MIB


@pytest.mark.parametrize("faulted", [0.0, 5.0])
def test_pages_that_stay_out_were_the_right_ones(faulted):
    """A few faults are no mistake; after 2.5 s the page-out held."""
    run = Run()
    run.tick(done(PageOut, 100))
    run.ticks(3, faulted=faulted)

    assert run.verdicts() == ["held"]
    assert run.refused_for_s() < 0.0
    assert run.last.page_out_allowed_ratio.tolist() == [1.0]


def test_every_further_mistake_refuses_for_longer_up_to_a_bound():
    """The time doubles while mistakes follow one another, and never passes two minutes."""
    run, refused = Run(), []
    for _ in range(8):
        run.tick(done(PageOut, 100))
        run.tick(faulted=100.0)
        refused.append(run.refused_for_s())

    assert refused == [5.0, 10.0, 20.0, 40.0, 80.0, REFUSE_MOST_S, REFUSE_MOST_S, REFUSE_MOST_S]


def test_a_small_mistake_weighs_little():
    """Two MiB of 100 that were missed must not keep the workload from giving much more when it next rests."""
    run = Run()
    run.tick(done(PageOut, 2))
    run.tick(faulted=100.0)

    assert run.verdicts() == ["was-needed-again"]
    assert 0.0 < run.refused_for_s() < 0.2 * REFUSE_FIRST_S
    assert 0.9 < run.last.page_out_allowed_ratio[0] < 1.0


def test_a_mistake_is_forgiven_with_time():
    """Trust comes back halfway in a minute, and the next mistake then costs what the first one did."""
    run = Run()
    run.tick(done(PageOut, 100))
    run.tick(faulted=100.0)
    half = run.ticks(60).page_out_allowed_ratio[0]
    whole = run.ticks(600).page_out_allowed_ratio[0]
    run.tick(done(PageOut, 100))
    run.tick(faulted=100.0)

    assert half == pytest.approx(0.75, abs=0.01)
    assert whole > 0.999
    assert run.refused_for_s() == REFUSE_FIRST_S


def test_what_the_agent_brings_back_is_not_the_workloads_fault():
    """The kernel counts pages that the agent faults in among the workload's major faults; they are taken off."""
    run = Run()
    run.tick(done(PageOut, 100))
    run.tick(done(PageIn, 60))
    run.tick(faulted=60.0)
    run.tick()

    assert "was-needed-again" not in run.verdicts()
    assert run.last.page_out_allowed_ratio.tolist() == [1.0]


@pytest.mark.parametrize("status", [Status.REHEARSED, Status.FAILED, Status.LEFT_ALONE])
def test_what_was_not_done_is_not_judged(status):
    """A rehearsed or failed action has no outcome, whatever happens next."""
    run = Run()
    run.tick(done(PageOut, 100, status=status), done(PageIn, 50, status=status))
    run.ticks(14, faulted=100.0)

    assert run.verdicts() == []


# --- page-in ---------------------------------------------------------------------------------------------------------


def test_a_page_in_that_was_used_is_known_at_once():
    """The workload ran: it was worth it, and the trust stays whole."""
    run = Run()
    run.tick(done(PageIn, 100), idle=True)
    run.tick(idle=True)
    assert run.verdicts() == []

    run.tick(idle=False)

    assert run.verdicts() == ["was-used"]
    assert run.last.page_in_useful_ratio.tolist() == [1.0]


def test_useless_page_ins_lose_trust_and_it_recovers():
    """Twelve seconds without a run are the verdict; use and time both bring the trust back."""
    run = Run()
    run.tick(done(PageIn, 100), idle=True)
    first = run.ticks(12, idle=True).page_in_useful_ratio[0]
    run.tick(done(PageIn, 100), idle=True)
    second = run.ticks(12, idle=True).page_in_useful_ratio[0]
    later = run.ticks(300, idle=True).page_in_useful_ratio[0]

    assert run.verdicts() == ["was-not-used"] * 2
    assert first == pytest.approx(0.7)
    assert second < first
    assert later > 0.95


# --- limits and the host ---------------------------------------------------------------------------------------------


def test_a_lowered_limit_that_is_hit_was_a_mistake():
    """Nothing more is taken from a workload whose limit of ours hurt."""
    run = Run()
    run.tick(limited(900, 500))
    run.tick(hit=True)

    assert run.verdicts() == ["was-hit"]
    assert run.refused_for_s() == REFUSE_FIRST_S


def test_a_lowered_limit_that_holds_costs_nothing_and_a_raised_one_is_not_watched():
    """Five quiet seconds are the verdict; raising a limit can hurt nobody."""
    run = Run()
    run.tick(limited(900, 500), limited(500, 800))
    run.ticks(5)

    assert run.verdicts() == ["held"]
    assert run.last.page_out_allowed_ratio.tolist() == [1.0]


def test_the_agent_holds_still_when_the_host_stalls_right_after_it_took_pages():
    """More than 40 % of a second without progress, within five seconds of a page-out, and the reason is told."""
    run = Run()
    run.tick(done(PageOut, 100))
    run.tick(stall=0.5)

    assert run.last.backoff_until_s == run.time_s + 5.0
    assert "50%" in run.last.backoff_reason


@pytest.mark.parametrize(("took", "quiet_ticks", "stall"), [(False, 0, 0.9), (True, 5, 0.9), (True, 0, 0.39)])
def test_a_stall_that_is_not_ours_does_not_stop_the_agent(took, quiet_ticks, stall):
    """Without a page-out of ours, long after it, or when the stall is small, the agent goes on."""
    run = Run()
    run.tick(*([done(PageOut, 100)] if took else []))
    run.ticks(quiet_ticks)
    run.tick(stall=stall)

    assert run.last.backoff_until_s == 0.0


# --- a learner is a value --------------------------------------------------------------------------------------------


def test_corrections_follow_the_workload_and_not_its_row():
    """Experience stays with the identity when neighbours come and go, and through an absence."""
    run = Run()
    run.tick(done(PageOut, 100), ids=("job",))
    run.tick(faulted=100.0, ids=("a", "job"))
    assert run.last.page_out_allowed_ratio.tolist() == [1.0, 0.5]

    run.ticks(3, ids=("a",))
    run.tick(ids=("a", "job", "z"))

    assert run.last.page_out_allowed_ratio[0] == run.last.page_out_allowed_ratio[2] == 1.0
    assert run.last.page_out_allowed_ratio[1] < 0.6


def test_the_same_history_teaches_the_same_and_nothing_given_is_changed():
    """`step` is a function: equal input, equal output, input untouched."""
    run = Run()
    plans = [(done(PageOut, 100),), (), (done(PageIn, 50), limited(900, 500)), (), (), ()]
    for actions in plans:
        given = run.arguments(*actions, faulted=3.0)
        state = (run.learner.waiting, run.learner.trials, dict(run.learner.experiences), run.learner.outcomes)
        before = pickle.dumps((state, given))
        (first, said), (second, again) = (step(run.learner, *given) for _ in range(2))

        assert pickle.dumps((state, given)) == before
        assert dict(first.experiences) == dict(second.experiences)
        assert (first.trials, first.outcomes) == (second.trials, second.outcomes)
        assert pickle.dumps(said) == pickle.dumps(again)
        run.learner = first


def test_only_the_latest_outcomes_are_kept():
    """A long life does not grow the learner: 256 outcomes, the latest last."""
    run = Run()
    for _ in range(300):
        run.tick(done(PageOut, 100))
    run.ticks(5)

    kept = outcomes(run.learner)
    assert len(kept) == 256
    assert {each.verdict for each in kept} == {"held"}
