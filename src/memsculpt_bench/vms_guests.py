# SPDX-License-Identifier: Apache-2.0
"""The guests of bench vms: small Linux VMs under TCG with swap, a balloon, two monitors and a service with a rhythm.

Booted once, saved, and restored for every arm. QEMU starts inside the cgroup of its tenant, so that every page of it is
charged there. One monitor is the bench's own (the operator, and the rules that are compared), the other is left for
who manages the VM: one QMP socket serves one client.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from memsculpt_bench.guests import image, initramfs, kernels
from memsculpt_bench.guests.guest import QEMU, Guest, GuestError
from memsculpt_bench.guests.lab import cache

MIB = 1 << 20
MODULES = ("virtio_pci", "virtio_console", "virtio_balloon", "lzo", "lzo-rle", "zram")
SOURCE = Path(__file__).with_name("tenants") / "daily.c"
BALLOON = "/machine/peripheral/balloon0"
SAVE_BYTES_PER_S = 10 << 30
ANSWER_TIMEOUT_S = 30.0
INIT = f"""\
#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for m in $(cat /mod/order); do insmod /mod/$m || echo "lab: insmod $m failed"; done
echo 256M > /sys/block/zram0/disksize; mkswap /dev/zram0 > /dev/null; swapon /dev/zram0
echo 0 > /proc/sys/vm/page-cluster
n=0; port=
while [ -z "$port" ] && [ $n -lt 200 ]; do
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat $name 2>/dev/null)" = {image.SHELL_PORT} ] && port=/dev/$(basename ${{name%/name}})
    done
    [ -c "$port" ] || {{ port=; sleep 0.05; n=$((n+1)); }}
done
exec 0<>$port 1>&0 2>&1            # one read-write open: a virtio port that is opened twice is EBUSY
echo "GUEST-READY $(cut -d' ' -f1 /proc/uptime)"
while :; do sh; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyMachine:
    """What is booted, or restored where `state` is given."""

    kernel_image: Path
    initramfs: Path
    name: str = "daily"
    memory_bytes: int = 512 * MIB
    deflate_on_oom: bool = True
    state: Path | None = None
    cgroups: tuple[Path, ...] = ()  # whose folder's cgroup.procs QEMU joins before it begins

    def command(self, folder: Path, shell_fd: int) -> list[str]:
        """Return QEMU's command line; see `Guest`."""
        joins = "".join(f"echo $$ > {shlex.quote(str(one / 'cgroup.procs'))}; " for one in self.cgroups)
        incoming = ("-incoming", f"exec:cat {shlex.quote(str(self.state))}") if self.state is not None else ()
        oom = "on" if self.deflate_on_oom else "off"
        monitors = [
            word
            for name in ("operator", "manager")
            for word in ("-qmp", f"unix:{folder / name}.qmp,server=on,wait=off")
        ]
        return [
            *("setpriv", "--pdeathsig", "KILL", "sh", "-c", joins + 'exec "$@"', "sh"),
            *(QEMU, "-accel", "tcg,thread=multi,tb-size=32", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-name", f"guest={self.name}", "-cpu", "max,la57=off", "-smp", "1", "-m", f"{self.memory_bytes // MIB}M"),
            *("-object", f"memory-backend-ram,id=pool,size={self.memory_bytes // MIB}M"),
            *("-machine", "q35,memory-backend=pool,mem-merge=off"),
            *("-kernel", str(self.kernel_image), "-initrd", str(self.initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1 psi=1", "-serial", f"file:{folder / 'console.log'}"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=shell,fd={shell_fd},server=off"),
            *("-device", f"virtserialport,chardev=shell,name={image.SHELL_PORT}"),
            *("-device", f"virtio-balloon-pci,id=balloon0,deflate-on-oom={oom}"),
            *monitors,
            *incoming,
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


class DailyGuest(Guest):
    """A guest with a service that has a daily rhythm."""

    def __init__(self, machine: DailyMachine, folder: Path) -> None:
        super().__init__(machine, folder)
        self.daily = machine
        self._operator: Monitor | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            if self.daily.state is not None:
                self._poll("query-status", "paused", "prelaunch")
                self.ask("cont")
                self.check("true")
            self.ask("qom-set", path=BALLOON, property="guest-stats-polling-interval", value=1)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End QEMU."""
        monitor, self._operator = self._operator, None
        if monitor is not None:
            monitor.close()
        super().close()

    def wait_ready(self) -> None:
        """Wait for the shell: of a restored guest it is there as soon as the guest goes on."""
        if self.daily.state is None:
            super().wait_ready()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Ask the operator's monitor. Raises GuestError where it refuses."""
        if self._operator is None:
            self._operator = Monitor(self.folder / "operator.qmp")
        return self._operator.ask(command, **arguments)

    def balloon(self) -> int:
        """Return what the balloon leaves the guest, in bytes."""
        return int(self.ask("query-balloon")["actual"])

    def statistics(self) -> dict[str, int]:
        """Return what the guest last said of its memory."""
        return self.ask("qom-get", path=BALLOON, property="guest-stats")["stats"]

    def save(self, path: Path) -> None:
        """Write the guest's state; it is stopped from then on."""
        self.ask("stop")
        self.ask("migrate-set-parameters", **{"max-bandwidth": SAVE_BYTES_PER_S})
        self.ask("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")
        self._poll("query-migrate", "completed")

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

    def _poll(self, command: str, *wanted: str) -> None:
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while (status := self.ask(command).get("status")) not in wanted:
            if time.monotonic() > deadline_s or status == "failed":
                raise GuestError(f"{command}: {status}\n{self.console_tail()}")
            time.sleep(0.01)


class Monitor:
    """A QMP client that asks one thing at a time; of its own on purpose: memsculpt's is what is tested."""

    def __init__(self, path: Path) -> None:
        """Connect, as soon as QEMU listens."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._told = b""
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)
        self._line()  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer. Raises GuestError where QEMU refuses, or hangs up."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._line()
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._told:
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise GuestError("the monitor hung up")
            self._told += chunk
        line, _, self._told = self._told.partition(b"\n")
        return json.loads(line)


def prepare(folder: Path, *, memory_bytes: int = 512 * MIB) -> DailyMachine:
    """Make kernel, initramfs and a saved state; return the machine that begins there.

    Raises debian.Unavailable where no kernel is to be had, GuestError where the service cannot be compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with image.locked(cache()):
        kernel = kernels.ensure(cache())
    modules = kernels.read_modules(kernel, MODULES)
    packed = folder / "initramfs"
    packed.write_bytes(
        initramfs.pack(
            [
                *(initramfs.folder(path) for path in ("bin", "mod", "dev", "proc", "sys", "tmp")),
                initramfs.character_device("dev/console", 5, 1),
                initramfs.character_device("dev/null", 1, 3),
                initramfs.file("bin/busybox", initramfs.BUSYBOX.read_bytes()),
                initramfs.file("bin/daily", _compiled(folder)),
                initramfs.file("init", INIT.encode()),
                initramfs.file("mod/order", "".join(f"{name}.ko\n" for name, _ in modules).encode(), 0o644),
                *(initramfs.file(f"mod/{name}.ko", content, 0o644) for name, content in modules),
            ]
        )
    )
    booted = DailyMachine(kernel_image=kernel.image, initramfs=packed, memory_bytes=memory_bytes)
    state = folder / "state"
    with DailyGuest(booted, folder / "first") as guest:
        guest.save(state)
    return replace(booted, state=state)


def _compiled(folder: Path) -> bytes:
    program = folder / "daily-program"
    command = ["cc", "-O2", "-Wall", "-Werror", "-static", "-o", str(program), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise GuestError("programs for guests are written in C: apt install gcc") from error
    if done.returncode:
        raise GuestError(f"{SOURCE.name} does not compile: {done.stderr[-2000:]}")
    return program.read_bytes()
