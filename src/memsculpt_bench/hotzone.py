# SPDX-License-Identifier: Apache-2.0
"""bench hotzone: what is in use is gathered in huge pages, what is sparse is not: throughput and memory.

Part "reader": a heap of which every other region of 2 MiB is in use (2 GiB together) and the rest holds one page in
16. It is read at random where it is in use. Part "redis": a redis-server full of keys, of which a client asks any.
Three arms live side by side, of which one runs at a time, in short turns, so that all meet the same neighbours:

    4k         huge pages are switched off for the process (prctl)
    thp        huge pages wherever they fit, as a kernel that gives them always does (MADV_HUGEPAGE; redis: through
               its allocator)
    memsculpt  as the kernel does by itself, without them; its pages are looked at, and HotZone gathers what is hot
"""

import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.pool import HotZone, SculptStats
from memsculpt.domain.settings import Mode, PartitionSettings, Settings
from memsculpt.domain.workload import CgroupPath, Match
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from memsculpt_bench.contract import at_least, at_most, result
from memsculpt_bench.known_pages import built
from memsculpt_bench.lab import Lab, LabUnavailable, open_lab, poll

GIB, MIB = 1 << 30, 1 << 20
ARMS = ("4k", "thp", "memsculpt")
MODES = {"4k": "4k", "thp": "thp", "memsculpt": "plain"}
SPARSE = 16  # one page in so many
LOOKS, LOOK_S = 3, 2.0
TURN_S, TURNS = 0.4, 12
REDIS_KEYS, VALUE_BYTES = 1_000_000, 1024

Say = Callable[[str], None]


@dataclass(slots=True)
class Arm:
    """One arm's processes: all of them stopped but in its turn."""

    name: str
    processes: list["subprocess.Popen[str]"]
    count: Callable[[], int]  # operations so far
    rates: list[float] = field(default_factory=list[float])

    @property
    def pid(self) -> int:
        """Return the process that is measured."""
        return self.processes[0].pid

    def signal(self, what: signal.Signals) -> None:
        """Stop or continue everything."""
        for process in self.processes:
            process.send_signal(what)

    @contextmanager
    def turn(self) -> Generator[None]:
        """Let this arm run."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def measure(self, turn_s: float) -> float:
        """Return operations in a second, in one turn; caches are warm again after its first tenth."""
        with self.turn():
            time.sleep(turn_s / 10)
            before, begin_s = self.count(), time.monotonic()
            time.sleep(turn_s)
            return (self.count() - before) / (time.monotonic() - begin_s)


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Run both parts; return the object that `bench hotzone --json` prints."""
    tell = say or _nothing
    check_machine()
    size_bytes = 256 * MIB if quick else 2 * GIB
    arms: dict[str, dict[str, list[float]]] = {}
    sculpts: list[dict[str, Any]] = []
    for number in range(rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
            program = stack.enter_context(built("sparse"))
            lab = stack.enter_context(open_lab(ARMS))
            # Who is first changes from round to round: it has the first choice of contiguous memory.
            order = ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]
            readers = [start_reader(lab, program, folder, name, size_bytes) for name in order]
            sculpts.append(measure_round(lab, readers, "reader", arms, 1 << 62))
            tell(f"round {number + 1} of {rounds}: {_told(arms, 'reader')}")
    figures = {
        "reader_throughput_over_thp": at_least(0.97, _ratios(arms, "reader", "rate", "memsculpt", "thp")),
        "reader_throughput_over_4k": at_least(
            1.15, _ratios(arms, "reader", "rate", "memsculpt", "4k"), also=size_bytes >= 2 * GIB
        ),
        "reader_resident_over_4k": at_most(1.03, _ratios(arms, "reader", "resident_bytes", "memsculpt", "4k")),
        "reader_thp_resident_over_4k": at_least(1.5, _ratios(arms, "reader", "resident_bytes", "thp", "4k")),
    }
    if shutil.which("redis-server") and shutil.which("redis-benchmark"):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
            lab = stack.enter_context(open_lab(ARMS))
            servers = [start_redis(lab, folder, name, REDIS_KEYS // (10 if quick else 1)) for name in ARMS]
            for number in range(rounds):
                sculpts.append(measure_round(lab, servers, "redis", arms, 1 << 62 if number == 0 else 0))
                tell(f"redis, round {number + 1} of {rounds}: {_told(arms, 'redis')}")
        figures["redis_throughput_over_thp"] = at_least(0.97, _ratios(arms, "redis", "rate", "memsculpt", "thp"))
        figures["redis_resident_over_4k"] = at_most(1.03, _ratios(arms, "redis", "resident_bytes", "memsculpt", "4k"))
    return result("hotzone", rounds, arms, figures, sculpts=sculpts, hot_bytes=size_bytes, sparse=SPARSE)


def check_machine() -> None:
    """Raise LabUnavailable where an arm could not be what it says."""
    text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if "[madvise]" not in text:
        raise LabUnavailable(f"huge pages are given {text.strip()}: this bench needs [madvise], and does not change it")


def start_reader(lab: Lab, program: Path, folder: Path, name: str, size_bytes: int) -> Arm:
    """Start a reader and stop it when its heap is filled."""
    told = folder / name
    told.write_bytes(bytes(4096))
    command = [str(program), str(size_bytes), str(SPARSE), MODES[name], str(told)]
    process = lab.start(name, command, stdout=subprocess.PIPE)
    if process.stdout is None or process.stdout.readline().strip() != "ready":
        raise LabUnavailable(f"the reader did not start (is there memory for three of {size_bytes // MIB} MiB?)")
    with told.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
    arm = Arm(name=name, processes=[process], count=lambda: int(struct.unpack_from("<Q", memory)[0]))
    arm.signal(signal.SIGSTOP)
    return arm


def start_redis(lab: Lab, folder: Path, name: str, keys: int) -> Arm:
    """Start a redis-server, fill it, start a client that asks for any key, and stop both."""
    address = str(folder / f"{name}.sock")
    options = ["--save", "", "--appendonly", "no", "--disable-thp", "yes" if name == "4k" else "no"]
    command = ["redis-server", "--port", "0", "--unixsocket", address, *options, "--dir", str(folder)]
    cpus = sorted(os.sched_getaffinity(0))
    env = {**os.environ, **({"MALLOC_CONF": "thp:always"} if name == "thp" else {})}
    server = lab.start(name, command, cpus={cpus[0]}, stdout=subprocess.DEVNULL, env=env)
    poll(lambda: Path(address).exists(), what="redis-server to listen")
    load = ["redis-benchmark", "-s", address, "-r", str(keys), "-P", "64", "-q"]
    subprocess.run(
        [*load, "-t", "set", "-n", str(3 * keys), "-d", str(VALUE_BYTES)], check=True, stdout=subprocess.DEVNULL
    )
    asking = [*load, "-t", "get", "-n", "2000000000"]
    client = lab.start(name, asking, cpus={cpus[-1]}, stdout=subprocess.DEVNULL)
    arm = Arm(name=name, processes=[server, client], count=lambda: redis_count(address))
    arm.signal(signal.SIGSTOP)
    return arm


def redis_count(address: str) -> int:
    """Return how many commands a server has answered."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        server.sendall(b"INFO stats\r\n")
        told = b""
        while b"total_commands_processed:" not in told or b"\r\n" not in told.partition(b"total_commands_")[2]:
            told += server.recv(1 << 16)
    return int(told.partition(b"total_commands_processed:")[2].split(b"\r\n")[0])


def measure_round(
    lab: Lab, running: list[Arm], part: str, arms: dict[str, dict[str, list[float]]], gather_bytes: int
) -> dict[str, Any]:
    """Have memsculpt gather, then measure all arms in turns; return what the sculpt came to."""
    ours = next(arm for arm in running if arm.name == "memsculpt")
    told = gathered(lab, ours, gather_bytes) if gather_bytes else {}
    rates: Mapping[str, list[float]] = {arm.name: [] for arm in running}
    for number in range(TURNS):
        # Who is first changes, so that nobody is always before or after the same neighbour.
        for arm in running[number % len(running) :] + running[: number % len(running)]:
            rates[arm.name].append(arm.measure(TURN_S))
    for arm in running:
        columns = arms.setdefault(f"{part} {arm.name}", {"rate": [], "resident_bytes": [], "huge_bytes": []})
        columns["rate"].append(median(rates[arm.name]))
        columns["resident_bytes"].append(float(smaps_bytes(arm.pid, "Rss")))
        columns["huge_bytes"].append(float(smaps_bytes(arm.pid, "AnonHugePages")))
    return {"part": part, **told}


def gathered(lab: Lab, ours: Arm, gather_bytes: int) -> dict[str, Any]:
    """Look at a pool while its process runs, and gather what is hot."""
    cgroup = CgroupPath(f"{lab.name}/memsculpt")
    partitions = (PartitionSettings(name="ours", match=Match(cgroup=cgroup)),)
    settings = Settings(mode=Mode.APPLY, partitions=partitions)
    host = open_host(settings)
    try:
        host.watch(partitions)
        return _gathered(host, Sculpting(host, settings), ours, gather_bytes)
    finally:
        host.close()


def _gathered(host: Host, sculpting: Sculpting, ours: Arm, gather_bytes: int) -> dict[str, Any]:
    with ours.turn():
        for _ in range(LOOKS):
            sculpting.look(host.observe())
            time.sleep(LOOK_S)
        sculpting.look(host.observe())
        pool = next(one.pool for one in sculpting.pools() if one.pool.endswith(f"#{ours.pid}") or "#" not in one.pool)
        stats = sculpting.sculpt(pool, HotZone(size_bytes=gather_bytes), host.observe(), may_act=True)
    return facts_of(stats)


def facts_of(stats: SculptStats) -> dict[str, Any]:
    """Return what a sculpt came to, as a plain object."""
    return {
        "reason": stats.reason,
        "collapsed_bytes": stats.collapsed_bytes,
        "resident_before_bytes": stats.resident_before_bytes,
        "resident_after_bytes": stats.resident_after_bytes,
        "huge_after_bytes": stats.huge_after_bytes,
        "longest_run_before_bytes": stats.longest_run_before_bytes,
        "longest_run_after_bytes": stats.longest_run_after_bytes,
        "duration_s": stats.duration_s,
        "cpu_s": stats.cpu_s,
        "problems": dict(stats.problems),
    }


def smaps_bytes(pid: int, name: str) -> int:
    """Return a sum of /proc/PID/smaps_rollup: the kernel's own count, beside what memsculpt says."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LabUnavailable(f"/proc/PID/smaps_rollup has no {name}")


def _ratios(arms: Mapping[str, Mapping[str, list[float]]], part: str, column: str, one: str, other: str) -> list[float]:
    pairs = zip(arms[f"{part} {one}"][column], arms[f"{part} {other}"][column], strict=True)
    return [above / below for above, below in pairs]


def _told(arms: Mapping[str, Mapping[str, list[float]]], part: str) -> str:
    return ", ".join(
        f"{name} {arms[f'{part} {name}']['rate'][-1] / 1e6:.2f} M/s "
        f"in {arms[f'{part} {name}']['resident_bytes'][-1] / MIB:.0f} MiB"
        for name in ARMS
    )


def _nothing(_line: str) -> None:
    return
