# SPDX-License-Identifier: Apache-2.0
"""Growth of critical workloads, sampled by a running agent, of programs whose allocations are known."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from memsculpt import act, profile, workers
from memsculpt.agent import Agent
from memsculpt.domain.growth import FaultRate
from memsculpt.domain.settings import PartitionSettings, SenseSettings, Settings
from memsculpt.domain.workload import Instance, Match, WorkloadId
from memsculpt.errors import Refused
from memsculpt.host import drilldown, open_host
from memsculpt.host.bpf.samples import RATE, RECORD, SampleReader
from memsculpt.host.linux.code_places import Modules
from memsculpt.host.linux.fault_watch import LinuxFaultWatch
from memsculpt.host.linux.opened import find_instance
from memsculpt.profile.fault_log import is_chosen
from memsculpt.profile.growth import by_function

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("page_walk"), pytest.mark.timeout(120)]
MIB = 1 << 20

# Works off its line in steps, so that a whole core's worth of faults does not come within a moment.
GROWER = r"""
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define NEVER __attribute__((noinline))
#define STEP (256 << 10)
static char *pool, *at;
NEVER void by_loop(long n) { for (long i = 0; i < n; i += 4096) at[i] = 1; __asm__ volatile(""); }
NEVER void by_memset(long n) { memset(at, 1, n); __asm__ volatile(""); }
NEVER void freed(long n) { memset(at, 1, n); madvise(at, n, MADV_DONTNEED); }
NEVER void huge(long n) { for (long i = 0; i < n; i += 4096) at[i] = 1; __asm__ volatile(""); }
static void step(void (*what)(long), long n) { what(n); at += n; usleep(25000); }
int main(void) {
	char line[9];
	long all = 512L << 20;
	pool = mmap(0, all, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(pool, all, MADV_NOHUGEPAGE);
	puts("ready"); fflush(stdout);
	while (fgets(line, 9, stdin)) {
		if (!at) at = pool;
		for (int i = 0; i < 96; i++) {
			step(by_memset, STEP);
			if (i % 2) step(by_loop, STEP);
			if (i % 4 == 0) step(freed, STEP);
		}
		char *keep = at;
		at = mmap(0, 18 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		at = (char *)(((long)at + (2 << 20) - 1) & ~((2L << 20) - 1));
		madvise(at, 16 << 20, MADV_HUGEPAGE);
		for (int i = 0; i < 8; i++) step(huge, 2 << 20);
		at = keep;
		puts("done"); fflush(stdout);
	}
	return 0;
}
"""
EXPECTED_MIB = {"by_memset": 24, "by_loop": 12, "huge": 16}
PYTHON = r"""
import sys, time
print("ready", flush=True)
kept = []
for line in sys.stdin:
    for n in range(64):
        kept.append(bytearray(512 << 10))
        time.sleep(0.03)
    print("done", flush=True)
"""


class Program:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        assert self.process.stdout.readline()

    def work(self):
        self.process.stdin.write("x\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run():
    programs = []

    def started(*command):
        programs.append(Program(command))
        return programs[-1]

    yield started
    for each in programs:
        each.end()


@pytest.fixture
def grower(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    (tmp_path / "grower.c").write_text(GROWER)
    subprocess.run(["cc", "-O2", "-o", tmp_path / "grower", tmp_path / "grower.c"], check=True)
    return str(tmp_path / "grower")


class Running:
    """An agent that ticks in a thread of its own, as `run` has it."""

    def __init__(self, match, budget=0.5):
        settings = Settings(
            partitions=(PartitionSettings(name="critical", match=match, critical=True),),
            sense=SenseSettings(budget_ratio=budget),
        )
        self.host = open_host(settings)
        self.host.watch(settings.partitions)
        self.agent = Agent(host=self.host, settings=settings, looks_beside=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.agent.run, args=(self._stop,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self.host.wake()
        self._thread.join()
        self.agent.close()
        self.host.close()
        assert self.agent.report.failed_count == 0, self.agent.report.last_problem

    def wait_for(self, condition):
        deadline_s = time.monotonic() + 45.0
        while not condition(self.agent.report):
            assert time.monotonic() < deadline_s, self.agent.report.growth
            time.sleep(0.05)
        return self.agent.report

    def watched(self, count=1):
        """Wait until so many processes are watched, one tick after they were."""

        def is_so(report):
            return report.growth is not None and sum(one.process_count for one in report.growth.workloads) >= count

        before = self.wait_for(is_so).tick_count
        return self.wait_for(lambda report: report.tick_count > before)

    def growth(self):
        return self.growth_of(self.agent.report.growth.workloads[0].id)

    def growth_of(self, name):
        found = self.agent.ask_growth(name).result(timeout=10)
        stacks, notes = workers.run(workers.Bounds(), drilldown.name_stacks, found.modules, found.stacks)
        own = [one for one in stacks if one.kind != "file"]
        return found, {one.function: one for one in by_function(own)}, own, notes


@pytest.mark.parametrize(("name", "kind"), [("sample_record", RECORD), ("sample_rate", RATE)])
def test_the_records_are_what_the_program_writes(name, kind):
    header = (Path(__file__).parents[2] / "native" / "bpf" / "records.h").read_text()
    (body,) = re.findall(rf"struct {name} \{{(.*?)\n\}};", header, re.DOTALL)
    sizes = dict(re.findall(r"#define (\w+) (\d+)", header))
    fields = re.findall(r"^\t(__[us]\d+) (\w+)(?:\[(\w+)\])?;", body, re.MULTILINE)
    kinds = {"__u64": "<u8", "__s64": "<i8", "__s32": "<i4", "__u32": "<u4"}
    made = [(field, kinds[each], (int(sizes[many]),)) if many else (field, kinds[each]) for each, field, many in fields]
    assert np.dtype(made) == kind


def test_each_function_is_told_within_five_percent_where_every_page_is_recorded(run, grower):
    program = run(grower)
    with Running(Match(pid=program.pid)) as running:
        running.watched()
        program.work()
        sample, found, own, _ = running.growth()
    assert sample.sampled_every == 1
    assert sample.dropped_count < 0.01 * sample.seen_count
    for name, size_mib in EXPECTED_MIB.items():
        assert found[name].total_bytes == pytest.approx(size_mib * MIB, rel=0.05), name
        assert found[name].held_total_bytes == pytest.approx(size_mib * MIB, rel=0.05), name
        assert found[name].total_error_bytes == 0
    assert found["freed"].total_bytes == pytest.approx(6 * MIB, rel=0.05)
    assert found["freed"].held_total_bytes < MIB / 4
    assert sum(one.held_bytes for one in own) == pytest.approx(sample.grown_bytes, rel=0.05)


def test_a_python_program_s_growth_is_attributed(run):
    program = run(sys.executable, "-I", "-S", "-c", PYTHON)
    with Running(Match(pid=program.pid)) as running:
        running.watched()
        program.work()
        sample, _, own, _ = running.growth()
    assert sample.grown_bytes == pytest.approx(32 * MIB, rel=0.05)
    through_python = [one for one in own if any("python3" in module for _, module in one.frames)]
    assert sum(one.held_bytes for one in through_python) == pytest.approx(32 * MIB, rel=0.05)


def test_of_one_page_in_eight_the_estimate_is_within_its_error(run, grower):
    program = run(grower)
    settings = (PartitionSettings(name="critical", match=Match(pid=program.pid), critical=True),)
    host = open_host(Settings(partitions=settings))
    sampler = act.FaultSampler(host, beside=True)
    try:
        host.watch(settings)
        wide = SenseSettings(budget_ratio=0.5)
        state, rates = profile.choose_fault_rates(
            profile.SamplingState(), host.observe(), settings, wide, agent_ratio=0.0
        )
        (process,) = rates
        sampler.watch({process: FaultRate(shift=3, refill=1 << 30)}, host.now_s())
        program.work()
        program.work()
        now_s = host.now_s()
        state = profile.absorb_faults(state, sampler.collect(), now_s=now_s, record_cost_s=0.0, pass_cost_s=0.0)
        name = state.processes[process].workload
        held = sampler.count_held(profile.page_owners(state, name), len(state.log.events))
        sample = profile.estimate_growth(state, name, held, sampler.modules(), now_s=now_s)
    finally:
        sampler.close()
        host.close()
    stacks, _ = drilldown.name_stacks(sample.modules, sample.stacks)
    found = {one.function: one for one in by_function(stacks)}
    assert sample.sampled_every == 8
    for name, size_mib in {"by_memset": 48, "by_loop": 24}.items():
        error = found[name].total_error_bytes
        assert error < 0.25 * size_mib * MIB
        # Twice the error: one run in ten thousand is beyond, not one in twenty.
        assert found[name].total_bytes == pytest.approx(size_mib * MIB, abs=2.0 * error), name
        held_error = 2.0 * found[name].held_total_error_bytes
        assert found[name].held_total_bytes == pytest.approx(size_mib * MIB, abs=held_error), name
    assert found["freed"].held_total_bytes < MIB


FLOOD = r"""
#include <stdio.h>
#include <sys/mman.h>
int main(void) {
	puts("ready"); fflush(stdout);
	for (;;) {
		char *p = mmap(0, 8 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		madvise(p, 8 << 20, MADV_NOHUGEPAGE);
		for (long i = 0; i < 8 << 20; i += 4096) p[i] = 1;
		munmap(p, 8 << 20);
	}
}
"""


@pytest.fixture
def flood(tmp_path):
    (tmp_path / "flood.c").write_text(FLOOD)
    subprocess.run(["cc", "-O2", "-o", tmp_path / "flood", tmp_path / "flood.c"], check=True)
    return str(tmp_path / "flood")


def test_a_flood_of_faults_is_sampled_more_coarsely(run, flood):
    """As many faults as a core can have, at once: the step grows, and what is told is still true."""
    program = run(flood)
    with Running(Match(pid=program.pid)) as running:
        running.watched()
        report = running.wait_for(lambda report: report.growth.workloads[0].sampled_every >= 8)
        assert report.growth.is_on
        sample, found, _, _ = running.growth()
    assert found["main"].total_bytes > MIB
    assert found["main"].held_total_bytes <= 9 * MIB + 2 * found["main"].held_total_error_bytes
    assert sample.sampled_every >= 8


def test_beyond_the_budget_it_is_switched_off_and_said(run, flood):
    """Merely passing our program costs more than the little that is allowed."""
    program = run(flood)
    with Running(Match(pid=program.pid), budget=0.001) as running:
        report = running.wait_for(lambda report: report.growth is not None and not report.growth.is_on)
        report = running.wait_for(lambda report: any("switched off for 5 min" in note for note in report.notes))
        assert report.growth.workloads == ()
        with pytest.raises(Refused):
            running.agent.ask_growth(WorkloadId("no such")).result(timeout=10)


def test_processes_come_and_go_and_nothing_is_left_behind(run, grower):
    """Neither descriptors nor mappings, in the agent and in the kernel's table; dead ones hold nothing."""

    def leftovers():
        names = []
        for one in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # of the listing itself
                names.append(os.readlink(f"/proc/self/fd/{one}"))
        ours = sorted(name for name in names if "bpf" in name or "perf" in name or "grower" in name)
        return ours, Path("/proc/self/maps").read_text().count("bpf-map")

    def is_nobody(report):
        return sum(one.process_count for one in report.growth.workloads) == 0

    before, meanwhile = leftovers(), []
    with Running(Match(exe=grower)) as running:
        for _ in range(3):
            programs = [run(grower) for _ in range(4)]
            running.watched(4)
            for one in programs:
                one.end()
            running.wait_for(is_nobody)
            meanwhile.append(leftovers())
        assert meanwhile[1] == meanwhile[2]
        last = run(grower)
        running.watched(1)
        last.work()
        last.end()
        running.wait_for(is_nobody)
        _, found, _, _ = running.growth_of(f"exe:{grower}")
        assert found["by_memset"].total_bytes == pytest.approx(24 * MIB, rel=0.05)
        assert found["by_memset"].held_total_bytes == 0
    assert leftovers() == before


def test_the_kernel_chooses_the_pages_that_we_compute(run, grower):
    program = run(grower)
    process = find_instance(program.pid)
    watch = LinuxFaultWatch(Modules())
    try:
        watch.watch({process: FaultRate(shift=4, refill=1 << 30)})
        found = []
        stop = threading.Event()

        def drain():
            while not stop.wait(0.02):
                found.append(watch.drain())

        thread = threading.Thread(target=drain)
        thread.start()
        program.work()
        stop.set()
        thread.join()
        found.append(watch.drain())
    finally:
        watch.close()
    pages = np.concatenate([one.page for one in found])
    assert len(pages) > 100
    assert is_chosen(pages, process.start_ticks, 4).all()
    seen = found[-1].counts[process].seen_count
    assert len(pages) == pytest.approx(seen / 16, rel=0.3)


def test_a_pid_that_is_used_again_is_somebody_else(run, grower):
    program = run(grower)
    process = find_instance(program.pid)
    reader = SampleReader()
    try:
        reader.attach()
        reader.watch(process.pid, process.start_ticks + 1, 0, 1 << 30)
        program.work()
        assert len(reader.drain()) == 0
        assert reader.counted(process.pid).seen_count > 0
    finally:
        reader.close()
        reader.close()


def test_a_burst_is_thinned_out_in_the_kernel(run, grower):
    """After so many records one page in twice as many is recorded, and so on: a burst costs a few refills at most."""
    program = run(grower)
    process = find_instance(program.pid)
    reader = SampleReader()
    try:
        reader.attach()
        reader.watch(process.pid, process.start_ticks, 0, 50)
        program.work()
        counted = reader.counted(process.pid)
        records = reader.drain()
    finally:
        reader.close()
    assert counted.seen_count > 5000
    assert counted.shift >= 5
    assert len(records) <= 50 * (counted.shift + 1)
    assert np.all(np.diff(records["shift"].astype(np.int64)) >= 0)
    assert counted.dropped_count == 0


def test_what_is_held_of_whom_has_ended_is_nothing():
    watch = LinuxFaultWatch(Modules())
    try:
        gone = Instance(pid=(1 << 22) + 5, start_ticks=1)
        watch.watch({gone: FaultRate(shift=0, refill=8)})
        assert watch.count_held(gone, np.array([1, 2]), np.array([1, 512])).tolist() == [0, 0]
        assert len(watch.drain().page) == 0
    finally:
        watch.close()
