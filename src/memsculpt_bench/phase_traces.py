# SPDX-License-Identifier: Apache-2.0
"""Phases on traces: a memory of so many blocks, looked at in steps, under each way of bringing blocks back.

A trace is a list of looks: which blocks were touched in a step. Memory holds `room` blocks; a block that is touched and
not there is a fault, comes in, and the one that was used longest ago leaves, as it roughly does in the kernel. Moves
ahead are done between two steps and take no time: what is compared here is what is known and when, not how fast it is
carried out (bench phases measures that on the real kernel).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.phases import Prediction, Sight
from memsculpt.plan import phases as planning
from memsculpt.plan.phases import Experience, MoveBudget, PrefetchChoice, Standing
from memsculpt.profile import phase_outlook, phases
from memsculpt.profile.phases import PhaseState

BLOCK_BYTES = 64 << 10
WITHIN_S = 5.0
Foresee = Callable[[PhaseState, float], Prediction]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """What a made-up program touches, step by step."""

    blocks: int  # in the pool
    step_s: float
    looks: tuple[Int64, ...]
    late_from: int  # the step from which the figures count


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What came of a trace in its late part, in blocks."""

    touches: int  # of blocks, once a step
    faults: int
    brought: int
    used: int  # of those brought

    @property
    def precision(self) -> float:
        """Return the share of what was brought that was touched before it left again."""
        return self.used / self.brought if self.brought else float("nan")

    @property
    def recall(self) -> float:
        """Return the share of what came back that was brought before it was touched."""
        return self.used / (self.used + self.faults) if self.used + self.faults else float("nan")


def alternating(
    sets: Sequence[Int64],
    order: Sequence[int],
    *,
    blocks: int,
    rng: np.random.Generator,
    dwell_s: float = 4.0,
    pause_s: float = 1.5,
    periods: int = 9,
    step_s: float = 0.5,
    share: float = 0.9,
    noise: float = 0.0,
    jitter: float = 0.0,
    drift: float = 0.0,
    late_period: int = 3,
) -> Trace:
    """Return a program that goes through sets of blocks in an order, period by period, with a pause after each.

    Each step touches `share` of the set, and `noise` of its size anywhere; lengths vary by `jitter` of theirs, and
    `drift` of a set's blocks are others the next time.
    """
    now = [np.array(one) for one in sets]
    looks: list[Int64] = []
    late_from = 0
    for period in range(periods):
        if period == late_period:
            late_from = len(looks)
        for number in order:
            one = now[number]
            for _ in range(_steps(dwell_s, jitter, step_s, rng)):
                part = one[rng.random(len(one)) < share]
                looks.append(np.unique(np.append(part, rng.integers(0, blocks, int(noise * len(part))))))
            looks += [np.empty(0, np.int64)] * (_steps(pause_s, jitter, step_s, rng) if pause_s else 0)
            gone = rng.random(len(one)) < drift
            now[number] = np.unique(np.append(one[~gone], rng.integers(0, blocks, int(gone.sum()))))
    return Trace(blocks=blocks, step_s=step_s, looks=tuple(looks), late_from=late_from)


def uniform(*, blocks: int, share: float, steps: int, rng: np.random.Generator, step_s: float = 0.5) -> Trace:
    """Return a program without a pattern: each step touches any blocks."""
    looks = tuple(np.flatnonzero(rng.random(blocks) < share) for _ in range(steps))
    return Trace(blocks=blocks, step_s=step_s, looks=looks, late_from=steps // 3)


def learnt(state: PhaseState, now_s: float) -> Prediction:
    """Foresee by the learner."""
    return phase_outlook.predict(state, now_s, WITHIN_S)


def nothing(state: PhaseState, now_s: float) -> Prediction:
    """Foresee nothing: the kernel alone."""
    del state
    return Prediction(at_s=now_s, within_s=0.0, in_use=np.empty(0, np.int64))


ARMS: dict[str, Foresee] = {"kernel": nothing, "replay": phase_outlook.replay, "memsculpt": learnt}


def run(trace: Trace, room: int, foresee: Foresee) -> Tally:
    """Run a trace in a memory of `room` blocks."""
    memory = _Memory(trace.blocks, room)
    state, experience = PhaseState(), Experience()
    open_choices: list[tuple[PrefetchChoice, list[Int64]]] = []
    for number, touched in enumerate(trace.looks):
        if number == trace.late_from:
            memory.begin_counting()
        memory.touch(touched, number)
        now_s = (number + 1) * trace.step_s
        sight = Sight(at_s=now_s, blocks=touched, blocks_in_pool=trace.blocks, cpu_ratio=float(len(touched) > 0))
        state = phases.update(state, sight)
        for choice, seen in list(open_choices):
            seen.append(touched)
            if now_s >= choice.until_s:
                experience = _judged(choice, seen, experience, now_s)
                open_choices.remove((choice, seen))
        room_bytes = memory.free_bytes
        budget = MoveBudget(room_bytes=room_bytes, in_bytes_per_s=1e9, out_bytes_per_s=1e9, interval_s=trace.step_s)
        choice = planning.choose_prefetch(foresee(state, now_s), memory.standing(), budget, experience)
        if len(choice.bring):
            memory.move(choice, number)
            open_choices.append((choice, []))
    # What was brought for a phase that the trace no longer shows is not judged.
    brought = memory.brought - memory.waiting
    return Tally(touches=memory.touches, faults=memory.faults, brought=brought, used=memory.used)


def _judged(choice: PrefetchChoice, seen: list[Int64], before: Experience, now_s: float) -> Experience:
    touched = np.unique(np.concatenate(seen))
    outcome = planning.judge(choice, touched, began_s=choice.at_s, done_s=choice.at_s, onset_s=choice.onset_s + 1e-3)
    return planning.learn_from(before, outcome, now_s, is_ahead=False)


def _steps(length_s: float, jitter: float, step_s: float, rng: np.random.Generator) -> int:
    return max(1, round(length_s * (1.0 + jitter * rng.uniform(-1.0, 1.0)) / step_s))


class _Memory:
    """Which blocks are where; those that were never touched are nowhere."""

    def __init__(self, blocks: int, room: int) -> None:
        self._room = room
        self._exists = np.zeros(blocks, np.bool_)
        self._resident = np.zeros(blocks, np.bool_)
        self._fresh = np.zeros(blocks, np.bool_)  # brought, and not touched since
        self._used_at = np.full(blocks, -1, np.int64)
        self.touches = self.faults = self.brought = self.used = 0

    @property
    def free_bytes(self) -> int:
        return (self._room - int(self._resident.sum())) * BLOCK_BYTES

    @property
    def waiting(self) -> int:
        return int(self._fresh.sum())

    def begin_counting(self) -> None:
        self.touches = self.faults = self.brought = self.used = 0
        self._fresh[:] = False

    def standing(self) -> Standing:
        known = np.flatnonzero(self._exists)
        resident = self._resident[known].astype(np.int64) * BLOCK_BYTES
        return Standing(blocks=known, resident_bytes=resident, swapped_bytes=BLOCK_BYTES - resident)

    def touch(self, blocks: Int64, at: int) -> None:
        self.touches += len(blocks)
        self.faults += int((self._exists[blocks] & ~self._resident[blocks]).sum())
        self.used += int(self._fresh[blocks].sum())
        self._fresh[blocks] = False
        self._exists[blocks] = self._resident[blocks] = True
        self._used_at[blocks] = at
        self._shrink()

    def move(self, choice: PrefetchChoice, at: int) -> None:
        self._resident[choice.leave] = self._fresh[choice.leave] = False
        self._resident[choice.bring] = self._fresh[choice.bring] = True
        self._used_at[choice.bring] = at
        self.brought += len(choice.bring)
        self._shrink()

    def _shrink(self) -> None:
        held = np.flatnonzero(self._resident)
        over = len(held) - self._room
        if over > 0:
            gone = held[np.argsort(self._used_at[held], kind="stable")[:over]]
            self._resident[gone] = self._fresh[gone] = False
