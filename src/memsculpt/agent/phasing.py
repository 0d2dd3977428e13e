# SPDX-License-Identifier: Apache-2.0
"""Phases of the pools where they pay: looked at, learnt, foreseen, and judged once their blocks were brought back.

A pool is followed while it swaps and its process waits for pages: what that costs it pays for looking at all of it at
once, up to a share. `Sculpting` hands over what was looked at and carries out what is chosen here; what is learnt is
profile/phases.py's business, what comes and leaves plan/phases.py's.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from memsculpt import plan, profile
from memsculpt.agent.waits import Waits, row_of
from memsculpt.domain.arrays import Int64
from memsculpt.domain.heat import Looked
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.phases import Coming, Prediction, Sight, Sign
from memsculpt.domain.pool import BLOCK_BYTES, NO_RANGES, Prefetch, SculptDone, SculptOrder
from memsculpt.domain.settings import Sculpt, Settings
from memsculpt.domain.units import format_duration_s
from memsculpt.domain.workload import Instance

FOLLOWED_MOST = 4
FOLLOWED_MOST_BLOCKS = 131_072  # together, 8 GiB: 1.3 MiB with sixteen phases each, and 3 MiB for where blocks are
FOLLOWED_RATIO, KEPT_RATIO = 0.001, 0.0002  # of time that faults cost: a pool is followed from, and until
LOOKS_RATIO = 0.25  # of what faults cost, for looks
LOOKS_MOST_RATIO = 0.03  # of one processor, for looks at all pools that are followed
CALM_MOST_TICKS = 4.0  # between looks while no phase is expected to begin or to end
LOOKS_MOST_TICKS = 16.0  # apart, of a pool in which nothing recurs
SURVEYED_RATIO = 0.01  # of what a process holds: by so much it may change before it is asked where it has memory
PART_BYTES = 8 << 20
RATE_BYTES_PER_S = 300e6  # until it is known; docs/methods/phases.md
RATE_LEAST_BYTES = 1 << 20
HORIZON_S = 60.0  # within which phases are foreseen


@dataclass(slots=True)
class _Brought:
    """A prefetch that is not judged yet."""

    choice: plan.PrefetchChoice
    began_s: float
    done_s: float
    touched: Int64
    onset_s: float = math.inf


@dataclass(slots=True)
class _Followed:
    """A pool that is looked at as a whole."""

    state: profile.PhaseState = field(default_factory=profile.PhaseState)
    experience: plan.Experience = field(default_factory=plan.Experience)
    standing: plan.Standing | None = None
    touched: list[Int64] = field(default_factory=list[Int64])  # by looks at parts of it, since the last sight
    brought: list[_Brought] = field(default_factory=list[_Brought])
    held_bytes: int = -1  # in memory and swapped, when it was found out last where it has memory
    is_begun: bool = False  # its bits were cleared as a whole once
    seen_at_s: float = math.nan
    cpu_s: float = 0.0
    io_bytes: float = 0.0
    look_at_s: float = -math.inf
    in_bytes_per_s: float = RATE_BYTES_PER_S
    out_bytes_per_s: float = RATE_BYTES_PER_S
    foreseen: Prediction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseOutcome:
    """What came of one prefetch: its figures, the means over all so far, and a sentence."""

    process: Instance
    outcome: plan.PrefetchOutcome
    experience: plan.Experience
    reason: str
    has_paid: bool


class Phasing:
    """The pools of one host whose phases are learnt."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waits = Waits()
        self._followed: dict[Instance, _Followed] = {}

    def __contains__(self, process: Instance) -> bool:
        """Tell whether a pool is followed."""
        return process in self._followed

    @property
    def is_wanted(self) -> bool:
        """Whether phases are to be learnt at all."""
        return self._settings.plan.sculpt is Sculpt.ALL and self._settings.plan.prefetch

    # --- who is followed, and when it is looked at --------------------------------------------------------------------

    def follow(self, observation: Observation, sizes: Mapping[Instance, int]) -> None:
        """Choose whose phases are learnt; `sizes` are the blocks of every pool by process."""
        if not self.is_wanted:
            return
        self._waits.follow(observation, sizes)
        wanted = sorted(
            (process for process in sizes if self._pays(observation, process)),
            key=lambda process: (process not in self._followed, -self._waits.ratio(process), process.pid),
        )
        kept: dict[Instance, _Followed] = {}
        blocks = 0
        for process in wanted:
            if len(kept) < FOLLOWED_MOST and 0 < sizes[process] <= FOLLOWED_MOST_BLOCKS - blocks:
                kept[process] = self._followed.get(process) or _Followed()
                blocks += sizes[process]
        self._followed = kept

    def forget(self, process: Instance) -> None:
        """Drop a process that has ended."""
        self._followed.pop(process, None)

    def due(self, observation: Observation) -> tuple[tuple[Instance, bool], ...]:
        """Return the processes to be looked at as a whole now, each with whether it has to be surveyed before."""
        early_s = 0.25 * self._settings.interval_s
        found: list[tuple[Instance, bool]] = []
        for process, one in self._followed.items():
            row = row_of(observation, process)
            if row is None or self._rests(process, one, observation) or observation.time_s < one.look_at_s - early_s:
                continue
            held_bytes = int(observation.processes.anon_bytes[row] + observation.processes.swapped_bytes[row])
            has_changed = abs(held_bytes - one.held_bytes) > SURVEYED_RATIO * held_bytes
            if has_changed:
                one.held_bytes = held_bytes
            found.append((process, has_changed))
        return tuple(found)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def note(self, results: Iterable[Looked]) -> None:
        """Take in looks at parts of pools: what they saw touched belongs to the next sight."""
        for one in results:
            followed = self._followed.get(one.task.process)
            if followed is not None and one.touches is not None and one.cleared and not one.is_first:
                numbers, touched, _, _ = profile.blocks_seen(one.touches)
                followed.touched.append(numbers[touched > 0])

    def see(
        self,
        process: Instance,
        results: tuple[Looked, ...],
        observation: Observation,
        cost_s: float,
        slow: tuple[Int64, Int64] | None = None,
    ) -> None:
        """Take in a look at all of a pool, which has cost so much processor time.

        `slow` are addresses of blocks, and how much of each lies on a slow node.
        """
        followed = self._followed.get(process)
        if followed is None:
            return
        now_s = observation.time_s
        parts = [profile.blocks_seen(one.touches) for one in results if one.touches is not None and one.cleared]
        is_whole = len(parts) == len(results) and not any(one.is_first for one in results)
        cpu_s, io_bytes = _used(observation, process)
        passed_s = now_s - followed.seen_at_s
        if parts and is_whole:
            numbers, touched, present, swapped = profile.joined_blocks(parts)
            followed.standing = plan.Standing(
                blocks=numbers, resident_bytes=present * PAGE_BYTES, swapped_bytes=swapped * PAGE_BYTES
            )
            if slow is not None:
                followed.standing = followed.standing.with_slow(slow[0] // BLOCK_BYTES, slow[1])
            if followed.is_begun and passed_s > 0.0:
                seen = np.unique(np.concatenate([numbers[touched > 0], *followed.touched]))
                sight = Sight(
                    at_s=now_s,
                    blocks=seen,
                    blocks_in_pool=len(numbers),
                    cpu_ratio=(cpu_s - followed.cpu_s) / passed_s,
                    io_bytes_per_s=(io_bytes - followed.io_bytes) / passed_s,
                )
                self._learn(followed, sight)
        # A look that failed in part leaves a gap: the next one begins anew.
        followed.is_begun = bool(parts) and is_whole
        followed.touched.clear()
        followed.seen_at_s, followed.cpu_s, followed.io_bytes = now_s, cpu_s, io_bytes
        followed.foreseen = None
        followed.look_at_s = now_s + self._wait_s(followed, process, now_s, cost_s)

    def settle(self, now_s: float) -> tuple[PhaseOutcome, ...]:
        """Judge the prefetches whose time is over, and learn from them."""
        found: list[PhaseOutcome] = []
        for process, followed in self._followed.items():
            for one in [each for each in followed.brought if _is_over(each, followed, now_s)]:
                followed.brought.remove(one)
                outcome = plan.judge_prefetch(
                    one.choice,
                    one.touched,
                    began_s=one.began_s,
                    done_s=one.done_s,
                    onset_s=one.onset_s,
                    is_alone=True,
                )
                is_ahead = one.choice.sign is not Sign.CURRENT
                after = plan.learn_from(followed.experience, outcome, now_s, is_ahead=is_ahead)
                has_paid = after.paused_until_s <= now_s
                told = (
                    f"{outcome.precision:.0%} of what came for phase {one.choice.phase} was touched, "
                    f"{outcome.recall:.0%} of what it needed was there"
                )
                if not has_paid:
                    told += f": no more of that for {format_duration_s(after.paused_until_s - now_s)}"
                # What is brought ahead saves what looking is paid from.
                self._waits.spare(process, max(outcome.gain, 0.0) * outcome.blocks * (BLOCK_BYTES // PAGE_BYTES))
                means = followed.experience if math.isnan(after.precision) else after
                followed.experience = after
                found.append(
                    PhaseOutcome(process=process, outcome=outcome, experience=means, reason=told, has_paid=has_paid)
                )
        return tuple(found)

    # --- what is to come ----------------------------------------------------------------------------------------------

    def knows(self, process: Instance) -> bool:
        """Tell whether a phase of the pool has come back: only then phases say anything."""
        followed = self._followed.get(process)
        return followed is not None and any(one.blocks.occurrences > 1 for one in followed.state.phases)

    def has_several(self, process: Instance, now_s: float) -> bool:
        """Tell whether the pool uses several sets in turn, and what was foretold of them came true."""
        followed = self._followed.get(process)
        if followed is None or followed.experience.paused_until_s > now_s:
            return False
        return sum(one.blocks.occurrences > 1 for one in followed.state.phases) > 1

    def coming(self, process: Instance, now_s: float) -> tuple[Coming, ...]:
        """Return the expected phases that lack something, the earliest first."""
        followed = self._followed.get(process)
        if followed is None or followed.standing is None or not self.knows(process):
            return ()
        return plan.what_is_coming(
            self._foresee(followed, now_s),
            followed.standing,
            followed.experience,
            in_bytes_per_s=followed.in_bytes_per_s,
            out_bytes_per_s=followed.out_bytes_per_s,
        )

    def order(
        self, process: Instance, request: Prefetch, now_s: float, room_bytes: int
    ) -> tuple[SculptOrder, plan.PrefetchChoice]:
        """Choose what comes and leaves; `room_bytes` is free for it where the request does not say so.

        Raises KeyError for who is not followed: ask whether it `knows` first.
        """
        followed = self._followed[process]
        if followed.standing is None:
            raise ValueError(f"process {process.pid} has not been looked at")
        is_planned = request.phase is not None
        budget = plan.MoveBudget(
            room_bytes=room_bytes if request.room_bytes is None else request.room_bytes,
            in_bytes_per_s=followed.in_bytes_per_s,
            out_bytes_per_s=followed.out_bytes_per_s,
            interval_s=math.inf if is_planned else request.window_s,
            in_most_bytes=request.size_bytes if request.size_bytes is not None else 1 << 62,
        )
        foreseen = self._foresee(followed, now_s, max(HORIZON_S, request.window_s))
        choice = plan.choose_prefetch(foreseen, followed.standing, budget, followed.experience, phase=request.phase)
        come, leave = _ranges(choice.bring), _ranges(choice.leave)
        size_bytes = int(choice.reason.figures.get("moved_bytes", 0.0))
        reason = "" if size_bytes and is_planned else plan.explain_reason(choice.reason)
        order = SculptOrder(
            come=come,
            leave=leave,
            size_bytes=size_bytes,
            part_bytes=PART_BYTES,
            most_s=self._settings.interval_s if is_planned else math.inf,
            reason=reason,
        )
        return order, choice

    def moved(self, process: Instance, choice: plan.PrefetchChoice, done: SculptDone, began_s: float) -> None:
        """Take note of what was moved: how fast it went, and what is to be judged."""
        followed = self._followed.get(process)
        if followed is None or followed.standing is None:
            return
        followed.in_bytes_per_s = _rate(followed.in_bytes_per_s, done.came_bytes, done.come_s)
        followed.out_bytes_per_s = _rate(followed.out_bytes_per_s, done.left_bytes, done.leave_s)
        followed.standing = _after(followed.standing, choice)
        if done.came_bytes or done.promoted_bytes:
            nothing = np.empty(0, np.int64)
            followed.brought.append(_Brought(choice=choice, began_s=began_s, done_s=done.at_s, touched=nothing))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _pays(self, observation: Observation, process: Instance) -> bool:
        """Tell whether a pool is worth looking at: it swaps and its process waits for it, or did so of late."""
        row, ratio = row_of(observation, process), self._waits.ratio(process)
        if row is None or process in self._followed:
            return row is not None and ratio >= KEPT_RATIO
        return ratio >= FOLLOWED_RATIO and self._settings.plan.min_move_bytes <= int(
            observation.processes.swapped_bytes[row]
        )

    def _rests(self, process: Instance, followed: _Followed, observation: Observation) -> bool:
        """Tell whether a process has not run since it was last seen: then nothing was touched, and no look is needed.

        What its clock is too coarse to tell keeps its accessed bits, and is seen by the next look.
        """
        cpu_s, io_bytes = _used(observation, process)
        passed_s = observation.time_s - followed.seen_at_s
        if not followed.is_begun or followed.touched or cpu_s != followed.cpu_s or not passed_s > 0.0:
            return False
        blocks = 0 if followed.standing is None else len(followed.standing.blocks)
        io_per_s = (io_bytes - followed.io_bytes) / passed_s
        nothing = np.empty(0, np.int64)
        self._learn(
            followed,
            Sight(at_s=observation.time_s, blocks=nothing, blocks_in_pool=blocks, io_bytes_per_s=io_per_s),
        )
        followed.seen_at_s, followed.io_bytes, followed.foreseen = observation.time_s, io_bytes, None
        return True

    def _learn(self, followed: _Followed, sight: Sight) -> None:
        followed.state = profile.update_phases(followed.state, sight)
        segment = followed.state.segment
        for one in followed.brought:
            if segment is not None and segment.phase == one.choice.phase:
                one.onset_s = min(one.onset_s, segment.onset_s)
            elif one.onset_s < math.inf:
                continue  # it is over: what is touched now is another's
            one.touched = np.union1d(one.touched, sight.blocks)

    def _foresee(self, followed: _Followed, now_s: float, within_s: float = HORIZON_S) -> Prediction:
        known = followed.foreseen
        if known is None or known.at_s != now_s or known.within_s != within_s:
            known = followed.foreseen = profile.predict_phases(followed.state, now_s, within_s)
        return known

    def _wait_s(self, followed: _Followed, process: Instance, now_s: float, cost_s: float) -> float:
        """Return how long to wait with the next look: longer where looks are dear, and where nothing is to be seen."""
        tick_s = self._settings.interval_s
        usual_s = profile.look_interval_s(followed.state, tick_s, LOOKS_MOST_TICKS * tick_s)
        calm_s = profile.calm_until_s(followed.state, now_s) - now_s - tick_s
        usual_s = max(usual_s, min(calm_s, CALM_MOST_TICKS * tick_s))
        allowed = min(LOOKS_RATIO * self._waits.ratio(process), LOOKS_MOST_RATIO / max(len(self._followed), 1))
        return max(usual_s, cost_s / max(allowed, 1e-6))


def _is_over(one: _Brought, followed: _Followed, now_s: float) -> bool:
    segment = followed.state.segment
    is_there = segment is not None and segment.phase == one.choice.phase
    return now_s >= one.choice.until_s or (one.onset_s < math.inf and not is_there)


def _used(observation: Observation, process: Instance) -> tuple[float, float]:
    """Return a process's processor time and its workload's I/O so far, 0 where it is gone."""
    processes, workloads = observation.processes, observation.workloads
    row = row_of(observation, process)
    if row is None:
        return 0.0, 0.0
    workload = int(processes.workload_index[row])
    return float(processes.cpu_s[row]), float(workloads.read_bytes[workload] + workloads.written_bytes[workload])


def _ranges(blocks: Int64) -> Int64:
    """Return ascending blocks as address ranges, neighbours joined."""
    if not len(blocks):
        return NO_RANGES
    return plan.joined_ranges(np.stack((blocks * BLOCK_BYTES, (blocks + 1) * BLOCK_BYTES), axis=1))


def _after(standing: plan.Standing, choice: plan.PrefetchChoice) -> plan.Standing:
    """Return where blocks are once the choice is carried out: a guess until the next look."""
    came = np.isin(standing.blocks, choice.bring, assume_unique=True)
    left = np.isin(standing.blocks, choice.leave, assume_unique=True)
    size = standing.resident_bytes + standing.swapped_bytes
    return plan.Standing(
        blocks=standing.blocks,
        resident_bytes=np.where(came, size, np.where(left, 0, standing.resident_bytes)),
        swapped_bytes=np.where(came, 0, np.where(left, size, standing.swapped_bytes)),
    )


def _rate(before: float, moved_bytes: int, duration_s: float) -> float:
    if moved_bytes < RATE_LEAST_BYTES:
        return before
    return 0.7 * before + 0.3 * moved_bytes / max(duration_s, 1e-6)
