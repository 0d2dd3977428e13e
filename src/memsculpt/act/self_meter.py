# SPDX-License-Identifier: Apache-2.0
"""What the agent itself uses: a watcher must be nearly free, and say how nearly."""

import os
import resource
from collections import deque

from memsculpt.domain.observation import Observation
from memsculpt.domain.report import SelfUse


class SelfMeter:
    """Measures what the agent itself uses: processor time over the last minute, memory now."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=64)
        self._pid = os.getpid()

    def measure(self, observation: Observation) -> SelfUse:
        """Return what was used up to this observation."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s, now_s = used.ru_utime + used.ru_stime, observation.time_s
        self._marks.append((now_s, cpu_s))
        first_s, first_cpu_s = self._marks[0]
        processes = observation.processes
        own = processes.pids == self._pid
        resident = (processes.anon_bytes + processes.file_bytes + processes.shmem_bytes)[own]
        return SelfUse(
            cpu_share=(cpu_s - first_cpu_s) / (now_s - first_s) if now_s > first_s else 0.0,
            cpu_s=cpu_s,
            resident_bytes=int(resident[0]) if resident.size else 0,
            peak_resident_bytes=used.ru_maxrss * 1024,
        )
