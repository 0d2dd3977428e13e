# SPDX-License-Identifier: Apache-2.0
"""The file itself: who may write it, of which version it is, what becomes of a broken one.

SQLite in WAL mode (https://www.sqlite.org/fileformat2.html, wal.html): a transaction is there as a whole or not at all,
whenever the writer is killed. Its header holds two numbers of ours, which are read before SQLite touches the file:
whose format this is (application_id, offset 68) and of which version (user_version, offset 60).
"""

import fcntl
import os
import sqlite3
import struct
import time
from pathlib import Path
from urllib.parse import quote

from memsculpt.domain.series import RESOLUTIONS_S
from memsculpt.errors import CorruptStore, MemsculptError, Refused, Unavailable

NAME = "profile.db"
LOCK_NAME = "profile.lock"
VERSION = 1
APPLICATION = 0x4D536350  # "MScP"
CORRUPT = ".corrupt-"

SPANS_S = (3600, 3600, 14_400, 86_400, 28 * 86_400)
"""How much time one chunk of each resolution covers."""

GROUP = 4
"""Workloads whose samples are written together until an hour is over."""

_CACHE_KIB = 512
_WAL_BYTES = 4 << 20
_HEADER_BYTES = 100
# What a broken file makes SQLite say. Our statements are fixed, so an error of theirs means tables that are not ours.
# Python decodes SQLite's message, in which a broken schema is quoted, before there is an error of SQLite's.
BROKEN_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT})
_MAGIC = b"SQLite format 3\x00"

_TABLES = {
    "workload": "key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, first_s INTEGER NOT NULL, last_s INTEGER NOT NULL, "
    "checksum INTEGER NOT NULL",
    "chunk": "place INTEGER PRIMARY KEY, content BLOB NOT NULL",
    "block": "number INTEGER PRIMARY KEY, hour INTEGER NOT NULL, team INTEGER NOT NULL, content BLOB NOT NULL",
    "version": "number INTEGER PRIMARY KEY, workload INTEGER NOT NULL, kind TEXT NOT NULL, made_s INTEGER NOT NULL, "
    "content BLOB NOT NULL",
    "broken": "number INTEGER PRIMARY KEY, origin TEXT NOT NULL, place INTEGER NOT NULL, content BLOB NOT NULL, "
    "found_s INTEGER NOT NULL",
}
_INDEXES = ("block_by_hour ON block (hour, team)", "version_by_workload ON version (workload, kind)")


def place_of(resolution: int, key: int, chunk: int) -> int:
    """Return where a chunk stands: by resolution, then workload, then time; a range is a stretch of the file."""
    return resolution << 51 | key << 27 | chunk


def parts_of(place: int) -> tuple[int, int, int]:
    """Return resolution, workload's key and number of the chunk at `place`."""
    return place >> 51, place >> 27 & 0xFFFFFF, place & 0x7FFFFFF


class Owner:
    """The one process that writes; the kernel releases its lock when it dies (flock)."""

    def __init__(self, folder: Path) -> None:
        """Own the folder. Raises Refused when another process writes here, OSError when the lock cannot be made."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / LOCK_NAME
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise Refused(
                place=str(path),
                problem="another memsculpt writes this profile store now",
                fix="stop that one first, or name another folder with --state",
            ) from None
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let others write."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_version(path: Path) -> int | None:
    """Return the version that a store's header names; None for a file that is no store of ours.

    Reads the first bytes only and changes nothing. Raises OSError.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    version, application = struct.unpack(">I4xI", header[60:72])
    return version if application == APPLICATION else None


def refuse_newer(path: Path) -> None:
    """Raise Refused for a store of a newer memsculpt, CorruptStore for what is none; nothing was touched then."""
    version = read_version(path)
    if version is None:
        raise _corrupt(path, "is no profile store, or its beginning is broken")
    if version > VERSION:
        raise Refused(
            place=str(path),
            problem=f"is of a newer memsculpt (format {version}; this one knows {VERSION}) and is left as it is",
            fix="use that memsculpt, or move the file away to begin a fresh one",
        )


def open_to_write(path: Path) -> sqlite3.Connection:
    """Return a connection to the store, made where it is absent.

    Raises Refused (newer), CorruptStore, or MemsculptError when the folder or disk does not let it.
    """
    try:
        if not path.exists():
            _create(path)
        refuse_newer(path)
        connection = _connect(f"file:{quote(str(path))}?mode=rw")
    except OSError as error:
        raise unwritable(path, error.strerror or repr(error)) from error
    except BROKEN_ERRORS as error:
        raise translated(path, error) from error
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = OFF")
        problems = structure_problems(connection)
    except BROKEN_ERRORS as error:
        connection.close()
        raise translated(path, error) from error
    if problems:
        connection.close()
        raise _corrupt(path, problems[0])
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing, also beside a writer.

    Raises Unavailable where there is no store or this user may not read it, Refused, CorruptStore.
    """
    try:
        refuse_newer(path)
    except FileNotFoundError as error:
        raise Unavailable(
            place=str(path),
            problem="there is no profile store here",
            fix="run the agent, or name its folder: --state DIR",
        ) from error
    except PermissionError as error:
        raise Unavailable(
            place=str(path), problem="this user may not read it", fix="ask as the user of the agent (sudo)"
        ) from error
    except OSError as error:
        raise MemsculptError(
            place=str(path), problem=f"cannot be read: {error.strerror}", fix="name it with --state DIR"
        ) from error
    # Without a log beside it nobody has it open and it is whole in itself: then reading leaves no file behind.
    is_alone = not path.with_name(path.name + "-wal").exists()
    try:
        connection = _connect(f"file:{quote(str(path))}?mode=ro{'&immutable=1' if is_alone else ''}")
        connection.execute("SELECT count(*) FROM workload").fetchone()
    except BROKEN_ERRORS as error:
        raise translated(path, error) from error
    return connection


def set_aside(path: Path, problem: str, now_s: float) -> str:
    """Rename a broken store, with its log, and return what people should hear of it. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    aside = path.with_name(f"{path.name}{CORRUPT}{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{CORRUPT}{stamp}-{number}")
    path.rename(aside)
    log, index = path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")
    if log.exists():
        log.rename(aside.with_name(aside.name + "-wal"))
    index.unlink(missing_ok=True)
    return f"{path}: {problem}; it was set aside as {aside.name}, and a fresh one is begun"


def find_set_aside(folder: Path) -> list[Path]:
    """Return the broken stores that were set aside here, oldest first."""
    return sorted(one for one in folder.glob(f"{NAME}{CORRUPT}*") if not one.name.endswith(("-wal", "-shm")))


def structure_problems(connection: sqlite3.Connection) -> list[str]:
    """Return what is broken in the file's structure: pages, trees, indexes, tables. Reads all of it."""
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)")]
    problems = [] if found == ["ok"] else [line.replace("\n", " ") for line in found]
    there = {
        str(name): str(sql)
        for name, sql in connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")
    }
    return problems + [f"the table {name} is missing" for name in _TABLES if _table(name) != there.get(name)]


def translated(path: Path, error: Exception) -> MemsculptError:
    """Return one of our errors for SQLite's: CorruptStore when the file is broken, else what the disk said."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # absent where Python's own half complains
    is_broken = code in _BROKEN or isinstance(error, UnicodeDecodeError)
    return _corrupt(path, str(error)) if is_broken else unwritable(path, str(error))


def unwritable(path: Path, problem: str) -> MemsculptError:
    """Return the error of a store that cannot be written, or read, for reasons outside of it."""
    return MemsculptError(
        place=str(path),
        problem=f"the profile store cannot be used now: {problem}",
        fix="make room on the disk or make the folder writable; series are not kept until then",
    )


def _corrupt(path: Path, problem: str) -> CorruptStore:
    return CorruptStore(
        place=str(path),
        problem=f"the profile store is broken: {problem}",
        fix="none needed: the agent sets it aside when it starts, and begins a fresh one",
    )


def _create(path: Path) -> None:
    """Make an empty store under another name and put it in place whole: a kill leaves either none or a good one."""
    new = path.with_name(path.name + ".new")
    for stale in (new, new.with_name(new.name + "-wal"), new.with_name(new.name + "-shm")):
        stale.unlink(missing_ok=True)
    log = path.with_name(path.name + "-wal")
    if log.exists():  # of a file that somebody removed: it must not be taken for the new one's
        log.rename(path.with_name(f"{path.name}{CORRUPT}{int(log.stat().st_mtime)}-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = _connect(f"file:{quote(str(new))}?mode=rw")
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table
        connection.execute("BEGIN IMMEDIATE")
        for name in _TABLES:
            connection.execute(_table(name))
        for index in _INDEXES:
            connection.execute(f"CREATE INDEX {index}")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    new.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _table(name: str) -> str:
    return f"CREATE TABLE {name} ({_TABLES[name]})"


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")  # a flipped bit must not become an error of another kind


# One thread at a time uses a connection, but not always the one that opened it.
def _connect(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=1.0, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.text_factory = _text
    return connection


if len(SPANS_S) != len(RESOLUTIONS_S):
    raise ValueError("each resolution needs the span of its chunks")
