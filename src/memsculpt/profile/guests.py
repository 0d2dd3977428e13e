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
from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.guest import GuestDemand
from memsculpt.domain.observation import Observation
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownGuest:
    """What is remembered of one VM."""

    process: Instance
    balloon_bytes: int | None
    moved_at_s: float  # when the balloon was last seen to move; -inf: never
    guest: GuestMemory | None = None  # the newest figures that were taken in
    path: tuple[tuple[float, int], ...] = ()  # when the balloon was seen to leave the guest how much, the last seconds
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
    followed: dict[VmId, KnownGuest] = {}
    demands: dict[WorkloadId, GuestDemand] = {}
    for reading in observation.vms:
        before = known.get(reading.id)
        if before is None or before.process != reading.process:
            before = KnownGuest(process=reading.process, balloon_bytes=reading.balloon_bytes, moved_at_s=-math.inf)
        one = _with_rates(_with_memory(before, reading, observation.time_s), reading)
        row = row_of.get(reading.workload)
        if row is not None:
            measured = overheads.get(reading.id)
            overhead = _overhead_bytes(one, reading, observation, row) if measured is None else measured
            one = replace(one, overhead_bytes=overhead)
        followed[reading.id] = one
        demands[reading.workload] = _demand(one, reading, observation.time_s)
    return GuestView(known=followed, demands=demands, rows=_rows(followed, demands, observation, row_of))


def _with_memory(known: KnownGuest, reading: VmReading, now_s: float) -> KnownGuest:
    """Take in the guest's figures, once each."""
    if reading.balloon_bytes != known.balloon_bytes:
        known = replace(known, balloon_bytes=reading.balloon_bytes, moved_at_s=now_s)
    if reading.balloon_bytes is not None:
        kept = tuple(one for one in known.path if one[0] > now_s - PATH_S)
        known = replace(known, path=(*kept, (now_s, reading.balloon_bytes)))
    told, before = reading.guest, known.guest
    if told is None or (before is not None and told.updated_at_s < before.updated_at_s + SAME_S):
        return known
    known = replace(known, guest=told)
    known = _with_swap(known, told, before, reading)
    used_bytes = told.used_bytes
    if used_bytes is None or told.total_bytes is None:
        return replace(known, need_bytes=None)
    balloon_bytes = reading.ram_bytes if reading.balloon_bytes is None else reading.balloon_bytes
    stands_still = told.updated_at_s > known.moved_at_s
    if reading.features.deflate_on_oom:
        known = replace(known, reserved_bytes=max(reading.ram_bytes - told.total_bytes, 0))
    elif stands_still:
        known = replace(known, reserved_bytes=max(balloon_bytes - told.total_bytes, 0))
    need = used_bytes + (known.reserved_bytes or 0) + int(known.swapped_bytes)
    if reading.features.deflate_on_oom:
        # The balloon is a part of `used` here. How much it held when the guest spoke is known within bounds only.
        taken_least, taken_most = _taken_bytes(known, reading, told.updated_at_s)
        least, most = max(need - taken_most, 0), max(need - taken_least, 0)
        need = least if taken_least == taken_most else min(max(known.need_bytes or 0, least), most)
    return replace(known, need_bytes=min(need, reading.ram_bytes))


def _taken_bytes(known: KnownGuest, reading: VmReading, at_s: float) -> tuple[int, int]:
    """Return the least and the most that the balloon may have held at a time, by the readings around it."""
    around = [size for time_s, size in known.path if at_s - LAG_S <= time_s <= at_s + LAG_S]
    before = [size for time_s, size in known.path if time_s < at_s - LAG_S][-1:]
    after = [size for time_s, size in known.path if time_s > at_s + LAG_S][:1]
    sizes = [*before, *around, *after] or [known.balloon_bytes or reading.ram_bytes]
    return max(reading.ram_bytes - max(sizes), 0), max(reading.ram_bytes - min(sizes), 0)


def _with_swap(known: KnownGuest, told: GuestMemory, before: GuestMemory | None, reading: VmReading) -> KnownGuest:
    """Follow what the guest swaps, and its faults. Counters that fell: it has booted anew."""
    elapsed_s = 0.0 if before is None else told.updated_at_s - before.updated_at_s

    def since(name: str) -> float:
        new, old = getattr(told, name), None if before is None else getattr(before, name)
        return math.nan if new is None or old is None or new < old else float(new - old)

    came, left = since("swapped_in_bytes"), since("swapped_out_bytes")
    has_rebooted = before is not None and math.isnan(left) and told.swapped_out_bytes is not None
    swapped = 0.0 if has_rebooted else known.swapped_bytes
    if before is None:  # whatever it swapped before we came: at most this
        swapped = float((told.swapped_out_bytes or 0) - (told.swapped_in_bytes or 0))
    elif not math.isnan(came) and not math.isnan(left):
        swapped += left - came
        if came == 0.0:
            swapped *= 0.5 ** (elapsed_s / SWAP_HALF_LIFE_S)
    faults = [since("major_faults_count"), since("minor_faults_count")]
    return replace(
        known,
        swapped_bytes=min(max(swapped, 0.0), float(reading.ram_bytes)),
        swap_in_bytes_per_s=_per_s(came, elapsed_s),
        major_faults_per_s=_per_s(faults[0], elapsed_s),
        faults_per_s=sum(_per_s(each, elapsed_s) for each in faults),
    )


def _per_s(change: float, elapsed_s: float) -> float:
    return change / elapsed_s if elapsed_s > 0.0 and not math.isnan(change) else 0.0


def _with_rates(known: KnownGuest, reading: VmReading) -> KnownGuest:
    """Follow the processors and devices; a reading is taken in once."""
    if not reading.read_at_s > known.read_at_s:
        return known
    network_bytes = (reading.received_bytes or 0) + (reading.sent_bytes or 0)
    moved_bytes = reading.read_bytes + reading.written_bytes + network_bytes
    elapsed_s = reading.read_at_s - known.read_at_s
    has_rates = math.isfinite(elapsed_s)
    return replace(
        known,
        read_at_s=reading.read_at_s,
        vcpu_s=reading.vcpu_s,
        moved_bytes=moved_bytes,
        cpu_ratio=max(reading.vcpu_s - known.vcpu_s, 0.0) / elapsed_s if has_rates else math.nan,
        io_bytes_per_s=max(moved_bytes - known.moved_bytes, 0) / elapsed_s if has_rates else math.nan,
    )


def _overhead_bytes(known: KnownGuest, reading: VmReading, observation: Observation, row: int) -> int:
    """Return what QEMU holds beside the guest's memory: the most that was ever above all that the guest may have.

    A guest that has not touched all of its memory hides some of it; so the least is what its files and kernel memory
    take, and what an idle QEMU does. While a balloon moves, pages of the guest may not have left yet.
    """
    seen = observation.workloads
    file_bytes = int(seen.file_bytes[row] - min(seen.reclaimable_bytes[row], seen.file_bytes[row]))
    beside = file_bytes + int(seen.kernel_bytes[row])
    is_still = observation.time_s - known.moved_at_s >= SETTLED_S
    most = reading.ram_bytes if reading.balloon_bytes is None or not is_still else reading.balloon_bytes
    held = int(seen.anon_bytes[row] + seen.shmem_bytes[row] + seen.swapped_bytes[row])
    return max(known.overhead_bytes, OVERHEAD_LEAST_BYTES + beside, min(held - most, reading.ram_bytes // 2) + beside)


def _demand(known: KnownGuest, reading: VmReading, now_s: float) -> GuestDemand:
    told_at_s = -math.inf if known.guest is None else known.guest.updated_at_s
    problem = ""
    if known.need_bytes is None:
        problem = NOT_TOLD
    elif now_s - told_at_s > STALE_S:
        problem = f"the guest's figures are {now_s - told_at_s:.0f} s old: the host's view is used"
    elif reading.state is not VmState.RUNNING:
        problem = f"it is {reading.state.value}: the host's view is used"
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
