# SPDX-License-Identifier: Apache-2.0
"""Carry out what profile/sensing.py asks: read and clear accessed bits, and measure what it cost.

Clears are spread over the time until the next tick, by a thread of their own: a program whose bits are cleared bit by
bit hardly notices, one that loses them all at once has a bad moment.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from memsculpt.domain.heat import LookAt, Looked, LookKind
from memsculpt.domain.pages import Extents, Touches
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Unavailable, Vanished
from memsculpt.host.protocol import Host, PageReader

OPENED_MOST = 64  # processes that are held open, five descriptors each
SPREAD_RATIO = 0.8  # of the time until the next tick


class Sensor:
    """Looks at the pages of processes; holds those open that are looked at often.

    `start` and `collect` are for one thread; with `spread_s` 0 everything is done within `start`.
    """

    def __init__(self, host: Host, spread_s: float = 0.0) -> None:
        self._host, self._spread_s = host, spread_s
        self._readers: OrderedDict[Instance, PageReader] = OrderedDict()
        self._stand_ins: OrderedDict[Instance, PageReader] = OrderedDict()  # where the best source failed
        self._done: list[Looked] = []
        self._used: deque[tuple[float, float]] = deque(maxlen=64)  # (host's time, processor seconds of a round)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self.source = ""

    @property
    def is_busy(self) -> bool:
        """Tell whether the last round is still under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, tasks: Sequence[LookAt]) -> None:
        """Begin a round; what came of it is there for `collect` when it is over."""
        if not tasks:
            return
        if self._spread_s <= 0.0:
            self._run(tasks)
            return
        self._thread = threading.Thread(target=self._run_beside, args=(tasks,), name="memsculpt-sense", daemon=True)
        self._thread.start()

    def collect(self) -> tuple[Looked, ...]:
        """Return what came of the last round, nothing while it is under way. Raises what ended it early, if it did."""
        if self.is_busy:
            return ()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        done, self._done = tuple(self._done), []
        self._used.append((self._host.now_s(), sum(one.cpu_s for one in done)))
        return done

    def look(self, tasks: Sequence[LookAt]) -> tuple[Looked, ...]:
        """Do a few tasks at once, and return what came of them. Not while a round `is_busy`."""
        done = tuple(self._look(task, 0.0) for task in tasks)
        if done:
            self._used.append((self._host.now_s(), sum(one.cpu_s for one in done)))
        return done

    def used_ratio(self, now_s: float) -> float:
        """Return the processor time that looking took of late, of one processor."""
        if len(self._used) < 2 or now_s <= self._used[0][0]:
            return 0.0
        return sum(cpu_s for _, cpu_s in self._used) / (now_s - self._used[0][0])

    def close(self) -> None:
        """End the round that is under way, and release every process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for readers in (self._readers, self._stand_ins):
            while readers:
                readers.popitem()[1].close()

    def _run_beside(self, tasks: Sequence[LookAt]) -> None:
        try:
            self._run(tasks)
        except Exception as failure:  # noqa: BLE001  handed to the tick, whose border it then meets
            self._failure = failure

    def _run(self, tasks: Sequence[LookAt]) -> None:
        """Do the round. The probes first: their moment passes; then the turns, each with its share of the time."""
        quick = [task for task in tasks if task.kind is not LookKind.TURN]
        turns = [task for task in tasks if task.kind is LookKind.TURN]
        self._done += [self._look(task, 0.0) for task in quick]
        for task in turns:
            if self._stop.is_set():
                return
            self._done.append(self._look(task, self._spread_s * SPREAD_RATIO / len(turns)))

    def _look(self, task: LookAt, over_s: float) -> Looked:
        begin_cpu_s = time.thread_time()
        begin_s = time.monotonic()

        def pause(share: float) -> None:
            left_s = begin_s + share * over_s - time.monotonic()
            if left_s > 0.0:
                self._stop.wait(left_s)

        problem, is_first = "", False
        try:
            try:
                touches, extents = _found(self._reader(task.process), task, pause)
                _close(self._stand_ins.pop(task.process, None))
            except Unavailable as error:
                _close(self._readers.pop(task.process, None))
                if not (failed := self._host.page_source()):
                    raise
                problem = f"source {failed}: {error.place}: {error.problem}"
                reader, is_first = self._stand_in(task.process, failed)
                touches, extents = _found(reader, task, pause)
        except MemsculptError as error:
            self._forget(task.process)
            return Looked(
                task=task,
                at_s=self._host.now_s(),
                cpu_s=time.thread_time() - begin_cpu_s,
                problem="; ".join(filter(None, (problem, f"{error.place}: {error.problem}"))),
                is_gone=isinstance(error, Vanished),
            )
        if over_s:
            pause(1.0)
        return Looked(
            task=task,
            at_s=self._host.now_s(),
            cpu_s=time.thread_time() - begin_cpu_s,
            touches=touches,
            extents=extents,
            cleared=task.kind is LookKind.TURN,
            problem=problem,
            is_first=is_first,
        )

    def _stand_in(self, process: Instance, failed: str) -> tuple[PageReader, bool]:
        """Return what looks instead of the source that failed, this once, and whether it never looked before.

        It stays open, so that it knows since when it looks if the best source, which is tried first again, fails again.
        """
        known = self._stand_ins.pop(process, None)
        if len(self._stand_ins) >= OPENED_MOST:
            self._stand_ins.popitem(last=False)[1].close()
        self._stand_ins[process] = reader = known or self._host.open_pages(process, failed)
        return reader, known is None

    def _reader(self, process: Instance) -> PageReader:
        reader = self._readers.get(process)
        if reader is None:
            if len(self._readers) >= OPENED_MOST:
                self._readers.popitem(last=False)[1].close()
            reader = self._readers[process] = self._host.open_pages(process)
            self.source = reader.source
        self._readers.move_to_end(process)
        return reader

    def _forget(self, process: Instance) -> None:
        _close(self._readers.pop(process, None))
        _close(self._stand_ins.pop(process, None))


def _close(reader: PageReader | None) -> None:
    if reader is not None:
        reader.close()


def _found(reader: PageReader, task: LookAt, pause: Callable[[float], None]) -> tuple[Touches | None, Extents | None]:
    if task.kind is LookKind.SURVEY:
        return None, reader.survey()
    if task.kind is LookKind.PROBE:
        return reader.read([(task.start, task.end)]), None
    return reader.turn(task.start, task.end, pause), None
