# SPDX-License-Identifier: Apache-2.0
"""Prefetching a phase: when, what, into whose room; and what experience makes of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.phases import Prediction, Sign, Upcoming
from memsculpt.plan import phases
from memsculpt.plan.phases import (
    Experience,
    MoveBudget,
    PrefetchOutcome,
    Standing,
    choose_prefetch,
    judge,
    learn_from,
    what_is_coming,
)
from memsculpt_bench import phase_traces

BLOCK = 64 << 10
A, B, C = np.arange(100), np.arange(100, 200), np.arange(200, 300)
BUDGET = MoveBudget(room_bytes=0, in_bytes_per_s=100 * BLOCK, out_bytes_per_s=100 * BLOCK, interval_s=0.1)


def upcoming(blocks, *, in_s, phase=1, probability=0.9, block_probability=0.9, spread_s=0.0):
    return Upcoming(
        phase=phase,
        sign=Sign.SUCCESSOR,
        probability=probability,
        onset_s=(100.0 + in_s - spread_s, 100.0 + in_s, 100.0 + in_s + spread_s),
        dwell_s=4.0,
        blocks=np.array(blocks),
        block_probability=np.full(len(blocks), block_probability, np.float32),
    )


def foreseen(*ones, in_use=()):
    return Prediction(at_s=100.0, within_s=10.0, upcoming=ones, in_use=np.array(in_use, np.int64))


def standing(resident, blocks=300):
    here = np.zeros(blocks, np.int64)
    here[np.asarray(resident, np.int64)] = BLOCK
    return Standing(blocks=np.arange(blocks), resident_bytes=here, swapped_bytes=BLOCK - here)


def test_what_lies_on_a_slow_node_is_to_come_for_a_phase_too():
    """All of B is in memory, but there; what the pool has not, and more than is in memory, count for nothing."""
    whole = standing([*A, *B])
    there = whole.with_slow(np.array([*B, 400]), np.array([2 * BLOCK] + [BLOCK // 2] * 100))
    assert not len(choose_prefetch(foreseen(upcoming(B, in_s=1.0)), whole, BUDGET, Experience()).bring)
    assert choose_prefetch(foreseen(upcoming(B, in_s=1.0)), there, BUDGET, Experience()).bring.tolist() == B.tolist()
    assert (there.resident_bytes + there.swapped_bytes == whole.resident_bytes + whole.swapped_bytes).all()
    assert there.resident_bytes[100:102].tolist() == [0, BLOCK // 2]


def test_a_phase_comes_back_in_time_and_not_before():
    """One second out, one second in and the margin before the onset; until then the time is told."""
    early = choose_prefetch(foreseen(upcoming(B, in_s=4.0)), standing(A), BUDGET, Experience())
    due = choose_prefetch(foreseen(upcoming(B, in_s=2.2)), standing(A), BUDGET, Experience())

    assert not len(early.bring)
    assert early.next_at_s == pytest.approx(104.0 - 2.0 - phases.MARGIN_S)
    assert due.bring.tolist() == B.tolist()
    assert due.leave.tolist() == A.tolist()


def test_what_is_in_use_stays():
    """A phase that is still under way keeps its memory: only what else is there makes room."""
    choice = choose_prefetch(foreseen(upcoming(B, in_s=0.5), in_use=A[:60]), standing(A), BUDGET, Experience())

    assert len(choice.bring) == 40
    assert choice.leave.tolist() == A[60:].tolist()


def test_what_is_used_last_leaves_first():
    """Of two other sets the one that is due later makes room, and of its blocks no more than are needed."""
    prediction = foreseen(upcoming(A, in_s=5.0, phase=0), upcoming(B, in_s=0.5), upcoming(C, in_s=9.0, phase=2))
    choice = choose_prefetch(prediction, standing([*A, *C]), replace(BUDGET, room_bytes=30 * BLOCK), Experience())

    assert set(choice.leave.tolist()) <= set(C.tolist())
    assert len(choice.leave) == 70


def test_what_is_needed_earlier_and_as_surely_stays():
    """Bringing back C may not take B, which comes before it."""
    prediction = foreseen(upcoming(B, in_s=0.1), upcoming(C, in_s=0.5, phase=2))
    choice = choose_prefetch(prediction, standing(B), BUDGET, Experience())

    assert not len(choice.leave)
    assert not len(choice.bring)


def test_the_likeliest_blocks_come_when_room_is_short():
    """Half the room: the half that is likelier."""
    one = upcoming(B, in_s=0.1)
    chance = np.linspace(0.6, 0.95, len(B)).astype(np.float32)
    choice = choose_prefetch(
        foreseen(replace(one, block_probability=chance)),
        standing([]),
        replace(BUDGET, room_bytes=50 * BLOCK),
        Experience(),
    )

    assert choice.bring.tolist() == B[50:].tolist()


@pytest.mark.parametrize("changes", [{"probability": 0.3}, {"block_probability": 0.3}])
def test_what_is_unlikely_stays_out(changes):
    """Neither an unlikely phase nor unlikely blocks are worth it."""
    choice = choose_prefetch(foreseen(upcoming(B, in_s=0.1, **changes)), standing([]), BUDGET, Experience())

    assert not len(choice.bring)


def test_a_prefetch_is_judged_by_what_was_touched():
    """60 of 100 brought were touched, and 40 that were not brought; half of the move was done at the onset."""
    room = replace(BUDGET, room_bytes=100 * BLOCK)
    choice = choose_prefetch(foreseen(upcoming(B, in_s=0.1)), standing([]), room, Experience())
    touched = np.array([*B[:60], *C[:40]])
    outcome = judge(choice, touched, began_s=100.0, done_s=101.0, onset_s=100.5, is_alone=True)

    assert outcome == PrefetchOutcome(blocks=100, precision=0.6, recall=0.6, timeliness=0.5, gain=0.6)


def test_what_left_for_it_and_was_needed_counts_against_it():
    """Bringing 100 blocks back that are used gains nothing where 80 that are used as well had to leave for them."""
    choice = choose_prefetch(foreseen(upcoming(B, in_s=0.1)), standing(A), BUDGET, Experience())
    outcome = judge(choice, np.array([*A[:80], *B]), began_s=100.0, done_s=100.1, onset_s=100.5, is_alone=True)
    twice = learn_from(learn_from(Experience(), outcome, 10.0), outcome, 20.0)

    assert (outcome.precision, outcome.gain) == (1.0, pytest.approx(0.2))
    assert twice.paused_until_s == 20.0 + phases.PAUSE_S


def test_what_is_coming_is_told_whatever_room_there_is():
    """All that each lacks and what could leave for it; nothing while what was brought was not touched."""
    ahead = foreseen(upcoming(B, in_s=2.0), upcoming(C, in_s=6.0, phase=2), in_use=A[:60])
    rates = {"in_bytes_per_s": 1e6, "out_bytes_per_s": 2e6}
    first, second = what_is_coming(ahead, standing(A), Experience(margin_s=0.7), **rates)

    assert (first.phase, first.lacking_bytes, first.spare_bytes) == (1, 100 * BLOCK, 40 * BLOCK)
    assert (second.phase, second.lacking_bytes, second.spare_bytes) == (2, 100 * BLOCK, 40 * BLOCK)
    assert (first.margin_s, first.in_bytes_per_s, first.out_bytes_per_s) == (0.7, 1e6, 2e6)
    assert what_is_coming(ahead, standing(A), Experience(paused_until_s=101.0), **rates) == ()
    only = choose_prefetch(ahead, standing(A), replace(BUDGET, interval_s=math.inf), Experience(), phase=2)
    assert set(only.bring.tolist()) <= set(C.tolist())
    assert len(only.bring) == 40


def test_experience_makes_it_surer_earlier_and_stops_it():
    """Waste raises the bar, being late makes it earlier, and what is never touched ends it for a time that doubles."""
    useless = PrefetchOutcome(blocks=100, precision=0.0, recall=0.0, timeliness=0.0)
    once = learn_from(Experience(), useless, 10.0)
    twice = learn_from(once, useless, 20.0)
    again = learn_from(learn_from(twice, useless, 60.0), useless, 70.0)

    assert once.least_probability > Experience().least_probability
    assert once.margin_s > Experience().margin_s
    assert twice.paused_until_s == 20.0 + phases.PAUSE_S
    assert again.paused_until_s == 70.0 + 2 * phases.PAUSE_S
    choice = choose_prefetch(
        foreseen(upcoming(B, in_s=0.1)), standing([]), BUDGET, replace(twice, paused_until_s=101.0)
    )
    assert choice.reason.code == "paused"


def test_a_handful_of_blocks_teaches_little():
    """Ten wasted blocks after thousands of good ones change nothing."""
    good = learn_from(Experience(), PrefetchOutcome(blocks=5000, precision=1.0, recall=1.0, timeliness=1.0), 1.0)
    after = good
    for at in range(20):
        after = learn_from(after, PrefetchOutcome(blocks=10, precision=0.0, recall=0.0, timeliness=1.0), 2.0 + at)

    assert after.precision > 0.95
    assert after.least_probability == good.least_probability


@given(
    resident=st.sets(st.integers(0, 299)),
    in_use=st.sets(st.integers(0, 299)),
    room=st.integers(0, 200),
    sets=st.lists(
        st.tuples(st.sets(st.integers(0, 320), min_size=1), st.floats(0.0, 9.0), st.floats(0.0, 1.0)), max_size=4
    ),
)
def test_a_choice_fits_and_takes_nothing_that_is_needed(resident, in_use, room, sets):
    """What comes was out and is wanted, what leaves was there and not in use, and both together fit."""
    ones = [
        upcoming(sorted(blocks), in_s=in_s, probability=max(probability, 0.01), phase=number)
        for number, (blocks, in_s, probability) in enumerate(sets)
    ]
    choice = choose_prefetch(
        foreseen(*ones, in_use=sorted(in_use)),
        standing(sorted(resident)),
        replace(BUDGET, room_bytes=room * BLOCK),
        Experience(),
    )
    bring, leave = set(choice.bring.tolist()), set(choice.leave.tolist())

    assert not bring & resident
    assert leave <= resident - in_use
    assert len(bring) <= room + len(leave)
    assert len(leave) <= len(bring)
    if bring:
        assert set(choice.absent.tolist()) == (set(range(300)) - resident - bring) | leave


def tally(arm, *sets, order=None, room=900, seed=3, **changes):
    trace = phase_traces.alternating(
        sets, order or range(len(sets)), blocks=2400, rng=np.random.default_rng(seed), **changes
    )
    return phase_traces.run(trace, room, phase_traces.ARMS[arm])


# A set is 800 blocks of 2,400; memory holds 900.
BIG = (np.arange(800), np.arange(800, 1600), np.arange(1600, 2400))


@pytest.mark.parametrize(
    ("count", "order", "changes"),
    [
        (2, (0, 1), {}),
        (3, (0, 1, 2), {}),
        (3, (0, 1, 0, 2), {"periods": 7, "late_period": 3}),
        (3, (0, 1, 2), {"jitter": 0.2}),
        (2, (0, 1), {"drift": 0.05, "room": 950}),
    ],
    ids=["alternating", "three", "order of four", "jitter", "drift"],
)
def test_after_three_periods_the_figures_hold_on_traces(count, order, changes):
    """Recall 0.9 and precision 0.85, and a quarter of the faults of the replay at most."""
    ours = tally("memsculpt", *BIG[:count], order=order, **changes)
    replay = tally("replay", *BIG[:count], order=order, **changes)

    assert ours.recall >= 0.9
    assert ours.precision >= 0.85
    assert ours.faults <= replay.faults / 4


def test_without_a_pause_nothing_can_be_done_ahead():
    """One set follows the other at once, and memory holds one: the learner is as good as the replay, and no worse."""
    ours, replay = (tally(arm, *BIG[:2], pause_s=0.0) for arm in ("memsculpt", "replay"))

    assert ours.faults <= replay.faults


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_without_a_pattern_nothing_is_moved(share):
    """Uniformly random touches: nothing is brought, so nothing is lost."""
    trace = phase_traces.uniform(blocks=2400, share=share, steps=100, rng=np.random.default_rng(1))
    ours = phase_traces.run(trace, 900, phase_traces.learnt)

    assert ours.brought == 0
    assert math.isnan(ours.precision)
