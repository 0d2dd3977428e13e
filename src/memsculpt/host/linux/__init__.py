# SPDX-License-Identifier: Apache-2.0
"""The machine itself: /proc, cgroups and the calls that move other processes' pages."""

from memsculpt.host.linux.host import LinuxHost

__all__ = ["LinuxHost"]
