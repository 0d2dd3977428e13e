# SPDX-License-Identifier: Apache-2.0
"""Drives the learner on one real process: look, learn, foresee, choose, move, judge. What bench phases compares.

Everything that decides is the product's (profile/phases.py, plan/phases.py), and so is everything that looks and moves
(the host's open_pages, page_out_ranges and bring_in_ranges); only the loop between them is the bench's.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import PAGE_BYTES, Touches
from memsculpt.domain.phases import Prediction, Sight, Sign
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient, Vanished
from memsculpt.host.protocol import Host
from memsculpt.plan import phases as planning
from memsculpt.plan.phases import Experience, MoveBudget, PrefetchChoice, PrefetchOutcome, Standing
from memsculpt.profile import phase_outlook, phases
from memsculpt.profile.phases import PhaseState

BLOCK_BYTES = 64 << 10
LOOK_S, LOOK_MOST_S = 0.2, 3.2
WITHIN_S = 5.0
AT_ONCE_BYTES = 32 << 20  # then is looked again, and chosen again
RATE_BYTES_PER_S = 500e6  # until it is known

Foresee = Callable[[PhaseState, float], Prediction]


def learnt(state: PhaseState, now_s: float) -> Prediction:
    """Foresee by the learner."""
    return phase_outlook.predict(state, now_s, WITHIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One prefetch, and what came of it."""

    at_s: float
    sign: str
    blocks: int
    outcome: PrefetchOutcome


@dataclass(slots=True)
class Watched:
    """A prefetch whose window has not passed."""

    choice: PrefetchChoice
    began_s: float
    done_s: float
    seen: list[Int64] = field(default_factory=list[Int64])
    onset_s: float = float("inf")


class Driver:
    """One process under the learner (or under a stand-in for it that foresees otherwise)."""

    def __init__(
        self, host: Host, process: Instance, room: Callable[[], int], foresee: Foresee, *, doubts: bool = True
    ) -> None:
        """Open the process. `room` returns the bytes that are free below the limit. Raises Unavailable, Vanished.

        Without `doubts` what came of a prefetch changes nothing for the next one: somebody was told what comes.
        """
        self._doubts = doubts
        self._host, self._process, self._room, self._foresee = host, process, room, foresee
        self._reader = host.open_pages(process)
        self.state, self.experience = PhaseState(), Experience()
        self.judged: list[Judged] = []
        self.moved_bytes = self.looks = 0
        self.cpu_s = 0.0
        self._in_rate = self._out_rate = RATE_BYTES_PER_S
        self._watched: list[Watched] = []
        self._seen_meanwhile: Int64 = np.empty(0, np.int64)
        self._used_cpu_s, self._looked_s = _cpu_s(process.pid), time.monotonic()
        self.next_s = self._looked_s

    def step(self) -> None:
        """Look and do what is due, when it is time; nothing where the process has ended."""
        if time.monotonic() < self.next_s:
            return
        begin_cpu_s = time.thread_time()
        with suppress(Vanished):
            self._step()
        self.cpu_s += time.thread_time() - begin_cpu_s

    def close(self) -> None:
        """Release the process."""
        self._reader.close()

    def _step(self) -> None:
        standing = self._look()
        now_s = self._looked_s
        self._judge_those_that_are_over(now_s)
        interval_s = phase_outlook.look_interval_s(self.state, LOOK_S, LOOK_MOST_S)
        budget = MoveBudget(
            room_bytes=self._room(),
            in_bytes_per_s=self._in_rate,
            out_bytes_per_s=self._out_rate,
            interval_s=interval_s,
            in_most_bytes=AT_ONCE_BYTES,
        )
        choice = planning.choose_prefetch(self._foresee(self.state, now_s), standing, budget, self.experience)
        if len(choice.bring):
            self._move(choice)
            return
        self.next_s = max(now_s + interval_s, time.monotonic() + 0.25 * interval_s)

    def _look(self) -> Standing:
        blocks, touched, present, swapped = columns_of(self._reader.read())
        self._reader.clear()
        self.looks += 1
        now_s, used_s = time.monotonic(), _cpu_s(self._process.pid)
        sight = Sight(
            at_s=now_s,
            blocks=np.union1d(blocks[touched > 0], self._seen_meanwhile),
            blocks_in_pool=len(blocks),
            cpu_ratio=(used_s - self._used_cpu_s) / (now_s - self._looked_s),
        )
        self._used_cpu_s, self._looked_s = used_s, now_s
        self._seen_meanwhile = np.empty(0, np.int64)
        self.state = phases.update(self.state, sight)
        segment = self.state.segment
        for one in self._watched:
            one.seen.append(sight.blocks)
            if segment is not None and segment.phase == one.choice.phase:
                one.onset_s = min(one.onset_s, segment.onset_s)
        return Standing(blocks=blocks, resident_bytes=present * PAGE_BYTES, swapped_bytes=swapped * PAGE_BYTES)

    def _move(self, choice: PrefetchChoice) -> None:
        began_s = time.monotonic()
        with suppress(Transient):  # the swap is full: what has come until then has come
            self._leave(choice.leave)
            self._come(choice.bring)
        self._watched.append(Watched(choice=choice, began_s=began_s, done_s=time.monotonic()))
        # Bringing a page back sets its accessed bit: that is not its owner's touch.
        blocks, touched, _, _ = columns_of(self._reader.read())
        self._reader.clear()
        self._seen_meanwhile = np.setdiff1d(blocks[touched > 0], choice.bring, assume_unique=True)

    def _leave(self, blocks: Int64) -> None:
        if len(blocks):
            done = self._host.page_out_ranges(self._process, ranges_of(blocks))
            self._out_rate = _rate(self._out_rate, done.moved_bytes, done.duration_s)
            self.moved_bytes += done.moved_bytes

    def _come(self, blocks: Int64) -> None:
        if len(blocks):
            done = self._host.bring_in_ranges(self._process, ranges_of(blocks))
            self._in_rate = _rate(self._in_rate, done.moved_bytes, done.duration_s)
            self.moved_bytes += done.moved_bytes

    def _judge_those_that_are_over(self, now_s: float) -> None:
        for one in [each for each in self._watched if now_s >= each.choice.until_s]:
            self._watched.remove(one)
            touched = np.unique(np.concatenate([np.empty(0, np.int64), *one.seen]))
            outcome = planning.judge(one.choice, touched, began_s=one.began_s, done_s=one.done_s, onset_s=one.onset_s)
            is_ahead = one.choice.sign is not Sign.CURRENT
            after = planning.learn_from(self.experience, outcome, now_s, is_ahead=is_ahead)
            self.experience = after if self._doubts else self.experience
            self.judged.append(
                Judged(at_s=one.began_s, sign=one.choice.sign.value, blocks=len(one.choice.bring), outcome=outcome)
            )


def instance_of(pid: int) -> Instance:
    """Return the process that has this pid now. Raises FileNotFoundError."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return Instance(pid=pid, start_ticks=int(fields[19]))


def columns_of(touches: Touches) -> tuple[Int64, Int64, Int64, Int64]:
    """Return (block numbers, touched, present, swapped pages) of private anonymous memory, blocks ascending."""
    kinds = [not one.is_file and not one.is_shared and not one.name.startswith("[stack") for one in touches.mappings]
    rows = np.flatnonzero(np.array(kinds, np.bool_)[touches.mapping_index])
    numbers = touches.starts[rows] // BLOCK_BYTES
    if not len(rows):
        return numbers, numbers, numbers, numbers
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    touched, present, swapped = (
        np.add.reduceat(column[rows], firsts) for column in (touches.touched, touches.present, touches.swapped)
    )
    return numbers[firsts], touched, present, swapped


def ranges_of(blocks: Int64) -> list[tuple[int, int]]:
    """Return ascending blocks as address ranges, neighbours joined."""
    breaks = np.flatnonzero(np.diff(blocks) != 1)
    starts = blocks[np.concatenate(([0], breaks + 1))] * BLOCK_BYTES
    ends = (blocks[np.concatenate((breaks, [len(blocks) - 1]))] + 1) * BLOCK_BYTES
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _rate(before: float, moved_bytes: int, duration_s: float) -> float:
    return before if moved_bytes < 1 << 20 else 0.7 * before + 0.3 * moved_bytes / max(duration_s, 1e-6)


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process, 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100.0
