# SPDX-License-Identifier: Apache-2.0
"""Phases: sets that come back are told apart, foretold with a time, and nothing is foretold where there is none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.phases import Sight, Sign
from memsculpt.profile import phase_outlook, phase_sets, phases, slots
from memsculpt.profile.phases import PHASES_MOST, PhaseState
from memsculpt_bench import phase_traces

POOL = 2400
A, B, C = np.arange(800), np.arange(800, 1600), np.arange(1600, 2400)


def watched(trace, *, base=0, state=None):
    """The state after a whole trace, block numbers from `base` on."""
    state = state or PhaseState()
    begin_s = 0.0 if np.isnan(state.at_s) else state.at_s
    for number, touched in enumerate(trace.looks):
        at_s = begin_s + (number + 1) * trace.step_s
        state = phases.update(state, Sight(at_s=at_s, blocks=touched + base, blocks_in_pool=trace.blocks))
    return state


def come_back(state):
    return [one for one in state.phases if one.blocks.occurrences > 1]


def likely(one):
    return set(one.blocks[one.block_probability >= 0.5].tolist())


def alternating(*sets, order=None, seed=1, **changes):
    order = order or range(len(sets))
    return phase_traces.alternating(sets, order, blocks=POOL, rng=np.random.default_rng(seed), **changes)


@pytest.mark.parametrize("pause_s", [0.0, 1.5])
def test_alternating_sets_are_two_phases(pause_s):
    """Every occurrence is found, and the sets are those of the program."""
    state = watched(alternating(A, B, pause_s=pause_s, periods=6))

    assert len(come_back(state)) == len(state.phases) == 2
    cores = [set(np.flatnonzero(slots.flags_of(one.blocks.core)).tolist()) for one in come_back(state)]
    assert all(min(len(core ^ set(one.tolist())) for one in (A, B)) < 20 for core in cores)


def test_what_comes_next_is_foretold_with_its_time():
    """In a fixed order of three, after B and its pause comes C, at the time at which it always did."""
    trace = alternating(A, B, C, periods=5, late_period=4)
    in_b = trace.late_from + 8 + 3 + 8  # the last step of B in the last period
    state = watched(phase_traces.Trace(blocks=POOL, step_s=0.5, looks=trace.looks[:in_b], late_from=0))

    foreseen = phase_outlook.predict(state, state.at_s, 5.0)
    soon = [one for one in foreseen.upcoming if one.sign is not Sign.CURRENT]

    assert len(likely(soon[0]) ^ set(C.tolist())) < 20
    assert soon[0].probability > 0.7
    assert soon[0].onset_s[1] - state.at_s == pytest.approx(1.5, abs=0.5)


def test_what_the_phase_before_it_decides_is_learnt():
    """A is followed by B and C in turn: who came before A tells which it is."""
    trace = alternating(A, B, C, order=(0, 1, 0, 2), periods=6, late_period=5)
    for steps, expected in ((8, B), (8 + 3 + 8 + 3 + 8, C)):
        looks = trace.looks[: trace.late_from + steps]
        state = watched(phase_traces.Trace(blocks=POOL, step_s=0.5, looks=looks, late_from=0))
        foreseen = phase_outlook.predict(state, state.at_s, 3.0)
        likeliest = max(
            (one for one in foreseen.upcoming if one.sign is not Sign.CURRENT), key=lambda one: one.probability
        )

        assert len(likely(likeliest) ^ set(expected.tolist())) < 20


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_workload_without_a_pattern_is_left_alone(share):
    """Nothing that may be brought back is ever foretold of uniformly random touches."""
    trace = phase_traces.uniform(blocks=POOL, share=share, steps=120, rng=np.random.default_rng(5))
    state = PhaseState()
    for number, touched in enumerate(trace.looks):
        state = phases.update(state, Sight(at_s=0.5 * (number + 1), blocks=touched, blocks_in_pool=POOL))
        foreseen = phase_outlook.predict(state, state.at_s, 5.0)
        assert not [one for one in foreseen.upcoming if one.sign is not Sign.CURRENT]


def test_a_change_of_regime_is_forgotten_and_learnt():
    """When A and B give way to C and a new set, these are foretold, and the old ones no longer are."""
    state = watched(alternating(A, B, periods=5))
    state = watched(alternating(C, np.arange(400, 1200), periods=5, seed=2), state=state)

    foreseen = phase_outlook.predict(state, state.at_s, 12.0)

    sets = [likely(one) for one in foreseen.upcoming]
    assert len(sets) == 2
    assert all(min(len(one ^ set(C.tolist())), len(one ^ set(range(400, 1200)))) < 30 for one in sets)


def test_a_change_that_comes_before_a_phase_foretells_it():
    """A phase at irregular times, always 2 s after a rise of I/O, is announced by the next rise."""
    state = PhaseState()
    at_s = 0.0

    def look(blocks, io=0.0):
        nonlocal state, at_s
        at_s += 0.5
        state = phases.update(state, Sight(at_s=at_s, blocks=blocks, blocks_in_pool=POOL, io_bytes_per_s=io))

    for pause in (9, 31, 14, 47, 22):
        for _ in range(pause):
            look(np.empty(0, np.int64))
        for _ in range(4):
            look(np.empty(0, np.int64), io=1e8)
        for _ in range(4):
            look(A, io=1e8)
    for _ in range(17):
        look(np.empty(0, np.int64))
    assert not [one for one in phase_outlook.predict(state, at_s, 4.0).upcoming if one.sign is Sign.TRIGGER]
    look(np.empty(0, np.int64), io=1e8)

    (announced,) = phase_outlook.predict(state, at_s, 4.0).upcoming

    assert announced.sign is Sign.TRIGGER
    assert announced.probability >= 0.5
    assert 1.0 <= announced.onset_s[1] - at_s <= 2.0


@pytest.mark.parametrize(("first", "stride"), [(0, 1), (0, 3), (2000, -2)])
def test_a_walk_is_foretold(first, stride):
    """Blocks at a stride, up or down: the next ones are named, at the pace at which they come."""
    state = PhaseState()
    for number in range(5):
        blocks = np.sort(first + stride * np.arange(number * 20, (number + 1) * 20))
        state = phases.update(state, Sight(at_s=1.0 + number, blocks=blocks, blocks_in_pool=POOL))

    walk = next(one for one in phase_outlook.predict(state, state.at_s, 1.0).upcoming if one.sign is Sign.STREAM)

    assert walk.blocks.tolist() == sorted(first + stride * number for number in range(100, 120))


def test_a_slow_walk_beside_others_is_one_phase():
    """A table that is read from begin to end, over many looks, is one set, whoever else touches a few blocks."""
    state, table = PhaseState(), np.arange(50_000, 50_800)
    for period in range(3):
        for step in range(12):
            part = table[step * 100 : (step + 1) * 100]
            besides = np.arange(4) + 20 * (step % 3)
            blocks = np.concatenate((besides, part))
            state = phases.update(state, Sight(at_s=12.0 * period + step + 1.0, blocks=blocks, blocks_in_pool=POOL))

    (known,) = state.phases

    assert known.blocks.occurrences == 3
    assert slots.size_of(known.blocks.core) >= len(table)


def test_the_history_of_blocks_tells_noise_from_drift():
    """What came once and never came back is not believed the next time; what stays once it has come is."""
    rng = np.random.default_rng(4)
    chances = []
    for lasts in (True, False):
        numbers = np.arange(4096)
        places = slots.extended(slots.Slots(), numbers)
        members = set(range(1000))
        known = None
        fresh = np.empty(0, np.int64)
        for _ in range(9):
            fresh = rng.choice(np.arange(1000, 4000), 200, replace=False)
            if lasts:
                members = set(rng.permutation(sorted(members))[200:].tolist()) | set(fresh.tolist())
            seen = slots.bits_of(places, np.unique(np.append(np.fromiter(members, np.int64), fresh)))
            known = phase_sets.first_set(seen) if known is None else phase_sets.seen_again(known, seen, places)
        blocks, chance = phase_sets.block_probability(known, places)
        once = np.isin(blocks, fresh) & ~np.isin(blocks, np.arange(1000) if not lasts else [])
        chances.append(float(np.median(chance[once])) if once.any() else 0.0)

    assert chances[0] > 0.6
    assert chances[1] < 0.4


@settings(max_examples=25)
@given(
    looks=st.lists(
        st.tuples(st.floats(0.01, 5.0), st.sets(st.integers(0, 1 << 33), max_size=40)), min_size=1, max_size=20
    ),
    within_s=st.floats(0.0, 30.0),
)
def test_whatever_is_seen_the_prediction_is_in_bounds(looks, within_s):
    """Probabilities are such, quantiles ascend from now on, blocks ascend and were seen or lie on a walk."""
    state, at_s = PhaseState(), 0.0
    ever = set()
    for step_s, blocks in looks:
        at_s += step_s
        ever |= blocks
        state = phases.update(state, Sight(at_s=at_s, blocks=np.array(sorted(blocks), np.int64)))
        foreseen = phase_outlook.predict(state, at_s, within_s)
        for one in foreseen.upcoming:
            assert 0.0 < one.probability <= 1.0
            assert at_s <= one.onset_s[0] <= one.onset_s[1] <= one.onset_s[2]
            assert (np.diff(one.blocks) > 0).all()
            assert ((one.block_probability >= 0.0) & (one.block_probability <= 1.0)).all()
            assert one.sign is Sign.STREAM or set(one.blocks.tolist()) <= ever
        assert len(state.phases) <= PHASES_MOST


@settings(max_examples=8)
@given(seed=st.integers(0, 1 << 16), base=st.integers(0, 1 << 30))
def test_the_numbering_of_blocks_does_not_matter(seed, base):
    """A pool that lies elsewhere is learnt alike."""
    trace = alternating(A[:40], B[:40], periods=3, seed=seed)
    here = phase_outlook.predict(watched(trace), 100.0, 5.0)
    there = phase_outlook.predict(watched(trace, base=base), 100.0, 5.0)

    assert [(one.phase, one.probability, one.onset_s) for one in here.upcoming] == [
        (one.phase, one.probability, one.onset_s) for one in there.upcoming
    ]
    assert all(
        (one.blocks + base == other.blocks).all() for one, other in zip(here.upcoming, there.upcoming, strict=True)
    )


@given(one=st.sets(st.integers(0, 5000), max_size=300), other=st.sets(st.integers(0, 5000), max_size=300))
def test_places_keep_sets(one, other):
    """Bits of sets behave as the sets do, whenever their blocks were first seen."""
    first, second = (np.array(sorted(each), np.int64) for each in (one, other))
    early = slots.extended(slots.Slots(), first)
    places = slots.extended(early, second)

    ours, theirs = slots.widened(slots.bits_of(early, first), places), slots.bits_of(places, second)

    assert slots.size_of(ours & theirs) == len(one & other)
    assert slots.numbers_where(places, slots.flags_of(ours | theirs) > 0).tolist() == sorted(one | other)


def test_what_is_kept_is_bounded():
    """Ever new sets are forgotten again, and the first is the first to go."""
    state = PhaseState()
    for number, step in itertools.product(range(40), range(3)):
        blocks = np.arange(number * 100, number * 100 + 100)
        state = phases.update(state, Sight(at_s=3.0 * number + step + 1.0, blocks=blocks, blocks_in_pool=4000))

    assert len(state.phases) == PHASES_MOST
    assert min(one.id for one in state.phases) >= 20


def test_between_what_is_expected_it_is_calm():
    """Of two sets in turn: within one it is calm until it may end, in a pause until the next one's earliest onset."""
    trace = alternating(A, B, periods=5, late_period=4)
    ends = {"in A": trace.late_from + 2, "after A": trace.late_from + 8 + 2}
    until_s = {}
    for name, end in ends.items():
        state = watched(phase_traces.Trace(blocks=POOL, step_s=0.5, looks=trace.looks[:end], late_from=0))
        until_s[name] = phase_outlook.calm_until_s(state, state.at_s) - state.at_s
    fresh = watched(phase_traces.Trace(blocks=POOL, step_s=0.5, looks=trace.looks[:3], late_from=0))

    assert until_s["in A"] == pytest.approx(3.0, abs=0.5)
    assert until_s["after A"] == pytest.approx(0.5, abs=0.3)
    assert phase_outlook.calm_until_s(fresh, fresh.at_s) == -np.inf


def test_what_goes_on_without_an_end_is_calm():
    """After some looks at a program without a pattern nothing is to be missed."""
    trace = phase_traces.uniform(blocks=POOL, share=0.99, steps=40, rng=np.random.default_rng(5))
    state = watched(trace)
    half = phases.update(state, Sight(at_s=state.at_s + 1.0, blocks=np.arange(POOL // 2), blocks_in_pool=POOL))

    assert phase_outlook.calm_until_s(state, state.at_s) == np.inf
    assert phase_outlook.calm_until_s(half, half.at_s) == -np.inf


def test_time_goes_on():
    """A look that is not later than the last one is refused."""
    state = phases.update(PhaseState(), Sight(at_s=2.0, blocks=A))

    with pytest.raises(ValueError, match=r"2\.0 s"):
        phases.update(state, Sight(at_s=2.0, blocks=A))
