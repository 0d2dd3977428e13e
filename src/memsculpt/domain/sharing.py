# SPDX-License-Identifier: Apache-2.0
"""Identical pages of virtual machines: what merging them would bring, what the kernel's merging (KSM) does now.

KSM is one switch for the whole machine: while it runs it merges the pages of everybody who offered memory to it
(Documentation/admin-guide/mm/ksm.rst). So who offers memory is a fact of every decision here.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import Instance

UInt64 = npt.NDArray[np.uint64]

PAGE_WORDS = 512  # of 8 bytes in a page of 4 KiB
SHARED_MOST = 256  # max_page_sharing, as the kernel comes: so many users has one merged page at most


class KnobKind(Enum):
    """A value of the machine that is changed, and restored, as text."""

    KSM = "ksm"  # a file of /sys/kernel/mm/ksm
    OFFER = "offer"  # whether a VM's memory is offered to KSM: "on" or "off"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Knob:
    """Which value."""

    kind: KnobKind
    name: str  # the file's name, or the VM's id

    def describe(self) -> str:
        """Name it for people."""
        return f"ksm/{self.name}" if self.kind is KnobKind.KSM else f"offer of vm {self.name}"


def ksm_knob(name: str) -> Knob:
    """Return the knob of a file of KSM's."""
    return Knob(kind=KnobKind.KSM, name=name)


def offer_knob(vm: VmId) -> Knob:
    """Return the knob that offers a VM's memory."""
    return Knob(kind=KnobKind.OFFER, name=vm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """What KSM does now. Counts are of pages; rising ones are since the machine started."""

    run: int  # 0: stopped, what is merged stays; 1: runs; 2: stopped, and everything was taken apart
    shared_pages: int = 0  # that others use, too
    sharing_pages: int = 0  # uses beyond the first of each: what is saved
    zero_pages: int = 0  # of zeros, mapped to the kernel's own (use_zero_pages)
    scanned_pages: int = 0
    full_scans: int = 0
    cpu_s: float = 0.0  # of ksmd
    pages_to_scan: int = 100
    sleep_ms: int = 20
    most_sharing: int = SHARED_MOST
    uses_zero_pages: bool = False
    advisor: str = "none"  # who sets pages_to_scan: "none" is us, "scan-time" the kernel
    available_bytes: int = 0  # main memory that taking merged pages apart may use

    @property
    def saved_pages(self) -> int:
        """Return how many pages less are in use."""
        return self.sharing_pages + self.zero_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Offerer:
    """A process that has offered memory to KSM, or has merged pages."""

    process: Instance
    name: str  # comm
    uid: int
    merging_pages: int  # uses of merged pages, first ones included
    zero_pages: int
    is_offered: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageContents:
    """Pages as they are now. Bytes of a guest: hashed at once, never kept, never logged."""

    addresses: Int64  # shape (n,)
    words: UInt64  # shape (n, PAGE_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What merging would save: the estimate, and how far off it may be (bytes)."""

    size_bytes: float = 0.0
    low_bytes: float = 0.0
    high_bytes: float = 0.0

    def scaled(self, ratio: float) -> "Gain":
        """Return a part of it."""
        return Gain(
            size_bytes=self.size_bytes * ratio, low_bytes=self.low_bytes * ratio, high_bytes=self.high_bytes * ratio
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGain:
    """What merging would save in a trust group."""

    total: Gain
    by_vm: dict[VmId, float] = field(default_factory=dict[VmId, float])  # bytes; each user of a page has an even part
    looked_pages: int = 0  # that were read
    zero_pages: int = 0
    unsteady_ratio: float = 0.0  # of the pages looked at twice, those that changed in between
    kept_ratio: float = 1.0  # of all contents, those that were kept to be compared
    at_s: float = 0.0  # when the second look was over


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A VM of a trust group."""

    vm: VmId
    name: str
    process: Instance
    resident_pages: int = 0  # that could be merged
    is_private: bool = True  # its memory can be merged at all: shared memory cannot
    is_offered: bool = False
    saved_bytes: int = 0  # its part of what merging saves now


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A trust group as it is now."""

    name: str
    members: tuple[Member, ...]
    gain: GroupGain | None = None  # None: not looked through yet
    looked_ratio: float = 0.0  # how far the look is


class Phase(Enum):
    """What sharing of a group is at."""

    IDLE = "idle"
    MERGING = "merging"  # as fast as the processor's budget allows
    KEPT = "kept"  # slowly: what changes is merged anew
    PAUSED = "paused"  # somebody outside offers memory


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingReport:
    """What the doors show."""

    phase: Phase = Phase.IDLE
    group: str = ""  # whose pages are merged
    groups: tuple[Group, ...] = ()
    saved_bytes: int = 0
    forecast: Gain | None = None  # what was promised when merging began
    cpu_ratio: float = 0.0  # of one processor, ksmd's, since the last decision
    reason: str = ""  # why it is as it is


class SharingStep(Enum):
    """What is done about a group."""

    MERGE = "merge"  # begin, or go on at another rate
    PAUSE = "pause"
    END = "end"  # take everything apart, and put all values back


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRate:
    """How fast KSM goes through memory."""

    pages_to_scan: int
    sleep_ms: int
