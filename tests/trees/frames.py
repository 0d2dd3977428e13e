# SPDX-License-Identifier: Apache-2.0
"""Main memory as files: a process's maps and pagemap, the flags of frames, and the bitmap of idle page tracking."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.trees.proc import STAT

PAGE = 4096
PRESENT, SWAPPED, EXCLUSIVE = 1 << 63, 1 << 62, 1 << 56
LRU, HEAD, TAIL, THP = 1 << 5, 1 << 15, 1 << 16, 1 << 22


@dataclass(frozen=True, slots=True)
class Frames:
    """Where the files are."""

    sys: Path
    proc: Path

    def idle(self) -> set[int]:
        """Return the frames that are marked idle."""
        content = self._bitmap.read_bytes()
        return {frame for frame in range(len(content) * 8) if content[frame // 8] >> frame % 8 & 1}

    def access(self, *frames: int) -> None:
        """Take the marks off, as the kernel does when it finds that a frame was accessed."""
        content = bytearray(self._bitmap.read_bytes())
        for frame in frames:
            content[frame // 8] &= ~(1 << frame % 8)
        self._bitmap.write_bytes(content)

    @property
    def _bitmap(self) -> Path:
        return self.sys / "kernel/mm/page_idle/bitmap"


def write_frames(
    root: Path, pid: int, start_ticks: int, pages: Mapping[int, int], flags: Mapping[int, int], frames: int = 4096
) -> Frames:
    """Make a process whose pages (address -> pagemap entry) lie in frames with these flags (LRU where not said)."""
    made = Frames(root / "sys", root / "proc")
    folder = made.proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(
        (STAT % (pid, "tenant", 0, 0)).replace(" 0 1000000 321", f" {start_ticks} 1000000 321")
    )
    (folder / "statm").write_text(f"{len(pages)} {len(pages)} 0 0 0 0 0\n")
    low, high = min(pages), max(pages) + PAGE
    (folder / "maps").write_text(f"{low:x}-{high:x} rw-p 00000000 00:00 0 [heap]\n")
    descriptor = os.open(folder / "pagemap", os.O_CREAT | os.O_WRONLY)
    for address, entry in pages.items():
        os.pwrite(descriptor, entry.to_bytes(8, "little"), address // PAGE * 8)
    os.close(descriptor)
    words = [flags.get(frame, LRU).to_bytes(8, "little") for frame in range(frames)]
    (made.proc / "kpageflags").write_bytes(b"".join(words))
    (made.sys / "kernel/mm/page_idle").mkdir(parents=True)
    (made.sys / "kernel/mm/page_idle/bitmap").write_bytes(bytes(frames // 8))
    return made
