# SPDX-License-Identifier: Apache-2.0
"""Which virtual machines run here, and whether their monitors can be asked: what doctor tells of them.

Looks without a running agent, for a moment, at all monitors at once: who greets can be asked, who takes the connection
and says nothing is in another client's hands (a running agent's, perhaps), and is left at once.
"""

import os
import select
import socket
from dataclasses import dataclass

from memsculpt.host.linux import procfs, qemu
from memsculpt.host.linux.monitors import connect

WAIT_S = 0.3  # for all greetings together


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVm:
    """A QEMU process, and what keeps its monitor from being asked: "" for nothing."""

    pid: int
    name: str
    problem: str = ""
    is_busy: bool = False  # its monitors take connections, and another client has them


def find_vms(proc: str = "/proc") -> tuple[FoundVm, ...]:
    """Return the virtual machines that this user can see, by pid."""
    found: list[FoundVm] = []
    calls: dict[socket.socket, int] = {}
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        try:
            if not qemu.is_qemu(os.readlink(f"{proc}/{pid}/exe").removesuffix(" (deleted)")):
                continue
            command = qemu.parse_command_line(procfs.read_file(f"{proc}/{pid}/cmdline", qemu.MOST_BYTES))
            folder = os.readlink(f"{proc}/{pid}/cwd")
        except OSError:  # ended, a kernel thread, or another user's
            continue
        name, problem = command.name or f"qemu-{pid}", ""
        for path in command.monitors:
            try:
                calls[connect(path if path.startswith("@") else os.path.join(folder, path), pid, proc)] = len(found)
            except OSError as error:
                problem = f"{path}: {error.strerror or error}"
        if not command.monitors:
            problem = "libvirt's" if command.is_libvirts else "; ".join(command.unreachable) or "no QMP monitor"
        found.append(FoundVm(pid=pid, name=name, problem=problem))
    greets = _who_greets(calls)
    return tuple(_judged(one, number, set(calls.values()), greets) for number, one in enumerate(found))


def _judged(one: FoundVm, number: int, called: set[int], greets: set[int]) -> FoundVm:
    if number in greets:
        return FoundVm(pid=one.pid, name=one.name)
    if number in called:
        return FoundVm(pid=one.pid, name=one.name, problem="does not greet", is_busy=True)
    return one


def _who_greets(calls: dict[socket.socket, int]) -> set[int]:
    """Return the numbers of those whose monitor says something within the time; hangs up on all."""
    poller = select.poll()
    by_descriptor = {one.fileno(): number for one, number in calls.items()}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.POLLIN)
    greets: set[int] = set()
    left_ms = WAIT_S * 1000.0
    while by_descriptor and left_ms > 0.0 and (ready := poller.poll(left_ms)):
        left_ms -= WAIT_S * 100.0
        for descriptor, event in ready:
            poller.unregister(descriptor)
            number = by_descriptor.pop(descriptor)
            if event & select.POLLIN:
                greets.add(number)
    for one in calls:
        one.close()
    return greets
