# SPDX-License-Identifier: Apache-2.0
"""A small host with three cgroups and a process, the actions that tests do to it, and a full disk."""

import contextlib
import resource
from pathlib import Path

from memsculpt.domain.plan import CreateCgroup, LimitKind, MoveProcess, Reason, SetBalloon, SetLimit
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from tests.act.text_host import TextHost

MIB = 1 << 20
WHY = Reason(code="test", text="because")
OWN = CgroupPath("memsculpt-own")
JOB = Instance(pid=77, start_ticks=1234)
QEMU = Instance(pid=88, start_ticks=4321)
VM, VM_BYTES = VmId("name:web"), 512 * MIB
CGROUPS = [CgroupPath("cache"), CgroupPath("batch"), CgroupPath("batch/inner")]


def new_host(root: Path, *, one_file: bool = True) -> TextHost:
    host = TextHost(root, limits_in_one_file=one_file)
    host.add_cgroup("cache", limit="8589934592\n", guarantee="1073741824\n")
    host.add_cgroup("batch", limit="536870912\n")
    host.add_cgroup("batch/inner")
    host.add_process("batch", JOB)
    host.add_vm(VM, VM_BYTES)
    return host


def set_limit(cgroup=CGROUPS[0], to_bytes=1 << 30, kind=LimitKind.LIMIT, lift_at_s=None, from_bytes=8 << 30):
    return SetLimit(
        partition="p",
        cgroup=cgroup,
        kind=kind,
        from_bytes=from_bytes,
        to_bytes=to_bytes,
        reason=WHY,
        lift_at_s=lift_at_s,
    )


def move(to_cgroup=OWN, from_cgroup=CGROUPS[1]):
    return MoveProcess(
        partition="p", from_cgroup=from_cgroup, to_cgroup=to_cgroup, process=JOB, charged_bytes=MIB, reason=WHY
    )


def set_balloon(to_bytes=256 * MIB, from_bytes=VM_BYTES, process=QEMU, vm=VM):
    return SetBalloon(
        partition="p",
        workload=WorkloadId("vm:web"),
        process=process,
        vm=vm,
        from_bytes=from_bytes,
        to_bytes=to_bytes,
        reason=WHY,
    )


def create(cgroup=OWN):
    return CreateCgroup(partition="p", cgroup=cgroup, reason=WHY)


@contextlib.contextmanager
def full_disk(bytes_left=0):
    """No file may grow beyond `bytes_left`: writes stop short and then fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
