# SPDX-License-Identifier: Apache-2.0
"""Small guests for what is done to a VM from outside: busybox, a C program, and RAM of any backing.

Booted once and saved, a guest is back in less than half a second, on whatever backing: the saved state knows nothing of
it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from memsculpt.domain.vm import Backing, GuestRam, GuestRange, VmId
from memsculpt.host.sources import find_process
from memsculpt_bench.guests import bare, image
from memsculpt_bench.guests.guest import QEMU, GuestError, compiled
from memsculpt_bench.guests.lab import cache
from memsculpt_bench.guests.monitored import Monitor, MonitoredGuest, incoming

SOURCES = Path(__file__).parents[1] / "tenants"
MIB = 1 << 20
BACKINGS: Mapping[Backing, str] = {
    Backing.PRIVATE: "memory-backend-ram,id=pool,size={size}",
    Backing.SHARED: "memory-backend-ram,id=pool,size={size},share=on",
    Backing.MEMFD: "memory-backend-memfd,id=pool,size={size},share=on",
    Backing.FILE: "memory-backend-file,id=pool,size={size},share=on,align=2M,mem-path={file}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallMachine:
    """What to boot, or to restore where `state` is given."""

    kernel_image: Path
    initramfs: Path
    backing: Backing = Backing.PRIVATE
    memory_bytes: int = 256 * MIB
    name: str = "small"
    uuid: str = ""
    state: Path | None = None
    # An open end of a socket pair: a monitor that listens could be taken by whoever looks for VMs on this machine.
    monitor_fd: int = -1
    listens: bool = False  # a second monitor, at the socket `agent` of the guest's folder, for memsculpt
    agent_fd: int = -1  # that socket: no command line tells of it, for the same reason

    def command(self, folder: Path, shell_fd: int) -> list[str]:
        backend = BACKINGS[self.backing].format(size=self.memory_bytes, file=ram_file(folder))
        uuid = ("-uuid", self.uuid) if self.uuid else ()
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # even a killed test session leaves no QEMU behind
            *(QEMU, "-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-name", self.name, *uuid, "-cpu", "max,la57=off", "-smp", "1", "-m", f"{self.memory_bytes // MIB}M"),
            *("-object", backend, "-machine", "q35,memory-backend=pool,mem-merge=off"),
            *("-kernel", str(self.kernel_image), "-initrd", str(self.initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1", "-serial", f"file:{folder / 'console.log'}"),
            *("-chardev", f"socket,id=monitor,fd={self.monitor_fd},server=off"),
            *("-mon", "chardev=monitor,mode=control", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=shell,fd={shell_fd},server=off"),
            *("-device", f"virtserialport,chardev=shell,name={image.SHELL_PORT}"),
            *("-device", "virtio-balloon-pci,id=balloon0", *incoming(self.state)),
            *(("-chardev", f"socket,id=agent,fd={self.agent_fd},server=on,wait=off") if self.listens else ()),
            *(("-mon", "chardev=agent,mode=control") if self.listens else ()),
        ]


class SmallGuest(MonitoredGuest):
    """A guest with a monitor and, where `pattern` was put into it, memory that can be verified."""

    def __init__(self, machine: SmallMachine, folder: Path) -> None:
        super().__init__(machine, folder)
        self.small, self.state = machine, machine.state

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        self.monitor = Monitor(ours)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with theirs, socket.socket(socket.AF_UNIX) as agent:
                if self.small.listens:
                    agent.bind(str(self.folder / "agent"))
                    agent.listen(1)
                self.machine = replace(self.small, monitor_fd=theirs.fileno(), agent_fd=agent.fileno())
                self.inherited = (theirs.fileno(), agent.fileno())
                super().__enter__()
            if self.state is not None:
                self.begin_again()
        except BaseException:
            self.close()
            raise
        finally:
            # Nobody else can map it by its name; QEMU keeps it as long as it lives.
            ram_file(self.folder).unlink(missing_ok=True)
        return self

    def ram(self, vm: str = "00000000-0000-0000-0000-0000000000aa") -> GuestRam:
        """Return where the RAM is, by this monitor and /proc/PID/maps. Below 2 GiB it is one stretch."""
        told = self.ask("human-monitor-command", **{"command-line": "gpa2hva 0x0"})
        host = int(told.split()[-1], 16)
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        edges = [[int(edge, 16) for edge in line.split()[0].split("-")] for line in lines]
        start, end = next(one for one in edges if one[0] <= host < one[1])
        if host != start or end - host != self.small.memory_bytes:
            raise GuestError(f"RAM of {self.small.memory_bytes} bytes is not [{start:#x}, {end:#x})")
        return GuestRam(
            id=VmId(vm),
            process=find_process(self.pid),
            ranges=(GuestRange(guest_start=0, host_start=host, size_bytes=self.small.memory_bytes),),
            backing=self.small.backing,
        )

    def fill(self, size_bytes: int, seed: int = 1) -> None:
        """Have a program fill memory with a pattern and hold it."""
        arguments = f"{size_bytes} {seed} /tmp/ask /tmp/told"
        self.check(f"mkfifo /tmp/ask; (pattern {arguments} > /dev/null 2>&1 &)")
        self.wait_until("grep -q ready /tmp/told")

    def tell(self, line: str) -> list[str]:
        """Have the program do something; return the words of its answer."""
        before = int(self.check("wc -l < /tmp/told"))
        self.check(f"echo {line} > /tmp/ask")
        self.wait_until(f"[ $(wc -l < /tmp/told) -gt {before} ]")
        return self.check("tail -n 1 /tmp/told").split()

    def verify(self) -> tuple[int, int]:
        """Return how many pages hold what was written, and how many do not."""
        words = self.tell("verify")
        pages, bad = int(words[1]), int(words[3])
        return pages - bad, bad


def ram_file(folder: Path) -> Path:
    """Return where a guest of this folder has its RAM, as long as it starts: on a tmpfs."""
    return Path("/dev/shm") / f"memsculpt-lab-{os.getpid()}-{folder.name}"  # noqa: S108  a tmpfs is what is wanted


def machine(folder: Path, *, memory_bytes: int = 256 * MIB, programs: tuple[str, ...] = ("pattern",)) -> SmallMachine:
    """Make what small guests are booted from, with the static C `programs` in it.

    Raises debian.Unavailable where no kernel is to be had, GuestError where a program cannot be compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: compiled(SOURCES / f"{name}.c", folder) for name in programs}
    kernel, packed = bare.prepare(cache(), folder, programs=made)
    return SmallMachine(kernel_image=kernel, initramfs=packed, memory_bytes=memory_bytes)


def saved(folder: Path, fill_bytes: int, *, memory_bytes: int = 256 * MIB) -> SmallMachine:
    """Boot once, fill memory, and return the machine that begins there. Raises as `machine`."""
    booted = machine(folder, memory_bytes=memory_bytes)
    state = folder / "small-state"
    with SmallGuest(booted, folder / "first") as guest:
        guest.fill(fill_bytes)
        guest.save(state)
    return replace(booted, state=state)
