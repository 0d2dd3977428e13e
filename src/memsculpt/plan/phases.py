# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a pool come back before a phase needs them, and which leave to make room. Pure.

What comes is due at the earliest likely onset, less the time that moving takes and a margin. What leaves is what is
used last (Belady, "A Study of Replacement Algorithms for a Virtual-Storage Computer", 1966, with foreseen next uses for
known ones), and never what the present phase uses, nor what is needed no later than what comes.

Every prefetch is judged by what was then touched; what is learnt from it raises or lowers the bar for the next one,
makes it earlier or later, and ends prefetching for a time where it does not pay (Srinath et al., "Feedback Directed
Prefetching", 2007).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.arrays import Float64, Int64, freeze_columns
from memsculpt.domain.phases import Coming, Prediction, Sign, Upcoming
from memsculpt.domain.plan import Reason

PRECISION_BAR = 0.85
TIMELY_BAR = 0.9
# Back in bulk costs half of what faults cost: below that share of use a prefetch loses.
WORTH_RATIO = 0.5
LEAST_PROBABILITY, LEAST_LOW, LEAST_HIGH = 0.5, 0.4, 0.95
USED_PROBABILITY = 0.2  # blocks that likely are used by a phase, when it is asked what may leave
WEIGHT, WEIGHT_LEAST = 0.5, 0.05  # of a new judgement; below the least nothing follows from it
PAUSE_S, PAUSE_MOST_S = 30.0, 3600.0
MARGIN_S, MARGIN_MOST_S = 0.2, 10.0
SHARE_LEAST = 0.01  # of a phase
BLOCKS_LEAST = 4  # fewer are not worth the calls


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standing:
    """Where the blocks of a pool are now; columns of shape (n_blocks,), blocks ascending."""

    blocks: Int64
    resident_bytes: Int64
    swapped_bytes: Int64  # or on a slow node

    def __post_init__(self) -> None:
        freeze_columns(self, ("blocks", "resident_bytes", "swapped_bytes"), self.blocks.shape)

    def with_slow(self, blocks: Int64, size_bytes: Int64) -> "Standing":
        """Return the same with so much of these blocks, ascending, on a slow node: it is to come for a phase, too."""
        there = np.zeros(len(self.blocks), np.int64)
        known = np.isin(blocks, self.blocks, assume_unique=True)
        there[_rows_of(self, blocks)] = size_bytes[known]
        there = np.minimum(there, self.resident_bytes)
        return replace(self, resident_bytes=self.resident_bytes - there, swapped_bytes=self.swapped_bytes + there)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveBudget:
    """What may be moved now, and how fast that goes."""

    room_bytes: int  # free below the limit
    in_bytes_per_s: float
    out_bytes_per_s: float
    interval_s: float  # until it is decided again
    in_most_bytes: int = 1 << 62  # at once; what is left is chosen anew, by what has been seen meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What earlier prefetches of the pool came to (decayed means, NaN before the first), and what follows from it."""

    judged: int = 0
    usual_blocks: float = 0.0  # brought at once
    precision: float = float("nan")
    recall: float = float("nan")
    timeliness: float = float("nan")
    gain: float = float("nan")
    least_probability: float = LEAST_PROBABILITY
    margin_s: float = MARGIN_S
    paused_until_s: float = float("-inf")
    pause_s: float = PAUSE_S  # the next one's length


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefetchChoice:
    """What to do now; nothing where `bring` is empty."""

    at_s: float
    bring: Int64  # ascending
    leave: Int64  # ascending; first
    absent: Int64  # what is out once that is done, ascending: for the judgement
    phase: int = -1
    sign: Sign = Sign.CURRENT
    onset_s: float = float("nan")
    until_s: float = float("nan")  # by then it will have been touched, or was brought for nothing
    next_at_s: float = float("inf")  # when the next prefetch that is foreseen is due
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchOutcome:
    """How a prefetch turned out."""

    blocks: int  # that were brought
    precision: float  # of the blocks that were brought, those that were touched
    recall: float  # of the blocks that were touched and had been out, those that were brought
    timeliness: float  # share that was there before the phase began
    gain: float = float("nan")  # touched less those touched that had left for it, as a share of those brought


def what_is_coming(
    prediction: Prediction,
    standing: Standing,
    experience: Experience,
    *,
    in_bytes_per_s: float,
    out_bytes_per_s: float,
) -> tuple[Coming, ...]:
    """Return the expected phases that lack something, the earliest first, whatever room and time there is for them."""
    if prediction.at_s < experience.paused_until_s:
        return ()
    next_use_s = _next_use_s(prediction, standing)
    found: list[Coming] = []
    for one in prediction.upcoming:
        rows = _wanted(one, standing, experience) if one.probability >= experience.least_probability else ()
        if len(rows) < max(BLOCKS_LEAST, SHARE_LEAST * len(one.blocks)):
            continue
        leaving = _may_leave(prediction, one, standing, next_use_s)
        found.append(
            Coming(
                phase=one.phase,
                sign=one.sign,
                probability=one.probability,
                onset_s=one.onset_s,
                lacking_bytes=int(standing.swapped_bytes[rows].sum()),
                spare_bytes=int(standing.resident_bytes[leaving].sum()),
                in_bytes_per_s=in_bytes_per_s,
                out_bytes_per_s=out_bytes_per_s,
                margin_s=experience.margin_s,
            )
        )
    return tuple(found)


def choose_prefetch(
    prediction: Prediction,
    standing: Standing,
    budget: MoveBudget,
    experience: Experience,
    *,
    phase: int | None = None,
) -> PrefetchChoice:
    """Choose what to bring back now, and what leaves before it; the earliest phase that lacks something, if due.

    With `phase` it is that one or none.
    """
    now_s = prediction.at_s
    if now_s < experience.paused_until_s:
        text = "what was brought back ahead of need was not touched: no more of that for {left_s}"
        left_s = experience.paused_until_s - now_s
        return _nothing(prediction, Reason(code="paused", text=text, figures={"left_s": left_s}))
    next_use_s = _next_use_s(prediction, standing)
    next_at_s = float("inf")
    for one in prediction.upcoming:
        if one.probability < experience.least_probability or phase not in {None, one.phase}:
            continue
        rows = _wanted(one, standing, experience)
        if len(rows) < max(BLOCKS_LEAST, SHARE_LEAST * len(one.blocks)):
            continue
        leaving = _may_leave(prediction, one, standing, next_use_s)
        rows, leaving = _fitted(rows, leaving, standing, budget)
        came, left = int(standing.swapped_bytes[rows].sum()), int(standing.resident_bytes[leaving].sum())
        due_s = one.onset_s[0] - came / budget.in_bytes_per_s - left / budget.out_bytes_per_s - experience.margin_s
        if due_s > now_s + budget.interval_s:
            next_at_s = min(next_at_s, due_s)
            continue
        rows = rows[: int(np.searchsorted(np.cumsum(standing.swapped_bytes[rows]), budget.in_most_bytes, side="right"))]
        if len(rows) >= BLOCKS_LEAST:
            if one.sign is not Sign.CURRENT:
                # A program that lacks its pages now takes what is free: for it, room is made for all of them at once.
                leaving = _making_room(rows, leaving, standing, budget)
            left = int(standing.resident_bytes[leaving].sum())
            came = int(standing.swapped_bytes[rows].sum())
            return _choice(one, rows, leaving, standing, now_s, came, left, next_at_s)
    return replace(
        _nothing(prediction, Reason(code="nothing", text="no phase is due", figures={})), next_at_s=next_at_s
    )


def judge(
    choice: PrefetchChoice,
    touched: Int64,
    *,
    began_s: float,
    done_s: float,
    onset_s: float,
    is_alone: bool = False,
) -> PrefetchOutcome:
    """Compare what was brought with what was touched in its window, ascending.

    The move took from `began_s` to `done_s`; the phase was seen to begin at `onset_s` (later than it really did).
    `is_alone`: nothing of the phase after it is among what was touched. Only then there is a gain to tell, less what
    left for it and was needed.
    """
    used = int(np.isin(choice.bring, touched, assume_unique=True).sum())
    missed = int(np.isin(choice.absent, touched, assume_unique=True).sum())
    precision = used / len(choice.bring) if len(choice.bring) else float("nan")
    recall = used / (used + missed) if used + missed else float("nan")
    timely = min(1.0, max(0.0, (onset_s - began_s) / max(done_s - began_s, 1e-6)))
    harmed = int(np.isin(choice.leave, touched, assume_unique=True).sum())
    return PrefetchOutcome(
        blocks=len(choice.bring),
        precision=precision,
        recall=recall,
        timeliness=timely,
        gain=(used - harmed) / len(choice.bring) if is_alone and len(choice.bring) else float("nan"),
    )


def learn_from(before: Experience, outcome: PrefetchOutcome, now_s: float, *, is_ahead: bool = True) -> Experience:
    """Return the experience after one more prefetch; `is_ahead`: it was meant to be there before the phase began."""
    # A handful of blocks says little about prefetches of thousands.
    weight = WEIGHT * min(1.0, outcome.blocks / max(before.usual_blocks, 1.0))
    usual_blocks = max(float(outcome.blocks), before.usual_blocks + WEIGHT * (outcome.blocks - before.usual_blocks))
    precision = _mean(before.precision, outcome.precision, weight)
    gain = _mean(before.gain, outcome.gain, weight)
    after = replace(
        before,
        judged=before.judged + 1,
        usual_blocks=before.usual_blocks if weight < WEIGHT_LEAST else usual_blocks,
        precision=precision,
        gain=gain,
        recall=_mean(before.recall, outcome.recall, weight),
        timeliness=_mean(before.timeliness, outcome.timeliness, weight) if is_ahead else before.timeliness,
    )
    if weight < WEIGHT_LEAST:
        return after
    if outcome.precision < PRECISION_BAR:
        after = replace(after, least_probability=min(LEAST_HIGH, before.least_probability + 0.1))
    else:
        after = replace(after, least_probability=max(LEAST_LOW, before.least_probability - 0.02), pause_s=PAUSE_S)
    if is_ahead and outcome.timeliness < TIMELY_BAR:
        after = replace(after, margin_s=min(MARGIN_MOST_S, 1.5 * before.margin_s + 0.1))
    elif is_ahead:
        after = replace(after, margin_s=max(MARGIN_S, 0.95 * before.margin_s))
    # Without a gain (nothing is known of what left) the precision decides; min() passes over NaN in this order.
    if after.judged >= 2 and min(precision, gain) < WORTH_RATIO:
        pause_s = before.pause_s
        return Experience(paused_until_s=now_s + pause_s, pause_s=min(PAUSE_MOST_S, 2.0 * pause_s))
    return after


def _next_use_s(prediction: Prediction, standing: Standing) -> Float64:
    """Return when each block is expected to be used next: now where it is in use, never where nothing is foreseen."""
    next_s = np.full(len(standing.blocks), np.inf)
    for one in sorted(prediction.upcoming, key=lambda each: -each.onset_s[1]):
        likely = one.blocks[one.block_probability >= USED_PROBABILITY]
        next_s[_rows_of(standing, likely)] = one.onset_s[1]
    next_s[_rows_of(standing, prediction.in_use)] = prediction.at_s
    return next_s


def _wanted(one: Upcoming, standing: Standing, experience: Experience) -> Int64:
    """Return the rows that should come, the likeliest first."""
    likely = one.block_probability >= experience.least_probability
    blocks, chance = one.blocks[likely], one.block_probability[likely]
    at = np.searchsorted(standing.blocks, blocks)
    known = at < len(standing.blocks)
    known[known] = standing.blocks[at[known]] == blocks[known]
    rows, chance = at[known].astype(np.int64), chance[known]
    is_out = standing.swapped_bytes[rows] > 0
    rows, chance = rows[is_out], chance[is_out]
    return rows[np.argsort(-chance, kind="stable")]


def _may_leave(prediction: Prediction, one: Upcoming, standing: Standing, next_use_s: Float64) -> Int64:
    """Return the rows that may leave for this phase, the last used first.

    A phase that is as likely and no later keeps its blocks; of one that is less likely they go after all others.
    """
    may = standing.resident_bytes > 0
    for other in prediction.upcoming:
        is_before = other.onset_s[1] <= one.onset_s[1] and other.probability >= one.probability
        if other is one or is_before:
            may[_rows_of(standing, other.blocks[other.block_probability >= USED_PROBABILITY])] = False
    may[_rows_of(standing, prediction.in_use)] = False
    rows = np.flatnonzero(may)
    return rows[np.argsort(-next_use_s[rows], kind="stable")].astype(np.int64)


def _fitted(rows: Int64, leaving: Int64, standing: Standing, budget: MoveBudget) -> tuple[Int64, Int64]:
    """Return how much of both fits: room is what is free and what may leave."""
    most = budget.room_bytes + int(standing.resident_bytes[leaving].sum())
    rows = rows[: int(np.searchsorted(np.cumsum(standing.swapped_bytes[rows]), most, side="right"))]
    return rows, _making_room(rows, leaving, standing, budget)


def _making_room(rows: Int64, leaving: Int64, standing: Standing, budget: MoveBudget) -> Int64:
    """Return how much of what may leave has to, for these rows to come."""
    short = int(standing.swapped_bytes[rows].sum()) - budget.room_bytes
    if short <= 0 or not len(rows):
        return leaving[:0]
    return leaving[: int(np.searchsorted(np.cumsum(standing.resident_bytes[leaving]), short, side="left")) + 1]


def _choice(
    one: Upcoming,
    rows: Int64,
    leaving: Int64,
    standing: Standing,
    now_s: float,
    came_bytes: int,
    left_bytes: int,
    next_at_s: float,
) -> PrefetchChoice:
    out = standing.swapped_bytes > 0
    out[rows] = False
    out[leaving] = True
    figures = {
        "moved_bytes": float(came_bytes),
        "leaving_bytes": float(left_bytes),
        "probability": one.probability,
        "onset_s": one.onset_s[1] - now_s,
        "phase": float(one.phase),
    }
    text = "its phase {phase} is expected in {onset_s} (" + one.sign.value + ", probability {probability}): "
    text += "{moved_bytes} come back, {leaving_bytes} that it does not use leave"
    return PrefetchChoice(
        at_s=now_s,
        bring=np.sort(standing.blocks[rows]),
        leave=np.sort(standing.blocks[leaving]),
        absent=standing.blocks[out],
        phase=one.phase,
        sign=one.sign,
        onset_s=one.onset_s[1],
        until_s=one.onset_s[2] + max(one.dwell_s, 1.0),
        next_at_s=next_at_s,
        reason=Reason(code="prefetch", text=text, figures=figures),
    )


def _nothing(prediction: Prediction, reason: Reason) -> PrefetchChoice:
    none = np.empty(0, np.int64)
    return PrefetchChoice(at_s=prediction.at_s, bring=none, leave=none, absent=none, reason=reason)


def _rows_of(standing: Standing, blocks: Int64) -> Int64:
    at = np.searchsorted(standing.blocks, blocks)
    known = at < len(standing.blocks)
    known[known] = standing.blocks[at[known]] == blocks[known]
    return at[known].astype(np.int64)


def _mean(before: float, value: float, weight: float) -> float:
    if math.isnan(value):
        return before
    return value if math.isnan(before) else before + weight * (value - before)
