# SPDX-License-Identifier: Apache-2.0
"""bench sense: are touched pages found, all of them and no others, and what does looking cost, and whom.

Parts, each with its own programs (tenants/toucher.c, tenants/reader.c), rounds interleaved:

    exactness   memory whose touched pages are known: strided, random, huge, shared, a file, swapped, and a program that
                reads 40 or 200 pages for ever without leaving its processor; recall and precision page by page
    cost        walk and decode per GiB, beside smaps and clear_refs
    counters    all processes, 1,000 of them asleep: the kernel's own list, /proc, psutil (where it is installed)
    slowdown    a program that reads at random over all its memory: alone, and while an agent looks at it with the
                default budget; throughput, 99.9th percentile, and what the agent took
    growth      memory by function, of programs whose allocations are known (sense_growth.py)
    leaks       descriptors, BPF objects and memory after 10,000 scans and 1,000 processes (sense_leaks.py)
    guest       DAMON beside the walker, in a guest whose kernel has it (sense_guest.py); not with --quick
"""

import importlib
import importlib.util
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.agent import Agent
from memsculpt.domain.arrays import Bool
from memsculpt.domain.settings import PartitionSettings, SenseSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.errors import MemsculptError
from memsculpt.host import open_host, sources
from memsculpt.host.protocol import Host, PageReader, PageSource
from memsculpt_bench import sense_growth, sense_guest, sense_leaks
from memsculpt_bench.contract import Figure, at_least, at_most, result
from memsculpt_bench.known_pages import Found, Toucher, built, compare, toucher
from memsculpt_bench.lab import LabUnavailable, zram_swap

GIB = 1 << 30
PAGE = 4096
SLEEPERS = 1000
HISTOGRAM_ROWS, STEPS = 64 * 32, 32
# After a clear bits are noted soon and then often, as `heat` does it: others clear them, too.
LOOKS_S = (0.002, 0.01, 0.03, 0.05)
LOOK_S = 0.02
BEST_OF = 3
GUEST_ROUNDS = 2  # an emulated processor is slow


def run(rounds: int = 5, *, quick: bool = False, say: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Run all parts and return the object that `bench sense --json` prints. Raises LabUnavailable."""
    if os.geteuid() != 0:
        raise LabUnavailable("reading page tables needs root")
    sizes_gib = (1,) if quick else (4, 16)
    needed = (max(sizes_gib) + 2) * GIB
    available = _available_bytes()
    if available < needed:
        raise LabUnavailable(f"needs {needed >> 30} GiB of free memory, has {available >> 30}; try --quick")
    try:
        choice = sources.open_source()
    except MemsculptError as error:
        raise LabUnavailable(str(error)) from error
    arms: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    try:
        if choice.source.name != "bpf":
            raise LabUnavailable(f"the best source here is {choice.source.name}: see `memsculpt doctor`")
        arms["exactness"] = _exactness(choice.source, rounds, 1 if quick else 4, say)
        figures |= _exactness_figures(arms["exactness"])
        arms["cost"] = _cost(choice.source, rounds, 1 if quick else 4, say)
        figures["walk_decode_ms_per_gib"] = at_most(1.2, arms["cost"]["bpf"]["read_ms_per_gib"])
    finally:
        choice.source.close()
    arms["counters"] = _counters(rounds, say)
    figures["counters_1000_ms"] = at_most(1.0, arms["counters"]["bpf"]["taken_ms"])
    ratios = [
        slow / fast
        for slow, fast in zip(
            arms["counters"].get("psutil", {}).get("cpu_ms", []), arms["counters"]["bpf"]["cpu_ms"], strict=False
        )
    ]
    figures["psutil_cpu_over_ours"] = at_least(50.0, ratios)
    arms["growth"] = sense_growth.measure(rounds, say)
    figures |= sense_growth.figures(arms["growth"])
    arms["leaks"] = sense_leaks.measure(say, quick=quick)
    figures |= sense_leaks.figures(arms["leaks"])
    if not quick:
        arms["guest"] = _guest(min(rounds, GUEST_ROUNDS), say)
    for gib in sizes_gib:
        found = _slowdown(gib, rounds, 20.0 if quick else 60.0, say)
        arms[f"slowdown_{gib}gib"] = found
        figures[f"throughput_loss_{gib}gib"] = at_most(0.01, found["loss"])
        figures[f"p999_rise_{gib}gib"] = at_most(0.05, found["p999_rise"])
        figures[f"sensing_cpu_{gib}gib"] = at_most(0.01, found["sensing_cpu"])
    return result("sense", rounds, arms, figures)


def _guest(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what was measured in a guest, or why there is none: no figure rests on it."""
    try:
        return sense_guest.measure(rounds, say)
    except LabUnavailable as error:
        say(f"guest: left out, {error}")
        return {"left_out": str(error)}


def _exactness(source: PageSource, rounds: int, gib: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return recall and precision by pattern; what is right and wrong is added up over the rounds."""
    pages = gib * GIB // PAGE
    chance = np.random.default_rng(17)
    third = np.arange(pages) % 3 == 0
    random = chance.random(pages) < 0.3
    patterns: dict[str, tuple[str, Bool, str]] = {
        "strided": ("private", third, "t"),
        "random": ("private", random, "t"),
        "written": ("private", random, "w"),
        "huge": ("huge", np.arange(pages) // 512 % 2 == 0, "t"),
        "shared": ("shared", random, "t"),
        "file": ("file", third, "t"),
        "swapped": ("private", third, "t"),
        "spin_40": ("private", np.arange(pages) < 40, "s"),
        "spin_200": ("private", np.arange(pages) < 200, "s"),
    }
    told: dict[str, Any] = {}
    smaps = sources.open_source("smaps").source
    with built("toucher") as program:
        for name, (kind, marked, how) in patterns.items():
            if name == "file" and gib * GIB > _free_disk_bytes() // 2:
                say(f"exactness, {name}: left out, no room for a file of {gib} GiB")
                continue
            found: list[Found] = []
            cpus = {max(os.sched_getaffinity(0))} if how == "s" else None
            with ExitStack() as stack:
                host: Host | None = None
                if name == "swapped":
                    stack.enter_context(zram_swap(gib * GIB))
                    host = open_host(Settings())
                    stack.callback(host.close)
                one = stack.enter_context(toucher(program, kind, pages, cpus))
                if how == "s":
                    one.touch(marked, how)
                reader = source.open(sources.find_process(one.pid))
                slow = stack.enter_context(closing(smaps.open(sources.find_process(one.pid))))
                referenced: list[int] = []
                for _ in range(rounds):
                    found.append(_round(reader, one, marked, how, host))
                    referenced.append(_referenced(slow, one))
                reader.close()
            told[name] = {
                "recall": [each.recall for each in found],
                "precision": [each.precision for each in found],
                "touched": found[0].touched,
                "missed": [each.touched - each.right for each in found],
                "wrong": [each.wrong for each in found],
                "smaps_referenced_pages": referenced,
            }
            say(f"exactness, {name}: recall {min(told[name]['recall']):.5f} at worst, wrong {max(told[name]['wrong'])}")
    return told


def _round(reader: PageReader, one: Toucher, marked: Bool, how: str, host: Host | None) -> Found:
    if host is not None:
        host.page_out(sources.find_process(one.pid), one.pages * PAGE // 2)
    reader.clear()
    if how == "s":
        for pause_s in LOOKS_S:
            time.sleep(pause_s)
            reader.look()
    else:
        touching = threading.Thread(target=one.touch, args=(marked, how))
        touching.start()
        while touching.is_alive():
            touching.join(LOOK_S)
            reader.look()
    return compare(reader.read(), one.address, marked)


def _referenced(slow: PageReader, one: Toucher) -> int:
    """Return how many pages of the program's memory smaps counts as referenced: how many, not which."""
    touches = slow.read([(one.address, one.address + one.pages * PAGE)])
    return int(touches.touched.sum())


def _exactness_figures(told: dict[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, one in told.items():
        figures[f"recall_{name}"] = at_least(0.999, one["recall"])
        figures[f"precision_{name}"] = at_least(1.0, one["precision"])
    return figures


def _cost(source: PageSource, rounds: int, gib: int, say: Callable[[str], None]) -> dict[str, Any]:
    told: dict[str, dict[str, list[float]]] = {
        "bpf": {"read_ms_per_gib": [], "clear_ms_per_gib": []},
        "smaps": {"read_ms_per_gib": [], "clear_ms_per_gib": []},
    }
    slow = sources.open_source("smaps").source
    with built("toucher") as program, toucher(program, "private", gib * GIB // PAGE) as one:
        process = sources.find_process(one.pid)
        readers = {"bpf": source.open(process), "smaps": slow.open(process)}
        readers["bpf"].look()  # the pages of what is shared with the kernel come with the first walk
        for _ in range(rounds):
            for name, reader in readers.items():
                work = reader.look if name == "bpf" else reader.read
                told[name]["read_ms_per_gib"].append(_milliseconds(work) / gib)
                told[name]["clear_ms_per_gib"].append(_milliseconds(reader.clear) / gib)
        for reader in readers.values():
            reader.close()
    slow.close()
    ours, theirs = (median(told[name]["read_ms_per_gib"]) for name in ("bpf", "smaps"))
    say(f"cost: {ours:.2f} ms per GiB, smaps {theirs:.1f}")
    return told


def _milliseconds(work: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    work()
    return (time.perf_counter() - begin_s) * 1e3


def _counters(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    from memsculpt.host.bpf import TaskReader

    tasks = TaskReader()
    arms: dict[str, Callable[[], object]] = {"bpf": tasks.read, "proc": _read_proc}
    if importlib.util.find_spec("psutil") is not None:
        psutil: Any = importlib.import_module("psutil")
        names = ["pid", "memory_info", "cpu_times", "io_counters", "create_time"]
        arms["psutil"] = lambda: [one.info for one in psutil.process_iter(names)]
    else:
        say("counters: psutil is not installed here, so its arm is left out (pip install psutil)")
    told: dict[str, Any] = {name: {"taken_ms": [], "cpu_ms": []} for name in arms}
    sleepers: list[subprocess.Popen[bytes]] = []
    try:
        sleepers.extend(subprocess.Popen(["sleep", "1000"]) for _ in range(SLEEPERS))
        for work in arms.values():
            work()
        for _ in range(rounds):
            for name, work in arms.items():
                tries = [_taken(work) for _ in range(BEST_OF)]
                told[name]["taken_ms"].append(min(taken for taken, _ in tries))
                told[name]["cpu_ms"].append(min(cpu for _, cpu in tries))
    finally:
        for one in sleepers:
            one.kill()
        for one in sleepers:
            one.wait()
        tasks.close()
    say("counters: " + ", ".join(f"{name} {median(one['taken_ms']):.2f} ms" for name, one in told.items()))
    return told


def _taken(work: Callable[[], object]) -> tuple[float, float]:
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - begin_s) * 1e3, (time.process_time() - cpu_s) * 1e3


def _read_proc() -> int:
    read = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            for file in ("stat", "statm", "io"):
                try:
                    read += len(Path(f"/proc/{name}/{file}").read_bytes())
                except OSError:  # ended between listing and reading
                    break
    return read


def _slowdown(gib: int, rounds: int, for_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Return, by round, what the reader loses while an agent looks at it."""
    told: dict[str, Any] = {"alone": [], "sensed": [], "loss": [], "p999_rise": [], "sensing_cpu": [], "agent_cpu": []}
    with built("reader") as program, _reader(program, gib * GIB) as (pid, histogram):
        for number in range(rounds):
            pair: dict[str, dict[str, float]] = {}
            order = ("alone", "sensed") if number % 2 == 0 else ("sensed", "alone")
            for arm in order:
                with _agent(pid, 0.01 if arm == "sensed" else 0.0, for_s) as agent:
                    agent.settle()
                    before, begin_s = histogram.copy(), time.perf_counter()
                    used = agent.measure()
                    taken_s = time.perf_counter() - begin_s
                pair[arm] = {**_percentiles(histogram - before, taken_s), **used}
                told[arm].append(pair[arm])
            alone, sensed = pair["alone"], pair["sensed"]
            told["loss"].append(1.0 - sensed["ops_per_s"] / alone["ops_per_s"])
            told["p999_rise"].append(sensed["p999_ns"] / alone["p999_ns"] - 1.0)
            # What the agent takes more for it, and what it makes the program pay.
            told["sensing_cpu"].append(sensed["agent_ratio"] - alone["agent_ratio"] + sensed["paid_ratio"])
            told["agent_cpu"].append(sensed["agent_ratio"])
            say(
                f"slowdown at {gib} GiB: throughput {-100 * told['loss'][-1]:+.2f} %, p99.9 "
                f"{100 * told['p999_rise'][-1]:+.1f} %, sensing {100 * told['sensing_cpu'][-1]:.2f} % of a core "
                f"({100 * sensed['paid_ratio']:.2f} % of it the program's), "
                f"looked at {100 * sensed['covered_ratio']:.0f} %"
            )
    return told


@contextmanager
def _reader(program: Path, size_bytes: int) -> Generator[tuple[int, npt.NDArray[np.uint64]]]:
    """Start the reader and wait until it has filled its memory; yield its pid and its histogram."""
    with tempfile.NamedTemporaryFile(prefix="memsculpt-lab-") as file:
        file.truncate(HISTOGRAM_ROWS * 8)
        histogram = np.memmap(file.name, np.uint64, "r", shape=(HISTOGRAM_ROWS,))
        process = subprocess.Popen([str(program), str(size_bytes), file.name], stdout=subprocess.PIPE)
        try:
            if process.stdout is None or not process.stdout.readline():
                raise LabUnavailable(f"the reader could not get {size_bytes >> 30} GiB")
            yield process.pid, histogram
        finally:
            process.kill()
            process.communicate()


class _Watching:
    """An agent on the reader, ticking in this thread."""

    def __init__(self, agent: Agent, for_s: float) -> None:
        self._agent, self._for_s, self._never = agent, for_s, threading.Event()

    def settle(self) -> None:
        """Let it find its feet: libraries, the first survey, the first turns."""
        self._agent.run(self._never, 5.0)

    def measure(self) -> dict[str, float]:
        """Let it run; return what it took."""
        begin_s, cpu_s = time.perf_counter(), time.process_time()
        self._agent.run(self._never, self._for_s)
        taken_s = time.perf_counter() - begin_s
        heat = self._agent.report.heat
        covered = float(heat.covered_ratio.mean()) if heat is not None and len(heat.ids) else 0.0
        return {
            "agent_ratio": (time.process_time() - cpu_s) / taken_s,
            "sensing_ratio": heat.spent_ratio if heat is not None else 0.0,
            "paid_ratio": heat.paid_ratio if heat is not None else 0.0,
            "covered_ratio": covered,
        }


@contextmanager
def _agent(pid: int, budget_ratio: float, for_s: float) -> Generator[_Watching]:
    partition = PartitionSettings(name="reader", match=Match(pid=pid))
    settings = Settings(partitions=(partition,), sense=SenseSettings(budget_ratio=budget_ratio))
    host = open_host(settings)
    try:
        host.watch(settings.partitions)
        agent = Agent(host=host, settings=settings, looks_beside=True)
        try:
            yield _Watching(agent, for_s)
        finally:
            agent.close()
    finally:
        host.close()


def _percentiles(counts: npt.NDArray[np.uint64], taken_s: float) -> dict[str, float]:
    sums = np.cumsum(counts)
    whole = int(sums[-1])
    values = np.array([_value_of(row) for row in range(HISTOGRAM_ROWS)])

    def at(share: float) -> float:
        # Within a step of the histogram, in proportion: a step is 3 %, and a bar is 5 %.
        row = int(np.searchsorted(sums, whole * share))
        below = float(sums[row - 1]) if row else 0.0
        within = (whole * share - below) / max(1.0, float(counts[row]))
        return float(values[row] + within * (values[min(row + 1, HISTOGRAM_ROWS - 1)] - values[row]))

    return {"ops_per_s": whole / taken_s, "p50_ns": at(0.5), "p999_ns": at(0.999), "p9999_ns": at(0.9999)}


def _value_of(row: int) -> float:
    octave, step = divmod(row, STEPS)
    return float(row) if octave < 5 else float((1 << octave) + (step << (octave - 5)))


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _free_disk_bytes() -> int:
    told = os.statvfs(tempfile.gettempdir())
    return told.f_bavail * told.f_frsize
