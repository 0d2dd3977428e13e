# SPDX-License-Identifier: Apache-2.0
"""One look at the machine, as columns."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import NamedTuple

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.observation import CgroupState, Observation, Processes, Workloads
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings, VmSettings
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.host.linux import meminfo, numa, psi, workloads
from memsculpt.host.linux.controller import Charge, Controller, read_members
from memsculpt.host.linux.errnos import is_gone
from memsculpt.host.linux.processes import ProcessReader, Reading
from memsculpt.host.linux.psi import Pressure
from memsculpt.host.linux.task_processes import TaskProcesses
from memsculpt.host.linux.virtual_machines import Machine, VirtualMachines
from memsculpt.host.linux.workloads import Adopted, Place


@dataclass(slots=True)
class _Row:
    """A workload while it is being gathered."""

    place: Place
    readings: list[Reading] = field(default_factory=list[Reading])
    charge: Charge | None = None
    pressure: Pressure | None = None
    key: int = 0
    past: "_Past | None" = None
    is_vm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    """Counters of a workload's processes that have ended, so that its sums never fall."""

    minor_faults: int = 0
    major_faults: int = 0
    cpu_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0


NO_PAST = _Past()


class _Sums(NamedTuple):
    """What a workload's processes hold and have counted, those that have ended as well."""

    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    swapped_bytes: int
    unknown_pages: int  # of processes that do not tell what their memory is
    minor_faults: int
    major_faults: int
    cpu_s: float
    read_bytes: int
    written_bytes: int
    has_io: bool
    program: str  # of the largest


class LinuxObserver:
    """Reads the machine; remembers what ended processes had counted."""

    def __init__(
        self,
        controller: Controller | None,
        unified: str | None,
        proc: str = "/proc",
        processes: ProcessReader | TaskProcesses | None = None,
        vms: VirtualMachines | None = None,
        sys: str = numa.SYS,
    ) -> None:
        self._controller = controller
        self._unified = unified
        self._proc = proc
        self.processes = processes if processes is not None else ProcessReader(proc)
        self._vms = vms if vms is not None else VirtualMachines(VmSettings(discover=False), interval_s=1.0, proc=proc)
        self._nodes = numa.SlowNodeReader(sys)
        self._past: dict[WorkloadId, _Past] = {}
        self._keys: dict[WorkloadId, int] = {}
        self._last: dict[WorkloadId, list[Reading]] = {}
        self._sums: dict[WorkloadId, tuple[list[Reading], _Past, _Sums]] = {}  # of what they were made, and they
        self._pressures: dict[str, Pressure | None] = {}  # of this look: many workloads may share a cgroup
        self._cgroups_at_s = float("-inf")
        self._cgroups: list[CgroupPath] = []
        self._placed_by: tuple[tuple[PartitionSettings, ...], tuple[Adopted, ...]] | None = None
        self._places: dict[tuple[int, str, int, str, str], Place] = {}

    def observe(self, now_s: float, partitions: Sequence[PartitionSettings], detail_interval_s: float) -> Observation:
        """Return one snapshot. Raises OSError only where the machine's totals cannot be read."""
        memory = self._nodes.told_of(meminfo.read_host_memory(self._proc), now_s)
        adopted = workloads.find_adopted(partitions, self.cgroups(now_s, partitions))
        adopted, members = self._members(adopted)
        readings = self.processes.read_all(now_s, members, detail_interval_s)
        machines = self._vms.find(readings, now_s)
        rows = self._rows(readings, partitions, adopted, machines)
        states = self._states(adopted, rows)
        notes = tuple(
            f'partition "{one.name}": no cgroup fits {one.match.describe()} now'
            for one in partitions
            if one.match.is_by_cgroup() and all(each.partition != one.name for each in adopted)
        )
        return Observation(
            time_s=now_s,
            memory=memory,
            processes=_process_columns(readings, rows, memory.page_bytes),
            workloads=self._workload_columns(rows, memory.page_bytes),
            cgroups=states,
            vanished_count=self.processes.vanished_count,
            unreadable_count=self.processes.unreadable_count,
            notes=notes,
            vms=self._vms.readings(),
        )

    def cgroups(self, now_s: float, partitions: Sequence[PartitionSettings], every_s: float = 5.0) -> list[CgroupPath]:
        """Return the cgroups that rules may name; the tree is walked only for globs, every few seconds."""
        if self._controller is None or not partitions:
            return []
        root = self._controller.root
        names = [one.match.cgroup or workloads.own_cgroup(one.name) for one in partitions]
        if not any(set("*?[") & set(name) for name in names):
            return [CgroupPath(name) for name in names if os.path.isdir(f"{root}/{name}")]
        if now_s - self._cgroups_at_s >= every_s:
            self._cgroups_at_s = now_s
            self._cgroups = [
                CgroupPath(os.path.relpath(folder, root)) for folder, _, _ in os.walk(root) if folder != root
            ]
        return self._cgroups

    def _members(self, adopted: list[Adopted]) -> tuple[list[Adopted], dict[int, CgroupPath]]:
        """Return the cgroups that are still there, and the processes in them with where each lives."""
        members: dict[int, CgroupPath] = {}
        there: list[Adopted] = []
        for one in adopted:
            try:
                found = read_members(self._controller.folder(one.cgroup), one.cgroup) if self._controller else {}
            except OSError as error:  # ENODEV: removed between listing and reading
                if not is_gone(error):
                    raise
                continue
            there.append(one)
            members.update(found)
        return there, members

    def _rows(
        self,
        readings: list[Reading],
        partitions: Sequence[PartitionSettings],
        adopted: list[Adopted],
        machines: Mapping[Instance, Machine],
    ) -> list[_Row]:
        rows: dict[WorkloadId, _Row] = {}
        for one in adopted:
            if not one.is_own:
                place = Place(workload=WorkloadId(one.cgroup), partition=one.partition, cgroup=one.cgroup)
                rows[place.workload] = _Row(place=place)
        rules = (tuple(partitions), tuple(adopted))
        if rules != self._placed_by or len(self._places) > 2 * len(readings) + 64:
            self._placed_by = rules
            self._places.clear()
        for reading in readings:
            machine = machines.get(reading.instance)
            place = self._place(reading, partitions, adopted, machine)
            row = rows.get(place.workload)
            if row is None:
                row = rows[place.workload] = _Row(place=place, is_vm=machine is not None)
            row.readings.append(reading)
        self._pressures.clear()
        homes = {one.cgroup for one in adopted}
        for row in rows.values():
            is_adopted = not row.is_vm and row.place.cgroup in homes
            self._complete(row, is_adopted=is_adopted)
        _tell_vms_apart(rows.values())
        self._last = {name: row.readings for name, row in rows.items()}
        self._past = {name: past for name, past in self._past.items() if name in rows}
        self._keys = {name: key for name, key in self._keys.items() if name in rows and rows[name].readings}
        return [rows[name] for name in sorted(rows)]

    def _place(
        self,
        reading: Reading,
        partitions: Sequence[PartitionSettings],
        adopted: list[Adopted],
        machine: Machine | None,
    ) -> Place:
        """Return the process's workload, worked out anew only when its names or the rules have changed."""
        detail = reading.detail
        vm = "" if machine is None else machine.workload
        key = (reading.instance.pid, detail.exe, detail.user, detail.memory_cgroup, vm)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = workloads.place_of(reading, partitions, adopted, machine)
        return place

    def _complete(self, row: _Row, *, is_adopted: bool) -> None:
        name = row.place.workload
        if row.readings and not self._keys.get(name):
            self._keys[name] = min(reading.instance.start_ticks for reading in row.readings)
        row.key = self._keys.get(name, 0)  # kept until all are gone: one of many that ends is no restart
        if is_adopted and row.place.cgroup is not None and self._controller is not None:
            folder = self._controller.folder(row.place.cgroup)
            try:
                row.charge = self._controller.read_charge(row.place.cgroup)
                row.key = os.stat(folder).st_ino
            except OSError as error:  # removed a moment ago: what its processes say still counts
                if not is_gone(error):
                    raise
                row.charge = None
        row.past = self._follow_ended(row)
        row.pressure = self._pressure(row)

    def _follow_ended(self, row: _Row) -> _Past:
        name = row.place.workload
        past = self._past.get(name, NO_PAST)
        before = self._last.get(name, [])
        if len(before) == 1 == len(row.readings) and before[0].instance == row.readings[0].instance:
            self._past[name] = past  # as with most
            return past
        alive = {reading.instance.pid: reading.instance for reading in row.readings}
        for reading in before:
            if alive.get(reading.instance.pid) != reading.instance:
                read, written = reading.detail.io or (0, 0)
                past = _Past(
                    minor_faults=past.minor_faults + reading.stat.minor_faults,
                    major_faults=past.major_faults + reading.stat.major_faults,
                    cpu_s=past.cpu_s + reading.cpu_s,
                    read_bytes=past.read_bytes + read,
                    written_bytes=past.written_bytes + written,
                )
        self._past[name] = past
        return past

    def _pressure(self, row: _Row) -> Pressure | None:
        """Return the PSI of the workload's cgroup in the unified hierarchy: same path, or where its processes are."""
        if self._unified is None or row.place.cgroup is None:
            return None
        found = self._pressure_of(row.place.cgroup)
        if found is None and row.readings:
            places = {reading.detail.unified_cgroup for reading in row.readings}
            path = places.pop() if len(places) == 1 else ""
            found = self._pressure_of(path) if path else None
        return found

    def _pressure_of(self, path: str) -> Pressure | None:
        if path not in self._pressures:
            self._pressures[path] = psi.read_pressure(f"{self._unified}/{path}/memory.pressure")
        return self._pressures[path]

    def _sums_of(self, row: _Row) -> "_Sums":
        """Return the sums of a row, made anew only when one of its processes is not as it was: most sleep."""
        name, past = row.place.workload, row.past or NO_PAST
        known = self._sums.get(name)
        if known is not None and known[1] is past and _are_same(known[0], row.readings):
            return known[2]
        return _sums(row.readings, past)

    def _states(self, adopted: list[Adopted], rows: list[_Row]) -> tuple[CgroupState, ...]:
        charges = {row.place.cgroup: row.charge for row in rows if row.charge is not None}
        states: list[CgroupState] = []
        for one in adopted:
            controller = self._controller
            if controller is None:
                break
            try:
                charge = charges.get(one.cgroup) or controller.read_charge(one.cgroup)
                states.append(
                    CgroupState(
                        cgroup=one.cgroup,
                        partition=one.partition,
                        used_bytes=charge.used_bytes,
                        swapped_bytes=charge.swapped_bytes,
                        limit_bytes=controller.read_limit(one.cgroup, LimitKind.LIMIT).size_bytes,
                        hard_limit_bytes=controller.read_limit(one.cgroup, LimitKind.HARD).size_bytes,
                        guarantee_bytes=controller.read_limit(one.cgroup, LimitKind.GUARANTEE).size_bytes,
                        is_own=one.is_own,
                    )
                )
            except OSError as error:  # removed meanwhile: a row less
                if not is_gone(error):
                    raise
                continue
        return tuple(states)

    def _workload_columns(self, rows: list[_Row], page_bytes: int) -> Workloads:
        sums = [self._sums_of(row) for row in rows]
        self._sums = {
            row.place.workload: (row.readings, row.past or NO_PAST, one) for row, one in zip(rows, sums, strict=True)
        }
        figures = np.array([_figures(row, one, page_bytes) for row, one in zip(rows, sums, strict=True)], np.int64)
        figures = figures.reshape(len(rows), len(_FIGURES))
        columns: dict[str, Int64] = {name: figures[:, place].copy() for place, name in enumerate(_FIGURES)}
        pressures = [row.pressure for row in rows]
        return Workloads(
            ids=tuple(row.place.workload for row in rows),
            partitions=tuple(row.place.partition for row in rows),
            cgroups=tuple(row.place.cgroup for row in rows),
            instance_keys=_ints([row.key for row in rows]),
            resident_bytes=columns["anon_bytes"] + columns["file_bytes"] + columns["shmem_bytes"],
            **columns,
            cpu_s=_floats([one.cpu_s for one in sums]),
            read_bytes=_ints([one.read_bytes for one in sums]),
            written_bytes=_ints([one.written_bytes for one in sums]),
            some_stall_s=_floats([0.0 if one is None else one.some_s for one in pressures]),
            full_stall_s=_floats([0.0 if one is None else one.full_s for one in pressures]),
            process_count=_ints([len(row.readings) for row in rows]),
            has_refaults=_bools([row.charge is not None for row in rows]),
            has_io=_bools([one.has_io for one in sums]),
            has_pressure=_bools([one is not None for one in pressures]),
            programs=tuple(one.program for one in sums),
        )


def _tell_vms_apart(rows: Iterable[_Row]) -> None:
    """Take from an adopted cgroup's charge what its VMs hold: they are workloads of their own; nothing counts twice.

    What of its counters the VMs' processes account for stays in both: a difference could fall.
    """
    found = list(rows)
    for row in found:
        charge, home = row.charge, row.place.cgroup
        if charge is None or home is None:
            continue
        for vm in found:
            path = vm.place.cgroup
            if vm.is_vm and path is not None and (path == home or path.startswith(f"{home}/")):
                kinds = [one.detail.kinds for one in vm.readings if one.detail.kinds is not None]
                charge = replace(
                    charge,
                    anon_bytes=max(0, charge.anon_bytes - sum(one.anon_bytes for one in kinds)),
                    shmem_bytes=max(0, charge.shmem_bytes - sum(one.shmem_bytes for one in kinds)),
                    swapped_bytes=max(0, charge.swapped_bytes - sum(one.swapped_bytes for one in kinds)),
                )
        row.charge = charge


# What a cgroup's charge tells of a workload, or its processes where it has none; in the order of `_figures`.
_FIGURES = (
    "anon_bytes",
    "file_bytes",
    "shmem_bytes",
    "swapped_bytes",
    "reclaimable_bytes",
    "unevictable_bytes",
    "kernel_bytes",
    "minor_faults_count",
    "major_faults_count",
    "refaults_count",
    "oom_kills_count",
    "limit_hits_count",
)


def _figures(row: _Row, sums: _Sums, page_bytes: int) -> tuple[int, ...]:
    charge = row.charge
    if charge is None:
        anon_bytes = sums.anon_bytes + sums.unknown_pages * page_bytes
        held = (anon_bytes, sums.file_bytes, sums.shmem_bytes, sums.swapped_bytes)
        return (*held, 0, 0, 0, sums.minor_faults, sums.major_faults, 0, 0, 0)
    return (
        charge.anon_bytes,
        charge.file_bytes,
        charge.shmem_bytes,
        charge.swapped_bytes,
        charge.reclaimable_bytes,
        charge.unevictable_bytes,
        charge.kernel_bytes,
        charge.minor_faults,
        charge.major_faults,
        charge.refaults,
        charge.oom_kills,
        charge.limit_hits,
    )


def _sums(readings: Sequence[Reading], past: _Past) -> _Sums:
    anon = file = shmem = swapped = unknown_pages = 0
    minor, major, cpu_s = past.minor_faults, past.major_faults, past.cpu_s
    read, written, has_io = past.read_bytes, past.written_bytes, False
    largest_pages, program = -1, ""
    for _, stat, ran_s, detail in readings:
        kinds, io = detail.kinds, detail.io
        if kinds is None:
            unknown_pages += stat.resident_pages
        else:
            anon += kinds.anon_bytes
            file += kinds.file_bytes
            shmem += kinds.shmem_bytes
            swapped += kinds.swapped_bytes
        minor += stat.minor_faults
        major += stat.major_faults
        cpu_s += ran_s
        if io is not None:
            read, written, has_io = read + io[0], written + io[1], True
        if stat.resident_pages > largest_pages:
            largest_pages, program = stat.resident_pages, detail.exe
    return _Sums(
        anon_bytes=anon,
        file_bytes=file,
        shmem_bytes=shmem,
        swapped_bytes=swapped,
        unknown_pages=unknown_pages,
        minor_faults=minor,
        major_faults=major,
        # Whole nanoseconds: the order of adding must not make the sum fall by a rounding error when a process ends.
        cpu_s=round(cpu_s, 9),
        read_bytes=read,
        written_bytes=written,
        has_io=has_io,
        program=program,
    )


def _are_same(before: list[Reading], now: list[Reading]) -> bool:
    """Tell whether these are the very same readings: what sleeps is not read anew."""
    return len(before) == len(now) and all(map(is_, before, now))


def _process_columns(readings: list[Reading], rows: list[_Row], page_bytes: int) -> Processes:
    index = {one.instance.pid: number for number, row in enumerate(rows) for one in row.readings}
    table = np.array([_process_figures(one, index, page_bytes) for one in readings], np.int64).reshape(len(readings), 9)
    columns = [table[:, place].copy() for place in range(table.shape[1])]
    pids, start_ticks, workload_index, anon, file, shmem, swapped, minor_faults, major_faults = columns
    return Processes(
        pids=pids,
        start_ticks=start_ticks,
        workload_index=workload_index,
        anon_bytes=anon,
        file_bytes=file,
        shmem_bytes=shmem,
        swapped_bytes=swapped,
        has_memory_kinds=_bools([one.detail.kinds is not None for one in readings]),
        cpu_s=_floats([one.cpu_s for one in readings]),
        minor_faults_count=minor_faults,
        major_faults_count=major_faults,
        cgroups=tuple(CgroupPath(one.detail.memory_cgroup) for one in readings),
    )


def _process_figures(reading: Reading, index: Mapping[int, int], page_bytes: int) -> tuple[int, ...]:
    (instance, stat, _, detail) = reading
    kinds, pid = detail.kinds, instance.pid
    faults = (stat.minor_faults, stat.major_faults)
    if kinds is None:
        return (pid, instance.start_ticks, index[pid], stat.resident_pages * page_bytes, 0, 0, 0, *faults)
    held = (kinds.anon_bytes, kinds.file_bytes, kinds.shmem_bytes, kinds.swapped_bytes)
    return (pid, instance.start_ticks, index[pid], *held, *faults)


def _ints(values: list[int]) -> Int64:
    return np.array(values, dtype=np.int64)


def _floats(values: list[float]) -> Float64:
    return np.array(values, dtype=np.float64)


def _bools(values: list[bool]) -> Bool:
    return np.array(values, dtype=np.bool_)
