# SPDX-License-Identifier: Apache-2.0
"""Virtual machines: who they are, what the monitor and the guest tell of them, and where their memory lies.

A guest's figures are the guest's word: virtio says -1 (2^64 - 1) for what it does not tell, and nothing keeps a guest
from saying anything else. `guest_memory` lets through what can be true, and nothing beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.domain.workload import Instance, WorkloadId

VmId = NewType("VmId", str)
"""What a VM is known by for good: its UUID in lower case; where it was started without one, `name:NAME`."""

NO_UUID = "00000000-0000-0000-0000-000000000000"  # QEMU's, when it was given none


class VmState(StrEnum):
    """What becomes of a VM now; only a RUNNING one is ballooned or sculpted."""

    RUNNING = "running"
    PAUSED = "paused"  # by an operator, a debugger, or for an I/O error
    MIGRATING = "migrating"  # also while it is saved to a file
    ARRIVING = "arriving"  # waits for a migration to come in
    ENDING = "ending"
    UNREACHABLE = "unreachable"  # its process lives, its monitor does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """What the guest says of its memory (virtio-balloon's statistics queue). None: not told, or not possible."""

    updated_at_s: float  # host's clock; statistics lag by the polling interval
    total_bytes: int | None = None  # as the guest sees it: less what the balloon took, but for `deflate-on-oom`
    free_bytes: int | None = None
    available_bytes: int | None = None  # free, and what can be reclaimed without swapping
    cache_bytes: int | None = None
    swapped_in_bytes: int | None = None  # since it booted, as the two below
    swapped_out_bytes: int | None = None
    major_faults_count: int | None = None
    minor_faults_count: int | None = None

    @property
    def used_bytes(self) -> int | None:
        """Return what the guest cannot give without swapping; None where it does not tell."""
        if self.total_bytes is None or self.available_bytes is None:
            return None
        return self.total_bytes - self.available_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFeatures:
    """What its devices offer."""

    balloon: bool = False
    deflate_on_oom: bool = False  # without it a guest that is asked for too much dies
    free_page_reporting: bool = False  # what the guest frees returns by itself
    virtio_mem: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VmReading:
    """One look at a VM through its monitor. Counters are since the process began, and never fall within it."""

    id: VmId
    name: str
    workload: WorkloadId  # `vm:NAME`; of two of one name the later has `#` and the start of its UUID behind it
    process: Instance
    state: VmState
    read_at_s: float  # host's clock; -inf: never
    via: str = "qmp"  # or "libvirt"
    ram_bytes: int = 0  # what it was built with: a balloon gives back no more
    balloon_bytes: int | None = None  # what the balloon leaves it now; None without a balloon
    guest: GuestMemory | None = None
    features: VmFeatures = VmFeatures()
    vcpu_s: float = 0.0  # of all its virtual processors
    read_bytes: int = 0  # block devices
    written_bytes: int = 0
    received_bytes: int | None = None  # network, from the guest's point of view; None: not through taps of this host
    sent_bytes: int | None = None
    dirtied_bytes_per_s: float = float("nan")  # calc-dirty-rate; NaN: not measured
    problem: str = ""  # what its monitor does not do, and what helps


class Backing(StrEnum):
    """What guest RAM is made of; which calls work depends on it (docs/methods/virtual-machines.md)."""

    PRIVATE = "private"  # memory-backend-ram: anonymous
    SHARED = "shared"  # the same with share=on: shmem without a name
    MEMFD = "memfd"
    FILE = "file"  # on tmpfs, or on a disk or DAX device
    HUGETLB = "hugetlb"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRange:
    """A stretch of guest-physical memory, and where it lies in QEMU's address space."""

    guest_start: int
    host_start: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRam:
    """Where a VM's memory lies. `ranges` ascend by guest address; their order in the host may differ."""

    id: VmId
    process: Instance
    ranges: tuple[GuestRange, ...]
    backing: Backing
    page_bytes: int = 4096  # of the backing: 2 MiB and more for hugetlb
    is_preallocated: bool = False
    is_mergeable: bool = False  # QEMU offered it to KSM (mem-merge=on)

    def host_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return [start, end) in QEMU's address space, ascending, neighbours joined."""
        joined: list[tuple[int, int]] = []
        for one in sorted(self.ranges, key=lambda each: each.host_start):
            if joined and joined[-1][1] == one.host_start:
                joined[-1] = (joined[-1][0], one.host_start + one.size_bytes)
            else:
                joined.append((one.host_start, one.host_start + one.size_bytes))
        return tuple(joined)

    def guest_ranges(self, host_ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return where ranges of QEMU's address space lie for the guest, ascending, neighbours joined."""
        found = sorted(
            (
                one.guest_start + max(start - one.host_start, 0),
                one.guest_start + min(end - one.host_start, one.size_bytes),
            )
            for start, end in host_ranges
            for one in self.ranges
            if start < one.host_start + one.size_bytes and one.host_start < end
        )
        joined: list[tuple[int, int]] = []
        for start, end in found:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return tuple(joined)

    @property
    def is_shared(self) -> bool:
        """Tell whether other processes may map it too, so that its file and not QEMU's page tables knows what left."""
        return self.backing is not Backing.PRIVATE

    @property
    def why_not_moved(self) -> str:
        """Return why none of it can leave or come back, "" where it can."""
        if self.backing is Backing.HUGETLB or self.page_bytes > PAGE_BYTES:
            return "it is huge TLB memory, which the kernel neither swaps nor rearranges"
        return ""

    @property
    def why_not_gathered(self) -> str:
        """Return why it cannot be gathered in huge pages, "" where it can.

        A huge page of shared memory lies on borders of 2 MiB in its file and in the address space (mm/khugepaged.c).
        QEMU maps memfd wherever there is room and has no option for it; private memory, and a file with align=2M, lie
        right.
        """
        if self.why_not_moved:
            return self.why_not_moved
        if self.is_shared and any((one.host_start - one.guest_start) % REGION_BYTES for one in self.ranges):
            return (
                f"its memory ({self.backing.value}) begins off a border of 2 MiB, where no huge page fits; "
                "memory-backend-ram, or memory-backend-file with align=2M, lies on one"
            )
        return ""

    def host_address(self, guest_address: int) -> int | None:
        """Return where a guest-physical address lies in QEMU; None where there is no RAM."""
        for one in self.ranges:
            if one.guest_start <= guest_address < one.guest_start + one.size_bytes:
                return one.host_start + guest_address - one.guest_start
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonSet:
    """What came of asking for a balloon. It moves afterwards, at the guest's pace: readings tell how far."""

    asked_bytes: int
    before_bytes: int


# virtio's names (Virtual I/O Device 1.2, 5.5.6.3) as QEMU spells them (hw/virtio/virtio-balloon.c), and ours.
_COUNTS = (
    ("stat-swap-in", "swapped_in_bytes"),
    ("stat-swap-out", "swapped_out_bytes"),
    ("stat-major-faults", "major_faults_count"),
    ("stat-minor-faults", "minor_faults_count"),
)
_SIZES = (
    ("stat-free-memory", "free_bytes"),
    ("stat-available-memory", "available_bytes"),
    ("stat-disk-caches", "cache_bytes"),
)
COUNT_MOST = 1 << 62  # above it there is no honest count; 2^64 - 1 is "not told"


def guest_memory(stats: Mapping[str, object], *, ram_bytes: int, updated_at_s: float) -> GuestMemory:
    """Return what of a guest's statistics can be true.

    `stats` as `guest-stats` gives them, in bytes and counts. A total of 0 or above the RAM, or a part above the
    total, is no reading: None.
    """
    total = stats.get("stat-total-memory")
    if type(total) is not int or not 0 < total <= ram_bytes:  # a bool is no number here
        total = None
    told: dict[str, int | None] = {}
    for names, most in ((_SIZES, -1 if total is None else total), (_COUNTS, COUNT_MOST)):
        for theirs, ours in names:
            value = stats.get(theirs)
            told[ours] = value if type(value) is int and 0 <= value <= most else None
    return GuestMemory(updated_at_s=updated_at_s, total_bytes=total, **told)


def vm_id(uuid: str, name: str) -> VmId:
    """Return what a VM is known by for good."""
    return VmId(uuid.lower()) if uuid and uuid != NO_UUID else VmId(f"name:{name}")
