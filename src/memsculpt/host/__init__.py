# SPDX-License-Identifier: Apache-2.0
"""The machine, real or simulated. All system calls of the project are behind this door."""

from memsculpt.domain.settings import Settings
from memsculpt.host.protocol import Host

__all__ = ["open_host"]


def open_host(settings: Settings) -> Host:
    """Return the host that this machine is."""
    from memsculpt.host.linux import LinuxHost

    return LinuxHost(settings)
