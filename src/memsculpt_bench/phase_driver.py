# SPDX-License-Identifier: Apache-2.0
"""Drives the learner on real processes under one limit: look, learn, foresee, choose, move, judge.

The processes are one pool: who leaves for whom is chosen among all of them. A block's number tells its process, too.

Everything that decides is the product's (profile/phases.py, plan/phases.py), and so is everything that looks and moves
(the host's open_pages, page_out_ranges and bring_in_ranges); only the loop between them is the bench's.
"""

import time
from collections.abc import Callable, Sequence
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
LOOK_S, CALM_LOOK_S, LOOK_MOST_S = 0.2, 1.0, 3.2
WITHIN_S = 5.0
AT_ONCE_BYTES = 32 << 20  # then is looked again, and chosen again
RATE_BYTES_PER_S = 500e6  # until it is known
PROCESS_BLOCKS = 1 << 32  # numbers for each process: 256 TiB of 64 KiB, more than an address space

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
    """Processes under the learner (or under a stand-in for it that foresees otherwise)."""

    def __init__(
        self,
        host: Host,
        processes: Sequence[Instance],
        room: Callable[[], int],
        foresee: Foresee,
        *,
        doubts: bool = True,
    ) -> None:
        """Open the processes. `room` returns the bytes that are free below the limit. Raises Unavailable, Vanished.

        Without `doubts` what came of a prefetch changes nothing for the next one: somebody was told what comes.
        """
        self._doubts = doubts
        self._host, self._processes, self._room, self._foresee = host, tuple(processes), room, foresee
        self._readers = [host.open_pages(process) for process in processes]
        self.state, self.experience = PhaseState(), Experience()
        self.judged: list[Judged] = []
        self.moved_bytes = self.looks = 0
        self.looking_cpu_s = self.learning_cpu_s = self.moving_cpu_s = 0.0
        self._in_rate = self._out_rate = RATE_BYTES_PER_S
        self._watched: list[Watched] = []
        self._seen_meanwhile: Int64 = np.empty(0, np.int64)
        self._used_cpu_s, self._looked_s = self._cpu_s(), time.monotonic()
        self.next_s = self._looked_s

    @property
    def cpu_s(self) -> float:
        """Return the processor time that managing has taken."""
        return self.looking_cpu_s + self.learning_cpu_s + self.moving_cpu_s

    def step(self) -> None:
        """Look and do what is due, when it is time; nothing where a process has ended."""
        if time.monotonic() >= self.next_s:
            with suppress(Vanished):
                self._step()

    def skip(self) -> None:
        """Begin anew after a time without looks: what was touched meanwhile is not known."""
        with suppress(Vanished):
            for reader in self._readers:
                reader.clear()
        now_s = time.monotonic()
        self._used_cpu_s, self._looked_s = self._cpu_s(), now_s
        calm_s = phase_outlook.calm_until_s(self.state, now_s) - now_s
        self.next_s = now_s + max(LOOK_S, min(CALM_LOOK_S, calm_s))

    def close(self) -> None:
        """Release the processes."""
        for reader in self._readers:
            reader.close()

    def _step(self) -> None:
        begin_s = time.thread_time()
        columns = self._read()
        looked_s = time.thread_time()
        self.looking_cpu_s += looked_s - begin_s
        standing = self._learn(*columns)
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
        prediction = self._foresee(self.state, now_s)
        choice = planning.choose_prefetch(prediction, standing, budget, self.experience)
        learnt_s = time.thread_time()
        self.learning_cpu_s += learnt_s - looked_s
        if len(choice.bring):
            self._move(choice)
            self.moving_cpu_s += time.thread_time() - learnt_s
            return
        calm_s = min(phase_outlook.calm_until_s(self.state, now_s), choice.next_at_s) - now_s
        wait_s = max(interval_s, min(CALM_LOOK_S, calm_s))
        self.next_s = max(now_s + wait_s, time.monotonic() + 0.25 * interval_s)

    def _read(self) -> tuple[Int64, Int64, Int64, Int64]:
        parts = [columns_of(reader.read(), number) for number, reader in enumerate(self._readers)]
        for reader in self._readers:
            reader.clear()
        self.looks += 1
        blocks, touched, present, swapped = (np.concatenate(column) for column in zip(*parts, strict=True))
        return blocks, touched, present, swapped

    def _learn(self, blocks: Int64, touched: Int64, present: Int64, swapped: Int64) -> Standing:
        now_s, used_s = time.monotonic(), self._cpu_s()
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
        blocks, touched, _, _ = self._read()
        self._seen_meanwhile = np.setdiff1d(blocks[touched > 0], choice.bring, assume_unique=True)

    def _cpu_s(self) -> float:
        return sum(_cpu_s(process.pid) for process in self._processes)

    def _leave(self, blocks: Int64) -> None:
        for process, own in self._by_process(blocks):
            done = self._host.page_out_ranges(process, ranges_of(own))
            self._out_rate = _rate(self._out_rate, done.moved_bytes, done.duration_s)
            self.moved_bytes += done.moved_bytes

    def _come(self, blocks: Int64) -> None:
        for process, own in self._by_process(blocks):
            done = self._host.bring_in_ranges(process, ranges_of(own))
            self._in_rate = _rate(self._in_rate, done.moved_bytes, done.duration_s)
            self.moved_bytes += done.moved_bytes

    def _by_process(self, blocks: Int64) -> list[tuple[Instance, Int64]]:
        edges = np.searchsorted(blocks, np.arange(1, len(self._processes)) * PROCESS_BLOCKS)
        parts = zip(self._processes, np.split(blocks % PROCESS_BLOCKS, edges), strict=True)
        return [(process, part) for process, part in parts if len(part)]

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


def numbered(process: int, blocks: Int64) -> Int64:
    """Return blocks of the process of this place as they are numbered in the pool."""
    return process * PROCESS_BLOCKS + blocks.astype(np.int64)


def columns_of(touches: Touches, process: int = 0) -> tuple[Int64, Int64, Int64, Int64]:
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
    return numbered(process, numbers[firsts]), touched, present, swapped


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
