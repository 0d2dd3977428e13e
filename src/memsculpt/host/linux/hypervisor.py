# SPDX-License-Identifier: Apache-2.0
"""The linux host's virtual machines. Fulfils host.protocol.Hypervisor."""

from collections.abc import Sequence

from memsculpt.domain.vm import BalloonSet, GuestRam, VmId, VmState
from memsculpt.errors import Refused, Transient, Unavailable, Vanished
from memsculpt.host.linux import guest_ram, ksm_offers
from memsculpt.host.linux.qmp import Answer, Command, CommandError
from memsculpt.host.linux.virtual_machines import Machine, VirtualMachines
from memsculpt.host.linux.vm_asking import size_in

RETRY_IN_S = 1.0


class LinuxHypervisor:
    """Asks monitors on behalf of who wants a VM changed, or to know where its memory lies."""

    _vms: VirtualMachines

    def guest_ram(self, vm: VmId) -> GuestRam:
        """Return where the guest's memory lies; see the protocol."""
        machine = self._machine(vm)
        return guest_ram.find(machine.id, machine.process, lambda commands: self._asked(machine, commands))

    def read_balloon(self, vm: VmId) -> int:
        """Return what the balloon leaves the guest; see the protocol."""
        raise Vanished(place=f"vm {vm}")

    def set_balloon(self, vm: VmId, size_bytes: int) -> BalloonSet:
        """Ask a balloon; see the protocol."""
        machine = self._machine(vm)
        place = f'VM "{machine.name}"'
        reading = next(one for one in self._vms.readings() if one.id == vm)
        if not reading.features.balloon:
            fix = "start QEMU with -device virtio-balloon-pci"
            raise Refused(place=place, problem="has no balloon", fix=fix)
        if reading.state is not VmState.RUNNING:
            raise Refused(place=place, problem=f"is {reading.state}, not running", fix="none needed; it is asked later")
        if not 0 < size_bytes <= reading.ram_bytes:
            problem = f"{size_bytes} bytes are not within its memory of {reading.ram_bytes} bytes"
            raise Refused(place=place, problem=problem, fix="ask for no more than it was built with")
        before, done = self._asked(machine, [Command("query-balloon"), Command("balloon", {"value": size_bytes})])
        for answer in (before, done):
            if isinstance(answer, CommandError):
                fix = "load virtio_balloon in the guest" if answer.kind == "DeviceNotActive" else "see QEMU's log"
                raise Refused(place=place, problem=answer.words, fix=fix)
        actual = size_in(before, "actual")
        if actual is None:
            raise Transient(place=place, problem="does not tell its balloon's size", retry_in_s=RETRY_IN_S)
        return BalloonSet(asked_bytes=size_bytes, before_bytes=actual)

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
        if machine is None:
            raise Vanished(place=f"VM {vm}")
        return machine

    def _asked(self, machine: Machine, commands: Sequence[Command]) -> list[Answer]:
        asker = self._vms.asker_of(machine)
        if asker is None:
            raise Unavailable(
                place=f'VM "{machine.name}"', problem="its monitor cannot be asked", fix="see `memsculpt vms`"
            )
        return asker.ask(machine.process, commands)
