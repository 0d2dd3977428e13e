# SPDX-License-Identifier: Apache-2.0
"""Chosen ranges of another process: gathered in huge pages, split again, sent out, brought back. By process_madvise(2).

What works from outside, found by trying (docs/methods/sculpting.md has the figures):

- MADV_COLLAPSE gathers a region of 2 MiB whatever /sys/kernel/mm/transparent_hugepage says. It brings its swapped pages
  back and fills what was never touched with zeros, so holes are counted first. EINVAL where the process has switched
  huge pages off (prctl, MADV_NOHUGEPAGE), ENOMEM where no contiguous memory is to be had or the cgroup is full.
- MADV_COLD of one page of a huge page splits it (mm/madvise.c splits what is advised in part only); of a whole one it
  does not. That one page also goes to the inactive list, which is all the harm. MADV_PAGEOUT of a part splits as well,
  and without any swap it even splits a whole huge page and sends nothing, which is why it is not called then.
- Nothing gives the zeros back that a collapse filled: MADV_DONTNEED is for one's own memory. A page-out does, in
  effect: a page of zeros takes no room in zram.

Guest RAM may be shared memory (memfd, tmpfs, share=on). There (docs/methods/virtual-machines.md has the table):

- Where pages are the file tells (shared_memory.py). MADV_PAGEOUT takes only what is mapped: a split huge page of shared
  memory is in memory, but mapped no more, and so is what was read ahead. That is mapped by a read first.
- MADV_PAGEOUT passes over what other processes map as well (a vhost-user back end).
- MADV_COLLAPSE works where mapping and file lie on borders of 2 MiB; of a memfd of QEMU's they do not.
"""

import errno
import math
import zlib

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.pool import Tier
from memsculpt.domain.vm import GuestRam
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient
from memsculpt.host.linux import madvise, meminfo, pagemap, runs, transfer
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.pagemap import MOVABLE, PAGE, PRESENT, SWAPPED
from memsculpt.host.linux.pager import send_and_settle
from memsculpt.host.linux.sculpt_call import PROC, Call
from memsculpt.host.protocol import Frames, Ranges, Sculpted

# The kernel lets others in between two regions (2 to 5 ms each); a call ends so that whoever stops us need not wait.
COLLAPSES_A_CALL = 4
SPLITS_A_CALL = 64
SHARED_BY_FORK = "shared with a forked process, or merged with equal pages"
ZEROS = "the page of zeros, which takes no memory"
STAYED = "in use, pinned or without room in the swap"
MAPPED_TWICE = "mapped by another process as well (vhost-user), which may be using it"
SEND_TRIES = 2


class LinuxSculptor:
    """Fulfils host.protocol.Sculptor; holds where guests have their RAM, and nothing else, between calls."""

    _guests: dict[Instance, GuestRam]

    def know_guest(self, ram: GuestRam) -> None:
        """Let a guest's RAM be moved, also where it is shared memory; see the protocol."""
        self._guests[ram.process] = ram

    def forget_guest(self, process: Instance) -> None:
        """Leave shared memory of the process alone again; see the protocol."""
        self._guests.pop(process, None)

    def _call(self, process: Instance, ranges: Ranges) -> Call:
        ram = self._guests.get(process)
        return Call(process, ranges, ram.host_ranges() if ram is not None and ram.is_shared else ())

    def collapse(self, process: Instance, ranges: Ranges, holes_most_bytes: int = 0) -> Sculpted:
        """Gather whole regions in huge pages; see the protocol."""
        with self._call(process, ranges) as call:
            allowed = whole_regions(call.allowed)
            call.leave("no whole region of 2 MiB in one mapping", runs.size_of(call.allowed) - runs.size_of(allowed))
            huge = pagemap.read_huge_runs(call.opened.pagemap, call.listed(allowed))
            regions = _regions_of(allowed)
            is_huge = runs.measure(huge, regions) == REGION_BYTES
            held = call.read(allowed, PRESENT), call.read(allowed, SWAPPED)
            holes = REGION_BYTES - runs.measure(runs.union(*held), regions)
            is_sparse = ~is_huge & (holes > holes_most_bytes)
            call.leave("is huge already", int(is_huge.sum()) * REGION_BYTES)
            call.leave("sparse: it would be filled with zeros", int(is_sparse.sum()) * REGION_BYTES)
            chosen = call.on_borders(regions[~is_huge & ~is_sparse])
            call.advise(chosen, madvise.MADV_COLLAPSE, COLLAPSES_A_CALL)
            after = runs.difference(pagemap.read_huge_runs(call.opened.pagemap, call.listed(chosen)), huge)
            became = runs.measure(after, chosen) == REGION_BYTES
            filled = holes[np.isin(regions[:, 0], chosen[:, 0])]
            return call.done(after, grown_bytes=int(filled[became].sum()))

    def split(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Make huge pages small again; see the protocol."""
        with self._call(process, ranges) as call:
            allowed = whole_regions(call.allowed)
            huge = pagemap.read_huge_runs(call.opened.pagemap, call.listed(allowed))
            call.leave("not a huge page", runs.size_of(call.allowed) - runs.size_of(huge))
            first = _regions_of(whole_regions(huge))
            first[:, 1] = first[:, 0] + PAGE
            call.advise(first, madvise.MADV_COLD, SPLITS_A_CALL)
            left = pagemap.read_huge_runs(call.opened.pagemap, call.listed(huge))
            return call.done(runs.difference(huge, left))

    def page_out_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Send resident pages out; see the protocol."""
        with self._call(process, ranges) as call:
            room_bytes = meminfo.read_host_memory(PROC).swap_free_bytes
            if room_bytes < PAGE and len(call.wanted):
                raise Transient(place=call.place, problem="the swap is full, or there is none", retry_in_s=10.0)
            movable = call.read(call.allowed, MOVABLE)
            zeros = pagemap.read_zero_runs(call.opened.pagemap, call.listed(call.allowed))
            stays = runs.difference(runs.difference(call.read(call.allowed, PRESENT), movable), zeros)
            call.leave(ZEROS, runs.size_of(zeros))
            call.leave(MAPPED_TWICE, runs.size_of(runs.intersection(stays, call.shared)))
            call.leave(SHARED_BY_FORK, runs.size_of(runs.difference(stays, call.shared)))
            chosen = runs.first(movable, room_bytes)
            call.leave("no room in the swap", runs.size_of(movable) - runs.size_of(chosen))
            parts = runs.split(chosen, call.borders)
            send_and_settle(process.pid, call.opened.pidfd, call.opened.pagemap, parts, PROC)
            shared = runs.intersection(chosen, call.shared)
            for _ in range(SEND_TRIES if len(shared) else 0):
                # What was in memory and not mapped was passed over: mapped, it can leave.
                left = call.read(shared, MOVABLE)
                if not len(left):
                    break
                transfer.map_and_send(process.pid, call.opened.pidfd, runs.split(left, call.borders))
            # A huge page that is split for it gives up its pages of zeros, which need not be swapped (mm/migrate.c).
            emptied = pagemap.read_zero_runs(call.opened.pagemap, call.listed(chosen))
            moved = runs.intersection(chosen, runs.union(emptied, call.read(chosen, SWAPPED)))
            if len(shared):  # what was never written is not even swapped: its file makes it anew
                moved = runs.union(moved, runs.difference(shared, call.read(shared, PRESENT)))
            call.leave(STAYED, runs.size_of(chosen) - runs.size_of(moved))
            return call.done(moved)

    def bring_in_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Bring swapped pages back and map them; see the protocol."""
        with self._call(process, ranges) as call:
            chosen = call.read(call.allowed, SWAPPED)
            transfer.bring(process.pid, call.opened.pidfd, chosen, PROC)
            moved = runs.intersection(chosen, call.read(chosen, PRESENT))
            call.leave("did not come: unmapped, or no room in its cgroup", runs.size_of(chosen) - runs.size_of(moved))
            return call.done(moved)

    def frames(self, process: Instance, ranges: Ranges) -> Frames:
        """Return what lies behind ranges; see the protocol."""
        with self._call(process, ranges) as call:
            wanted, opened = call.wanted, call.opened
            zeros = pagemap.read_zero_runs(opened.pagemap, call.listed(wanted))
            found = Frames(
                resident_bytes=runs.measure(runs.difference(call.read(wanted, PRESENT), zeros), wanted),
                swapped_bytes=runs.measure(call.read(wanted, SWAPPED), wanted),
                huge_bytes=runs.measure(pagemap.read_huge_runs(opened.pagemap, call.listed(wanted)), wanted),
                longest_run_bytes=pagemap.longest_frames(opened.pagemap, call.listed(wanted)),
            )
            opened.check_alive()
            return found

    def swap_tier(self) -> Tier:
        """Return where pages go; see the protocol."""
        try:
            return Tier.COMPRESSED if transfer.is_prompt(PROC) else Tier.DISK
        except OSError as error:
            raise translate(error, f"{PROC}/swaps") from error

    def packed_ratio(self, process: Instance, addresses: Int64) -> Float64:
        """Return how well pages compress; see the protocol. By zlib at its fastest, which packs a little tighter."""
        found = np.full(len(addresses), math.nan)
        with Call(process, ()) as call:
            for row, address in enumerate(addresses.tolist()):
                if not len(pagemap.read_entries(call.opened.pagemap, [(address, address + PAGE)], PRESENT)):
                    continue
                try:
                    content = madvise.copy_page(process.pid, address, PAGE)
                except OSError as error:
                    if error.errno != errno.EFAULT:
                        raise
                    continue
                found[row] = min(1.0, len(zlib.compress(content, 1)) / PAGE)
        return found


def whole_regions(some: Int64) -> Int64:
    """Return what of each run is whole regions of 2 MiB."""
    found = np.stack((-(-some[:, 0] // REGION_BYTES), some[:, 1] // REGION_BYTES), axis=1) * REGION_BYTES
    return found[found[:, 1] > found[:, 0]]


def _regions_of(some: Int64) -> Int64:
    """Return whole regions one by one, shape (n, 2)."""
    starts = runs.pages_of(some, REGION_BYTES)
    return np.stack((starts, starts + REGION_BYTES), axis=1)
