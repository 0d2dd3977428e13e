# SPDX-License-Identifier: Apache-2.0
"""The guests of bench vms: small Linux VMs under TCG with swap, a balloon, two monitors and a service with a rhythm.

Booted once, saved, and restored for every arm. QEMU starts inside the cgroup of its tenant, so that every page of it is
charged there. One monitor is the bench's own (the operator, and the rules that are compared), the other is left for
who manages the VM: one QMP socket serves one client.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from memsculpt_bench.guests import bare, image
from memsculpt_bench.guests.guest import QEMU, GuestError, compiled
from memsculpt_bench.guests.lab import cache
from memsculpt_bench.guests.monitored import Monitor, MonitoredGuest, incoming

MIB = 1 << 20
MODULES = (*bare.MODULES, "lzo", "lzo-rle", "zram")
SOURCE = Path(__file__).with_name("tenants") / "daily.c"
BALLOON = "/machine/peripheral/balloon0"
SETUP = """\
echo 256M > /sys/block/zram0/disksize; mkswap /dev/zram0 > /dev/null; swapon /dev/zram0
echo 0 > /proc/sys/vm/page-cluster
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyMachine:
    """What is booted, or restored where `state` is given."""

    kernel_image: Path
    initramfs: Path
    name: str = "daily"
    uuid: str = ""
    memory_bytes: int = 512 * MIB
    deflate_on_oom: bool = True
    state: Path | None = None
    arrives_at: Path | None = None  # the socket at which it waits for a guest that migrates to it
    cgroups: tuple[Path, ...] = ()  # whose folder's cgroup.procs QEMU joins before it begins

    def command(self, folder: Path, shell_fd: int) -> list[str]:
        """Return QEMU's command line; see `Guest`."""
        joins = "".join(f"echo $$ > {shlex.quote(str(one / 'cgroup.procs'))}; " for one in self.cgroups)
        oom = "on" if self.deflate_on_oom else "off"
        uuid = ("-uuid", self.uuid) if self.uuid else ()
        arrives = ("-incoming", f"unix:{self.arrives_at}") if self.arrives_at is not None else ()
        monitors = [
            word
            for name in ("operator", "manager")
            for word in ("-qmp", f"unix:{folder / name}.qmp,server=on,wait=off")
        ]
        return [
            *("setpriv", "--pdeathsig", "KILL", "sh", "-c", joins + 'exec "$@"', "sh"),
            *(QEMU, "-accel", "tcg,thread=multi,tb-size=32", "-nodefaults", "-no-reboot", "-display", "none"),
            *(
                "-name",
                f"guest={self.name}",
                *uuid,
                "-cpu",
                "max,la57=off",
                "-smp",
                "1",
                "-m",
                f"{self.memory_bytes // MIB}M",
            ),
            *("-object", f"memory-backend-ram,id=pool,size={self.memory_bytes // MIB}M"),
            *("-machine", "q35,memory-backend=pool,mem-merge=off"),
            *("-kernel", str(self.kernel_image), "-initrd", str(self.initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1 psi=1", "-serial", f"file:{folder / 'console.log'}"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=shell,fd={shell_fd},server=off"),
            *("-device", f"virtserialport,chardev=shell,name={image.SHELL_PORT}"),
            *("-device", f"virtio-balloon-pci,id=balloon0,deflate-on-oom={oom}"),
            *monitors,
            *incoming(self.state),
            *arrives,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestReading:
    """A guest's counters since it booted, and what it has now."""

    swapped_in_pages: int
    swapped_out_pages: int
    major_faults: int
    some_stall_s: float
    service_stall_s: float  # what the service's steps were late by
    service_steps: int
    held_bytes: int  # by the service
    oom_kills: int


class DailyGuest(MonitoredGuest):
    """A guest with a service that has a daily rhythm."""

    def __init__(self, machine: DailyMachine, folder: Path) -> None:
        super().__init__(machine, folder)
        self.daily, self.state = machine, machine.state
        self.is_arriving = machine.arrives_at is not None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.monitor = Monitor.at(self.folder / "operator.qmp")
            if self.state is not None:
                self.begin_again()
            self.ask("qom-set", path=BALLOON, property="guest-stats-polling-interval", value=1)
        except BaseException:
            self.close()
            raise
        return self

    def balloon(self) -> int:
        """Return what the balloon leaves the guest, in bytes."""
        return int(self.ask("query-balloon")["actual"])

    def statistics(self) -> dict[str, int]:
        """Return what the guest last said of its memory."""
        return self.ask("qom-get", path=BALLOON, property="guest-stats")["stats"]

    def statistics_at_s(self) -> float:
        """Return when the guest last said so, in seconds since the epoch; 0 where it has not since it booted."""
        return float(self.ask("qom-get", path=BALLOON, property="guest-stats")["last-update"])

    def serve(self, *words: int) -> None:
        """Start the service; see daily.c for its words."""
        self.check(
            f"(daily {' '.join(map(str, words))} /tmp/told > /tmp/end 2>&1; echo $? >> /tmp/end) > /dev/null 2>&1 &"
        )
        self.wait_until("[ -s /tmp/told ]")

    def read(self) -> GuestReading:
        """Return the guest's counters. Raises GuestError where the service has ended: its memory was not right."""
        text = self.check(
            "cat /proc/vmstat; echo @@; cat /proc/pressure/memory; echo @@; tail -n 1 /tmp/told; echo @@; cat /tmp/end"
        )
        counters, pressure, told, end = text.split("@@\n") if text.count("@@\n") == 3 else (*text.split("@@\n"), "")
        if end.strip():
            raise GuestError(f"the service of {self.daily.name} ended with {end.strip()}\n{self.console_tail()}")
        stat = {name: int(value) for name, value in (line.split() for line in counters.splitlines())}
        some = next(line for line in pressure.splitlines() if line.startswith("some"))
        words = told.split()
        return GuestReading(
            swapped_in_pages=stat["pswpin"],
            swapped_out_pages=stat["pswpout"],
            major_faults=stat["pgmajfault"],
            some_stall_s=int(some.rsplit("total=", 1)[1]) / 1e6,
            service_stall_s=int(words[3]) / 1e3,
            service_steps=int(words[2]),
            held_bytes=int(words[1]) * MIB,
            oom_kills=stat.get("oom_kill", 0),
        )


def prepare(folder: Path, *, memory_bytes: int = 512 * MIB) -> DailyMachine:
    """Make kernel, initramfs and a saved state; return the machine that begins there.

    Raises debian.Unavailable where no kernel is to be had, GuestError where the service cannot be compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = {"daily": compiled(SOURCE, folder)}
    kernel, packed = bare.prepare(cache(), folder, programs=program, modules=MODULES, setup=SETUP)
    booted = DailyMachine(kernel_image=kernel, initramfs=packed, memory_bytes=memory_bytes)
    state = folder / "state"
    with DailyGuest(booted, folder / "first") as guest:
        guest.save(state)
    return replace(booted, state=state)
