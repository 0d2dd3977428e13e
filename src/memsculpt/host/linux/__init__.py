# SPDX-License-Identifier: Apache-2.0
"""The real machine. One file per kernel interface, named as the kernel names it; only `memsculpt.host` imports it."""

from memsculpt.host.linux.host import LinuxHost

__all__ = ["LinuxHost"]
