# SPDX-License-Identifier: Apache-2.0
"""The log of sampled page faults: bounded, and thinned out where it is too much. Pure.

Sampled are pages, by a hash of their numbers, and not faults: all faults of a chosen page are seen. So it is known who
brought it last, and whether what he brought is held can be looked up later. A page is one of 2**shift, and the pages
of a larger shift are among those of a smaller one: the log can be thinned out afterwards as if it had been sampled so
from the beginning (Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015). What a page stands for is
2**shift pages (Horvitz and Thompson 1952); the variance of such a sum is that of Poisson sampling.

LOG_MOST faults and STACKS_MOST_BYTES of stacks are some 2 MiB in all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.growth import FaultSamples
from memsculpt.domain.workload import Instance

EVENT = np.dtype(
    [
        ("at_s", "<f8"),
        ("page", "<i8"),
        ("process", "<i4"),
        ("stack", "<i4"),
        ("pages", "<i4"),
        ("shift", "<i2"),
        ("kind", "<i2"),
    ]
)
Events = npt.NDArray[Any]  # of EVENT

LOG_MOST = 24_576
STACKS_MOST_BYTES = 768 << 10
STACK_OVERHEAD_BYTES = 150  # of one in a dictionary, measured
SHIFT_MOST = 24
UNKNOWN_STACK = np.array([1, 0], np.int64).tobytes()
MASK = (1 << 64) - 1


def _first_stacks() -> dict[bytes, int]:
    return {UNKNOWN_STACK: 0}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaultLog:
    """Faults in the order of their coming."""

    events: Events = field(default_factory=lambda: np.empty(0, EVENT))
    stacks: Mapping[bytes, int] = field(default_factory=_first_stacks)  # numbered as they came; 0 is unknown
    stack_bytes: int = 0
    forgotten_count: int = 0  # faults whose stacks were dropped for want of room

    def rows_of(self, numbers: Sequence[int]) -> Bool:
        """Return which events are those of these processes."""
        return np.isin(self.events["process"], numbers)

    @property
    def weights(self) -> Float64:
        """Return how many pages each event's page stands for."""
        return np.exp2(self.events["shift"].astype(np.float64))


def add(log: FaultLog, drained: Iterable[FaultSamples], number_of: Mapping[Instance, int]) -> FaultLog:
    """Return the log with what came; what is of none of these processes is left out."""
    stacks, stack_bytes, parts = dict(log.stacks), log.stack_bytes, [log.events]
    for one in drained:
        if not len(one.at_s):
            continue
        for key in one.stacks:
            if key not in stacks:
                stacks[key] = len(stacks)
                stack_bytes += len(key) + STACK_OVERHEAD_BYTES
        events = np.empty(len(one.at_s), EVENT)
        columns = (("at_s", one.at_s), ("page", one.page), ("pages", one.size_pages), ("shift", one.shift))
        for name, column in (*columns, ("kind", one.kind)):
            events[name] = column
        events["process"] = np.array([number_of.get(each, -1) for each in one.processes], np.int64)[one.process]
        events["stack"] = np.array([stacks[key] for key in one.stacks], np.int64)[one.stack]
        parts.append(events[events["process"] >= 0])
    if len(parts) == 1:
        return log
    return replace(log, events=np.concatenate(parts), stacks=stacks, stack_bytes=stack_bytes)


def forget(log: FaultLog, before_s: float) -> FaultLog:
    """Return the log from a time on."""
    return replace(log, events=log.events[log.events["at_s"] >= before_s])


def thin_out(log: FaultLog, members: Sequence[int], seeds: Mapping[int, int], most: int) -> FaultLog:
    """Return the log as if these processes had been sampled more coarsely: at most so many events of theirs."""
    events, inside = log.events, log.rows_of(members)
    while int(inside.sum()) > most:
        shift = int(events["shift"][inside].min()) + 1
        if shift > SHIFT_MOST:  # one page that faults without end: of that the last
            keep = np.flatnonzero(inside)[-most:]
            return replace(log, events=events[np.sort(np.concatenate([np.flatnonzero(~inside), keep]))])
        stays = np.ones(len(events), np.bool_)
        for number in members:
            rows = np.flatnonzero((events["process"] == number) & (events["shift"] < shift))
            stays[rows] = is_chosen(events["page"][rows].astype(np.int64), seeds[number], shift)
        events, inside = events[stays].copy(), inside[stays]
        events["shift"][inside] = np.maximum(events["shift"][inside], shift)
    return replace(log, events=events)


def drop_stacks(log: FaultLog) -> FaultLog:
    """Drop the stacks that no event has, then the smallest: they are unknown from then on. Half of the room is free."""
    if log.stack_bytes <= STACKS_MOST_BYTES:
        return log
    keys = tuple(log.stacks)
    weights = np.bincount(log.events["stack"], log.weights * log.events["pages"], len(keys))
    kept, size = {UNKNOWN_STACK: 0}, 0
    order: list[int] = np.argsort(-weights, kind="stable").tolist()
    for number in order:
        size += len(keys[number]) + STACK_OVERHEAD_BYTES
        if weights[number] <= 0.0 or size > STACKS_MOST_BYTES // 2:
            break
        kept.setdefault(keys[number], len(kept))
    new_number = np.array([kept.get(key, 0) for key in keys], np.int32)
    events = log.events.copy()
    events["stack"] = new_number[log.events["stack"]]
    lost = int(((events["stack"] == 0) & (log.events["stack"] != 0)).sum())
    size = sum(len(key) + STACK_OVERHEAD_BYTES for key in kept)
    return FaultLog(events=events, stacks=kept, stack_bytes=size, forgotten_count=log.forgotten_count + lost)


def sum_up(group: Int64, count: int, sizes: Float64, weights: Float64) -> tuple[Float64, Float64]:
    """Return the estimated sums by group, and their variances: those of Poisson sampling with the chance 1 / weight."""
    sums: Float64 = np.bincount(group, sizes * weights, count).astype(np.float64)
    variances: Float64 = np.bincount(group, sizes * sizes * weights * (weights - 1.0), count).astype(np.float64)
    return sums, variances


def parse_stack(key: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the frames and the words of a stack."""
    numbers: list[int] = np.frombuffer(key, np.int64).tolist()
    count = numbers[0]
    return tuple(numbers[1 : 1 + count]), tuple(numbers[1 + count :])


def is_chosen(pages: Int64, seed: int, shift: int) -> Bool:
    """Return which pages are among one in 2**shift; the same as `is_chosen` of native/bpf/faults.bpf.c."""
    if shift == 0:
        return np.ones(len(pages), np.bool_)
    mixed = pages.astype(np.uint64) + np.uint64(seed & MASK)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    return mixed >> np.uint64(64 - shift) == 0
