# SPDX-License-Identifier: Apache-2.0
"""Learn the phases of a pool: which sets of blocks recur, after what, how long and how often. Pure.

Looks at the pool are joined to segments: a segment lasts as long as what is touched belongs to what was touched before
in it, and ends when other blocks are (or none). A segment that has ended is an occurrence of the phase whose set is
alike (Jaccard similarity, less what chance makes alike), or of a new phase. Of phases at most PHASES_MOST are kept; the
ones that came only once go first, then the one that has been away the longest, by its own period.

Phases as recurring working sets: Denning, "Working Sets Past and Present", 1980; Madison and Batson, "Characteristics
of Program Localities", 1976; told apart by how alike their sets are: Dhodapkar and Smith, "Managing Multi-Configuration
Hardware via Dynamic Working Set Analysis", 2002. What foretells them is profile/phase_outlook.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.phases import Sight
from memsculpt.profile import phase_sets, signals, slots, strides
from memsculpt.profile.phase_sets import BlockSet
from memsculpt.profile.signals import Level
from memsculpt.profile.slots import Bits, Slots
from memsculpt.profile.strides import Stream

PHASES_MOST = 16
TIMES_KEPT = 12
ALIKE = 0.5  # from this similarity on an occurrence is the phase's
TAIL_RATIO, FRESH_RATIO = 0.25, 0.2
BELONGS = 0.3  # so much of what is touched, beyond chance, lies in the present phase while that lasts
BELONGS_FOR_SURE = 0.8
# Fewer blocks than this share of what is usual are the noise of a program that waits.
QUIET_RATIO = 0.05
SCALE_FORGET = 0.98
QUIET_LOOKS = 2  # one look may fall between two steps of a phase
FORGET_PERIODS = 30.0
TRANSITION_FORGET = 0.8
FOLLOWERS_MOST = 32
LEAD_MOST_S = 30.0
TRIGGERS = ("cpu rises", "cpu falls", "io rises", "io falls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """How often another phase came next, and how long after this one's onset. Weights are decayed counts."""

    weight: float = 0.0
    lags_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """How often the phase came within LEAD_MOST_S of a change, and how long after it."""

    came: int = 0
    leads_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """One recurring set of blocks, and the times of its occurrences."""

    id: int
    blocks: BlockSet
    onsets_s: tuple[float, ...]
    dwells_s: tuple[float, ...]
    # By the phase before (-1: none), and the one behind.
    followers: Mapping[tuple[int, int], Follower] = field(default_factory=dict[tuple[int, int], Follower])
    triggers: Mapping[str, Trigger] = field(default_factory=dict[str, Trigger])
    changes_at_first: Mapping[str, int] = field(default_factory=dict[str, int])  # of each kind, when it was first seen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """A stretch of looks that saw one set of blocks."""

    onset_s: float
    active_at_s: float  # the last look that saw it
    seen: Bits
    head: Bits  # what the first look saw
    tail: Bits  # what the last look saw for the first time
    later: Bits  # what looks after the first saw
    latest: Bits  # what the last look saw
    earlier: Bits  # what the look before it saw
    is_close: bool  # began right behind another one
    looks: int = 1
    quiet_looks: int = 0
    phase: int = -1  # the one that it looks like so far


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhaseState:
    """What is known of a pool's phases.

    Five bits a block and phase, 3.8 MiB for 24 GiB with sixteen: the numbers of blocks do not matter, only how many.
    """

    at_s: float = float("nan")
    slots: Slots = field(default_factory=Slots)
    phases: tuple[Phase, ...] = ()
    segment: Segment | None = None
    closing: Segment | None = None  # has ended, and may yet lose what was the next one's
    last: tuple[int, float] | None = None  # phase and onset of the last occurrence
    before_last: int = -1  # the phase before it
    blocks_in_pool: int = 0
    looks_since_return: int = 0  # since a phase last came back
    scale_blocks: float = 0.0
    touched_before: Bits = field(default_factory=lambda: np.empty(0, np.uint8))
    stream: Stream = field(default_factory=Stream)
    cpu: Level = field(default_factory=lambda: Level(floor=0.1))
    io: Level = field(default_factory=lambda: Level(floor=1e6))
    next_id: int = 0


def update(state: PhaseState, sight: Sight) -> PhaseState:
    """Return the state after one more look. Raises ValueError where time does not go on."""
    if sight.at_s <= state.at_s:
        raise ValueError(f"a look at {sight.at_s} s after one at {state.at_s} s")
    places = slots.extended(state.slots, sight.blocks)
    mark = slots.bits_of(places, sight.blocks)
    before = slots.widened(state.touched_before, places)
    began_s = sight.at_s if math.isnan(state.at_s) else state.at_s
    state = replace(
        state,
        slots=places,
        touched_before=mark,
        stream=strides.follow(state.stream, _numbers(places, mark & ~before), sight.at_s),
        cpu=signals.read(state.cpu, sight.cpu_ratio, sight.at_s),
        io=signals.read(state.io, sight.io_bytes_per_s, sight.at_s),
        blocks_in_pool=sight.blocks_in_pool,
        looks_since_return=state.looks_since_return + 1,
        scale_blocks=max(float(len(sight.blocks)), SCALE_FORGET * state.scale_blocks),
        at_s=sight.at_s,
    )
    if len(sight.blocks) <= QUIET_RATIO * state.scale_blocks:
        return _quiet(state)
    segment = state.segment
    if segment is None:
        return _opened(state, mark, began_s, is_close=False)
    segment = _wide(segment, places)
    state = replace(state, segment=segment)
    if _belongs(state, segment, mark):
        return _gone_on(state, segment, mark)
    return _changed(state, segment, mark, began_s)


def phase_of(state: PhaseState, number: int) -> Phase | None:
    """Return the phase of this id."""
    return next((one for one in state.phases if one.id == number), None)


def changes(state: PhaseState) -> dict[str, tuple[int, tuple[float, ...]]]:
    """Return how many changes of each kind there were, and when the last ones."""
    cpu, io = state.cpu, state.io
    found = ((cpu.rise_count, cpu.rises_s), (cpu.fall_count, cpu.falls_s))
    return dict(zip(TRIGGERS, (*found, (io.rise_count, io.rises_s), (io.fall_count, io.falls_s)), strict=True))


def _numbers(places: Slots, bits: Bits) -> Int64:
    return slots.numbers_where(places, slots.flags_of(bits) > 0)


def _quiet(state: PhaseState) -> PhaseState:
    segment = state.segment
    if segment is None:
        return state
    if segment.quiet_looks + 1 < QUIET_LOOKS:
        return replace(state, segment=replace(segment, quiet_looks=segment.quiet_looks + 1))
    state = _committed(state, state.closing)
    return _committed(replace(state, segment=None, closing=None), segment)


def _opened(state: PhaseState, mark: Bits, onset_s: float, *, is_close: bool) -> PhaseState:
    none = np.zeros_like(mark)
    segment = Segment(
        onset_s=onset_s,
        active_at_s=state.at_s,
        seen=mark,
        head=mark,
        tail=none,
        later=none,
        latest=mark,
        earlier=none,
        is_close=is_close,
    )
    return replace(state, segment=replace(segment, phase=_likely(state, segment)))


def _belongs(state: PhaseState, segment: Segment, mark: Bits) -> bool:
    expected = segment.seen
    if slots.size_of(segment.tail) > TAIL_RATIO * slots.size_of(segment.latest):
        # Much was new in the last look: that may already have been the next phase.
        expected = expected & ~segment.tail
    phase = phase_of(state, segment.phase)
    if phase is not None:
        expected = expected | slots.widened(phase.blocks.core, state.slots)
    usual = _common(state)
    own = mark & ~usual
    if slots.size_of(own) < 0.1 * slots.size_of(mark):
        return True
    if slots.size_of(own & expected) >= BELONGS_FOR_SURE * slots.size_of(own):
        return True
    within = max(1, _touched_ever(state, segment))
    return phase_sets.share_within(own, expected & ~usual, within) >= BELONGS or strides.goes_on(state.stream)


def _touched_ever(state: PhaseState, segment: Segment) -> int:
    """Return how many blocks the pool has, as far as is known; at least those of its phases and of now."""
    ever = segment.seen | state.touched_before
    for phase in state.phases:
        for plane in phase.blocks.planes:
            ever = ever | slots.widened(plane, state.slots)
    return max(state.blocks_in_pool, slots.size_of(ever))


def _common(state: PhaseState) -> Bits:
    """Return the blocks of every phase that has come back: they tell no phase from another."""
    known = [one.blocks.core for one in state.phases if one.blocks.occurrences > 1]
    if len(known) < 2:
        return np.zeros(state.slots.count // 8, np.uint8)
    common = slots.widened(known[0], state.slots)
    for core in known[1:]:
        common = common & slots.widened(core, state.slots)
    return common


def _gone_on(state: PhaseState, segment: Segment, mark: Bits) -> PhaseState:
    segment = replace(
        segment,
        active_at_s=state.at_s,
        tail=mark & ~segment.seen,
        seen=segment.seen | mark,
        later=segment.later | mark,
        latest=mark,
        earlier=segment.latest,
        looks=segment.looks + 1,
        quiet_looks=0,
    )
    state = replace(state, segment=replace(segment, phase=_likely(state, segment)))
    return state if state.closing is None else replace(_committed(state, state.closing), closing=None)


def _changed(state: PhaseState, segment: Segment, mark: Bits, began_s: float) -> PhaseState:
    state = replace(_committed(state, state.closing), closing=segment, segment=None)
    # The look before may have seen the first of it already.
    is_late = slots.size_of(segment.tail & mark) > 0.5 * max(1, slots.size_of(segment.tail)) and segment.looks > 1
    onset_s = 2.0 * began_s - state.at_s if is_late else began_s
    # A look that saw the end of the one and the begin of the other shows both sets.
    fresh = mark & ~segment.seen | segment.tail & mark
    is_both = slots.size_of(fresh) >= FRESH_RATIO * slots.size_of(mark)
    return _opened(state, fresh if is_both else mark, max(onset_s, segment.onset_s), is_close=True)


def _likely(state: PhaseState, segment: Segment) -> int:
    """Return the phase that a segment under way is of: what was touched so far lies in its set."""
    within = max(1, _touched_ever(state, segment))
    usual = _common(state)
    own = segment.seen & ~usual
    best, most = -1, 0.6
    for phase in state.phases:
        core = slots.widened(phase.blocks.core, state.slots) & ~usual
        score = phase_sets.share_within(own, core, within)
        if score < 0.6:
            continue
        score += 0.2 * phase_sets.likeness(own, core, within)
        if score > most:
            best, most = phase.id, score
    return best


def _wide(segment: Segment, places: Slots) -> Segment:
    if len(segment.seen) * 8 == places.count:
        return segment
    names = ("seen", "head", "tail", "later", "latest", "earlier")
    return replace(segment, **{name: slots.widened(getattr(segment, name), places) for name in names})


def _committed(state: PhaseState, segment: Segment | None) -> PhaseState:
    """Return the state after an occurrence that has ended."""
    if segment is None:
        return state
    segment = _wide(segment, state.slots)
    seen = segment.seen
    if state.segment is not None and segment.looks > 1:
        seen = seen & ~(segment.tail & state.segment.seen)
    after = phase_of(state, state.last[0]) if state.last is not None else None
    if after is not None and segment.is_close and segment.looks > 1:
        # What only the first look saw, and the phase before uses: that look began before this phase did.
        seen = seen & ~(segment.head & ~segment.later & slots.widened(after.blocks.core, state.slots))
    found = _alike(state, seen)
    dwell_s = max(0.0, segment.active_at_s - segment.onset_s)
    if found is None:
        found = Phase(
            id=state.next_id,
            blocks=phase_sets.first_set(seen),
            onsets_s=(segment.onset_s,),
            dwells_s=(dwell_s,),
            changes_at_first={name: count for name, (count, _) in changes(state).items()},
        )
        state = replace(state, next_id=state.next_id + 1)
    else:
        state = replace(state, looks_since_return=0)
        found = replace(
            found,
            blocks=phase_sets.seen_again(found.blocks, seen, state.slots),
            onsets_s=(*found.onsets_s, segment.onset_s)[-TIMES_KEPT:],
            dwells_s=(*found.dwells_s, dwell_s)[-TIMES_KEPT:],
        )
    found = replace(found, triggers=_triggers(state, found, segment.onset_s))
    others = (one for one in state.phases if one.id != found.id)
    phases = tuple(_followed(state, one, found.id, segment.onset_s) for one in (*others, found))
    return replace(
        state,
        phases=_kept(phases, state.at_s),
        last=(found.id, segment.onset_s),
        before_last=state.last[0] if state.last is not None else -1,
    )


def _alike(state: PhaseState, seen: Bits) -> Phase | None:
    ever = seen
    for phase in state.phases:
        ever = ever | slots.widened(phase.blocks.planes[0], state.slots) | slots.widened(phase.blocks.core, state.slots)
    within = max(1, state.blocks_in_pool, slots.size_of(ever))
    best, most = None, ALIKE
    for phase in state.phases:
        score = phase_sets.likeness(seen, slots.widened(phase.blocks.core, state.slots), within)
        if score >= most:
            best, most = phase, score
    return best


def _triggers(state: PhaseState, phase: Phase, onset_s: float) -> dict[str, Trigger]:
    known = dict(phase.triggers)
    for name, (_, times_s) in changes(state).items():
        leads_s = [onset_s - at_s for at_s in times_s if 0.0 < onset_s - at_s <= LEAD_MOST_S]
        if leads_s:
            before = known.get(name, Trigger())
            known[name] = Trigger(came=before.came + 1, leads_s=(*before.leads_s, min(leads_s))[-TIMES_KEPT:])
    return known


def _followed(state: PhaseState, phase: Phase, number: int, onset_s: float) -> Phase:
    """Return the phase with a follower counted, where it was the last one."""
    if state.last is None or phase.id != state.last[0]:
        return phase
    followers = {
        # Only what came after the same phase as now is outweighed.
        key: replace(one, weight=TRANSITION_FORGET * one.weight) if key[0] == state.before_last else one
        for key, one in phase.followers.items()
        if one.weight > 0.05
    }
    key = (state.before_last, number)
    known = followers.get(key, Follower())
    lags_s = (*known.lags_s, onset_s - state.last[1])[-TIMES_KEPT:]
    followers[key] = Follower(weight=known.weight + 1.0, lags_s=lags_s)
    return replace(phase, followers=dict(sorted(followers.items(), key=lambda item: item[1].weight)[-FOLLOWERS_MOST:]))


def _kept(phases: tuple[Phase, ...], now_s: float) -> tuple[Phase, ...]:
    """Return the phases that are worth their place, the latest last."""
    alive = [one for one in phases if _away_periods(one, now_s) < FORGET_PERIODS]
    while len(alive) > PHASES_MOST:
        once = [one for one in alive[:-1] if one.blocks.occurrences == 1]
        alive.remove(once[0] if once else max(alive[:-1], key=lambda one: _away_periods(one, now_s)))
    return tuple(alive)


def _away_periods(phase: Phase, now_s: float) -> float:
    gaps_s = np.diff(phase.onsets_s)
    return (now_s - phase.onsets_s[-1]) / max(float(np.median(gaps_s)), 1e-3) if len(gaps_s) else 0.0
