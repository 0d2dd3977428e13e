# SPDX-License-Identifier: Apache-2.0
from memsculpt.host.linux.host import LinuxHost

__all__ = ["LinuxHost"]
