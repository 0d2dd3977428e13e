# SPDX-License-Identifier: Apache-2.0
"""The simulated host's virtual machines. Fulfils host.protocol.Hypervisor."""

from memsculpt.domain.vm import BalloonSet, GuestRam, VmId
from memsculpt.errors import Vanished


class SimulatedHypervisor:
    """Knows no VM yet."""

    def guest_ram(self, vm: VmId) -> GuestRam:
        """Return where the guest's memory lies; see the protocol."""
        raise Vanished(place=f"vm {vm}")

    def read_balloon(self, vm: VmId) -> int:
        """Return what the balloon leaves the guest; see the protocol."""
        raise Vanished(place=f"vm {vm}")

    def set_balloon(self, vm: VmId, size_bytes: int) -> BalloonSet:
        """Ask a balloon; see the protocol."""
        raise Vanished(place=f"vm {vm}")
