# SPDX-License-Identifier: Apache-2.0
"""The simulated twin of host.protocol.Merger: KSM over pages whose contents are numbers.

It goes round the processes that offer memory, page by page, at the pace of its two settings; a page is merged at the
second visit that finds it unchanged. A newcomer is put behind the place where it is, as the kernel does (__ksm_enter).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.sharing import PAGE_WORDS, SHARED_MOST, Merging, Offerer, PageContents, UInt64
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import Instance
from memsculpt.errors import Refused, Vanished
from memsculpt.host.simulated.cgroups import PAGE_BYTES

BEGIN = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "smart_scan": "1", "advisor_mode": "none"}
PAGE_COST_S = 1.5e-6
HELD_FROM = 1 << 40  # the address of everybody's first page
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: makes a page of words out of a number


@dataclass(slots=True, kw_only=True)
class Held:
    """A process's pages."""

    process: Instance
    name: str
    uid: int
    vm: VmId | None
    contents: Int64  # a number for each page; 0 is a page of zeros
    is_offered: bool
    is_seen: Bool = field(default_factory=lambda: np.empty(0, np.bool_))
    is_merged: Bool = field(default_factory=lambda: np.empty(0, np.bool_))


class SimulatedMerger:
    """Fulfils host.protocol.Merger, and the part of Hypervisor that offers memory."""

    _held: dict[Instance, Held]
    _queue: list[Instance]  # who offers memory, in the order of scanning
    _ksm: dict[str, str]

    def now_s(self) -> float:
        """Return the host's time; the host says how."""
        raise NotImplementedError

    def begin_merging(self, available_bytes: int) -> None:
        """Begin with KSM as a kernel comes; the host calls it once."""
        self._held, self._queue, self._ksm = {}, [], dict(BEGIN)
        self._available_bytes = available_bytes
        self._at, self._page, self._scanned, self._scans = 0, 0, 0, 0
        self._scanned_until_s = self.now_s()
        self._owed = 0.0

    # --- what a test or a scenario sets up ----------------------------------------------------------------------------

    def hold(
        self,
        process: Instance,
        contents: Iterable[int],
        *,
        vm: VmId | None = None,
        name: str = "qemu-system-x86",
        uid: int = 0,
        is_offered: bool = False,
    ) -> None:
        """Let a process hold pages, or others than before: what changed is not merged any more."""
        self._scan_on()
        new = np.fromiter(contents, np.int64)
        before = self._held.get(process)
        held = Held(process=process, name=name, uid=uid, vm=vm, contents=new, is_offered=False)
        held.is_seen, held.is_merged = np.zeros(len(new), np.bool_), np.zeros(len(new), np.bool_)
        if before is not None:
            both = min(len(new), len(before.contents))
            same = before.contents[:both] == new[:both]
            held.is_seen[:both], held.is_merged[:both] = before.is_seen[:both] & same, before.is_merged[:both] & same
            is_offered = before.is_offered
        self._held[process] = held
        self._offer(held, is_offered=is_offered)

    def begin_scarcity(self, available_bytes: int) -> None:
        """Say how much memory is left from now on to take merged pages apart."""
        self._available_bytes = available_bytes

    def let_go(self, process: Instance) -> None:
        """End a process's part in it."""
        self._scan_on()
        held = self._held.pop(process)
        self._offer(held, is_offered=False)

    # --- the protocol -------------------------------------------------------------------------------------------------

    def merging(self) -> Merging:
        """Return what KSM does now."""
        self._scan_on()
        shared, users = self._shared()
        return Merging(
            run=int(self._ksm["run"]),
            shared_pages=shared,
            sharing_pages=users - shared,
            scanned_pages=self._scanned,
            full_scans=self._scans,
            cpu_s=self._scanned * PAGE_COST_S,
            pages_to_scan=int(self._ksm["pages_to_scan"]),
            sleep_ms=int(self._ksm["sleep_millisecs"]),
            advisor=self._ksm["advisor_mode"],
            available_bytes=self._available_bytes,
        )

    def offerers(self) -> tuple[Offerer, ...]:
        """Return who has offered memory, or has merged pages."""
        self._scan_on()
        many = self._numbers_of_many()
        return tuple(
            Offerer(
                process=one.process,
                name=one.name,
                uid=one.uid,
                merging_pages=int((one.is_merged & np.isin(one.contents, many)).sum()),
                zero_pages=0,
                is_offered=one.is_offered,
            )
            for one in self._held.values()
            if one.is_offered or one.is_merged.any()
        )

    def mergeable_runs(self, process: Instance, ranges: Int64) -> Int64:
        """Return a process's pages."""
        held = self._reach_held(process)
        del ranges  # of whom it is asked, all is in the ranges
        return np.array([[HELD_FROM, HELD_FROM + len(held.contents) * PAGE_BYTES]], np.int64)

    def zero_pages(self, process: Instance, ranges: Int64) -> int:
        """Return 0: there are no huge pages to split here."""
        del ranges
        self._reach_held(process)
        return 0

    def page_contents(self, process: Instance, wanted: Int64) -> PageContents:
        """Return what pages hold."""
        held = self._reach_held(process)
        counts = (wanted[:, 1] - wanted[:, 0]) // PAGE_BYTES
        within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        addresses = np.repeat(wanted[:, 0], counts) + within * PAGE_BYTES
        rows = (addresses - HELD_FROM) // PAGE_BYTES
        there = (rows >= 0) & (rows < len(held.contents))
        return PageContents(addresses=addresses[there], words=words_of(held.contents[rows[there]]))

    def has_ksm(self, name: str) -> bool:
        """Tell whether there is a setting."""
        return name in self._ksm

    def read_ksm(self, name: str) -> str:
        """Return a setting."""
        if name not in self._ksm:
            raise Refused(place=f"ksm/{name}", problem="is not memsculpt's to change", fix="none needed")
        return f"{self._ksm[name]}\n"

    def write_ksm(self, name: str, text: str) -> str:
        """Write a setting; `run` 2 takes everything apart."""
        self._scan_on()
        self.read_ksm(name)
        self._ksm[name] = text.strip()
        if name == "run" and text.strip() == "2":
            for one in self._held.values():
                one.is_seen[:], one.is_merged[:] = False, False
        return self.read_ksm(name)

    def is_offered(self, vm: VmId) -> bool:
        """Tell whether a guest's RAM is offered."""
        return self._of_vm(vm).is_offered

    def offer(self, vm: VmId, *, to_ksm: bool) -> bool:
        """Offer a guest's RAM, or take it back."""
        self._scan_on()
        held = self._of_vm(vm)
        self._offer(held, is_offered=to_ksm)
        return held.is_offered

    # --- inside -------------------------------------------------------------------------------------------------------

    def _of_vm(self, vm: VmId) -> Held:
        for one in self._held.values():
            if one.vm == vm:
                return one
        raise Vanished(place=f"VM {vm}")

    def _reach_held(self, process: Instance) -> Held:
        if process not in self._held:
            raise Vanished(place=f"process {process.pid}")
        return self._held[process]

    def _offer(self, held: Held, *, is_offered: bool) -> None:
        if is_offered and held.process not in self._queue:
            self._queue.insert(self._at, held.process)
            self._at = self._at + 1 if len(self._queue) > 1 else 0
        elif not is_offered and held.process in self._queue:
            place = self._queue.index(held.process)
            self._queue.remove(held.process)
            if place < self._at:
                self._at -= 1
            elif place == self._at:
                self._page = 0
            self._at = 0 if self._at >= len(self._queue) else self._at
            held.is_seen[:], held.is_merged[:] = False, False
        held.is_offered = is_offered

    def _scan_on(self) -> None:
        now_s = self.now_s()
        passed_s, self._scanned_until_s = now_s - self._scanned_until_s, now_s
        if self._ksm["run"] != "1" or not self._queue:
            return
        self._owed += passed_s * int(self._ksm["pages_to_scan"]) * 1000.0 / max(1, int(self._ksm["sleep_millisecs"]))
        whole = sum(len(self._held[one].contents) for one in self._queue)
        if not whole:
            return
        while self._owed >= 1.0:
            held = self._held[self._queue[self._at]]
            size = min(int(self._owed), len(held.contents) - self._page)
            part = slice(self._page, self._page + size)
            held.is_merged[part] |= held.is_seen[part]
            held.is_seen[part] = True
            self._page += size
            self._owed -= size
            self._scanned += size
            if self._page >= len(held.contents):
                self._page, self._at = 0, self._at + 1
                if self._at >= len(self._queue):
                    self._at, self._scans = 0, self._scans + 1

    def _merged_numbers(self) -> tuple[Int64, Int64]:
        merged = [one.contents[one.is_merged] for one in self._held.values()]
        return np.unique(np.concatenate([np.empty(0, np.int64), *merged]), return_counts=True)

    def _numbers_of_many(self) -> Int64:
        numbers, users = self._merged_numbers()
        return numbers[users > 1]

    def _shared(self) -> tuple[int, int]:
        """Return how many pages stand for how many."""
        _, users = self._merged_numbers()
        users = users[users > 1]
        return int((-(-users // SHARED_MOST)).sum()), int(users.sum())


def words_of(numbers: Int64) -> UInt64:
    """Return a page of words for each number, zeros for 0."""
    steps = np.arange(PAGE_WORDS, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(1)
    return numbers.astype(np.uint64)[:, np.newaxis] * steps
