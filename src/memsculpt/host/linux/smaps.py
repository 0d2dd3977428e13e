# SPDX-License-Identifier: Apache-2.0
"""The last resort among the sources of touched pages: /proc/PID/smaps, which counts them by mapping.

`Referenced` counts pages whose accessed bit is set, and pages that the kernel itself has noticed; a huge page counts
whole. Which pages they are it does not say (proc_pid_smaps(5)). Reading it costs 20 ms per GiB and more (bench sense),
and it can be had without privilege for processes of one's own.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from memsculpt.domain.pages import PAGE_BYTES, Cleared, Extents, Grain, Mapping, Touches
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.blocks import extents_from
from memsculpt.host.linux import clear_accessed
from memsculpt.host.linux.maps import parse_mappings
from memsculpt.host.linux.opened import OpenedProcess

COUNTED = (b"Rss", b"Referenced", b"Private_Dirty", b"Shared_Dirty", b"Swap", b"AnonHugePages")
PAGE_KIB = PAGE_BYTES // 1024


class SmapsSource:
    """Opens processes; holds nothing."""

    name = "smaps"

    def __init__(self, proc: str = "/proc") -> None:
        """Look whether the kernel counts. Raises Unavailable."""
        for file in ("smaps", "clear_refs"):
            if not Path(proc, "self", file).exists():
                raise Unavailable(
                    place=f"/proc/PID/{file}", problem="is not in this kernel", fix="CONFIG_PROC_PAGE_MONITOR"
                )

    def open(self, process: Instance) -> "SmapsReader":
        """Open a process; see the protocol."""
        opened = OpenedProcess(process)
        try:
            opened.check_first_hand()
        except OSError as error:
            opened.close()
            raise opened.translated(error) from error
        except Unavailable:
            opened.close()
            raise
        return SmapsReader(opened)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class SmapsReader:
    """Counts touched pages by mapping. Fulfils host.protocol.PageReader."""

    source, grain = "smaps", Grain.MAPPING

    def __init__(self, opened: OpenedProcess) -> None:
        self._opened = opened

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Do nothing: the kernel counts pages as referenced whose bits others have cleared."""

    def survey(self) -> Extents:
        """Return where the process has memory; see the protocol."""
        return extents_from(self.read())

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return the counts of every mapping that lies in `ranges`, as a whole; see the protocol."""
        with self._translated():
            mappings, counts = parse_smaps(self._opened.read("smaps"))
        kept = [row for row, one in enumerate(mappings) if _is_within(one, ranges) and counts[row, [0, 4]].any()]
        index = np.array(kept, np.int64)
        chosen = counts[index]
        return Touches(
            mappings=mappings,
            grain=Grain.MAPPING,
            starts=np.array([mappings[row].start for row in kept], np.int64),
            ends=np.array([mappings[row].end for row in kept], np.int64),
            mapping_index=index,
            present=chosen[:, 0].copy(),
            touched=chosen[:, 1].copy(),
            dirty=chosen[:, 2] + chosen[:, 3],
            swapped=chosen[:, 4].copy(),
            unknown=np.zeros(len(kept), np.int64),
            is_huge=chosen[:, 5] > 0,
        )

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None) -> Cleared:
        """Begin a new interval for the whole process; see the protocol."""
        begin_s = time.perf_counter()
        with self._translated():
            done = clear_accessed.clear_whole(self._opened, self._opened.resident_bytes())
        return Cleared(
            method="clear_refs",
            cleared_bytes=done.cleared_bytes,
            longest_hold_s=done.longest_hold_s,
            duration_s=time.perf_counter() - begin_s,
            note="stale TLB entries may hide the hottest pages" if clear_accessed.keeps_soft_dirty() else "",
        )

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read the range and clear the whole process; see the protocol."""
        touches = self.read([(start, end)])
        self.clear()
        return touches

    def close(self) -> None:
        """Release every descriptor."""
        self._opened.close()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self._opened.translated(error) from error


def parse_smaps(content: bytes) -> tuple[tuple[Mapping, ...], np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Return the mappings and, for each, its pages by COUNTED, shape (n_mappings, 6); unknown lines are skipped."""
    heads: list[bytes] = []
    rows: list[list[int]] = []
    for line in content.splitlines():
        name, colon, rest = line.partition(b":")
        if colon and b" " not in name and b"-" not in name:
            words = rest.split()
            if rows and name in COUNTED and len(words) == 2 and words[0].isdigit():
                rows[-1][COUNTED.index(name)] += int(words[0]) // PAGE_KIB
        elif parse_mappings(line):
            heads.append(line)
            rows.append([0] * len(COUNTED))
        elif b"-" in line.partition(b" ")[0]:  # the kernel's own page: what follows is not ours
            heads.append(b"")
            rows.append([0] * len(COUNTED))
    counts = np.array([row for head, row in zip(heads, rows, strict=True) if head], np.int64).reshape(-1, len(COUNTED))
    return parse_mappings(b"\n".join(heads)), counts


def _is_within(mapping: Mapping, ranges: Sequence[tuple[int, int]] | None) -> bool:
    return ranges is None or any(start < mapping.end and mapping.start < end for start, end in ranges)
