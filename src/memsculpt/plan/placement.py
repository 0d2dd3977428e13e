# SPDX-License-Identifier: Apache-2.0
"""Cgroups of memsculpt's own: made for partitions that ask for one, and the processes moved there."""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import CreateCgroup, MoveProcess, Reason
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import PlannerState

OWN_CGROUP = "memsculpt"  # the one above all of ours, so that leftovers are recognised


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """Cgroups to make and processes to move."""

    created: tuple[CreateCgroup, ...] = ()
    moved: tuple[MoveProcess, ...] = ()
    placed: frozenset[Instance] = frozenset()


def own_cgroup(partition: str) -> CgroupPath:
    """Return where a partition's own cgroup lies; a slash in its name cannot lead elsewhere."""
    return CgroupPath(f"{OWN_CGROUP}/{partition.replace('/', '_')}")


def place(now: Situation, planner: PlannerState, observation: Observation) -> Placed:
    """Make what the configuration asks to be made, and move in what matches, each process once."""
    wanting = {partition.name for partition in now.partitions.source if partition.create}
    if not wanting or not planner.abilities.groups:
        return Placed(placed=planner.placed)
    existing = {state.partition for state in now.cgroups.states}
    created = tuple(
        CreateCgroup(
            partition=name,
            cgroup=own_cgroup(name),
            reason=Reason(code="create", text="the configuration asks for a cgroup of its own"),
        )
        for name in sorted(wanting - existing)
    )
    processes = observation.processes
    alive = {_instance(observation, row): row for row in range(len(processes.pids))}
    moved: list[MoveProcess] = []
    for instance in sorted(alive.keys() - planner.placed):
        row = alive[instance]
        workload = int(processes.workload_index[row])
        name = observation.workloads.partitions[workload] if workload >= 0 else None
        if name is None or name not in wanting:
            continue
        action = move(observation, row, name, own_cgroup(name), "its partition has a cgroup of its own")
        if action is not None:
            moved.append(action)
    before = planner.placed.intersection(alive).union(action.process for action in moved)
    return Placed(created=created, moved=tuple(moved), placed=frozenset(before))


def move(observation: Observation, row: int, partition: str, cgroup: CgroupPath, why: str) -> MoveProcess | None:
    """Return the move of one process, None when it is there already."""
    processes = observation.processes
    here = processes.cgroups[row]
    if here == cgroup or here.startswith(f"{cgroup}/"):
        return None
    charged = int(processes.anon_bytes[row] + processes.file_bytes[row] + processes.shmem_bytes[row])
    text = f"{why}; new pages are charged there, {{charged_bytes}} stay where they are until they are released"
    return MoveProcess(
        partition=partition,
        from_cgroup=here,
        to_cgroup=cgroup,
        process=_instance(observation, row),
        charged_bytes=charged,
        reason=Reason(code="move", text=text, figures={"charged_bytes": float(charged)}),
    )


def move_workload(
    observation: Observation, workload: WorkloadId, partition: str, cgroup: CgroupPath, why: str
) -> tuple[MoveProcess, ...]:
    """Return the moves of all processes of a workload, by pid."""
    index = observation.workloads.ids.index(workload)
    rows = np.flatnonzero(observation.processes.workload_index == index)
    rows = rows[np.argsort(observation.processes.pids[rows], kind="stable")]
    moves = (move(observation, int(row), partition, cgroup, why) for row in rows)
    return tuple(action for action in moves if action is not None)


def _instance(observation: Observation, row: int) -> Instance:
    processes = observation.processes
    return Instance(pid=int(processes.pids[row]), start_ticks=int(processes.start_ticks[row]))
