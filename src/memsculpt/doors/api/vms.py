# SPDX-License-Identifier: Apache-2.0
"""GET /v1/vms: virtual machines, as their monitors and guests tell them."""

from collections.abc import Mapping
from math import isfinite

from memsculpt import plan
from memsculpt.domain.guest import GuestDemand
from memsculpt.domain.report import Report
from memsculpt.domain.vm import GuestMemory, VmReading
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.doors.api.schema import GuestMemoryView, OvercommitView, VmsView, VmView


def view_vms(report: Report) -> VmsView:
    """Return every VM of the last tick, by workload."""
    return VmsView(vms=list_vms(report), overcommit=view_overcommit(report))


def view_overcommit(report: Report) -> OvercommitView | None:
    """Return how far the partitions' VMs are overcommitted; None where they hold none."""
    observation, profiles, forecasts = report.observation, report.profiles, report.forecasts
    if observation is None or profiles is None or forecasts is None:
        return None
    found = plan.overcommit_of(observation, profiles, forecasts, report.settings)
    if found is None:
        return None
    return OvercommitView(
        vm_count=found.vm_count,
        reach_bytes=found.reach_bytes,
        capacity_bytes=found.capacity_bytes,
        ratio=found.ratio,
        horizon_s=found.horizon_s,
        together_ratio=found.together_ratio,
        apart_ratio=found.apart_ratio,
    )


def list_vms(report: Report) -> list[VmView]:
    """Return every VM of the last tick, by workload."""
    seen = report.observation
    if seen is None:
        return []
    partitions = dict(zip(seen.workloads.ids, seen.workloads.partitions, strict=True))
    demands: Mapping[WorkloadId, GuestDemand] = {} if report.profiles is None else report.profiles.guests
    return [_view(one, partitions.get(one.workload), demands.get(one.workload), report.now_s) for one in seen.vms]


def _view(vm: VmReading, partition: str | None, demand: GuestDemand | None, now_s: float) -> VmView:
    return VmView(
        uuid=words.text_of(vm.id),
        name=words.text_of(vm.name),
        workload=words.text_of(vm.workload),
        partition=partition,
        pid=vm.process.pid,
        state=vm.state.value,
        via=vm.via,
        age_s=max(0.0, now_s - vm.read_at_s) if isfinite(vm.read_at_s) else None,
        ram_bytes=vm.ram_bytes,
        balloon_bytes=vm.balloon_bytes,
        guest=None if vm.guest is None else _view_guest(vm.guest, now_s),
        features=[name for name in vm.features.__slots__ if getattr(vm.features, name)],
        vcpu_s=vm.vcpu_s,
        read_bytes=vm.read_bytes,
        written_bytes=vm.written_bytes,
        received_bytes=vm.received_bytes,
        sent_bytes=vm.sent_bytes,
        dirtied_bytes_per_s=vm.dirtied_bytes_per_s if isfinite(vm.dirtied_bytes_per_s) else None,
        problem=words.text_of(vm.problem),
        need_bytes=None if demand is None else demand.need_bytes,
        overhead_bytes=None if demand is None else demand.overhead_bytes,
    )


def _view_guest(guest: GuestMemory, now_s: float) -> GuestMemoryView:
    return GuestMemoryView(
        age_s=max(0.0, now_s - guest.updated_at_s),
        total_bytes=guest.total_bytes,
        used_bytes=guest.used_bytes,
        free_bytes=guest.free_bytes,
        available_bytes=guest.available_bytes,
        cache_bytes=guest.cache_bytes,
        swapped_in_bytes=guest.swapped_in_bytes,
        swapped_out_bytes=guest.swapped_out_bytes,
        major_faults_count=guest.major_faults_count,
        minor_faults_count=guest.minor_faults_count,
    )
