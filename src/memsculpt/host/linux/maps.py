# SPDX-License-Identifier: Apache-2.0
"""What a process has mapped: /proc/PID/maps (proc_pid_maps(5))."""

from memsculpt.domain.pages import Mapping

USER_END = 1 << 62  # above is the kernel's: [vsyscall], which holds no page of the process


def parse_mappings(content: bytes) -> tuple[Mapping, ...]:
    """Return the mappings, ascending; lines that are none (a torn read) are passed over."""
    found: list[Mapping] = []
    for line in content.splitlines():
        # address perms offset dev inode pathname
        words = line.split(None, 5)
        if len(words) < 5:
            continue
        start, dash, end = words[0].partition(b"-")
        flags = words[1]
        try:
            low, high = int(start, 16), int(end, 16)
        except ValueError:
            continue
        if not dash or len(flags) < 4 or high > USER_END:
            continue
        found.append(
            Mapping(
                start=low,
                end=high,
                name=words[5].decode("utf-8", "surrogateescape") if len(words) == 6 else "",
                is_shared=flags[3:4] == b"s",
                is_file=words[4] != b"0",
                is_writable=flags[1:2] == b"w",
                is_executable=flags[2:3] == b"x",
                offset=int(words[2], 16),
            )
        )
    return tuple(found)
