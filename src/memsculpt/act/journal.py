# SPDX-License-Identifier: Apache-2.0
"""The journal: what each changed value was before, on disk before it is changed; `restore` needs nothing else.

A file `journal` in the state folder (format: `records`), append only. It is written anew (new file, fsync, rename,
fsync of the folder) when it is opened, when it has grown, and when everything is undone; so a broken tail is said once
and then gone. Only what is needed to undo is kept: the first old text of each budget, and the last text that we left.

When the journal cannot be written (full disk, read-only folder) nothing may be changed, because nothing could be
undone: `append` raises JournalUnwritable, `writable` is False, and each look at `writable` tries again.
"""

import os
from contextlib import suppress
from pathlib import Path

from memsculpt.act import ownership, records
from memsculpt.act.ledger import Ledger
from memsculpt.act.records import ChangeKey, PagesMoved, Record
from memsculpt.errors import JournalUnwritable

NAME = "journal"
LOCK_NAME = "journal.lock"
REWRITE_ABOVE_BYTES = 1 << 20  # some 4,000 changes: a rewrite of a few records every hour or so

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """What is to be undone, owned by this process until `close`."""

    def __init__(self, *, path: Path, boot: str, locks: list[ownership.Lock], problem: str) -> None:
        """Start empty; `open` is the way to get one."""
        self.path = path
        self.boot = boot
        self.ledger = Ledger()
        self.problem = problem  # why it cannot be written, "" when it can
        self.notes: tuple[str, ...] = ()  # what opening found that people should hear, once
        self.left_alone: set[ChangeKey] = set()  # changed by somebody else: not touched again in this run
        self._locks = locks
        self._descriptor: int | None = None
        self._end_bytes = 0
        self._fresh_bytes = 0  # size after the last rewrite
        self._readable = True  # False: what is there is not ours to replace
        self._uncounted = (0, 0)

    @classmethod
    def open(
        cls,
        state_dir: str | Path,
        *,
        machine_lock: Path | None = ownership.MACHINE_LOCK,
        boot: str | None = None,
    ) -> "Journal":
        """Own the state folder and read what an earlier owner left to undo.

        `machine_lock` is the file that makes us the only one on this machine (None: do not ask); `boot` names the
        present boot (default: the kernel's). A folder that cannot be written gives a journal that is not `writable`.

        Raises Refused when another process owns the folder or the machine.
        """
        path = Path(state_dir) / NAME
        locks: list[ownership.Lock] = []
        problems: list[str] = []
        notes: list[str] = []
        try:
            if machine_lock is not None:  # first: who is refused leaves no state folder behind
                try:
                    locks.append(ownership.take(machine_lock))
                except OSError as error:
                    notes.append(f"{machine_lock}: {error.strerror}; whether another memsculpt runs is unknown")
            try:
                locks.append(ownership.take(path.with_name(LOCK_NAME)))
            except OSError as error:
                problems.append(f"{path.parent}: {error.strerror}")
            journal = cls(path=path, boot=boot or read_boot(), locks=locks, problem="; ".join(problems))
            notes += journal._load()
            journal.notes = tuple(notes)
            if not problems:
                journal._rewrite()
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return journal

    @property
    def writable(self) -> bool:
        """Tell whether changes can be journalled now; when they could not be, this tries again."""
        if self._descriptor is None and self._locks:
            self._rewrite()
        return self._descriptor is not None

    def append(self, record: Record, *, durable: bool = True) -> None:
        """Write one record; it is on the disk when this returns (`durable`), and a change may be made.

        Raises JournalUnwritable: then the change may not be made.
        """
        if self._descriptor is None:
            raise self._unwritable()
        pages = self._take_pages()
        content = b"".join(records.frame(each) for each in (*pages, record))
        try:
            _write_all(self._descriptor, content)
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            # The file may end in half a record now, and after a failed fsync nobody knows what is on the disk: only a
            # new file can be trusted.
            self._fail(error)
            raise self._unwritable() from error
        for each in (*pages, record):
            self.ledger.fold(each)
        self._end_bytes += len(content)
        if self._end_bytes > self._fresh_bytes + REWRITE_ABOVE_BYTES:
            self._rewrite()

    def count_pages(self, *, out_bytes: int = 0, in_bytes: int = 0) -> None:
        """Add to what was paged; it is written along with the next record, for contents never change."""
        self._uncounted = (self._uncounted[0] + out_bytes, self._uncounted[1] + in_bytes)

    def forget(self, record: records.Undone) -> None:
        """Take a change off the list, on the disk if the disk can take it.

        Where it cannot, the change is found again by the next `restore`, which then finds nothing to do.
        """
        if self._descriptor is None:
            self.ledger.fold(record)
            return
        with suppress(JournalUnwritable):
            self.append(record)
            return
        self.ledger.fold(record)

    def compact(self) -> None:
        """Write the file anew with what is still to be undone."""
        if self._descriptor is not None:
            self._rewrite()

    def close(self) -> None:
        """Let go of the file and the locks; undo nothing."""
        if any(self._uncounted) and self._descriptor is not None:
            self._rewrite()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        while self._locks:
            self._locks.pop().release()

    def _load(self) -> list[str]:
        """Read what is there; return what people should hear of it."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._readable = False
            self.problem = f"{self.path}: {error.strerror}"
            return []
        version = records.read_version(content)
        if version is not None and version != records.VERSION:
            self._readable = False
            self.problem = (
                f"{self.path}: was written by another memsculpt (format {version}, this one knows {records.VERSION}); "
                "undo with that one (memsculpt restore) first"
            )
            return []
        found, broken = records.parse(content, place=str(self.path)) if content else ([], [])
        for record in found:
            self.ledger.fold(record)
        notes = [f"{each.place}: {each.problem}; it counts as never written" for each in broken]
        dropped_count = self.ledger.drop_other_boots(self.boot)
        if dropped_count:
            notes.append(f"{self.path}: {dropped_count} changes of an earlier boot ended with it and are forgotten")
        return notes

    def _rewrite(self) -> None:
        """Put a new file in place of the old one; on failure the old one stays and the journal is not writable."""
        if not self._readable:
            return
        for each in self._take_pages():
            self.ledger.fold(each)
        content = records.header() + b"".join(records.frame(record) for record in self.ledger.records())
        new_path = self.path.with_name(NAME + ".new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(new_path, flags, 0o600)
            try:
                _write_all(descriptor, content)
                os.fsync(descriptor)
                os.rename(new_path, self.path)
                _sync_folder(self.path.parent)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            self._fail(error)
            return
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._end_bytes = self._fresh_bytes = len(content)
        self.problem = ""

    def _take_pages(self) -> list[PagesMoved]:
        out_bytes, in_bytes = self._uncounted
        self._uncounted = (0, 0)
        return [PagesMoved(out_bytes=out_bytes, in_bytes=in_bytes)] if out_bytes or in_bytes else []

    def _fail(self, error: OSError) -> None:
        self.problem = f"{self.path}: {error.strerror}"
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _unwritable(self) -> JournalUnwritable:
        return JournalUnwritable(
            place=str(self.path),
            problem=f"cannot be written ({self.problem}), and what cannot be undone is not done",
            fix="make room on the disk or make the folder writable; until then memsculpt only observes",
        )


def read_boot() -> str:
    """Return what names the present boot of the machine; values in /sys and /proc end with it."""
    return _BOOT_ID.read_text("ascii").strip()


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
