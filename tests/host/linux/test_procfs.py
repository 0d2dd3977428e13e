# SPDX-License-Identifier: Apache-2.0
"""Readers of /proc: good, absent and malformed content, and names that were made to hurt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux import cgroup1, cgroup2, controller, meminfo, pagemap, procfs, psi

STAT = b"%d (%b) S 1 2 3 0 -1 %d 11 0 22 0 150 50 0 0 20 0 1 0 4242 1000000 321 184467 1 1 0\n"


@pytest.mark.parametrize("comm", [b"sleep", b"a b", b"a) R 1 2", b"new\nline", b"\xff\xfe", b"((", b"))", b""])
def test_stat_is_read_whatever_the_name_holds(comm):
    """Fields are counted from the last parenthesis, so no name moves them."""
    stat = procfs.parse_stat(STAT % (7, comm, 0x400000), 100)
    assert stat is not None
    assert (stat.start_ticks, stat.minor_faults, stat.major_faults, stat.resident_pages) == (4242, 11, 22, 321)
    assert stat.cpu_s == pytest.approx(2.0)
    assert not stat.is_kernel_thread


def test_kernel_threads_are_told_apart():
    """PF_KTHREAD marks them."""
    stat = procfs.parse_stat(STAT % (2, b"kthreadd", 0x00200000 | 0x40), 100)
    assert stat is not None
    assert stat.is_kernel_thread


@pytest.mark.parametrize("content", [b"", b"7 (x) S 1", b"garbage", b"7 (x) " + b"S " + b"x " * 30])
def test_a_torn_stat_is_none(content):
    """What is no line of stat is nothing, not a wrong number."""
    assert procfs.parse_stat(content, 100) is None


@given(st.binary(max_size=400))
def test_parsers_take_any_bytes(content):
    """No content makes a parser raise anything."""
    procfs.parse_stat(content, 100)
    procfs.parse_status(content)
    procfs.parse_io(content)
    procfs.parse_schedstat(content)
    procfs.parse_cgroup(content)
    pagemap.parse_private(content)
    psi.parse_pressure(content)
    meminfo.parse_meminfo(content)
    controller.parse_table(content)


def test_status_tells_the_kinds_apart():
    """Sizes are in kB; other lines, a name with a newline among them, are passed over."""
    content = (
        b"Name:\tx\\nRssAnon: 9 kB\nRssAnon:\t    1024 kB\nRssFile:\t 2048 kB\nRssShmem:\t 0 kB\nVmSwap:\t 512 kB\n"
    )
    kinds = procfs.parse_status(content)
    assert kinds is not None
    assert (kinds.anon_bytes, kinds.file_bytes, kinds.shmem_bytes, kinds.swapped_bytes) == (
        1 << 20,
        2 << 20,
        0,
        1 << 19,
    )


def test_a_zombie_has_no_memory_kinds():
    """Its status lacks the Rss lines."""
    assert procfs.parse_status(b"Name:\tgone\nState:\tZ (zombie)\n") is None


def test_cgroup_paths_of_both_hierarchies():
    """Names go through as they are: colons, spaces, newlines, bytes that are no UTF-8."""
    content = b"4:memory:/a:b c/\xff\nd\n3:cpu:/\n0::/unified/x\n"
    assert procfs.parse_cgroup(content) == ("a:b c/\udcff\nd", "unified/x")


def test_cgroup_of_a_v2_machine():
    """There is only the unified line."""
    assert procfs.parse_cgroup(b"0::/system.slice/redis.service\n") == (None, "system.slice/redis.service")


def test_io_and_schedstat():
    """Storage bytes, and nanoseconds as seconds."""
    assert procfs.parse_io(b"rchar: 5\nread_bytes: 4096\nwrite_bytes: 8192\n") == (4096, 8192)
    assert procfs.parse_io(b"") is None
    assert procfs.parse_schedstat(b"1500000000 3 4\n") == pytest.approx(1.5)


def test_pressure_totals_are_seconds():
    """The kernel gives microseconds."""
    content = (
        b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=250000\n"
    )
    assert psi.parse_pressure(content) == psi.Pressure(some_s=1.5, full_s=0.25)
    assert psi.parse_pressure(b"") is None


def test_v1_without_a_limit_is_unlimited():
    """LONG_MAX rounded to a page, of either page size; the text is kept byte for byte."""
    for text in (b"9223372036854771712\n", b"9223372036854710272\n"):
        value = cgroup1.parse_limit(text)
        assert value.size_bytes == (1 << 63) - 1
        assert value.text.encode() + b"\n" == text
    assert cgroup1.parse_limit(b"4096\n").size_bytes == 4096


def test_v2_without_a_limit_is_unlimited():
    """The word is max."""
    assert cgroup2.parse_limit(b"max\n").size_bytes == (1 << 63) - 1
    assert cgroup2.parse_limit(b"59998208\n").text == "59998208"


def test_page_cache_is_told_apart_on_both_versions():
    """Clean cache that nobody maps is reclaimable; mapped, dirty and shared memory is not."""
    v1 = cgroup1.charge_from(
        1000,
        {b"total_cache": 600, b"total_rss": 300, b"total_shmem": 100, b"total_mapped_file": 50, b"total_dirty": 25},
        {b"oom_kill": 2},
        7,
    )
    v2 = cgroup2.charge_from(
        1000,
        0,
        {b"file": 600, b"anon": 300, b"shmem": 100, b"file_mapped": 50, b"file_dirty": 25},
        {b"oom_kill": 2, b"max": 7},
    )
    for charge in (v1, v2):
        assert (charge.file_bytes, charge.shmem_bytes, charge.reclaimable_bytes) == (500, 100, 425)
        assert (charge.kernel_bytes, charge.oom_kills, charge.limit_hits) == (100, 2, 7)


MAPS = b"""\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
7f0000200000-7f0000300000 rw-s 00000000 00:05 12                         /memfd:x (deleted)
7f0000400000-7f0000500000 r-xp 00000000 08:01 99                         /lib/rw-p file
7f0000600000-7f0000700000 rw-p 00000000 08:01 99                         /lib/data
7f0000800000-7f0000900000 rw-p 00000000 00:00 0                          [anon:numpy]
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_private_anonymous_memory_is_moved():
    """Heap and anonymous mappings; no files, no shared memory, no stacks."""
    assert pagemap.parse_private(MAPS) == [
        (0x55D0C0000000, 0x55D0C0021000),
        (0x7F0000000000, 0x7F0000100000),
        (0x7F0000800000, 0x7F0000900000),
    ]
