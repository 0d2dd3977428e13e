# SPDX-License-Identifier: Apache-2.0
"""A VM's need from its guest's own figures. Pure.

What QEMU holds on the host says little: a page that the guest has freed stays resident until a balloon, or free page
reporting, gives it back.

    need = total - available + reserved + swapped

`total` and `available` are the guest's MemTotal and MemAvailable (virtio-balloon statistics, virtio 1.2, 5.5.6.3).
`reserved` is what the guest's kernel keeps out of MemTotal: RAM less balloon less total, at a moment when the balloon
stands still. A guest with deflate-on-oom does not take the balloon out of its total; there it is taken off here, and
while it moves the need is only known within bounds: then what was known before stands, as far as these allow.
`swapped` is what the guest itself has swapped and may go back to: swap-out less swap-in since it booted.
Pages whose owners end in swap never come in again, so it halves in SWAP_HALF_LIFE_S while nothing comes in.

Figures that are older than STALE_S are no figures.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.guest import GuestDemand
from memsculpt.domain.observation import Observation, Workloads
from memsculpt.domain.vm import GuestMemory, VmId, VmReading, VmState
from memsculpt.domain.workload import Instance, WorkloadId

STALE_S = 10.0
SWAP_HALF_LIFE_S = 60.0
PATH_S, LAG_S = 12.0, 1.2  # a guest's figures carry whole seconds, and the readings are a second apart
SAME_S = 0.5  # guests tell once a second at most; nearer figures are the same, read twice
SETTLED_S = 3.0  # so long after a balloon has moved its pages are gone from the host
OVERHEAD_LEAST_BYTES = 32 << 20  # QEMU without a guest: binary, device state, stacks
NOT_TOLD = "the guest tells nothing of its memory (no balloon driver, or statistics are off): the host's view is used"
PAGE_BYTES = 4096


@dataclass(slots=True, kw_only=True)
class KnownGuest:
    """What is remembered of one VM.

    Not frozen, because `follow_guests` fills in its own copy: a copy for each change took a fifth of a tick.
    """

    process: Instance
    balloon_bytes: int | None
    moved_at_s: float  # when the balloon was last seen to move; -inf: never
    guest: GuestMemory | None = None  # the newest figures that were taken in
    # When the balloon was seen to leave the guest how much, the last seconds; while it stands still the first and last.
    path: tuple[tuple[float, int], ...] = ()
    reserved_bytes: int | None = None
    swapped_bytes: float = 0.0
    need_bytes: int | None = None
    swap_in_bytes_per_s: float = 0.0
    major_faults_per_s: float = 0.0
    faults_per_s: float = 0.0  # minor and major, in the guest
    overhead_bytes: int = 0
    read_at_s: float = -math.inf
    vcpu_s: float = 0.0
    moved_bytes: int = 0  # block devices and network, both ways
    cpu_ratio: float = math.nan
    io_bytes_per_s: float = math.nan

    def copy(self) -> "KnownGuest":
        """Return the same; `replace` takes four times as long, and every VM is copied in every tick."""
        return KnownGuest(
            process=self.process,
            balloon_bytes=self.balloon_bytes,
            moved_at_s=self.moved_at_s,
            guest=self.guest,
            path=self.path,
            reserved_bytes=self.reserved_bytes,
            swapped_bytes=self.swapped_bytes,
            need_bytes=self.need_bytes,
            swap_in_bytes_per_s=self.swap_in_bytes_per_s,
            major_faults_per_s=self.major_faults_per_s,
            faults_per_s=self.faults_per_s,
            overhead_bytes=self.overhead_bytes,
            read_at_s=self.read_at_s,
            vcpu_s=self.vcpu_s,
            moved_bytes=self.moved_bytes,
            cpu_ratio=self.cpu_ratio,
            io_bytes_per_s=self.io_bytes_per_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GuestRows:
    """What the monitors say of the workloads, columns by workload. Where `is_vm` is False the rest means nothing."""

    is_vm: Bool
    is_told: Bool  # `needed_bytes` holds
    needed_bytes: Int64  # of the host: guest and QEMU
    cpu_ratio: Float64  # NaN: not known
    io_bytes_per_s: Float64  # NaN: not known
    faults_per_s: Float64  # in the guest, and the pages that it dirties


Guests = Mapping[VmId, KnownGuest]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GuestView:
    """One tick's result."""

    known: Guests
    demands: Mapping[WorkloadId, GuestDemand] = field(default_factory=dict[WorkloadId, GuestDemand])
    rows: GuestRows | None = None  # None: there is no VM


def follow_guests(known: Guests, observation: Observation, overheads: Mapping[VmId, int]) -> GuestView:
    """Take in one observation. A VM whose process is another is another VM, whatever it is called.

    `overheads` is what QEMU holds of its own, in bytes, where somebody has measured it.
    """
    if not observation.vms:
        return GuestView(known={})
    row_of = {one: row for row, one in enumerate(observation.workloads.ids)}
    held, beside = _held_bytes(observation.workloads)
    followed: dict[VmId, KnownGuest] = {}
    demands: dict[WorkloadId, GuestDemand] = {}
    for reading in observation.vms:
        before = known.get(reading.id)
        if before is None or before.process != reading.process:
            one = KnownGuest(process=reading.process, balloon_bytes=reading.balloon_bytes, moved_at_s=-math.inf)
        else:
            one = before.copy()  # this tick's own from here on
        _take_memory(one, reading, observation.time_s)
        _take_rates(one, reading)
        row = row_of.get(reading.workload)
        if row is not None:
            measured = overheads.get(reading.id)
            if measured is None:
                measured = _overhead_bytes(one, reading, observation.time_s, held[row], beside[row])
            one.overhead_bytes = measured
        followed[reading.id] = one
        demands[reading.workload] = _demand(one, reading, observation.time_s)
    return GuestView(known=followed, demands=demands, rows=_rows(followed, demands, observation, row_of))


def _take_memory(known: KnownGuest, reading: VmReading, now_s: float) -> None:
    """Take in the guest's figures, once each."""
    balloon_bytes = reading.balloon_bytes
    if balloon_bytes != known.balloon_bytes:
        known.balloon_bytes, known.moved_at_s = balloon_bytes, now_s
    if balloon_bytes is not None:
        known.path = _path_with(known.path, now_s, balloon_bytes)
    told, before = reading.guest, known.guest
    if told is None or (before is not None and told.updated_at_s < before.updated_at_s + SAME_S):
        return
    known.guest = told
    _take_swap(known, told, before, reading.ram_bytes)
    used_bytes, total_bytes = told.used_bytes, told.total_bytes
    if used_bytes is None or total_bytes is None:
        known.need_bytes = None
        return
    is_hidden = reading.features.deflate_on_oom  # the balloon is a part of the total, and of what is used
    if is_hidden:
        known.reserved_bytes = max(reading.ram_bytes - total_bytes, 0)
    elif told.updated_at_s > known.moved_at_s:  # it stands still
        known.reserved_bytes = max((reading.ram_bytes if balloon_bytes is None else balloon_bytes) - total_bytes, 0)
    need = used_bytes + (known.reserved_bytes or 0) + int(known.swapped_bytes)
    if is_hidden:
        # How much the balloon held when the guest spoke is known within bounds only.
        taken_least, taken_most = _taken_bytes(known, reading, told.updated_at_s)
        least, most = max(need - taken_most, 0), max(need - taken_least, 0)
        need = least if taken_least == taken_most else min(max(known.need_bytes or 0, least), most)
    known.need_bytes = min(need, reading.ram_bytes)


def _path_with(path: tuple[tuple[float, int], ...], now_s: float, size_bytes: int) -> tuple[tuple[float, int], ...]:
    """Return the path with one more sighting, without those that are too old or say nothing that others do not."""
    if len(path) > 1 and path[-1][1] == path[-2][1] == size_bytes:
        path = path[:-1]
    if path and path[0][0] <= now_s - PATH_S:
        path = tuple(one for one in path if one[0] > now_s - PATH_S)
    return (*path, (now_s, size_bytes))


def _taken_bytes(known: KnownGuest, reading: VmReading, at_s: float) -> tuple[int, int]:
    """Return the least and the most that the balloon may have held at a time, by the readings around it."""
    around = [size for time_s, size in known.path if at_s - LAG_S <= time_s <= at_s + LAG_S]
    before = [size for time_s, size in known.path if time_s < at_s - LAG_S][-1:]
    after = [size for time_s, size in known.path if time_s > at_s + LAG_S][:1]
    sizes = [*before, *around, *after] or [known.balloon_bytes or reading.ram_bytes]
    return max(reading.ram_bytes - max(sizes), 0), max(reading.ram_bytes - min(sizes), 0)


def _take_swap(known: KnownGuest, told: GuestMemory, before: GuestMemory | None, ram_bytes: int) -> None:
    """Follow what the guest swaps, and its faults. Counters that fell: it has booted anew."""
    if before is None:  # whatever it swapped before we came: at most this
        swapped = float((told.swapped_out_bytes or 0) - (told.swapped_in_bytes or 0))
        known.swap_in_bytes_per_s = known.major_faults_per_s = known.faults_per_s = 0.0
    else:
        elapsed_s = told.updated_at_s - before.updated_at_s
        came = _since(told.swapped_in_bytes, before.swapped_in_bytes)
        left = _since(told.swapped_out_bytes, before.swapped_out_bytes)
        has_rebooted = math.isnan(left) and told.swapped_out_bytes is not None
        swapped = 0.0 if has_rebooted else known.swapped_bytes
        if not math.isnan(came) and not math.isnan(left):
            swapped += left - came
            if came == 0.0:
                swapped *= 0.5 ** (elapsed_s / SWAP_HALF_LIFE_S)
        known.swap_in_bytes_per_s = _per_s(came, elapsed_s)
        known.major_faults_per_s = _per_s(_since(told.major_faults_count, before.major_faults_count), elapsed_s)
        minor_faults_per_s = _per_s(_since(told.minor_faults_count, before.minor_faults_count), elapsed_s)
        known.faults_per_s = known.major_faults_per_s + minor_faults_per_s
    known.swapped_bytes = min(max(swapped, 0.0), float(ram_bytes))


def _since(new: int | None, old: int | None) -> float:
    """Return by how much a counter has risen; NaN where that is not known, or it fell."""
    return math.nan if new is None or old is None or new < old else float(new - old)


def _per_s(change: float, elapsed_s: float) -> float:
    return change / elapsed_s if elapsed_s > 0.0 and not math.isnan(change) else 0.0


def _take_rates(known: KnownGuest, reading: VmReading) -> None:
    """Follow the processors and devices; a reading is taken in once."""
    if not reading.read_at_s > known.read_at_s:
        return
    network_bytes = (reading.received_bytes or 0) + (reading.sent_bytes or 0)
    moved_bytes = reading.read_bytes + reading.written_bytes + network_bytes
    elapsed_s = reading.read_at_s - known.read_at_s
    has_rates = math.isfinite(elapsed_s)
    known.cpu_ratio = max(reading.vcpu_s - known.vcpu_s, 0.0) / elapsed_s if has_rates else math.nan
    known.io_bytes_per_s = max(moved_bytes - known.moved_bytes, 0) / elapsed_s if has_rates else math.nan
    known.read_at_s, known.vcpu_s, known.moved_bytes = reading.read_at_s, reading.vcpu_s, moved_bytes


def _held_bytes(seen: Workloads) -> tuple[list[int], list[int]]:
    """Return, by workload, what may be a guest's memory, and what a QEMU holds beside it: files and kernel memory."""
    beside = seen.file_bytes - np.minimum(seen.reclaimable_bytes, seen.file_bytes) + seen.kernel_bytes
    return (seen.anon_bytes + seen.shmem_bytes + seen.swapped_bytes).tolist(), beside.tolist()


def _overhead_bytes(known: KnownGuest, reading: VmReading, now_s: float, held_bytes: int, beside_bytes: int) -> int:
    """Return what QEMU holds beside the guest's memory: the most that was ever above all that the guest may have.

    A guest that has not touched all of its memory hides some of it; so the least is what its files and kernel memory
    take, and what an idle QEMU does. While a balloon moves, pages of the guest may not have left yet.
    """
    is_still = now_s - known.moved_at_s >= SETTLED_S
    most = reading.ram_bytes if reading.balloon_bytes is None or not is_still else reading.balloon_bytes
    above = min(held_bytes - most, reading.ram_bytes // 2)
    return max(known.overhead_bytes, OVERHEAD_LEAST_BYTES + beside_bytes, above + beside_bytes)


def _demand(known: KnownGuest, reading: VmReading, now_s: float) -> GuestDemand:
    told_at_s = -math.inf if known.guest is None else known.guest.updated_at_s
    problem = ""
    if known.need_bytes is None:
        problem = NOT_TOLD
    elif reading.state is not VmState.RUNNING:  # before their age, which comes of it
        problem = f"it is {reading.state.value}: the host's view is used"
    elif now_s - told_at_s > STALE_S:
        problem = f"the guest's figures are {now_s - told_at_s:.0f} s old: the host's view is used"
    is_told = not problem
    available_bytes = 0 if known.guest is None else known.guest.available_bytes or 0
    return GuestDemand(
        vm=reading.id,
        workload=reading.workload,
        need_bytes=known.need_bytes if is_told else None,
        overhead_bytes=known.overhead_bytes,
        available_bytes=available_bytes if is_told else 0,
        swapped_bytes=int(known.swapped_bytes) if is_told else 0,
        swap_in_bytes_per_s=known.swap_in_bytes_per_s if is_told else 0.0,
        major_faults_per_s=known.major_faults_per_s if is_told else 0.0,
        told_at_s=told_at_s,
        problem=problem,
    )


def _rows(
    known: Guests,
    demands: Mapping[WorkloadId, GuestDemand],
    observation: Observation,
    row_of: Mapping[WorkloadId, int],
) -> GuestRows:
    count = len(observation.workloads.ids)
    is_vm, is_told = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    needed = np.zeros(count, np.int64)
    cpu, io, faults = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count)
    for reading in observation.vms:
        row = row_of.get(reading.workload)
        if row is None:
            continue
        one, demand = known[reading.id], demands[reading.workload]
        is_vm[row] = True
        if demand.need_bytes is not None:
            is_told[row], needed[row] = True, demand.need_bytes + demand.overhead_bytes
        cpu[row], io[row] = one.cpu_ratio, one.io_bytes_per_s
        dirtied = reading.dirtied_bytes_per_s
        faults[row] = one.faults_per_s + (0.0 if math.isnan(dirtied) else dirtied / PAGE_BYTES)
    return GuestRows(
        is_vm=is_vm, is_told=is_told, needed_bytes=needed, cpu_ratio=cpu, io_bytes_per_s=io, faults_per_s=faults
    )
