# SPDX-License-Identifier: Apache-2.0
"""One look at the machine, as columns."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.observation import CgroupState, Observation, Processes, Workloads
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings, VmSettings
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.host.linux import meminfo, psi, workloads
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


class LinuxObserver:
    """Reads the machine; remembers what ended processes had counted."""

    def __init__(
        self,
        controller: Controller | None,
        unified: str | None,
        proc: str = "/proc",
        processes: ProcessReader | TaskProcesses | None = None,
        vms: VirtualMachines | None = None,
    ) -> None:
        self._controller = controller
        self._unified = unified
        self._proc = proc
        self.processes = processes if processes is not None else ProcessReader(proc)
        self._vms = vms if vms is not None else VirtualMachines(VmSettings(discover=False), interval_s=1.0, proc=proc)
        self._past: dict[WorkloadId, _Past] = {}
        self._keys: dict[WorkloadId, int] = {}
        self._last: dict[WorkloadId, dict[int, Reading]] = {}
        self._cgroups_at_s = float("-inf")
        self._cgroups: list[CgroupPath] = []
        self._placed_by: tuple[tuple[PartitionSettings, ...], tuple[Adopted, ...]] | None = None
        self._places: dict[tuple[int, str, int, str, str], Place] = {}

    def observe(self, now_s: float, partitions: Sequence[PartitionSettings], detail_interval_s: float) -> Observation:
        """Return one snapshot. Raises OSError only where the machine's totals cannot be read."""
        memory = meminfo.read_host_memory(self._proc)
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
        for row in rows.values():
            is_adopted = not row.is_vm and any(one.cgroup == row.place.cgroup for one in adopted)
            self._complete(row, is_adopted=is_adopted)
        _tell_vms_apart(rows.values())
        self._last = {name: {reading.instance.pid: reading for reading in row.readings} for name, row in rows.items()}
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
        past = self._past.get(name, _Past())
        alive = {reading.instance.pid: reading.instance for reading in row.readings}
        for pid, reading in self._last.get(name, {}).items():
            if alive.get(pid) != reading.instance:
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
        found = psi.read_pressure(f"{self._unified}/{row.place.cgroup}/memory.pressure")
        if found is None and row.readings:
            places = {reading.detail.unified_cgroup for reading in row.readings}
            path = places.pop() if len(places) == 1 else ""
            found = psi.read_pressure(f"{self._unified}/{path}/memory.pressure") if path else None
        return found

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
        def ints(of_charge: Callable[[Charge], int], of_rows: Callable[[_Row], int]) -> Int64:
            values = [of_rows(row) if row.charge is None else of_charge(row.charge) for row in rows]
            return np.array(values, dtype=np.int64)

        def kinds(row: _Row, name: str) -> int:
            return sum(getattr(one.detail.kinds, name) for one in row.readings if one.detail.kinds is not None)

        def unknown(row: _Row) -> int:
            return sum(one.stat.resident_pages * page_bytes for one in row.readings if one.detail.kinds is None)

        anon = ints(lambda charge: charge.anon_bytes, lambda row: kinds(row, "anon_bytes") + unknown(row))
        file = ints(lambda charge: charge.file_bytes, lambda row: kinds(row, "file_bytes"))
        shmem = ints(lambda charge: charge.shmem_bytes, lambda row: kinds(row, "shmem_bytes"))
        return Workloads(
            ids=tuple(row.place.workload for row in rows),
            partitions=tuple(row.place.partition for row in rows),
            cgroups=tuple(row.place.cgroup for row in rows),
            instance_keys=np.array([row.key for row in rows], dtype=np.int64),
            resident_bytes=anon + file + shmem,
            anon_bytes=anon,
            file_bytes=file,
            shmem_bytes=shmem,
            swapped_bytes=ints(lambda charge: charge.swapped_bytes, lambda row: kinds(row, "swapped_bytes")),
            reclaimable_bytes=ints(lambda charge: charge.reclaimable_bytes, lambda _: 0),
            unevictable_bytes=ints(lambda charge: charge.unevictable_bytes, lambda _: 0),
            kernel_bytes=ints(lambda charge: charge.kernel_bytes, lambda _: 0),
            minor_faults_count=ints(
                lambda charge: charge.minor_faults,
                lambda row: _past(row).minor_faults + sum(one.stat.minor_faults for one in row.readings),
            ),
            major_faults_count=ints(
                lambda charge: charge.major_faults,
                lambda row: _past(row).major_faults + sum(one.stat.major_faults for one in row.readings),
            ),
            refaults_count=ints(lambda charge: charge.refaults, lambda _: 0),
            cpu_s=_floats([_cpu_s_of(row) for row in rows]),
            read_bytes=_ints([_past(row).read_bytes + _io_of(row, 0) for row in rows]),
            written_bytes=_ints([_past(row).written_bytes + _io_of(row, 1) for row in rows]),
            some_stall_s=_floats([0.0 if row.pressure is None else row.pressure.some_s for row in rows]),
            full_stall_s=_floats([0.0 if row.pressure is None else row.pressure.full_s for row in rows]),
            oom_kills_count=ints(lambda charge: charge.oom_kills, lambda _: 0),
            limit_hits_count=ints(lambda charge: charge.limit_hits, lambda _: 0),
            process_count=_ints([len(row.readings) for row in rows]),
            has_refaults=_bools([row.charge is not None for row in rows]),
            has_io=_bools([any(one.detail.io is not None for one in row.readings) for row in rows]),
            has_pressure=_bools([row.pressure is not None for row in rows]),
            programs=tuple(_program_of(row) for row in rows),
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


def _program_of(row: _Row) -> str:
    largest = max(row.readings, key=lambda one: one.stat.resident_pages, default=None)
    return "" if largest is None else largest.detail.exe


def _process_columns(readings: list[Reading], rows: list[_Row], page_bytes: int) -> Processes:
    index = {one.instance.pid: number for number, row in enumerate(rows) for one in row.readings}
    known = [one.detail.kinds for one in readings]
    resident = [one.stat.resident_pages * page_bytes for one in readings]
    return Processes(
        pids=_ints([one.instance.pid for one in readings]),
        start_ticks=_ints([one.instance.start_ticks for one in readings]),
        workload_index=_ints([index[one.instance.pid] for one in readings]),
        anon_bytes=_ints(
            [whole if kind is None else kind.anon_bytes for kind, whole in zip(known, resident, strict=True)]
        ),
        file_bytes=_ints([0 if kind is None else kind.file_bytes for kind in known]),
        shmem_bytes=_ints([0 if kind is None else kind.shmem_bytes for kind in known]),
        swapped_bytes=_ints([0 if kind is None else kind.swapped_bytes for kind in known]),
        has_memory_kinds=_bools([kind is not None for kind in known]),
        cpu_s=_floats([one.cpu_s for one in readings]),
        minor_faults_count=_ints([one.stat.minor_faults for one in readings]),
        major_faults_count=_ints([one.stat.major_faults for one in readings]),
        cgroups=tuple(CgroupPath(one.detail.memory_cgroup) for one in readings),
    )


def _past(row: _Row) -> _Past:
    return row.past or _Past()


def _cpu_s_of(row: _Row) -> float:
    # Whole nanoseconds: the order of adding must not make the sum fall by a rounding error when a process ends.
    return round(_past(row).cpu_s + sum(one.cpu_s for one in row.readings), 9)


def _io_of(row: _Row, column: int) -> int:
    return sum(one.detail.io[column] for one in row.readings if one.detail.io is not None)


def _ints(values: list[int]) -> Int64:
    return np.array(values, dtype=np.int64)


def _floats(values: list[float]) -> Float64:
    return np.array(values, dtype=np.float64)


def _bools(values: list[bool]) -> Bool:
    return np.array(values, dtype=np.bool_)
