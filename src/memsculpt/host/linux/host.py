# SPDX-License-Identifier: Apache-2.0
"""The Linux host: assembles what the files beside it offer, and translates the kernel's errors."""

import errno
import os
import select
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

from memsculpt.domain.arrays import Int64
from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings, Settings
from memsculpt.domain.sharing import Merging, Offerer, PageContents
from memsculpt.domain.vm import GuestRam
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.errors import ConfigError, Refused, Unavailable, Vanished
from memsculpt.host.bpf.tasks import TaskReader
from memsculpt.host.linux import damon, procfs, psi, workloads
from memsculpt.host.linux.code_places import Modules
from memsculpt.host.linux.controller import NAME_OF_OURS, Controller
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.fault_watch import LinuxFaultWatch
from memsculpt.host.linux.guest_pages import GuestReader
from memsculpt.host.linux.hierarchy import find_controller
from memsculpt.host.linux.hypervisor import LinuxHypervisor
from memsculpt.host.linux.ksm import Ksm
from memsculpt.host.linux.observe import LinuxObserver
from memsculpt.host.linux.pager import LinuxPager
from memsculpt.host.linux.processes import ProcessReader
from memsculpt.host.linux.sculptor import LinuxSculptor
from memsculpt.host.linux.slow_node import LinuxSlowNode
from memsculpt.host.linux.systemd import SystemdLimits, runs_systemd
from memsculpt.host.linux.task_processes import TaskProcesses
from memsculpt.host.linux.touch_cost import measure_touch_cost_s
from memsculpt.host.linux.virtual_machines import VirtualMachines
from memsculpt.host.protocol import Capability, FaultWatch, LimitValue, Moved, PageReader, PageSource

WILDCARDS = frozenset("*?[")
# Pressure may call a tick early, but a machine that stalls all the time must not make the agent spin.
EARLY_WAKE_GAP_S = 0.25


class LinuxHost(LinuxPager, LinuxSculptor, LinuxSlowNode, LinuxHypervisor):
    """The machine that this process runs on. Fulfils host.protocol.Host."""

    name = "linux"

    def __init__(
        self,
        settings: Settings,
        choose_source: Callable[[str | None], PageSource] | None = None,
        examine: Callable[[], Mapping[str, Capability]] = dict,
    ) -> None:
        """Open the machine. Raises OSError.

        `choose_source` is called when pages are first asked for: with None for the best source, with the name of a
        source for the best of those after it. `examine` tells what the machine offers.
        """
        super().__init__()
        self._choose_source, self._examine = choose_source, examine
        self._page_sources: dict[str | None, PageSource] = {}  # by the source below which it is the best
        self._detail_interval_s = settings.observe.detail_interval_s
        found, unified = find_controller()
        self._controller: Controller | None = SystemdLimits(found) if found is not None and runs_systemd() else found
        self._vms = VirtualMachines(settings.vms, interval_s=settings.interval_s, on_foreign_balloon=self.wake)
        self._observer = LinuxObserver(found, unified, processes=_best_processes(), vms=self._vms)
        self._partitions: tuple[PartitionSettings, ...] = ()
        self._wakes = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._trigger = psi.open_trigger("/proc/pressure/memory")
        self._woken_early_at_s = float("-inf")
        self._made: set[CgroupPath] = set()
        self._ksm = Ksm()
        self._guests: dict[Instance, GuestRam] = {}
        self._modules = Modules()

    def now_s(self) -> float:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic()

    def wait_until(self, deadline_s: float) -> bool:
        """Wait; True when pressure or `wake` asked for an early tick."""
        poller = select.poll()
        poller.register(self._wakes, select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0.0:
            may_wake_s = self._woken_early_at_s + EARLY_WAKE_GAP_S - time.monotonic()
            if self._trigger is not None and may_wake_s <= 0.0:
                poller.register(self._trigger, select.POLLPRI)
            events = poller.poll(max(1.0, 1000.0 * (left_s if may_wake_s <= 0.0 else min(left_s, may_wake_s))))
            for descriptor, event in events:
                if descriptor == self._wakes:
                    os.eventfd_read(self._wakes)
                    return True
                if event & select.POLLERR:  # the trigger is gone; the regular tick remains
                    poller.unregister(descriptor)
                    os.close(descriptor)
                    self._trigger = None
                else:
                    self._woken_early_at_s = time.monotonic()
                    return True
        return False

    def pace(self, interval_s: float) -> None:
        """Ask the monitors of VMs so often from now on."""
        self._vms.pace(interval_s)

    def wake(self) -> None:
        """End a wait that is under way."""
        os.eventfd_write(self._wakes, 1)

    def watch(self, partitions: Sequence[PartitionSettings]) -> None:
        """Take the rules and check them against what is there now."""
        for one in partitions:
            named = one.match.cgroup
            if named is None or not one.match.is_by_cgroup() or WILDCARDS & set(named):
                continue
            if self._controller is None or not os.path.isdir(self._controller.folder(CgroupPath(named))):
                root = "" if self._controller is None else f" below {self._controller.root}"
                raise ConfigError(
                    place=f'partition "{one.name}"',
                    problem=f'there is no cgroup "{named}"{root}',
                    fix="start what lives in it first, correct the name, or use a glob (it may match nothing)",
                )
        if partitions:
            now_s = time.monotonic()
            adopted = workloads.find_adopted(partitions, self._observer.cgroups(now_s, partitions, 0.0))
            readings = self._observer.processes.read_all(now_s, {}, self._detail_interval_s)
            workloads.check_rules(partitions, adopted, readings, self._vms.find(readings, now_s))
        self._partitions = tuple(partitions)

    def observe(self) -> Observation:
        """Read all workloads at once."""
        with _translated("/proc"):
            return self._observer.observe(time.monotonic(), self._partitions, self._detail_interval_s)

    def open_pages(self, process: Instance, below: str | None = None) -> PageReader:
        """Open a process on the best source there is; see the protocol."""
        if below not in self._page_sources:
            if self._choose_source is None:
                raise Unavailable(
                    place=f"process {process.pid}", problem="no source of touched pages was given", fix="use open_host"
                )
            self._page_sources[below] = self._choose_source(below)
        return GuestReader(self._page_sources[below].open(process), lambda: self._guests.get(process))

    def page_source(self) -> str:
        """Return the name of the best source, once it was chosen."""
        return self._page_sources[None].name if None in self._page_sources else ""

    def open_faults(self) -> FaultWatch:
        """Begin to watch page faults."""
        return LinuxFaultWatch(self._modules)

    def touch_cost_s(self) -> float:
        """Return what a program pays for the first touch of a page after a clear."""
        return measure_touch_cost_s()

    def merging(self) -> Merging:
        """Return what KSM does now."""
        return self._ksm.merging()

    def offerers(self) -> tuple[Offerer, ...]:
        """Return who has offered memory to KSM."""
        return self._ksm.offerers()

    def mergeable_runs(self, process: Instance, ranges: Int64) -> Int64:
        """Return which pages could be merged."""
        return self._ksm.mergeable_runs(process, ranges)

    def zero_pages(self, process: Instance, ranges: Int64) -> int:
        """Return how many pages the kernel's page of zeros stands for."""
        return self._ksm.zero_pages(process, ranges)

    def page_contents(self, process: Instance, wanted: Int64) -> PageContents:
        """Return what pages hold."""
        return self._ksm.page_contents(process, wanted)

    def has_ksm(self, name: str) -> bool:
        """Tell whether this kernel has a setting of KSM."""
        return self._ksm.has_ksm(name)

    def read_ksm(self, name: str) -> str:
        """Return a setting of KSM."""
        return self._ksm.read_ksm(name)

    def write_ksm(self, name: str, text: str) -> str:
        """Write a setting of KSM and return what the kernel holds now."""
        return self._ksm.write_ksm(name, text)

    def capabilities(self) -> Mapping[str, Capability]:
        """Return what doctor found."""
        return self._examine()

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget."""
        with _translated(f'cgroup "{cgroup}"'):
            return self._memory().read_limit(cgroup, kind)

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, size_bytes: int) -> LimitValue:
        """Write one budget and return what the kernel holds now."""
        return self.restore_limit(cgroup, kind, self._memory().text_of(size_bytes))

    def restore_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        """Write one budget as text and return what the kernel holds now."""
        with _translated(f'cgroup "{cgroup}"'):
            self._memory().write_limit(cgroup, kind, text)
            return self._memory().read_limit(cgroup, kind)

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Have the kernel take bytes from the cgroup; `only_cache`: of its page cache."""
        with _translated(f'cgroup "{cgroup}"'):
            return self._memory().reclaim(cgroup, size_bytes, only_cache=only_cache)

    def create_cgroup(self, cgroup: CgroupPath) -> None:
        """Make a cgroup of ours; one that is there already is left as it is."""
        memory = self._memory()
        if os.path.isdir(memory.folder(cgroup)):
            return
        if not any(part.startswith(NAME_OF_OURS) for part in cgroup.split("/")):
            raise Refused(
                place=f'cgroup "{cgroup}"',
                problem="does not carry memsculpt's name, so nobody could tell that we made it",
                fix=f"name it {NAME_OF_OURS}/...",
            )
        with _translated(f'cgroup "{cgroup}"'):
            memory.create(cgroup)
        self._made.add(cgroup)

    def remove_cgroup(self, cgroup: CgroupPath) -> None:
        """Remove an empty cgroup of ours."""
        self._check_is_ours(cgroup)
        with _translated(f'cgroup "{cgroup}"'):
            os.rmdir(self._memory().folder(cgroup))

    def sweep(self) -> tuple[CgroupPath, ...]:
        """Remove what is empty below our folder, innermost first; whoever lives there keeps his cgroup.

        A monitor (DAMON) goes as well that a killed memsculpt left running.
        """
        with _translated("DAMON"):
            damon.sweep()
        if self._controller is None:
            return ()
        if isinstance(self._controller, SystemdLimits):
            with _translated("systemd"):
                self._controller.settle()
        removed: list[CgroupPath] = []
        for folder, _, _ in os.walk(self._controller.folder(CgroupPath(NAME_OF_OURS)), topdown=False):
            try:
                os.rmdir(folder)
            except OSError as error:
                if error.errno not in {errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT}:
                    raise translate(error, folder) from error
            else:
                removed.append(CgroupPath(os.path.relpath(folder, self._controller.root)))
        return tuple(removed)

    def cgroup_of(self, process: Instance) -> CgroupPath:
        """Return where a process is accounted now."""
        with _translated(f"process {process.pid}"):
            self._check_alive(process)
            memory, unified = procfs.parse_cgroup(procfs.read_file(f"/proc/{process.pid}/cgroup"))
        return CgroupPath(memory if memory is not None else unified or "")

    def move_process(self, process: Instance, cgroup: CgroupPath) -> int:
        """Move a process; return the bytes that stay charged to where it came from."""
        with _translated(f"process {process.pid}"):
            self._check_alive(process)
            kinds = procfs.parse_status(procfs.read_file(f"/proc/{process.pid}/status"))
            if self._memory().move(process.pid, cgroup) or kinds is None:
                return 0
            # File pages belong to whoever read them first, which need not be this process.
            return kinds.anon_bytes + kinds.shmem_bytes

    def close(self) -> None:
        """Release every descriptor."""
        self._vms.close()
        self._observer.processes.close()
        while self._page_sources:
            self._page_sources.popitem()[1].close()
        os.close(self._wakes)
        if self._trigger is not None:
            os.close(self._trigger)

    def _find_vms(self) -> None:
        now_s = time.monotonic()
        self._vms.find(self._observer.processes.read_all(now_s, {}, self._detail_interval_s), now_s)

    def _memory(self) -> Controller:
        if self._controller is None:
            raise Unavailable(
                place="cgroup",
                problem="no memory controller is mounted",
                fix="mount cgroup2 and enable the memory controller",
            )
        return self._controller

    def _check_alive(self, process: Instance) -> None:
        stat = procfs.parse_stat(procfs.read_file(f"/proc/{process.pid}/stat"), 1)
        if stat is None or stat.start_ticks != process.start_ticks:
            raise Vanished(place=f"process {process.pid}")

    def _check_is_ours(self, cgroup: CgroupPath) -> None:
        """Refuse what neither this host made nor lies in the folder that only memsculpt makes cgroups in."""
        if cgroup not in self._made and cgroup.split("/")[0] != NAME_OF_OURS:
            raise Refused(
                place=f'cgroup "{cgroup}"', problem="was not made by memsculpt", fix="remove it yourself: rmdir"
            )


def _best_processes() -> ProcessReader | TaskProcesses:
    """Return the kernel's own list where our program runs, /proc elsewhere; doctor says why (`task_list`)."""
    names = ProcessReader()
    try:
        tasks = TaskReader()
    except Unavailable:
        return names
    return TaskProcesses(tasks, os.sysconf("SC_CLK_TCK"), names)


@contextmanager
def _translated(place: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise translate(error, place) from error
