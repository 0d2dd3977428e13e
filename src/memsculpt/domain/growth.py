# SPDX-License-Identifier: Apache-2.0
"""What came of recording page faults: stacks with the memory that came by them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStack:
    """Memory that came by faults with one stack."""

    frames: tuple[tuple[str, str], ...]  # (function, module), innermost first
    kind: str  # "anonymous", "shared", "file"
    touched_bytes: int
    held_bytes: int  # of that, what is still there, in memory or swapped
    fault_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNow:
    """What a process holds, by kind; swapped memory is private or shared, and no file's."""

    anon_bytes: int = 0
    file_bytes: int = 0
    shmem_bytes: int = 0
    swapped_bytes: int = 0

    @property
    def own_bytes(self) -> int:
        """Return what is not a copy of a file."""
        return self.anon_bytes + self.shmem_bytes + self.swapped_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthRecording:
    """Everything that was seen of one process."""

    pid: int
    source: str
    interval_s: float
    sampled_every: int  # at the end: it rises when faults come faster than they can be kept
    seen_count: int
    recorded_count: int
    dropped_count: int
    stackless_count: int
    before: MemoryNow
    after: MemoryNow | None  # None: the process ended
    stacks: tuple[GrowthStack, ...]
    ended: str = ""
    notes: tuple[str, ...] = ()
