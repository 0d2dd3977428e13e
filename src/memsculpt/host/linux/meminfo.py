# SPDX-License-Identifier: Apache-2.0
"""/proc/meminfo and /proc/pressure/memory: the machine as a whole."""

import mmap
import re

from memsculpt.domain.observation import HostMemory
from memsculpt.host.linux import procfs, psi

_USED = re.compile(rb"^(?:MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree):.*$", re.MULTILINE)


def parse_meminfo(content: bytes) -> dict[str, int]:
    """Return the sizes in bytes by name; lines of other forms are passed over."""
    result: dict[str, int] = {}
    for line in content.decode("ascii", "replace").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            result[name] = int(words[0]) * procfs.KIB
    return result


def read_swap_cached_bytes(proc: str) -> int:
    """Read how much memory holds pages that have a copy in swap. Raises OSError."""
    return parse_meminfo(procfs.read_file(f"{proc}/meminfo")).get("SwapCached", 0)


def read_host_memory(proc: str) -> HostMemory:
    """Read the machine's totals. Raises OSError."""
    content = procfs.read_file(f"{proc}/meminfo")
    sizes = parse_meminfo(b"\n".join(_USED.findall(content)))  # six of some fifty lines, in every tick
    pressure = psi.read_pressure(f"{proc}/pressure/memory")
    return HostMemory(
        total_bytes=sizes["MemTotal"],
        available_bytes=sizes.get("MemAvailable", sizes.get("MemFree", 0)),
        free_bytes=sizes.get("MemFree", 0),
        swap_total_bytes=sizes.get("SwapTotal", 0),
        swap_free_bytes=sizes.get("SwapFree", 0),
        some_stall_s=None if pressure is None else pressure.some_s,
        full_stall_s=None if pressure is None else pressure.full_s,
        page_bytes=mmap.PAGESIZE,
    )
