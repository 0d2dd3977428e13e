# SPDX-License-Identifier: Apache-2.0
"""Virtual machines on the planner's host (world.py): what the monitors say, and what the profile makes of it."""

from dataclasses import dataclass, replace

from memsculpt.domain.guest import GuestDemand
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import Plan, SetBalloon
from memsculpt.domain.settings import MIB, PartitionSettings
from memsculpt.domain.vm import VmFeatures, VmId, VmReading, VmState
from memsculpt.domain.workload import Instance, Match, WorkloadId
from memsculpt.plan import PlannerState, after_asking, choose
from tests.plan.world import Tenant, World, mib

OVERHEAD_MIB = 40.0


@dataclass(frozen=True, kw_only=True)
class Vm:
    """A VM of one partition of its own name; sizes in MiB of guest memory."""

    name: str
    ram: float = 512
    balloon: float | None = None  # None: all of it
    need: float | None = 100  # None: the guest does not tell
    need_soon: float | None = None  # forecast at every level over 3 s; None: as now
    resident: float | None = None  # of the guest's memory; None: what the balloon leaves it
    available: float | None = None
    swap_in: float = 0.0  # MiB in a second
    faults: float = 0.0
    deflate_on_oom: bool = True
    state: VmState = VmState.RUNNING
    has_balloon: bool = True
    pid: int = 0
    limit: int | None = None  # bytes; None: it lives in no cgroup of its partition

    @property
    def left(self) -> float:
        return self.ram if self.balloon is None else self.balloon

    @property
    def held(self) -> float:
        return (self.left if self.resident is None else self.resident) + OVERHEAD_MIB

    @property
    def workload(self) -> WorkloadId:
        return WorkloadId(f"vm:{self.name}")

    def tenant(self) -> Tenant:
        soon = self.need if self.need_soon is None else self.need_soon
        known = soon is not None
        return Tenant(
            name=self.workload,
            partition=self.name,
            held=self.held,
            need=soon + OVERHEAD_MIB if known else self.held,
            peak=soon + OVERHEAD_MIB if known else self.held,
            has_cgroup=self.limit is not None,
            **({} if self.limit is None else {"limit": self.limit, "hard": self.limit}),
        )

    def process(self) -> Instance:
        return Instance(pid=self.pid or 1000 + sum(self.name.encode()), start_ticks=7)

    def reading(self, now_s: float) -> VmReading:
        return VmReading(
            id=VmId(f"name:{self.name}"),
            name=self.name,
            workload=self.workload,
            process=self.process(),
            state=self.state,
            read_at_s=now_s,
            ram_bytes=mib(self.ram),
            balloon_bytes=mib(self.left) if self.has_balloon else None,
            features=VmFeatures(balloon=self.has_balloon, deflate_on_oom=self.deflate_on_oom),
        )

    def demand(self, now_s: float) -> GuestDemand:
        spare = self.left - (self.need or 0) if self.available is None else self.available
        return GuestDemand(
            vm=VmId(f"name:{self.name}"),
            workload=self.workload,
            need_bytes=None if self.need is None else mib(self.need),
            overhead_bytes=mib(OVERHEAD_MIB),
            available_bytes=max(mib(spare), 0),
            swap_in_bytes_per_s=self.swap_in * MIB,
            major_faults_per_s=self.faults,
            told_at_s=now_s,
        )


def vm_partition(name: str, **more) -> PartitionSettings:
    return PartitionSettings(name=name, match=Match(vm=name), **more)


def plan_for(
    vms: tuple[Vm, ...],
    *,
    capacity: float,
    now_s: float = 1000.0,
    planner: PlannerState | None = None,
    partitions: tuple[PartitionSettings, ...] | None = None,
    settings=None,
    backoff_until_s: float = 0.0,
) -> tuple[PlannerState, Plan]:
    """Plan once for these VMs. Capacity in MiB; of it 3 % stay free."""
    world = World(
        tenants=tuple(vm.tenant() for vm in vms),
        partitions=tuple(vm_partition(vm.name) for vm in vms) if partitions is None else partitions,
        capacity=capacity,
        now_s=now_s,
        backoff_until_s=backoff_until_s,
        **({} if settings is None else {"settings": settings}),
    )
    observation, profiles, forecasts, corrections, chosen = world.arguments()
    observation = replace(observation, vms=tuple(vm.reading(now_s) for vm in vms))
    needed = profiles.needed_bytes.copy()
    for row, vm in enumerate(vms):
        if vm.need is not None:
            needed[row] = mib(vm.need + OVERHEAD_MIB)
    guests = {vm.workload: vm.demand(now_s) for vm in vms}
    profiles = replace(profiles, guests=guests, needed_bytes=needed, working_set_bytes=needed.copy())
    return choose(planner or PlannerState(), observation, profiles, forecasts, corrections, chosen)


def asks_of(plan: Plan) -> dict[str, SetBalloon]:
    """The plan's asks, by the VM's name."""
    return {one.vm.removeprefix("name:"): one for one in plan.actions if isinstance(one, SetBalloon)}


def asked(planner: PlannerState, plan: Plan, now_s: float) -> PlannerState:
    """The planner's state once all asks of the plan were made."""
    applied = [
        Applied(
            action_id=1, action=one, status=Status.DONE, at_s=now_s, done_bytes=one.to_bytes, duration_s=0.0, cpu_s=0.0
        )
        for one in asks_of(plan).values()
    ]
    return replace(planner, balloons=after_asking(planner.balloons, applied))
