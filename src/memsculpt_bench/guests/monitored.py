# SPDX-License-Identifier: Apache-2.0
"""Guests with a monitor of the lab's own, which are saved once and begin again from there in less than half a second.

The monitor here is a client of its own, on purpose: memsculpt's is what is tested.
"""

from __future__ import annotations

import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from memsculpt_bench.guests.guest import Guest, GuestError

SAVE_BYTES_PER_S = 10 << 30
ANSWER_TIMEOUT_S = 30.0


class Monitor:
    """A QMP client that asks one thing at a time."""

    def __init__(self, channel: socket.socket) -> None:
        """Take a connected socket; QEMU may not have begun yet."""
        self._channel = channel
        self._channel.settimeout(ANSWER_TIMEOUT_S)
        self._told = b""
        self._has_greeted = False

    @classmethod
    def at(cls, path: Path) -> Monitor:
        """Connect, as soon as QEMU listens. Raises OSError."""
        channel = socket.socket(socket.AF_UNIX)
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                channel.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline_s:
                    channel.close()
                    raise
                time.sleep(0.01)
            else:
                return cls(channel)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer. Raises GuestError where QEMU refuses, or hangs up."""
        if not self._has_greeted:
            self._has_greeted = True
            self._next_line()  # the greeting
            self.ask("qmp_capabilities")
        self._channel.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._next_line()
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _next_line(self) -> dict[str, Any]:
        while b"\n" not in self._told:
            chunk = self._channel.recv(1 << 16)
            if not chunk:
                raise GuestError("the monitor hung up")
            self._told += chunk
        line, _, self._told = self._told.partition(b"\n")
        return json.loads(line)


class MonitoredGuest(Guest):
    """A guest that can be asked through its monitor, saved, and begun again; `state` is where it was saved."""

    state: Path | None = None
    is_arriving = False  # its guest is elsewhere still
    monitor: Monitor | None = None

    def close(self) -> None:
        """End QEMU and its monitor."""
        monitor, self.monitor = self.monitor, None
        if monitor is not None:
            monitor.close()
        super().close()

    def wait_ready(self) -> None:
        """Wait for the shell: of a restored guest, or one that arrives, it is there as soon as the guest goes on."""
        if self.state is None and not self.is_arriving:
            super().wait_ready()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Ask the monitor; return the answer. Raises GuestError where it refuses."""
        if self.monitor is None:
            raise GuestError("the guest is not running")
        return self.monitor.ask(command, **arguments)

    def save(self, path: Path) -> None:
        """Write the guest's state; it is stopped from then on."""
        self.ask("stop")
        self.ask("migrate-set-parameters", **{"max-bandwidth": SAVE_BYTES_PER_S})
        self.ask("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")
        self._poll("query-migrate", "completed")

    def migrate_to(self, place: Path) -> None:
        """Move the guest to the QEMU that waits at a socket, as it runs; this one has none from then on."""
        self.ask("migrate-set-parameters", **{"max-bandwidth": SAVE_BYTES_PER_S})
        self.ask("migrate", uri=f"unix:{place}")
        self._poll("query-migrate", "completed")

    def boot_anew(self) -> None:
        """Reset the machine, as a guest's own reboot does, and wait for its shell."""
        self.ask("set-action", reboot="reset")
        self.ask("system_reset")
        super().wait_ready()

    def begin_again(self) -> None:
        """Let a restored guest go on."""
        self._poll("query-status", "paused", "prelaunch")
        self.ask("cont")
        self.check("true")

    def _poll(self, command: str, *wanted: str) -> None:
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while (status := self.ask(command).get("status")) not in wanted:
            if time.monotonic() > deadline_s or status == "failed":
                raise GuestError(f"{command}: {status}\n{self.console_tail()}")
            time.sleep(0.01)


def incoming(state: Path | None) -> tuple[str, ...]:
    """Return QEMU's words for a guest that begins where another was saved; none for one that boots."""
    return ("-incoming", f"exec:cat {shlex.quote(str(state))}") if state is not None else ()
