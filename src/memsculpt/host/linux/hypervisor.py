# SPDX-License-Identifier: Apache-2.0
"""The linux host's virtual machines. Fulfils host.protocol.Hypervisor."""

import math
import time
from collections.abc import Sequence

from memsculpt.domain.observation import Observation
from memsculpt.domain.vm import BalloonSet, GuestRam, VmId, VmReading, VmState
from memsculpt.errors import Refused, Transient, Unavailable, Vanished
from memsculpt.host.linux import guest_ram, ksm_offers
from memsculpt.host.linux.qmp import Answer, Command, CommandError
from memsculpt.host.linux.virtual_machines import Machine, VirtualMachines
from memsculpt.host.linux.vm_asking import size_in

RETRY_IN_S = 1.0
ASKED_EVERY_S = 0.01
FIRST_WORD_S = 3.0  # so long a monitor may take to greet and tell what the VM has


class LinuxHypervisor:
    """Asks monitors on behalf of who wants a VM changed, or to know where its memory lies."""

    _vms: VirtualMachines

    def guest_ram(self, vm: VmId) -> GuestRam:
        """Return where the guest's memory lies; see the protocol."""
        machine = self._machine(vm)
        return guest_ram.find(machine.id, machine.process, lambda commands: self._asked(machine, commands))

    def observe(self) -> Observation:
        """Look at the machine; see the protocol."""
        raise NotImplementedError

    def read_balloon(self, vm: VmId) -> int:
        """Return what the balloon leaves the guest; see the protocol."""
        machine, _ = self._with_balloon(vm)
        (answer,) = self._asked(machine, [Command("query-balloon")])
        return self._actual(machine, answer)

    def set_balloon(self, vm: VmId, size_bytes: int) -> BalloonSet:
        """Ask a balloon; see the protocol."""
        machine, reading = self._with_balloon(vm)
        place = f'VM "{machine.name}"'
        if reading.state is not VmState.RUNNING:
            raise Refused(place=place, problem=f"is {reading.state}, not running", fix="none needed; it is asked later")
        if not 0 < size_bytes <= reading.ram_bytes:
            problem = f"{size_bytes} bytes are not within its memory of {reading.ram_bytes} bytes"
            raise Refused(place=place, problem=problem, fix="ask for no more than it was built with")
        # What moves between these two is what we asked for; anything else is news.
        self._vms.expect_balloon(machine.process, reading.balloon_bytes or reading.ram_bytes, size_bytes)
        before, done = self._asked(machine, [Command("query-balloon"), Command("balloon", {"value": size_bytes})])
        actual = self._actual(machine, before)
        self._actual(machine, done, is_size=False)
        return BalloonSet(asked_bytes=size_bytes, before_bytes=actual)

    def _with_balloon(self, vm: VmId) -> tuple[Machine, VmReading]:
        """Find a VM, and wait for its monitor's first word where nobody has asked it yet: in a fresh process."""
        if self._vms.get(vm) is None:
            self.observe()
        machine = self._machine(vm)
        deadline_s = time.monotonic() + FIRST_WORD_S
        while True:
            reading = next(one for one in self._vms.readings() if one.id == vm)
            if reading.features.balloon:
                return machine, reading
            if time.monotonic() > deadline_s or (math.isfinite(reading.read_at_s) and reading.ram_bytes):
                break
            time.sleep(0.02)
        place = f'VM "{machine.name}"'
        if reading.state is VmState.UNREACHABLE:
            raise Unavailable(place=place, problem=reading.problem or "is not reached", fix="see `memsculpt vms`")
        raise Refused(place=place, problem="has no balloon", fix="start QEMU with -device virtio-balloon-pci")

    def _actual(self, machine: Machine, answer: Answer, *, is_size: bool = True) -> int:
        place = f'VM "{machine.name}"'
        if isinstance(answer, CommandError):
            fix = "load virtio_balloon in the guest" if answer.kind == "DeviceNotActive" else "see QEMU's log"
            raise Refused(place=place, problem=answer.words, fix=fix)
        actual = size_in(answer, "actual") if is_size else 0
        if actual is None:
            raise Transient(place=place, problem="does not tell its balloon's size", retry_in_s=RETRY_IN_S)
        return actual

    def is_offered(self, vm: VmId) -> bool:
        """Tell whether the guest's RAM is offered to KSM; see the protocol."""
        machine = self._machine(vm)
        return ksm_offers.is_offered(lambda commands: self._asked(machine, commands))

    def offer(self, vm: VmId, *, to_ksm: bool) -> bool:
        """Offer the guest's RAM to KSM or take it back; see the protocol."""
        machine = self._machine(vm)
        place = f'VM "{machine.name}"'
        return ksm_offers.offer(lambda commands: self._asked(machine, commands), to_ksm=to_ksm, place=place)

    def _machine(self, vm: VmId) -> Machine:
        machine = self._vms.get(vm)
        if machine is None:  # a fresh process, `restore` say, has not observed yet
            self._find_vms()
            machine = self._vms.get(vm)
            self._wait_for(vm)
        if machine is None:
            raise Vanished(place=f"VM {vm}")
        return machine

    def _find_vms(self) -> None:
        """Look for VMs among the processes; the host says how."""
        raise NotImplementedError

    def _wait_for(self, vm: VmId) -> None:
        """Wait until its monitor has told something, or has shown that it will not, for one answer's time at most."""
        end_s = time.monotonic() + self._vms.timeout_s
        while time.monotonic() < end_s:
            reading = next((one for one in self._vms.readings() if one.id == vm), None)
            if reading is None or math.isfinite(reading.read_at_s) or not self._vms.is_asking:
                return
            time.sleep(ASKED_EVERY_S)

    def _asked(self, machine: Machine, commands: Sequence[Command]) -> list[Answer]:
        asker = self._vms.asker_of(machine)
        if asker is None:
            raise Unavailable(
                place=f'VM "{machine.name}"', problem="its monitor cannot be asked", fix="see `memsculpt vms`"
            )
        return asker.ask(machine.process, commands)
