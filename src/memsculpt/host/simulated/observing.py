# SPDX-License-Identifier: Apache-2.0
"""A simulated machine as an `Observation`: who is a workload, and all of them as columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.observation import CgroupState, HostMemory, Observation, Processes, Workloads
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.vm import VmReading
from memsculpt.domain.workload import CgroupPath, WorkloadId
from memsculpt.errors import ConfigError
from memsculpt.host.simulated.cgroups import PAGE_BYTES, Node
from memsculpt.host.simulated.living import Process
from memsculpt.host.simulated.machine import Machine

WILDCARDS = frozenset("*?[")
OWN_FOLDER = "memsculpt"  # partitions that have no cgroup of their own get OWN_FOLDER/NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One workload: a whole cgroup (`node`), or the processes of one executable."""

    id: WorkloadId
    partition: str | None
    node: Node | None
    members: tuple[Process, ...]
    home: CgroupPath | None = None  # of a VM: the cgroup that it lives in
    apart: tuple[Process, ...] = ()  # VMs in `node`: workloads of their own, though charged to it


def observe_machine(
    machine: Machine, partitions: Sequence[PartitionSettings], vms: tuple[VmReading, ...]
) -> Observation:
    """Read everything at once; changes nothing."""
    tenants = find_tenants(machine, partitions)
    return Observation(
        time_s=machine.now_s,
        memory=_memory(machine),
        processes=_processes(machine, tenants),
        workloads=_workloads(machine, tenants),
        cgroups=_cgroups(machine, tenants, partitions),
        notes=tuple(
            f'partition "{partition.name}": no cgroup fits {partition.match.describe()} now'
            for partition in partitions
            if partition.match.is_by_cgroup() and all(tenant.partition != partition.name for tenant in tenants)
        ),
        vms=vms,
    )


def find_tenants(machine: Machine, partitions: Sequence[PartitionSettings]) -> tuple[Tenant, ...]:
    """Return all workloads, ordered by identity.

    A virtual machine is a workload by itself, wherever its process lives.
    A partition's rule by cgroup adopts each fitting cgroup as a whole, the topmost one where they are nested.
    Other processes are accounted by their cgroup, or by their executable when they live in the root, in a
    cgroup that memsculpt made, or where a rule by executable or user claims them.
    """
    members: dict[WorkloadId, list[Process]] = {}
    nodes: dict[WorkloadId, Node | None] = {}
    named: dict[WorkloadId, str | None] = {}
    for node in machine.tree.nodes.values():
        adopting = _adopting(node, partitions)
        if adopting is not None and adopting[0] is node:
            identity = WorkloadId(node.path)
            members[identity], nodes[identity], named[identity] = [], node, adopting[1].name
    for process in machine.processes.values():
        identity, node, partition = _identify(process, partitions)
        members.setdefault(identity, []).append(process)
        nodes[identity] = node
        named[identity] = named.get(identity) or partition
    return tuple(
        Tenant(
            id=identity,
            partition=named[identity],
            node=nodes[identity],
            members=tuple(members[identity]),
            home=_home_of(members[identity]),
            apart=_apart(machine, nodes[identity]),
        )
        for identity in sorted(members)
    )


def _home_of(members: Sequence[Process]) -> CgroupPath | None:
    return next((one.node.path for one in members if one.program.vm and one.node.path), None)


def _apart(machine: Machine, node: Node | None) -> tuple[Process, ...]:
    if node is None:
        return ()
    return tuple(one for one in machine.processes.values() if one.program.vm and node in one.node.lineage)


def check_rules(machine: Machine, partitions: Sequence[PartitionSettings]) -> None:
    """Refuse a rule that names an absent cgroup (a glob may fit none), and two that claim one workload: ConfigError."""
    for partition in partitions:
        named = partition.match.cgroup
        is_name = named is not None and partition.match.is_by_cgroup() and not WILDCARDS & set(named)
        if is_name and named not in machine.tree.nodes:
            raise ConfigError(
                place=f'partition "{partition.name}"',
                problem=f'there is no cgroup "{named}"',
                fix="start what lives in it first, correct the name, or use a glob (it may match nothing)",
            )
    claims = {f'cgroup "{node.path}"': _claims_on_node(node, partitions) for node in machine.tree.nodes.values()}
    for process in machine.processes.values():
        by_process = {part.name for part in partitions if _fits_process(part, process)}
        claims[f"process {process.instance.pid}"] = by_process | _claims_on_node(process.node, partitions)
    for what, names in claims.items():
        if len(names) > 1:
            first, second, *_ = sorted(names)
            raise ConfigError(
                place=f'partition "{second}"',
                problem=f'{what} belongs to partition "{first}" as well',
                fix="make the rules fit different workloads",
            )


def _claims_on_node(node: Node, partitions: Sequence[PartitionSettings]) -> set[str]:
    """Return the partitions whose rules name a cgroup or one above it: a cgroup is adopted with all below it."""
    return {part.name for part in partitions for above in node.lineage if _fits_node(part, above)}


def _fits_node(partition: PartitionSettings, node: Node) -> bool:
    rule = partition.match
    return (
        rule.is_by_cgroup() and node.path != "" and rule.fits(cgroup=node.path, exe="", user="", pid=0, vm="", label="")
    )


def _fits_process(partition: PartitionSettings, process: Process) -> bool:
    rule, program = partition.match, process.program
    # The cgroup it was started in: a process that memsculpt has moved is still the same workload.
    return not rule.is_by_cgroup() and rule.fits(
        cgroup=program.cgroup, exe=program.exe, user=program.user, pid=process.instance.pid, vm=program.vm
    )


def _adopting(node: Node, partitions: Sequence[PartitionSettings]) -> tuple[Node, PartitionSettings] | None:
    for above in reversed(node.lineage):
        for partition in partitions:
            if _fits_node(partition, above):
                return above, partition
    return None


def _identify(process: Process, partitions: Sequence[PartitionSettings]) -> tuple[WorkloadId, Node | None, str | None]:
    program = process.program
    by_exe = WorkloadId(f"exe:{program.exe}")
    if program.vm:
        claimed = next((one.name for one in partitions if _fits_process(one, process)), None)
        above = _adopting(process.node, partitions) if claimed is None else None
        return WorkloadId(f"vm:{program.vm}"), None, claimed or (above[1].name if above is not None else None)
    for partition in partitions:
        if _fits_process(partition, process):
            name = partition.match.workload_name(
                exe=program.exe, user=program.user, cgroup=program.cgroup, pid=process.instance.pid
            )
            return name, None, partition.name
    adopting = _adopting(process.node, partitions)
    if adopting is not None:
        return WorkloadId(adopting[0].path), adopting[0], adopting[1].name
    if process.node.path == "" or process.node.is_own:
        return by_exe, None, None
    return WorkloadId(process.node.path), process.node, None


def _memory(machine: Machine) -> HostMemory:
    root, chunk_bytes = machine.tree.root, machine.chunk_bytes
    total_bytes = machine.tree.hard_bytes(root)
    free_bytes = max(0, total_bytes - root.charged_chunks * chunk_bytes)
    return HostMemory(
        total_bytes=total_bytes,
        available_bytes=free_bytes + root.file_chunks * chunk_bytes,
        free_bytes=free_bytes,
        swap_total_bytes=machine.swap_total_chunks * chunk_bytes,
        swap_free_bytes=machine.swap_free_chunks * chunk_bytes,
        some_stall_s=machine.some_stall_s,
        full_stall_s=machine.full_stall_s,
        page_bytes=PAGE_BYTES,
        **slow_node_bytes(machine),
    )


def slow_node_bytes(machine: Machine) -> dict[str, int]:
    """Return what `HostMemory` tells of a slow node, nothing where there is none."""
    if not machine.slow_total_chunks:
        return {}
    fast_total_bytes = machine.tree.hard_bytes(machine.tree.root) - machine.slow_total_chunks * machine.chunk_bytes
    return {
        "slow_room_bytes": machine.slow_room_chunks * machine.chunk_bytes,
        "fast_total_bytes": fast_total_bytes,
        "fast_spare_bytes": max(0, machine.fast_free_chunks) * machine.chunk_bytes,
    }


def _processes(machine: Machine, tenants: Sequence[Tenant]) -> Processes:
    rows = sorted(
        ((process, row) for row, tenant in enumerate(tenants) for process in tenant.members),
        key=lambda pair: pair[0].instance.pid,
    )
    found = [process for process, _ in rows]
    chunk_bytes = machine.chunk_bytes
    return Processes(
        pids=_ints([process.instance.pid for process in found]),
        start_ticks=_ints([process.instance.start_ticks for process in found]),
        workload_index=_ints([row for _, row in rows]),
        anon_bytes=_ints([process.memory.resident_chunks * chunk_bytes for process in found]),
        file_bytes=_ints([0] * len(found)),  # page cache that is read, not mapped, is in no process
        shmem_bytes=_ints([0] * len(found)),
        swapped_bytes=_ints([process.memory.swapped_chunks * chunk_bytes for process in found]),
        has_memory_kinds=np.ones(len(found), dtype=np.bool_),
        cpu_s=np.array([process.cpu_s for process in found], dtype=np.float64),
        minor_faults_count=_ints([process.minor_faults_count for process in found]),
        major_faults_count=_ints([process.major_faults_count for process in found]),
        cgroups=tuple(process.node.path for process in found),
    )


def _workloads(machine: Machine, tenants: Sequence[Tenant]) -> Workloads:
    chunk_bytes = machine.chunk_bytes

    def ints(of_node: Callable[[Node], int], of_process: Callable[[Process], int], scale: int = 1) -> Int64:
        return _ints([scale * int(_sum(tenant, of_node, of_process)) for tenant in tenants])

    def floats(of_node: Callable[[Node], float], of_process: Callable[[Process], float]) -> Float64:
        return np.array([_sum(tenant, of_node, of_process) for tenant in tenants], dtype=np.float64)

    file_bytes = ints(lambda node: node.file_chunks, lambda _: 0, chunk_bytes)
    apart = [[one.memory for one in tenant.apart] for tenant in tenants]
    resident_apart = _ints([chunk_bytes * sum(one.resident_chunks for one in each) for each in apart])
    swapped_apart = _ints([chunk_bytes * sum(one.swapped_chunks for one in each) for each in apart])
    anon_bytes = ints(lambda node: node.anon_chunks, lambda p: p.memory.resident_chunks, chunk_bytes)
    anon_bytes = np.maximum(anon_bytes - resident_apart, 0)
    swapped_bytes = ints(lambda node: node.swapped_chunks, lambda p: p.memory.swapped_chunks, chunk_bytes)
    nothing = _ints([0] * len(tenants))
    is_cgroup: Bool = np.array([tenant.node is not None for tenant in tenants], dtype=np.bool_)
    return Workloads(
        ids=tuple(tenant.id for tenant in tenants),
        partitions=tuple(tenant.partition for tenant in tenants),
        cgroups=tuple(tenant.node.path if tenant.node is not None else tenant.home for tenant in tenants),
        instance_keys=_ints([_instance_key(tenant) for tenant in tenants]),
        resident_bytes=anon_bytes + file_bytes,
        anon_bytes=anon_bytes,
        file_bytes=file_bytes,
        shmem_bytes=nothing,
        swapped_bytes=np.maximum(swapped_bytes - swapped_apart, 0),
        reclaimable_bytes=file_bytes.copy(),
        unevictable_bytes=nothing.copy(),
        kernel_bytes=nothing.copy(),
        minor_faults_count=ints(lambda node: node.minor_faults_count, lambda p: p.minor_faults_count),
        major_faults_count=ints(lambda node: node.major_faults_count, lambda p: p.major_faults_count),
        refaults_count=ints(lambda node: node.refaults_count, lambda _: 0),
        cpu_s=floats(lambda node: node.cpu_s, lambda p: p.cpu_s),
        read_bytes=ints(lambda node: node.read_bytes, lambda p: p.read_bytes),
        written_bytes=nothing.copy(),
        some_stall_s=floats(lambda node: node.some_stall_s, lambda _: 0.0),
        full_stall_s=floats(lambda node: node.full_stall_s, lambda _: 0.0),
        oom_kills_count=ints(lambda node: node.oom_kills_count, lambda _: 0),
        limit_hits_count=ints(lambda node: node.limit_hits_count, lambda _: 0),
        process_count=_ints([len(tenant.members) for tenant in tenants]),
        has_refaults=is_cgroup,
        has_io=np.ones(len(tenants), dtype=np.bool_),
        has_pressure=is_cgroup.copy(),
        programs=tuple(_program_of(tenant) for tenant in tenants),
    )


def _program_of(tenant: Tenant) -> str:
    largest = max(tenant.members, key=lambda one: one.memory.resident_chunks, default=None)
    return "" if largest is None else largest.program.exe


def _cgroups(
    machine: Machine, tenants: Sequence[Tenant], partitions: Sequence[PartitionSettings]
) -> tuple[CgroupState, ...]:
    found: dict[str, tuple[Node, str]] = {}
    for tenant in tenants:
        if tenant.partition is not None and tenant.node is not None:
            found[tenant.node.path] = (tenant.node, tenant.partition)
    for partition in partitions:
        own = machine.tree.nodes.get(CgroupPath(f"{OWN_FOLDER}/{partition.name}"))
        if own is not None and not partition.match.is_by_cgroup():
            found[own.path] = (own, partition.name)
    return tuple(_cgroup_state(machine, *found[path]) for path in sorted(found))


def _cgroup_state(machine: Machine, node: Node, partition: str) -> CgroupState:
    tree, chunk_bytes = machine.tree, machine.chunk_bytes
    return CgroupState(
        cgroup=node.path,
        partition=partition,
        used_bytes=node.charged_chunks * chunk_bytes,
        swapped_bytes=node.swapped_chunks * chunk_bytes,
        limit_bytes=tree.limit_bytes(node, LimitKind.LIMIT),
        hard_limit_bytes=tree.limit_bytes(node, LimitKind.HARD),
        guarantee_bytes=tree.limit_bytes(node, LimitKind.GUARANTEE),
        is_own=node.is_own,
    )


def _instance_key(tenant: Tenant) -> int:
    if tenant.node is not None:
        return tenant.node.inode
    return min(process.instance.start_ticks for process in tenant.members)


def _sum(tenant: Tenant, of_node: Callable[[Node], float], of_process: Callable[[Process], float]) -> float:
    if tenant.node is not None:
        return of_node(tenant.node)
    return sum(of_process(process) for process in tenant.members)


def _ints(values: Sequence[int]) -> Int64:
    return np.array(values, dtype=np.int64)
