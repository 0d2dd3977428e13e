# SPDX-License-Identifier: Apache-2.0
"""Record where a process grows, function by function: the door's way to host/linux/growth.py."""

from collections.abc import Callable
from contextlib import suppress

from memsculpt.domain.growth import GrowthRecording, GrowthStack, Module, SampledStack
from memsculpt.errors import Refused, Vanished


def record_growth(
    pid: int,
    *,
    for_s: float,
    every: int = 1,
    on_progress: Callable[[float, int], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> GrowthRecording:
    """Return what came by page faults of the process in `for_s` seconds; Ctrl-C or `until` ends it early.

    Raises Refused (no such process, or one without memory), Unavailable (no BPF, no privilege).
    """
    from memsculpt.host.linux.growth import GrowthRecorder

    try:
        with GrowthRecorder(pid, every) as recorder:
            return recorder.record(for_s, on_progress, until)
    except Vanished as error:
        raise no_such_process(pid) from error


def name_stacks(
    modules: tuple[Module, ...], stacks: tuple[SampledStack, ...]
) -> tuple[tuple[GrowthStack, ...], tuple[str, ...]]:
    """Return sampled stacks with names, and notes on what has none. Takes tens of MiB: for a worker (workers.run)."""
    from memsculpt.host.linux import stored_symbols

    return stored_symbols.name_stacks(modules, stacks)


def no_such_process(pid: int) -> Refused:
    """Return what to say when somebody names a process that is not there, or one of its threads."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123  /proc
        process = next((int(line.split()[1]) for line in status if line.startswith(b"Tgid:")), pid)
        if process != pid:
            return Refused(
                place=f"process {pid}",
                problem=f"is a thread of process {process}",
                fix=f"name the process: {process}; its threads are seen with it",
            )
    return Refused(place=f"process {pid}", problem="is gone, or never was there", fix="name one that runs: see `ps`")
