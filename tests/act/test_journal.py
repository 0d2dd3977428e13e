# SPDX-License-Identifier: Apache-2.0
"""The journal on a disk: owned by one, found again by the next, and honest when the disk is full."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from memsculpt.act import Journal
from memsculpt.act.records import LimitChange, LimitKept, Origin, Undone, header
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import JournalUnwritable, Refused
from tests.act.builders import full_disk

ROOT = Path(__file__).parents[2]
CACHE = CgroupPath("cache")


def change(boot, *, cgroup=CACHE, old_text="100\n"):
    return LimitChange(
        cgroup=cgroup,
        kind=LimitKind.LIMIT,
        old_text=old_text,
        old_bytes=100,
        low_bytes=50,
        high_bytes=100,
        squeezes=False,
        origin=Origin(action_id=1, at_s=0.0, why="test", boot=boot),
    )


def open_journal(folder, **options):
    return Journal.open(folder, machine_lock=options.pop("machine_lock", None), **options)


def test_what_was_written_is_found_by_the_next_owner(tmp_path):
    """A journal that was never closed in order gives the next one everything."""
    first = open_journal(tmp_path)
    first.append(change(first.boot))
    first.append(LimitKept(cgroup=CACHE, kind=LimitKind.LIMIT, text="50\n"), durable=False)
    first.count_pages(out_bytes=4096)
    first.close()
    second = open_journal(tmp_path)
    assert second.ledger.changes == (change(second.boot),)
    assert second.ledger.limit(CACHE, LimitKind.LIMIT).last_text == "50\n"
    assert second.ledger.out_bytes == 4096
    second.close()


def test_changes_of_another_boot_are_dropped_and_said(tmp_path):
    """What a reboot has undone is not undone again."""
    first = open_journal(tmp_path, boot="yesterday")
    first.append(change("yesterday"))
    first.close()
    second = open_journal(tmp_path, boot="today")
    assert second.ledger.changes == ()
    assert "1 changes of an earlier boot" in " ".join(second.notes)
    second.close()
    third = open_journal(tmp_path, boot="today")
    assert third.notes == ()
    third.close()


def test_a_torn_tail_is_said_once(tmp_path):
    """The first to open it says it, and whoever comes after finds a whole file."""
    first = open_journal(tmp_path)
    first.append(change(first.boot))
    first.close()
    with first.path.open("ab") as file:
        file.write(b"\x40\0\0\0torn")
    second = open_journal(tmp_path)
    assert len(second.ledger.changes) == 1
    assert "torn write" in second.notes[0]
    second.close()
    third = open_journal(tmp_path)
    assert third.notes == ()
    third.close()


def test_a_newer_format_is_neither_read_nor_replaced(tmp_path):
    """Undo information of a later memsculpt survives an older one, which only observes."""
    start = b"MSJOURNL" + struct.pack("<I", 2)
    content = start + struct.pack("<I", zlib.crc32(start)) + b"who knows"
    (tmp_path / "journal").write_bytes(content)
    journal = open_journal(tmp_path)
    assert not journal.writable
    assert "another memsculpt (format 2" in journal.problem
    journal.close()
    assert (tmp_path / "journal").read_bytes() == content


def test_a_second_owner_is_refused_with_the_pid_of_the_first(tmp_path):
    """One state folder, one memsculpt; closing gives it free."""
    first = open_journal(tmp_path)
    with pytest.raises(Refused, match=f"pid {os.getpid()}"):
        open_journal(tmp_path)
    first.close()
    open_journal(tmp_path).close()


def test_one_machine_has_one_owner_whatever_its_folder(tmp_path):
    """The machine's lock holds across state folders, and a refused one leaves its own folder free."""
    lock = tmp_path / "run/agent.lock"
    first = open_journal(tmp_path / "a", machine_lock=lock)
    with pytest.raises(Refused, match=str(lock)):
        open_journal(tmp_path / "b", machine_lock=lock)
    first.close()
    open_journal(tmp_path / "b", machine_lock=lock).close()


def test_a_killed_owner_is_taken_over(tmp_path):
    """The kernel frees the lock with its owner; what the owner left is there."""
    program = (
        "import os, signal, sys; from tests.act.test_journal import change, open_journal;"
        "journal = open_journal(sys.argv[1]); journal.append(change(journal.boot));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    dead = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, check=False)
    assert dead.returncode < 0
    journal = open_journal(tmp_path)
    assert len(journal.ledger.changes) == 1
    journal.close()


def test_a_full_disk_forbids_changes_and_room_allows_them_again(tmp_path):
    """Appending raises, nothing counts as journalled, and the next look at `writable` after mending is True."""
    journal = open_journal(tmp_path)
    journal.append(change(journal.boot))
    size = journal.path.stat().st_size
    other = CgroupPath("other")
    with full_disk(size + 10), pytest.raises(JournalUnwritable, match="File too large"):
        journal.append(change(journal.boot, cgroup=other))
    with full_disk(10):
        assert not journal.writable
        assert journal.problem
        with pytest.raises(JournalUnwritable):
            journal.append(change(journal.boot, cgroup=other))
        assert journal.ledger.limit(other, LimitKind.LIMIT) is None
    assert journal.writable
    assert journal.problem == ""
    journal.append(change(journal.boot, cgroup=other))
    journal.close()
    again = open_journal(tmp_path)
    assert [each.cgroup for each in again.ledger.changes] == [CACHE, other]
    assert again.notes == ()
    again.close()


def test_half_a_record_on_a_full_disk_loses_nothing_that_was_there(tmp_path):
    """If the agent dies right after a failed append, the next one finds all that was whole."""
    journal = open_journal(tmp_path)
    journal.append(change(journal.boot))
    with full_disk(journal.path.stat().st_size + 10), pytest.raises(JournalUnwritable):
        journal.append(change(journal.boot, cgroup=CgroupPath("other")))
    content = journal.path.read_bytes()
    journal.close()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/journal").write_bytes(content)
    copy = open_journal(tmp_path / "copy")
    assert [each.cgroup for each in copy.ledger.changes] == [CACHE]
    assert "torn write" in copy.notes[0]
    copy.close()


def test_a_folder_that_cannot_be_is_no_crash(tmp_path):
    """The agent goes on observing; the reason is there to be said."""
    (tmp_path / "file").touch()
    journal = open_journal(tmp_path / "file/state")
    assert not journal.writable
    assert str(tmp_path / "file") in journal.problem
    with pytest.raises(JournalUnwritable):
        journal.append(change(journal.boot))
    journal.close()


def test_a_busy_journal_stays_small(tmp_path):
    """Thousands of changes of the same budget are one change to undo, and the file is written anew."""
    journal = open_journal(tmp_path)
    sizes = []
    for count in range(5000):
        journal.append(change(journal.boot, old_text="1" * 200), durable=False)
        if count % 100 == 0:
            sizes.append(journal.path.stat().st_size)
    assert max(sizes) < (1 << 20) + 65536
    assert len(journal.ledger.changes) == 1
    journal.append(Undone(change=(CACHE, LimitKind.LIMIT), text="1"))
    journal.compact()
    assert journal.path.read_bytes() == header()
    journal.close()


def test_only_its_owner_may_read_it(tmp_path):
    """It names what runs on the machine."""
    journal = open_journal(tmp_path)
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.close()
