# SPDX-License-Identifier: Apache-2.0
"""What simulated programs do with their memory: frozen descriptions, and their lives.

A description (`Constant`, `Ramp`, `Cycle`, ...) is data and can be started any number of times. Starting it
gives a `Life`: each step it says how long it wants to run and which chunks it touches meanwhile, and is told
how much of that it got done. A stall therefore makes a phase longer, as on a real machine, and never makes
a program do less in the end.

Chance comes from the generator that a life is given, so that the same seed gives the same program whether
or not somebody manages its memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Float64
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.simulated.pages import Chunks

MIB = 1 << 20
NO_CHUNKS: Chunks = np.zeros(0, dtype=np.intp)


class Demand(NamedTuple):
    """What a program wants in one step."""

    run_s: float  # how long it would run, stalls included, at most the step
    chunks: int  # how large its private memory is: what lies above is released, what is new gets touched
    touched: Chunks  # chunks of its private memory that it touches while it runs
    cpu_ratio: float = 1.0  # processor time per time run
    file_touched: Chunks = NO_CHUNKS  # chunks of its file that it reads


class Phase(NamedTuple):
    """A finished phase: the same work each time, so that its duration shows what the stalls cost."""

    began_at_s: float
    duration_s: float


class Life(Protocol):
    """A started program."""

    file_chunks: int  # the length of the file it reads, 0 for none

    @property
    def is_dead(self) -> bool:
        """Whether it has ended by itself."""
        ...

    def demand(self, now_s: float, step_s: float) -> Demand | None:
        """Say what it wants between `now_s` and `now_s + step_s`; None: it sleeps and touches nothing."""
        ...

    def progress(self, done_ratio: float) -> Phase | None:
        """Learn which share of the last demand was done (the rest was stall); return the phase this finished."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Program(ABC):
    """What every simulated program has. `cgroup` "" puts it into the root, where `exe` is its identity."""

    name: str
    cgroup: str = ""
    user: str = "root"
    begins_at_s: float = 0.0  # after the host's start
    comes_back_after_s: float | None = 1.0  # after it was killed or ended; None: it stays away
    lifetime_s: float | None = None  # ends by itself after so long, each time; None: never
    remakes_cgroup: bool = False  # its service manager removes the cgroup with it and makes a new one

    @property
    def exe(self) -> str:
        """Return the path of its executable."""
        return f"/usr/bin/{self.name}"

    @property
    def vm(self) -> str:
        """Return the name of the virtual machine that it is; "" for a program that is none."""
        return ""

    @property
    def path(self) -> CgroupPath:
        """Return the cgroup it is started in."""
        return CgroupPath(self.cgroup)

    @abstractmethod
    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin one life at `now_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Program):
    """A server such as redis: one size, always active, few chunks touched often and many seldom."""

    size_bytes: int
    touches_per_s: float = 2000.0  # of chunks, spread by Zipf's law with exponent `skew`; 0 skew: evenly
    skew: float = 1.0
    cpu_ratio: float = 0.5

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin with the data loaded as fast as the kernel gives pages, and the rates of touching dealt out."""
        chunks = _chunks(self.size_bytes, chunk_bytes)
        weights: Float64 = np.exp(-self.skew * np.log(np.arange(1, chunks + 1, dtype=np.float64)))
        rates_hz: Float64 = self.touches_per_s * weights / weights.sum()
        rng.shuffle(rates_hz)
        return _Sized(lambda _: chunks, _Rates(rates_hz, rng), self.cpu_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp(Program):
    """Grows from one size to another over `ramp_s`, then stays; touches everything it has."""

    from_bytes: int
    to_bytes: int
    ramp_s: float
    touch_hz: float = 0.5  # how often each chunk is touched
    cpu_ratio: float = 0.3

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin to grow at `now_s`."""

        def size(at_s: float) -> int:
            share = min(max((at_s - now_s) / self.ramp_s, 0.0), 1.0)
            return _chunks(round(self.from_bytes + share * (self.to_bytes - self.from_bytes)), chunk_bytes)

        most = _chunks(max(self.from_bytes, self.to_bytes), chunk_bytes)
        return _Sized(size, _Rates(np.full(most, self.touch_hz), rng), self.cpu_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak(Program):
    """Works on `base_bytes` and never looks again at what it leaks, up to `ceiling_bytes`."""

    base_bytes: int
    leak_bytes_per_s: float
    ceiling_bytes: int
    touch_hz: float = 1.0
    cpu_ratio: float = 0.2

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin to leak at `now_s`."""
        base = _chunks(self.base_bytes, chunk_bytes)

        def size(at_s: float) -> int:
            leaked_bytes = max(at_s - now_s, 0.0) * self.leak_bytes_per_s
            return _chunks(round(min(self.base_bytes + leaked_bytes, self.ceiling_bytes)), chunk_bytes)

        return _Sized(size, _Rates(np.full(base, self.touch_hz), rng), self.cpu_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst(Program):
    """Takes `burst_bytes` more at unforeseeable times, for a while, and gives them back."""

    base_bytes: int
    burst_bytes: int
    mean_pause_s: float = 60.0
    burst_s: float = 10.0
    touch_hz: float = 1.0
    cpu_ratio: float = 0.3

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin in a pause between bursts."""
        base = _chunks(self.base_bytes, chunk_bytes)
        most = _chunks(self.base_bytes + self.burst_bytes, chunk_bytes)
        begins_at_s = now_s + float(rng.exponential(self.mean_pause_s))

        def size(at_s: float) -> int:
            nonlocal begins_at_s
            while at_s >= begins_at_s + self.burst_s:
                begins_at_s += self.burst_s + float(rng.exponential(self.mean_pause_s))
            return most if at_s >= begins_at_s else base

        # Its own generator: otherwise what is touched would shift when the bursts come.
        touching = np.random.default_rng(rng.integers(1 << 63))
        return _Sized(size, _Rates(np.full(most, self.touch_hz), touching), self.cpu_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupPeak(Program):
    """Needs `peak_bytes` for the first `startup_s` of each life and `steady_bytes` afterwards."""

    peak_bytes: int
    steady_bytes: int
    startup_s: float = 10.0
    touch_hz: float = 1.0
    cpu_ratio: float = 0.3

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin with the start-up."""
        peak, steady = _chunks(self.peak_bytes, chunk_bytes), _chunks(self.steady_bytes, chunk_bytes)
        rates = _Rates(np.full(max(peak, steady), self.touch_hz), rng)
        return _Sized(lambda at_s: peak if at_s < now_s + self.startup_s else steady, rates, self.cpu_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle(Program):
    """An analytic job: builds a data set, works over all of it, and keeps it untouched until the next phase.

    A phase that is late delays the next one only when it runs into it.
    """

    size_bytes: int
    period_s: float = 10.0
    work_s: float = 1.2  # time that a phase takes when nothing stalls
    offset_s: float = 0.0
    jitter_s: float = 0.0  # each onset is later by up to so much
    touch_hz: float = 16.0

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin asleep, or with the first phase when its offset is 0."""
        return _Phased(self, now_s, _chunks(self.size_bytes, chunk_bytes), rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns(Program):
    """Loads several sets once, then works on one after the other, with a pause after each turn.

    A turn that is late delays the next one only when it runs into it. `order` names the sets in their order.
    """

    set_bytes: int
    order: tuple[int, ...] = (0, 1)
    slot_s: float = 8.0  # from one turn's begin to the next
    work_s: float = 2.0  # time that a turn takes when nothing stalls
    touch_hz: float = 16.0
    base_bytes: int = 8 * MIB  # touched in every turn
    load_s: float = 20.0  # in which all of it is loaded
    jitter_s: float = 0.0  # each turn begins later by up to so much

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin by loading."""
        return _InTurn(self, now_s, chunk_bytes, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReader(Program):
    """Reads a file from end to end, again and again; its memory is nearly all page cache."""

    file_bytes: int
    read_bytes_per_s: float
    base_bytes: int = 8 * MIB
    cpu_ratio: float = 0.1

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> Life:
        """Begin at the start of the file."""
        return _Reading(
            base=_chunks(self.base_bytes, chunk_bytes),
            file_chunks=_chunks(self.file_bytes, chunk_bytes),
            chunks_per_s=self.read_bytes_per_s / chunk_bytes,
            cpu_ratio=self.cpu_ratio,
        )


def _chunks(size_bytes: int, chunk_bytes: int) -> int:
    return -(-size_bytes // chunk_bytes)


class _Rates:
    """Chunks that are touched independently of one another, each at its own rate (a Poisson process)."""

    def __init__(self, rates_hz: Float64, rng: np.random.Generator) -> None:
        self._rates_hz, self._rng = rates_hz, rng
        self._for_s = -1.0
        self._chance: npt.NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def sample(self, run_s: float, below: int) -> Chunks:
        """Draw the chunks under `below` that are touched within `run_s`."""
        if run_s != self._for_s:
            self._for_s = run_s
            self._chance = (1.0 - np.exp(-self._rates_hz * run_s)).astype(np.float32)
        drawn = self._rng.random(len(self._chance), dtype=np.float32) < self._chance
        return drawn[:below].nonzero()[0]


class _Lives:
    """What lives until it is ended."""

    is_dead = False


class _Sized(_Lives):
    """A program that always runs, whose size is a function of time."""

    file_chunks = 0

    def __init__(self, size: Callable[[float], int], rates: _Rates, cpu_ratio: float) -> None:
        self._size, self._rates, self._cpu_ratio = size, rates, cpu_ratio

    def demand(self, now_s: float, step_s: float) -> Demand:
        chunks = self._size(now_s + step_s)
        return Demand(step_s, chunks, self._rates.sample(step_s, chunks), self._cpu_ratio)

    def progress(self, done_ratio: float) -> None:
        return None


class _Phased(_Lives):
    """A program that sleeps between phases of a fixed amount of work."""

    file_chunks = 0

    def __init__(self, job: Cycle, now_s: float, chunks: int, rng: np.random.Generator) -> None:
        self._job, self._chunks, self._rng = job, chunks, rng
        self._rates = _Rates(np.full(chunks, job.touch_hz), np.random.default_rng(rng.integers(1 << 63)))
        self._due_s = now_s + job.offset_s  # before its jitter
        self._onset_s = self._jittered()
        self._began_at_s: float | None = None
        self._left_s = 0.0
        self._wanted = (0.0, 0.0)  # from when, for how long

    def demand(self, now_s: float, step_s: float) -> Demand | None:
        from_s = now_s
        if self._began_at_s is None:
            if self._onset_s >= now_s + step_s:
                return None
            from_s = max(self._onset_s, now_s)
            self._began_at_s, self._left_s = from_s, self._job.work_s
        run_s = min(now_s + step_s - from_s, self._left_s)
        self._wanted = (from_s, run_s)
        return Demand(run_s, self._chunks, self._rates.sample(run_s, self._chunks))

    def progress(self, done_ratio: float) -> Phase | None:
        from_s, run_s = self._wanted
        self._left_s -= done_ratio * run_s
        if self._began_at_s is None or self._left_s > 1e-4:
            return None
        finished = Phase(self._began_at_s, from_s + run_s - self._began_at_s)
        self._began_at_s = None
        self._due_s += self._job.period_s
        self._onset_s = self._jittered()
        return finished

    def _jittered(self) -> float:
        return self._due_s + float(self._rng.uniform(0.0, self._job.jitter_s))


class _InTurn(_Lives):
    """A program that sleeps between turns of a fixed amount of work on one of its sets."""

    file_chunks = 0

    def __init__(self, program: Turns, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> None:
        self._program, self._rng = program, rng
        self._base = _chunks(program.base_bytes, chunk_bytes)
        self._each = _chunks(program.set_bytes, chunk_bytes)
        self._chunks = self._base + self._each * (max(program.order) + 1)
        self._rates = _Rates(
            np.full(self._base + self._each, program.touch_hz), np.random.default_rng(rng.integers(1 << 63))
        )
        self._turn = 0
        self._loads_from_s = now_s
        self._due_s = self._onset_s = now_s + program.load_s
        self._began_at_s: float | None = None
        self._left_s = 0.0
        self._wanted = (0.0, 0.0)

    def demand(self, now_s: float, step_s: float) -> Demand | None:
        from_s = now_s
        share = (now_s + step_s - self._loads_from_s) / self._program.load_s
        if share <= 1.0:
            return Demand(step_s, int(share * self._chunks), NO_CHUNKS)
        if self._began_at_s is None:
            if self._onset_s >= now_s + step_s:
                return None
            from_s = max(self._onset_s, now_s)
            self._began_at_s, self._left_s = from_s, self._program.work_s
        run_s = min(now_s + step_s - from_s, self._left_s)
        self._wanted = (from_s, run_s)
        touched = self._rates.sample(run_s, self._base + self._each)
        order = self._program.order
        place = order[self._turn % len(order)] * self._each
        return Demand(run_s, self._chunks, np.where(touched < self._base, touched, touched + place))

    def progress(self, done_ratio: float) -> Phase | None:
        from_s, run_s = self._wanted
        self._left_s -= done_ratio * run_s
        if self._began_at_s is None or self._left_s > 1e-4:
            return None
        finished = Phase(self._began_at_s, from_s + run_s - self._began_at_s)
        self._began_at_s = None
        self._turn += 1
        self._due_s += self._program.slot_s
        self._onset_s = self._due_s + float(self._rng.uniform(0.0, self._program.jitter_s))
        return finished


class _Reading(_Lives):
    """A program that reads its file in a circle."""

    def __init__(self, *, base: int, file_chunks: int, chunks_per_s: float, cpu_ratio: float) -> None:
        self.file_chunks = file_chunks
        self._base, self._chunks_per_s, self._cpu_ratio = base, chunks_per_s, cpu_ratio
        self._at = 0.0  # position in chunks, grows without end
        self._wanted = 0.0

    def demand(self, now_s: float, step_s: float) -> Demand:
        self._wanted = step_s * self._chunks_per_s
        first, last = int(self._at), int(self._at + self._wanted)
        read = np.arange(first, min(last, first + self.file_chunks), dtype=np.intp) % self.file_chunks
        return Demand(step_s, self._base, np.arange(self._base, dtype=np.intp), self._cpu_ratio, read)

    def progress(self, done_ratio: float) -> None:
        self._at += done_ratio * self._wanted
