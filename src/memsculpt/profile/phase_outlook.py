# SPDX-License-Identifier: Apache-2.0
"""What comes next in a pool, from what profile/phases.py has learnt. Pure.

A phase may be announced by what is there now (its successor, and the successor's, as a chain that knows the last two),
by its own period, or by a change in processor time or I/O. Of several announcements the one that is likeliest counts,
and of equally likely ones the one that knows the time best.
"""

from dataclasses import replace

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.phases import Prediction, Sign, Upcoming
from memsculpt.profile import phase_sets, slots, strides
from memsculpt.profile.phases import LEAD_MOST_S, Follower, Phase, PhaseState, Segment, changes, phase_of
from memsculpt.profile.slots import Bits

PROBABILITY_LEAST = 0.2
CHAIN_MOST = 4
LEARNT_OCCURRENCES = 3  # from so many on the times of a phase are relied on
STEADY_LOOKS = 25  # of something that has no known end
STEADY_RATIO = 0.9
OVERDUE_RATIO = 1.5
LOOKS_IN_VAIN = 50  # without a phase that comes back; then is looked half as often
# Gaps that differ from the median by more than this share are no rhythm.
REGULAR_RATIO = 0.25
# A phase that is overdue by so much of its usual spread (and a tenth of its lag) is not coming.
LATE_RATIO = 0.1

Times = tuple[float, float, float]
Announced = tuple[Sign, float, Times]


def predict(state: PhaseState, now_s: float, within_s: float) -> Prediction:
    """Return what is expected to be touched from now on until `within_s` later, the earliest first."""
    segment = state.segment
    current = segment.phase if segment is not None else -1
    announced: dict[int, Announced] = {}
    until_s = now_s + within_s
    for number, (sign, chance, times) in (
        *_by_chain(state, now_s, within_s),
        *_by_period(state, now_s),
        *_by_trigger(state, now_s),
    ):
        one = (sign, chance * _share_until(times, until_s), times)
        if number != current and one[1] >= PROBABILITY_LEAST and _is_better(one, announced.get(number)):
            announced[number] = one
    upcoming = [_upcoming(state, number, one) for number, one in announced.items()]
    if current >= 0 and segment is not None:
        upcoming.append(_rest(state, current, now_s, now_s - segment.onset_s))
    walk = strides.ahead(state.stream, now_s, within_s)
    if len(walk):
        upcoming.append(_walk(state, np.sort(walk), now_s))
    ordered = sorted(filter(None, upcoming), key=lambda one: (one.onset_s[1], -one.probability, one.phase))
    return Prediction(at_s=now_s, within_s=within_s, upcoming=tuple(ordered), current=current, in_use=_in_use(state))


def look_interval_s(state: PhaseState, least_s: float, most_s: float) -> float:
    """Return how long to wait with the next look: a pool without phases is looked at less and less often."""
    return min(most_s, least_s * 2.0 ** (state.looks_since_return // LOOKS_IN_VAIN))


def calm_until_s(state: PhaseState, now_s: float) -> float:
    """Return until when nothing is expected to begin or to end, going by the 10 % quantiles; -inf: it may at any time.

    Until then looks may be rarer. It is not calm where the times are not known: while something new begins, before a
    phase has come three times, when nothing is announced, and when what has begun may have ended. What goes on and on
    is calm again (inf): of a program without a pattern there is nothing to be missed.
    """
    segment = state.segment
    if segment is not None:
        if segment.quiet_looks:
            return float("-inf")
        phase = phase_of(state, segment.phase)
        is_learnt = phase is not None and phase.blocks.occurrences >= LEARNT_OCCURRENCES
        if phase is not None and is_learnt and now_s - segment.onset_s <= OVERDUE_RATIO * max(phase.dwells_s):
            return segment.onset_s + float(np.quantile(phase.dwells_s, 0.1))
        return float("inf") if segment.looks >= STEADY_LOOKS and _is_steady(state, segment) else float("-inf")
    announced = (
        *_by_chain(state, now_s, float("inf")),
        *_by_period(state, now_s),
        *_by_trigger(state, now_s),
    )
    likely = [(number, times[0]) for number, (_, probability, times) in announced if probability >= PROBABILITY_LEAST]
    known = {one.id: one.blocks.occurrences for one in state.phases}
    if not likely or any(known.get(number, 0) < LEARNT_OCCURRENCES for number, _ in likely):
        return float("-inf")
    return min(low_s for _, low_s in likely)


def _is_steady(state: PhaseState, segment: Segment) -> bool:
    """Tell whether the last two looks saw the same: rare looks may straddle an end and a begin, and then differ."""
    latest, earlier = (slots.widened(bits, state.slots) for bits in (segment.latest, segment.earlier))
    return slots.size_of(latest & earlier) >= STEADY_RATIO * slots.size_of(latest | earlier)


def replay(state: PhaseState, now_s: float) -> Prediction:
    """Return the baseline: once a phase has begun, all that its last occurrence touched, and nothing before. No model.

    So do the recorders of working sets: REAP (Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless
    Function Snapshots", 2021), FaaSnap (Ao, Porter and Voelker, 2022).
    """
    segment = state.segment
    phase = phase_of(state, segment.phase) if segment is not None else None
    if segment is None or phase is None:
        return Prediction(at_s=now_s, within_s=0.0, in_use=np.empty(0, np.int64))
    blocks = _numbers(state, slots.widened(phase.blocks.planes[0], state.slots))
    again = Upcoming(
        phase=phase.id,
        sign=Sign.CURRENT,
        probability=1.0,
        onset_s=(now_s, now_s, now_s),
        dwell_s=phase.dwells_s[-1],
        blocks=blocks,
        block_probability=np.ones(len(blocks), np.float32),
    )
    return Prediction(at_s=now_s, within_s=0.0, upcoming=(again,), current=phase.id, in_use=_in_use(state))


def _by_chain(state: PhaseState, now_s: float, within_s: float) -> list[tuple[int, Announced]]:
    segment = state.segment
    if segment is not None and segment.phase >= 0:
        number, onset_s = segment.phase, segment.onset_s
    elif segment is None and state.last is not None:
        number, onset_s = state.last
    else:
        return []  # something new is there: what follows it is not known
    found: list[tuple[int, Announced]] = []
    probability, times = 1.0, (onset_s, onset_s, onset_s)
    before = state.last[0] if segment is not None and state.last is not None else state.before_last
    for step in range(CHAIN_MOST):
        phase = phase_of(state, number)
        follower = _follower(phase, before) if phase is not None else None
        if follower is None:
            break
        before, number = number, follower[0]
        probability *= follower[1]
        lags_s = np.array(follower[2].lags_s)
        if step == 0:
            lags_s, share = _still_to_come(lags_s, now_s - onset_s)
            probability *= share
        if not len(lags_s):
            break
        times = _sum(times, _quantiles(lags_s))
        found.append((number, (Sign.SUCCESSOR, probability, _not_before(times, now_s))))
        if times[0] > now_s + within_s or probability < PROBABILITY_LEAST:
            break
    return found


def _follower(phase: Phase, before: int) -> tuple[int, float, Follower] | None:
    """Return who follows a phase that came after `before`, how likely, and its lags; by what came after both, if known.

    A quarter of a count of doubt: a phase that was followed once may be followed by anything.
    """
    known = {key: one for key, one in phase.followers.items() if key[0] == before} or phase.followers
    weights: dict[int, float] = {}
    for (_, number), one in known.items():
        weights[number] = weights.get(number, 0.0) + one.weight
    if not weights:
        return None
    number = max(weights, key=lambda each: (weights[each], each))
    _, follower = max(((key, one) for key, one in known.items() if key[1] == number), key=lambda item: item[1].weight)
    return number, weights[number] / (sum(weights.values()) + 0.25), follower


def _by_period(state: PhaseState, now_s: float) -> list[tuple[int, Announced]]:
    found: list[tuple[int, Announced]] = []
    for phase in state.phases:
        gaps_s = np.diff(phase.onsets_s)
        if len(gaps_s) < 2:
            continue
        period_s = float(np.median(gaps_s))
        regular = np.abs(gaps_s - period_s) <= REGULAR_RATIO * period_s
        if not regular.any():
            continue  # two gaps that differ much have a median that is neither
        elapsed_s = now_s - phase.onsets_s[-1]
        ahead = max(1.0, float(np.ceil((elapsed_s - REGULAR_RATIO * period_s) / period_s)))
        if ahead > 3.0:
            continue  # it has failed to come twice
        spread = _quantiles(gaps_s[regular] - period_s)
        middle_s = phase.onsets_s[-1] + ahead * period_s
        times = _not_before((middle_s + spread[0], middle_s + spread[1], middle_s + spread[2]), now_s)
        probability = float(regular.sum()) / (len(gaps_s) + 0.5) / ahead
        found.append((phase.id, (Sign.PERIOD, probability, times)))
    return found


def _by_trigger(state: PhaseState, now_s: float) -> list[tuple[int, Announced]]:
    found: list[tuple[int, Announced]] = []
    counts = changes(state)
    for phase in state.phases:
        for name, trigger in phase.triggers.items():
            count, times_s = counts[name]
            seen = count - phase.changes_at_first.get(name, 0) + 1
            if trigger.came < 2 or not times_s or times_s[-1] <= phase.onsets_s[-1]:
                continue
            lags_s, share = _still_to_come(np.array(trigger.leads_s), now_s - times_s[-1])
            if not len(lags_s) or now_s - times_s[-1] > LEAD_MOST_S:
                continue
            spread = _quantiles(lags_s)
            at_s = times_s[-1]
            times = _not_before((at_s + spread[0], at_s + spread[1], at_s + spread[2]), now_s)
            probability = min(1.0, trigger.came / (seen + 0.5)) * share
            found.append((phase.id, (Sign.TRIGGER, probability, times)))
    return found


def _still_to_come(lags_s: Float64, elapsed_s: float) -> tuple[Float64, float]:
    """Return the lags that have not passed yet, and the chance that it still comes; a little late is not too late."""
    most_s = float(lags_s.max())
    grace_s = LATE_RATIO * most_s + 2.0 * float(lags_s.max() - lags_s.min())
    left = lags_s[lags_s >= elapsed_s]
    if len(left):
        return left, 1.0
    if elapsed_s <= most_s + grace_s:
        return np.array([elapsed_s]), 1.0 - 0.5 * (elapsed_s - most_s) / max(grace_s, 1e-9)
    return left, 0.0


def _quantiles(values: Float64) -> Times:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return low, middle, high


def _sum(one: Times, other: Times) -> Times:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _not_before(times: Times, now_s: float) -> Times:
    return max(times[0], now_s), max(times[1], now_s), max(times[2], now_s)


def _share_until(times: Times, until_s: float) -> float:
    """Return the chance that it has come by then, going by its quantiles."""
    if times[2] <= until_s:
        return 1.0
    return float(np.interp(until_s, times, (0.1, 0.5, 1.0))) if until_s >= times[0] else 0.0


def _is_better(one: Announced, other: Announced | None) -> bool:
    if other is None:
        return True
    mine, theirs = round(one[1], 1), round(other[1], 1)
    return mine > theirs or (mine == theirs and one[2][2] - one[2][0] < other[2][2] - other[2][0])


def _upcoming(state: PhaseState, number: int, one: Announced) -> Upcoming | None:
    phase = phase_of(state, number)
    if phase is None:
        return None
    blocks, probability = phase_sets.block_probability(phase.blocks, state.slots)
    return Upcoming(
        phase=number,
        sign=one[0],
        probability=one[1],
        onset_s=one[2],
        dwell_s=float(np.median(phase.dwells_s)),
        blocks=blocks,
        block_probability=probability,
    )


def _rest(state: PhaseState, number: int, now_s: float, elapsed_s: float) -> Upcoming | None:
    """Return what is left of the phase that is there; what was not touched by its half is less likely to be."""
    whole = _upcoming(state, number, (Sign.CURRENT, 1.0, (now_s, now_s, now_s)))
    if whole is None:
        return None
    left = max(0.0, 1.0 - elapsed_s / max(whole.dwell_s, 1e-3))
    return replace(whole, block_probability=(whole.block_probability * left).astype(np.float32))


def _walk(state: PhaseState, blocks: Int64, now_s: float) -> Upcoming:
    confirmed = state.stream.confirmed
    return Upcoming(
        phase=-1,
        sign=Sign.STREAM,
        probability=confirmed / (confirmed + 1.0),
        onset_s=(now_s, now_s, now_s),
        dwell_s=0.0,
        blocks=blocks,
        block_probability=np.full(len(blocks), confirmed / (confirmed + 1.0), np.float32),
    )


def _in_use(state: PhaseState) -> Int64:
    """Return what may not be taken: all of the present phase; of a walk, where it is."""
    segment = state.segment
    if segment is None:
        return _numbers(state, state.touched_before)
    bits = segment.latest | segment.earlier if strides.goes_on(state.stream) else segment.seen
    return _numbers(state, slots.widened(bits, state.slots))


def _numbers(state: PhaseState, bits: Bits) -> Int64:
    return slots.numbers_where(state.slots, slots.flags_of(bits) > 0)
