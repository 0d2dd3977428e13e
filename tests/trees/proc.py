# SPDX-License-Identifier: Apache-2.0
"""A /proc and a v1 memory hierarchy of text files, literally as the kernel writes them."""

from pathlib import Path

STAT = "%d (%s) S 1 2 3 0 -1 %d 11 0 22 0 150 50 0 0 20 0 1 0 %d 1000000 321 184467 1 1 0\n"
STATUS = "Name:\tx\nUid:\t0\t0\t0\t0\nRssAnon:\t%d kB\nRssFile:\t8 kB\nRssShmem:\t0 kB\nVmSwap:\t4 kB\n"
IO = "rchar: 1\nwchar: 2\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n"
KERNEL_THREAD_FLAGS = 0x00200000


def write_proc(root: Path) -> Path:
    """Make an empty machine of 1 GiB."""
    root.mkdir()
    (root / "meminfo").write_text(
        "MemTotal: 1048576 kB\nMemFree: 524288 kB\nMemAvailable: 786432 kB\nSwapTotal: 1024 kB\nSwapFree: 512 kB\n"
    )
    return root


def write_process(proc: Path, pid: int, *, exe: str = "/bin/tenant", cgroup: str = "/", flags: int = 0) -> Path:
    """Make a process of 100 KiB that began at tick 7000 + pid; it has run for 2 s."""
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True)
    (folder / "stat").write_text(STAT % (pid, "tenant", flags, 7000 + pid))
    (folder / "status").write_text(STATUS % 100)
    (folder / "io").write_text(IO)
    (folder / "cgroup").write_text(f"4:memory:{cgroup}\n0::/\n")
    (folder / "task" / str(pid) / "schedstat").write_text("2000000001 5 9\n")
    (folder / "exe").symlink_to(exe)
    return folder


def write_cgroup1(folder: Path, pids: tuple[int, ...] = ()) -> Path:
    """Make a v1 memory cgroup that holds 1 MiB, without a limit."""
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    (folder / "memory.usage_in_bytes").write_text("1048576\n")
    (folder / "memory.stat").write_text("cache 0\ntotal_cache 300000\ntotal_rss 700000\ntotal_pgfault 9\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    (folder / "memory.failcnt").write_text("3\n")
    for name in ("limit_in_bytes", "soft_limit_in_bytes"):
        (folder / f"memory.{name}").write_text("9223372036854771712\n")
    return folder
