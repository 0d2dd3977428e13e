# SPDX-License-Identifier: Apache-2.0
"""What this machine offers: facts first, gathered by trying and without opinion, then pure rules over them.

Nothing asks for a kernel version: distributions carry features back and hide others, so each thing is
tried as it will be used, on a page or a child of our own. "Denied" is told apart from "absent", because
the fix differs.
"""

import ctypes
import fcntl
import importlib.util
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from memsculpt.errors import Unavailable
from memsculpt.host import sources
from memsculpt.host.linux import slow_node
from memsculpt.host.linux.vm_probe import FoundVm, find_vms
from memsculpt.host.protocol import Capability
from memsculpt.host.sources import Tried

_SYS_PROCESS_MADVISE = 440  # x86-64 and the generic table alike
_MADV_PAGEOUT = 21
_MADV_COLLAPSE = 25
VMS_SHOWN = 3
_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), since 6.7


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """What was found, without opinion. None means: tried and denied, so unknown."""

    is_root: bool = False
    v1_memory: str | None = None  # mount point of the v1 memory controller
    v2: str | None = None  # mount point of the unified hierarchy
    v2_has_memory: bool = False
    memory_is_writable: bool = False  # may cgroups be made below the memory controller's root
    has_reclaim: bool = False  # memory.reclaim is there (v2)
    has_psi: bool = False
    has_psi_trigger: bool = False
    page_out: str = ""  # "" when it worked, else the kernel's words
    page_in: str = ""
    collapse: str = ""
    pagemap: str = ""
    pagemap_scan: str = ""
    map_files: str = ""
    has_clear_refs: bool = False
    swap_bytes: int = 0
    has_zram_control: bool = False
    slow_nodes: tuple[int, ...] = ()  # memory nodes without processors
    slow_node: str = "was not looked for"  # "" when pages can be moved there, else why not
    init: str = ""  # comm of process 1
    has_btf: bool = False
    task_list: str = ""  # "" when our program runs in the kernel, else why not
    page_sources: tuple[Tried, ...] = ()  # of touched pages, best first
    has_ksm: bool = False
    move_charge: str = ""  # "" when the kernel still moves charges, else why not
    programs: Mapping[str, bool] = field(default_factory=dict[str, bool])  # by name: is it installed
    has_statsforecast: bool = False  # the extra that fits models
    vms: tuple[FoundVm, ...] = ()  # QEMU processes that run now


def examine() -> Mapping[str, Capability]:
    """Return what this machine offers this user, by name; tried once per process."""
    return _examined()


@cache
def _examined() -> Mapping[str, Capability]:
    return capabilities_from(read_facts())


def read_facts(proc: str = "/proc", sys: str = "/sys") -> KernelFacts:
    """Try everything once; changes nothing that outlives the call."""
    v1, v2 = _mounts(Path(proc))
    controllers = _text(Path(v2) / "cgroup.controllers").split() if v2 else []
    has_v2_memory = "memory" in controllers
    memory_root = v1 or (v2 if has_v2_memory else None)
    slow_nodes, why_no_slow_node = slow_node.probe()
    child = None if not (v2 and has_v2_memory) else next(iter(sorted(Path(v2).glob("*/memory.current"))), None)
    meminfo = dict(line.split(":", 1) for line in _text(Path(proc, "meminfo")).splitlines() if ":" in line)
    return KernelFacts(
        is_root=os.geteuid() == 0,
        v1_memory=v1,
        v2=v2,
        v2_has_memory=has_v2_memory,
        memory_is_writable=memory_root is not None and os.access(memory_root, os.W_OK),
        has_reclaim=child is not None and child.with_name("memory.reclaim").exists(),
        has_psi=Path(proc, "pressure/memory").exists(),
        has_psi_trigger=_can_trigger(Path(proc, "pressure/memory")),
        page_out=_tried(_try_page_out),
        page_in=_tried(_try_page_in),
        collapse=_tried(_try_collapse),
        pagemap=_tried(_try_pagemap),
        pagemap_scan=_tried(_try_pagemap_scan),
        map_files=_tried(_try_map_files),
        has_clear_refs=Path(proc, "self/clear_refs").exists(),
        swap_bytes=int(meminfo.get("SwapTotal", "0 kB").split()[0]) * 1024,
        has_zram_control=Path(sys, "class/zram-control/hot_add").exists(),
        slow_nodes=slow_nodes,
        slow_node=why_no_slow_node,
        init=_text(Path(proc, "1/comm")).strip(),
        has_btf=Path(sys, "kernel/btf/vmlinux").exists(),
        task_list=_try_task_list(),
        page_sources=sources.try_each(),
        has_ksm=Path(sys, "kernel/mm/ksm/run").exists(),
        move_charge=_move_charge(v1),
        vms=find_vms(proc),
        has_statsforecast=importlib.util.find_spec("statsforecast") is not None,
        programs={name: shutil.which(name) is not None for name in ("redis-server", "qemu-system-x86_64")},
    )


def capabilities_from(facts: KernelFacts) -> Mapping[str, Capability]:
    """Return the capabilities that facts amount to. Pure: tested with kernels that were made up."""
    as_root = "" if facts.is_root else "run as root"
    has_memory = facts.v1_memory is not None or facts.v2_has_memory
    version = "cgroup v1" if facts.v1_memory is not None else "cgroup v2"
    rows = (
        _yes_or("root", facts.is_root, "uid 0", "this user is not root", "run as root"),
        _yes_or(
            "cgroup_v1_memory",
            facts.v1_memory is not None,
            f"mounted at {facts.v1_memory}",
            "the memory controller is not on cgroup v1",
            "none needed where cgroup v2 has it",
        ),
        _yes_or(
            "cgroup_v2_memory",
            facts.v2_has_memory,
            f"mounted at {facts.v2}",
            "the memory controller is not on cgroup v2",
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
        _yes_or(
            "cgroup_limits",
            has_memory and facts.memory_is_writable,
            version,
            f"{version} may not be written by this user" if has_memory else "no memory controller is mounted",
            as_root if has_memory else "mount cgroup2 and enable the memory controller",
        ),
        _yes_or(
            "memory_reclaim",
            facts.has_reclaim,
            "memory.reclaim (cgroup v2)",
            "memory.reclaim needs cgroup v2 with the memory controller (kernel 5.19 or a backport)",
            "none needed where page_out works",
        ),
        _yes_or(
            "psi", facts.has_psi, "/proc/pressure/memory", "the kernel keeps no pressure totals", "boot with psi=1"
        ),
        _yes_or(
            "psi_triggers",
            facts.has_psi_trigger,
            "pressure wakes the agent early",
            "no trigger can be set on /proc/pressure/memory",
            as_root or "boot with psi=1",
        ),
        _tried_row("page_out", facts.page_out, "process_madvise(MADV_PAGEOUT)", "kernel 5.10, or CAP_SYS_NICE"),
        _tried_row("page_in", facts.page_in, "process_vm_readv", "CAP_SYS_PTRACE (run as root)"),
        _tried_row(
            "collapse", facts.collapse, "process_madvise(MADV_COLLAPSE)", "kernel 6.1 with huge pages, or CAP_SYS_NICE"
        ),
        _tried_row("pagemap", facts.pagemap, "/proc/PID/pagemap", "CAP_SYS_PTRACE (run as root)"),
        _tried_row(
            "pagemap_scan",
            facts.pagemap_scan,
            "PAGEMAP_SCAN",
            "none needed: kernel 6.7 looks at sparse memory faster",
        ),
        _tried_row(
            "shared_pages",
            facts.map_files,
            "/proc/PID/map_files, mincore: guest memory of QEMU that is shared (memfd) can be a pool",
            "CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE (run as root)",
        ),
        _yes_or("clear_refs", facts.has_clear_refs, "/proc/PID/clear_refs", "absent", "CONFIG_PROC_PAGE_MONITOR"),
        _yes_or(
            "swap",
            facts.swap_bytes > 0,
            f"{facts.swap_bytes} bytes",
            "no swap is on, so cold memory has nowhere to go",
            "add zram or a swap file",
        ),
        _yes_or(
            "zram_control", facts.has_zram_control, "/sys/class/zram-control", "zram is not there", "modprobe zram"
        ),
        _yes_or(
            "slow_node",
            facts.slow_node == "",
            f"node {', '.join(map(str, facts.slow_nodes))}: what is cold goes there before the swap (move_pages)",
            facts.slow_node,
            as_root if facts.slow_nodes else slow_node.NODES_FIX,
        ),
        _yes_or(
            "systemd",
            facts.init == "systemd",
            "process 1 is systemd: units are changed through it",
            f"process 1 is {facts.init or 'unknown'}: cgroups are written directly",
            "none needed",
        ),
        _yes_or("bpf", facts.has_btf, "BTF is there", "the kernel carries no BTF", "CONFIG_DEBUG_INFO_BTF"),
        _tried_row(
            "task_list",
            facts.task_list,
            "a BPF iterator lists all processes",
            "none needed: /proc tells the same, more slowly; otherwise as root: apt install clang libbpf-dev, and the "
            "set-up again",
        ),
        _tried_row(
            "page_walk",
            next((one.problem for one in facts.page_sources if one.name == "bpf"), "was not tried"),
            "a BPF program reads page tables",
            "as root: apt install clang libbpf-dev, and the set-up again; kernel 5.17 with BTF",
        ),
        _page_access(facts),
        _yes_or("ksm", facts.has_ksm, "/sys/kernel/mm/ksm", "the kernel has no KSM", "CONFIG_KSM"),
        _tried_row(
            "move_charge", facts.move_charge, "memory.move_charge_at_immigrate", "none: a moved process's pages stay"
        ),
        _yes_or(
            "model_fitting",
            facts.has_statsforecast,
            "statsforecast is installed: ARIMA and ETS are fitted to workloads once a day",
            "statsforecast is not installed: no ARIMA or ETS is fitted to workloads",
            "pip install 'memsculpt[fit]'",
        ),
        _program(facts, "redis_server", "redis-server", "redis-server"),
        _program(facts, "qemu", "qemu-system-x86_64", "qemu-system-x86"),
        _vms(facts),
    )
    return {row.name: row for row in rows}


def _yes_or(name: str, available: bool, reason: str, why_not: str, fix: str) -> Capability:  # noqa: FBT001
    return Capability(
        name=name, available=available, reason=reason if available else why_not, fix="" if available else fix
    )


def _tried_row(name: str, problem: str, reason: str, fix: str) -> Capability:
    return _yes_or(name, problem == "", reason, f"{reason}: {problem}", fix)


def _program(facts: KernelFacts, name: str, program: str, package: str) -> Capability:
    found = facts.programs.get(program, False)
    return _yes_or(name, found, f"{program} is installed", f"{program} is not installed", f"apt-get install {package}")


def _vms(facts: KernelFacts) -> Capability:
    """Tell how many virtual machines run, and which monitors cannot be asked; a busy one may be our own agent's."""
    if not facts.vms:
        return Capability(name="vms", available=True, reason="no virtual machine runs here now")
    busy = [one for one in facts.vms if one.is_busy]
    mute = [one for one in facts.vms if one.problem and not one.is_busy]
    asked = len(facts.vms) - len(busy) - len(mute)
    parts = [f"{len(facts.vms)} run, {asked} can be asked"]
    if busy:
        parts.append(f"{len(busy)} in another client's hands (the agent's, if it runs)")
    parts += [f"{one.name}: {one.problem}" for one in mute[:VMS_SHOWN]]
    if len(mute) > VMS_SHOWN:
        parts.append(f"and {len(mute) - VMS_SHOWN} more")
    fix = "start QEMU with -qmp unix:/run/NAME.qmp,server=on,wait=off; for libvirt's: libvirt in [vms]" if mute else ""
    return Capability(name="vms", available=not mute, reason="; ".join(parts), fix=fix)


def _mounts(proc: Path) -> tuple[str | None, str | None]:
    v1 = v2 = None
    for line in _text(proc / "self/mounts").splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        if words[2] == "cgroup" and "memory" in words[3].split(","):
            v1 = v1 or words[1]
        elif words[2] == "cgroup2":
            v2 = v2 or words[1]
    return v1, v2


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:  # absent or denied: both mean that it cannot be used
        return ""


def _tried(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return ""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _own_page() -> tuple[mmap.mmap, int]:
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    return page, ctypes.addressof(ctypes.c_char.from_buffer(page))


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _try_task_list() -> str:
    # Imported late: loads a library that few commands need.
    from memsculpt.host.bpf.tasks import TaskReader

    try:
        TaskReader().close()
    except Unavailable as error:
        return error.problem
    return ""


def _page_access(facts: KernelFacts) -> Capability:
    """Return which source tells of touched pages, and what would be better: by what chooses it (host/sources.py)."""
    found, passed = sources.first_working(facts.page_sources)
    missing = "; ".join(f"{one.name}: {one.problem} (fix: {one.fix})" for one in passed)
    if found is None:
        return Capability(
            name="page_access",
            available=False,
            reason=missing or "no source was tried",
            fix="CONFIG_PROC_PAGE_MONITOR, or run as root",
        )
    better = f" (better, but not here: {missing})" if passed else ""
    return Capability(name="page_access", available=True, reason=f"{found.name}: {found.tells}{better}")


def _try_page_out() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _page, address = _own_page()
    vector = _Iovec(address, mmap.PAGESIZE)
    pidfd = os.pidfd_open(os.getpid())
    try:
        _checked(
            libc.syscall(
                _SYS_PROCESS_MADVISE, pidfd, ctypes.byref(vector), ctypes.c_ulong(1), _MADV_PAGEOUT, ctypes.c_ulong(0)
            )
        )
    finally:
        os.close(pidfd)
    if os.geteuid() != 0:  # on ourselves it always works; on others it needs CAP_SYS_NICE and ptrace access
        raise OSError(1, "this user may not page out other users' processes")


def _try_page_in() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _page, address = _own_page()
    target = ctypes.create_string_buffer(1)
    local, remote = _Iovec(ctypes.addressof(target), 1), _Iovec(address, 1)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    _checked(libc.process_vm_readv(os.getpid(), ctypes.byref(local), one, ctypes.byref(remote), one, none))
    if os.geteuid() != 0:
        raise OSError(1, "this user may not read other users' processes")


def _try_collapse() -> None:
    """Advise a range of no length: a kernel that does not know the advice refuses even that."""
    libc = ctypes.CDLL(None, use_errno=True)
    _page, address = _own_page()
    vector = _Iovec(address, 0)
    pidfd = os.pidfd_open(os.getpid())
    try:
        one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
        _checked(libc.syscall(_SYS_PROCESS_MADVISE, pidfd, ctypes.byref(vector), one, _MADV_COLLAPSE, none))
    finally:
        os.close(pidfd)
    if os.geteuid() != 0:
        raise OSError(1, "this user may not gather other users' pages")


def _try_pagemap() -> None:
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        os.pread(descriptor, 8, 0)
    finally:
        os.close(descriptor)


def _try_pagemap_scan() -> None:
    """Ask for the pages of an empty range; kernels without the call answer ENOTTY."""
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        # struct pm_scan_arg: its size, flags, start, end, then nothing asked for
        fcntl.ioctl(descriptor, _PAGEMAP_SCAN, bytearray(struct.pack("=12Q", 96, 0, *[0] * 10)))
    finally:
        os.close(descriptor)


def _try_map_files() -> None:
    """Open the file behind a shared mapping of our own, as that of a VM is opened."""
    with mmap.mmap(-1, mmap.PAGESIZE) as shared:
        start = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        os.close(os.open(f"/proc/self/map_files/{start:x}-{start + mmap.PAGESIZE:x}", os.O_RDONLY))


def _can_trigger(path: Path) -> bool:
    """Set a trigger that hardly ever fires; it ends with its descriptor."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.write(descriptor, b"some 900000 1000000\0")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _move_charge(v1: str | None) -> str:
    """Try it on a cgroup of our own: new kernels keep the file and answer EINVAL."""
    if v1 is None:
        return "cgroup v2 never moves charges"
    probe = Path(v1) / f"memsculpt-probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError as error:
        return f"unknown, no cgroup can be made to try it: {error.strerror}"
    try:
        (probe / "memory.move_charge_at_immigrate").write_text("3")
    except OSError as error:
        return error.strerror or str(error)
    finally:
        probe.rmdir()
    return ""
