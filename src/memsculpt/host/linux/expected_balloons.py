# SPDX-License-Identifier: Apache-2.0
"""Where balloons may be by our own doing: what lies between is no news, all else was somebody else's ask.

A balloon moves at its guest's pace, and tells every step. Safe from any thread.
"""

import threading

from memsculpt.domain.workload import Instance


class ExpectedBalloons:
    """The last ask of each balloon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._between: dict[Instance, tuple[int, int, int]] = {}  # lowest, highest, and where it is to end

    def expect(self, process: Instance, from_bytes: int, to_bytes: int) -> None:
        """Take note that a balloon is being asked to move."""
        with self._lock:
            self._between[process] = min(from_bytes, to_bytes), max(from_bytes, to_bytes), to_bytes

    def take(self, process: Instance, actual_bytes: int | None) -> bool:
        """Tell whether a balloon is where it was expected; one that has arrived is expected nowhere else."""
        with self._lock:
            low, high, end = self._between.get(process, (0, -1, -1))
            if actual_bytes is None or not low <= actual_bytes <= high:
                return False
            if actual_bytes == end:
                self._between[process] = end, end, end
            return True
