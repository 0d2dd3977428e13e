# SPDX-License-Identifier: Apache-2.0
"""A virtual machine under QEMU's emulation, and a shell in it.

Always `-accel tcg`: /dev/kvm is never opened. The shell is a virtio-serial port whose other end is a socket pair: no
echo, no prompt, no kernel messages in between. The kernel's console goes to a file, and its end into every error.
"""

from __future__ import annotations

import base64
import re
import secrets
import select
import shlex
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from memsculpt_bench.guests import image

QEMU = "qemu-system-x86_64"
BOOT_TIMEOUT_S = 90.0
COMMAND_TIMEOUT_S = 60.0
CONSOLE_TAIL_BYTES = 3000
CHUNK_BYTES = 48 * 1024  # of a file written into the guest; a word of the shell holds less than 128 KiB


class GuestError(Exception):
    """The guest did not do what was asked; ends with the last lines of its console."""


class Answer(NamedTuple):
    """What a command in the guest left."""

    rc: int
    output: str  # stdout and stderr as they came


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What to boot."""

    kernel_image: Path
    initramfs: Path
    root_image: Path  # writes go to a temporary overlay and are lost
    source_drive: Path
    init: str
    memory_bytes: int = 512 << 20
    cpus: int = 1
    zram_bytes: int = 256 << 20
    slow_bytes: int = 0  # of `memory_bytes`, on a node of its own without processors, which ACPI (HMAT) calls slow

    def command(self, folder: Path, shell_fd: int) -> list[str]:
        append = f"console=ttyS0 quiet panic=-1 lab.init={self.init} lab.zram_bytes={self.zram_bytes}"
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # even a killed test session leaves no QEMU behind
            *(QEMU, "-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot", "-display", "none"),
            *(
                "-cpu",
                "max,la57=off",
                "-smp",
                str(self.cpus),
                "-machine",
                f"q35,mem-merge=off{',hmat=on' if self.slow_bytes else ''}",
                "-m",
                f"{self.memory_bytes >> 20}M",
                *self._nodes(),
            ),
            *("-kernel", str(self.kernel_image), "-initrd", str(self.initramfs), "-append", append),
            *("-serial", f"file:{folder / 'console.log'}", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=shell,fd={shell_fd},server=off"),
            *("-device", f"virtserialport,chardev=shell,name={image.SHELL_PORT}"),
            *("-drive", f"file={self.root_image},if=none,id=root,format=raw,cache=unsafe,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-drive", f"file={self.source_drive},if=none,id=source,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=source"),
        ]

    def _nodes(self) -> list[str]:
        """Return the options of two memory nodes. Slow is one in name only: the emulator gives both the same speed."""
        if not self.slow_bytes:
            return []
        of = "initiator=0,hierarchy=memory"
        last = f"cpus=0-{self.cpus - 1}" if self.cpus > 1 else "cpus=0"
        options = ["-object", f"memory-backend-ram,id=fast,size={(self.memory_bytes - self.slow_bytes) >> 20}M"]
        options += ["-object", f"memory-backend-ram,id=slow,size={self.slow_bytes >> 20}M"]
        for told in (
            f"node,nodeid=0,{last},memdev=fast,initiator=0",
            "node,nodeid=1,memdev=slow,initiator=0",
            f"hmat-lb,{of},target=0,data-type=access-latency,latency=10",
            f"hmat-lb,{of},target=0,data-type=access-bandwidth,bandwidth=10485760",
            f"hmat-lb,{of},target=1,data-type=access-latency,latency=30",
            f"hmat-lb,{of},target=1,data-type=access-bandwidth,bandwidth=1048576",
        ):
            options += ["-numa", told]
        return options


class Bootable(Protocol):
    """What a guest can be made of."""

    def command(self, folder: Path, shell_fd: int) -> list[str]:
        """Return what starts it: logs go to `folder`, the guest's shell talks over the socket `shell_fd`."""
        ...


class Guest:
    """A booted machine; use it as a context manager, at whose end it is gone in any case."""

    def __init__(self, machine: Bootable, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.boot_s = 0.0
        self.inherited: tuple[int, ...] = ()  # descriptors that QEMU gets beside the shell's
        self._process: subprocess.Popen[bytes] | None = None
        self._shell: socket.socket | None = None
        self._received = b""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        self._shell = ours
        started_s = time.monotonic()
        try:
            with theirs, (self.folder / "qemu.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self.machine.command(self.folder, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(), *self.inherited),
                    env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(self.folder)},
                )
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        self.boot_s = time.monotonic() - started_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU, this one only, by its process; a second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.close()

    def wait_ready(self) -> None:
        """Wait until the shell greets. Raises GuestError."""
        self._read_until(re.compile(rb"GUEST-READY [\d.]+\n"), "boot", BOOT_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """QEMU's process on the host."""
        if self._process is None:
            raise GuestError("the guest is not running")
        return self._process.pid

    def sh(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> Answer:
        """Run a command in a shell of its own, with no input, and return its exit code and output.

        What it leaves in the background must redirect its output, or that will mix with later answers.

        Raises GuestError if it does not end in `timeout_s` (it is killed then, and the shell can be used again), or
        if the guest died.
        """
        nonce = secrets.token_hex(8)
        whole_s = max(1, round(timeout_s))
        # The nonce is sent in two pieces, so that a program which prints its own command line cannot end the answer.
        line = (
            f"timeout -s KILL {whole_s} sh -c {shlex.quote(command)} </dev/null\n"
            f'echo "@@{nonce[:8]}""{nonce[8:]}:$?@"\n'
        )
        self._send(line.encode())
        found = self._read_until(re.compile(rb"@@%s:(\d+)@\n" % nonce.encode()), command, timeout_s + 10)
        rc, output = int(found.match.group(1)), found.before.decode(errors="backslashreplace")
        if rc == 137 and found.took_s >= whole_s:
            raise self._error(f"no end after {whole_s} s: {command}\n{output[-2000:]}")
        return Answer(rc, output)

    def check(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command that must succeed, and return its output without the last line's end."""
        rc, output = self.sh(command, timeout_s=timeout_s)
        if rc != 0:
            raise self._error(f"exit {rc}: {command}\n{output[-4000:]}")
        return output.removesuffix("\n")

    def python(self, code: str, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run Python 3.11 code, which can import memsculpt and its dependencies, and return what it printed."""
        return self.check(shlex.join(["python3.11", "-c", code, *arguments]), timeout_s=timeout_s)

    def memsculpt(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Answer:
        """Run the command under test."""
        return self.sh(shlex.join(["memsculpt", *arguments]), timeout_s=timeout_s)

    def wait_until(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Poll a command in the guest until it succeeds."""
        deadline_s = time.monotonic() + timeout_s
        while (answer := self.sh(command)).rc != 0:
            if time.monotonic() > deadline_s:
                raise self._error(f"still exit {answer.rc} after {timeout_s:.0f} s: {command}\n{answer.output[-2000:]}")
            time.sleep(0.05)

    def read_file(self, path: str) -> bytes:
        return base64.b64decode(self.check(f"base64 {shlex.quote(path)}"))

    def write_file(self, path: str, content: bytes) -> None:
        place = shlex.quote(path)
        self.check(f": > {place}")
        for start in range(0, len(content), CHUNK_BYTES):
            encoded = base64.b64encode(content[start : start + CHUNK_BYTES]).decode()
            self.check(f"echo {encoded} | base64 -d >> {place}")

    def install(self, source: Path, path: str) -> None:
        """Compile a C program on this machine and put it into the guest, which has no compiler.

        Raises GuestError where there is none here either.
        """
        self.write_file(path, compiled(source, self.folder))
        self.check(f"chmod 755 {shlex.quote(path)}")

    def console_tail(self) -> str:
        """Return the end of the kernel's console, and of what QEMU itself said."""
        tails: list[str] = []
        for name in ("console.log", "qemu.log"):
            path = self.folder / name
            text = path.read_bytes()[-CONSOLE_TAIL_BYTES:].decode(errors="backslashreplace") if path.exists() else ""
            tails.append(f"--- {path}\n{text.strip()}")
        return "\n".join(tails)

    def _send(self, content: bytes) -> None:
        if self._shell is None:
            raise GuestError("the guest is not running")
        self._shell.settimeout(COMMAND_TIMEOUT_S)
        try:
            self._shell.sendall(content)
        except OSError as error:
            raise self._error(f"cannot send to the guest: {error}") from error

    def _read_until(self, pattern: re.Pattern[bytes], what: str, timeout_s: float) -> _Found:
        if self._shell is None or self._process is None:
            raise GuestError("the guest is not running")
        started_s = time.monotonic()
        while (match := pattern.search(self._received)) is None:
            left_s = started_s + timeout_s - time.monotonic()
            if left_s <= 0:
                raise self._error(f"no answer within {timeout_s:.0f} s: {what}")
            readable, _, _ = select.select([self._shell], [], [], min(left_s, 0.5))
            if readable:
                chunk = self._shell.recv(1 << 16)
                self._received += chunk
                if not chunk:
                    raise self._error(f"the guest ended during: {what}")
            elif self._process.poll() is not None:
                raise self._error(f"QEMU ended with exit code {self._process.returncode} during: {what}")
        before, self._received = self._received[: match.start()], self._received[match.end() :]
        return _Found(match, before, time.monotonic() - started_s)

    def _error(self, problem: str) -> GuestError:
        return GuestError(f"{problem}\n{self.console_tail()}")


def compiled(source: Path, folder: Path) -> bytes:
    """Compile a C program for guests, which have no libraries. Raises GuestError where there is no compiler."""
    program = folder / source.stem
    command = ["cc", "-O2", "-Wall", "-Werror", "-static", "-o", str(program), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise GuestError("programs for guests are written in C: apt install gcc") from error
    if done.returncode:
        raise GuestError(f"{source.name} does not compile: {done.stderr[-2000:]}")
    return program.read_bytes()


class _Found(NamedTuple):
    match: re.Match[bytes]
    before: bytes
    took_s: float
