# SPDX-License-Identifier: Apache-2.0
"""Record where a process grows, function by function: the door's way to host/linux/growth.py."""

from collections.abc import Callable

from memsculpt.domain.growth import GrowthRecording


def record_growth(
    pid: int, *, for_s: float, every: int = 1, on_progress: Callable[[float, int], None] | None = None
) -> GrowthRecording:
    """Return what came by page faults of the process in `for_s` seconds; Ctrl-C ends it early.

    Raises Vanished, Refused (a process without memory), Unavailable (no BPF, no privilege).
    """
    from memsculpt.host.linux.growth import GrowthRecorder

    with GrowthRecorder(pid, every) as recorder:
        return recorder.record(for_s, on_progress)
