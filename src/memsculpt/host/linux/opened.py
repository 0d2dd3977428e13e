# SPDX-License-Identifier: Apache-2.0
"""One process held open: its files in /proc are this process's, also when it ends and its pid is used again."""

import mmap
import os
import select

from memsculpt.domain.pages import Mapping
from memsculpt.domain.workload import Instance
from memsculpt.errors import Refused, Unavailable, Vanished
from memsculpt.host.linux import procfs
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.maps import parse_mappings

READ_BYTES = 1 << 20
KVM_GUEST = "anon_inode:kvm-vm"  # what a descriptor of a guest is called (virt/kvm/kvm_main.c)


class OpenedProcess:
    """Descriptors of a living process that has memory."""

    def __init__(self, process: Instance, proc: str = "/proc") -> None:
        """Open it. Raises Vanished, Refused (kernel thread, zombie), Unavailable (another user's)."""
        self.process, self.place, self._proc = process, f"process {process.pid}", proc
        self._descriptors: list[int] = []
        try:
            self.pidfd = self._keep(os.pidfd_open(process.pid))
            self.folder = self._keep(os.open(f"{proc}/{process.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            content = procfs.read_file("stat", dir_fd=self.folder)
            self._check(content)
            self.pagemap = self._keep(os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder))
            self.mappings()
        except OSError as error:
            self.close()
            raise self.translated(error) from error
        except BaseException:
            self.close()
            raise

    def mappings(self) -> tuple[Mapping, ...]:
        """Return what is mapped now. Raises OSError."""
        return parse_mappings(self.read("maps"))

    def read(self, name: str) -> bytes:
        """Return a file of the process whole. Raises OSError."""
        return procfs.read_file(name, READ_BYTES, dir_fd=self.folder)

    def write(self, name: str, content: bytes) -> None:
        """Write to a file of the process. Raises OSError."""
        descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def check_first_hand(self) -> None:
        """Raise Unavailable where its page tables do not tell what it touches: where it runs a guest under KVM.

        There the processor sets the accessed bits of KVM's own tables (EPT, NPT), which only those see who ask as the
        kernel's reclaim does (mmu_notifier_clear_young): idle page tracking and DAMON. By the process's own tables all
        of a busy guest would look idle. Raises OSError.
        """
        descriptors = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            for name in os.listdir(descriptors):
                try:
                    target = os.readlink(name, dir_fd=descriptors)
                except FileNotFoundError:  # closed meanwhile
                    continue
                if target.startswith(KVM_GUEST):
                    raise Unavailable(
                        place=self.place,
                        problem="runs a guest under KVM, whose touches are in KVM's own page tables",
                        fix="a kernel with CONFIG_IDLE_PAGE_TRACKING or CONFIG_DAMON_VADDR: these ask KVM as well",
                    )
        finally:
            os.close(descriptors)

    def resident_bytes(self) -> int:
        """Return the resident set. Raises OSError, Vanished."""
        words = self.read("statm").split()
        if len(words) < 2 or words[1] == b"0":
            raise Vanished(place=self.place)
        return int(words[1]) * mmap.PAGESIZE

    def check_alive(self) -> None:
        """Raise Vanished where the process has ended, also as a zombie that nobody has collected."""
        try:
            self._check(self.read("stat"))
            self.resident_bytes()
        except (OSError, Refused) as error:
            raise Vanished(place=self.place) from error

    def translated(self, error: OSError) -> Exception:
        """Return what an OSError of this process means."""
        if isinstance(error, PermissionError):
            return Unavailable(
                place=self.place, problem="belongs to another user: its memory may not be read", fix="run as root"
            )
        return translate(error, self.place)

    def close(self) -> None:
        """Release every descriptor; a second call does nothing."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _check(self, content: bytes) -> None:
        stat = procfs.parse_stat(content, 1)
        if stat is None or stat.start_ticks != self.process.start_ticks:
            raise Vanished(place=self.place)
        if stat.is_kernel_thread:
            problem, fix = "is a thread of the kernel: it has no memory of its own", "name a program's process"
        elif content[content.rfind(b")") + 1 :].split()[0] in {b"Z", b"X"}:
            problem, fix = "has ended and only waits to be collected (a zombie)", "name a process that still runs"
        else:
            return
        raise Refused(place=self.place, problem=problem, fix=fix)


def find_instance(pid: int, proc: str = "/proc") -> Instance:
    """Return the process that has this pid now. Raises Vanished."""
    try:
        stat = procfs.parse_stat(procfs.read_file(f"{proc}/{pid}/stat"), 1)
    except OSError as error:
        raise translate(error, f"process {pid}") from error
    if stat is None:
        raise Vanished(place=f"process {pid}")
    return Instance(pid=pid, start_ticks=stat.start_ticks)


def wait_for_end(process: Instance, timeout_s: float) -> bool:
    """Wait; True as soon as the process has ended, False after `timeout_s`. Raises OSError."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000.0))
    finally:
        os.close(descriptor)
