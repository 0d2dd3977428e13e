# SPDX-License-Identifier: Apache-2.0
"""Growth by function, of programs whose allocations are known."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memsculpt.host import drilldown
from memsculpt.host.bpf.faults import COPY, RECORD, STATE, FaultReader
from memsculpt_bench.known_growth import FREED_BYTES, HELD_BYTES, PYTHON, Worker, recorded
from memsculpt_bench.known_pages import SOURCES

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("page_walk"), pytest.mark.timeout(60)]
MIB = 1 << 20
GROWER = SOURCES / "grower.c"


@pytest.fixture
def run():
    programs = []

    def started(*command):
        programs.append(Worker(command))
        return programs[-1]

    yield started
    for each in programs:
        each.end()


def compiled(folder, source, compiler="cc", flags=("-O2",), suffix=".c"):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    (folder / f"grower{suffix}").write_text(source)
    subprocess.run([compiler, *flags, "-o", folder / "grower", folder / f"grower{suffix}"], check=True)
    return str(folder / "grower")


def by_name(recording):
    from memsculpt.profile.growth import by_function

    return {one.function: one for one in by_function(one for one in recording.stacks if one.kind != "file")}


@pytest.mark.parametrize(("name", "kind"), [("fault_record", RECORD), ("fault_state", STATE), ("stack_copy", COPY)])
def test_the_records_are_what_the_program_writes(name, kind):
    header = (Path(__file__).parents[2] / "native" / "bpf" / "records.h").read_text()
    (body,) = re.findall(rf"struct {name} \{{(.*?)\n\}};", header, re.DOTALL)
    counts = dict(re.findall(r"#define (\w+_WORDS) (\d+)", header))
    fields = re.findall(r"^\t(__[us]\d+) (\w+)(?:\[(\w+_WORDS)\])?;", body, re.MULTILINE)
    kinds = {"__u64": "<u8", "__s32": "<i4", "__u32": "<u4"}
    made = [
        (field, kinds[each], (int(counts[many]),)) if many else (field, kinds[each]) for each, field, many in fields
    ]
    assert np.dtype(made) == kind


@pytest.mark.parametrize("flags", [("-O0",), ("-O2",), ("-O2", "-fno-omit-frame-pointer")], ids=" ".join)
def test_each_function_is_told_within_five_percent(run, tmp_path, flags):
    """With and without frame pointers, in loops, in the C library and in huge pages; what is freed is not held."""
    program = run(compiled(tmp_path, GROWER.read_text(), flags=flags))
    recording = recorded(program)
    found = by_name(recording)
    for name, size_bytes in HELD_BYTES.items():
        assert found[name].held_total_bytes == pytest.approx(size_bytes, rel=0.05), name
    assert found["freed"].total_bytes == pytest.approx(FREED_BYTES, rel=0.05)
    assert found["freed"].held_total_bytes < MIB / 4
    grown = recording.after.own_bytes - recording.before.own_bytes
    held = sum(one.held_bytes for one in recording.stacks if one.kind != "file")
    assert held == pytest.approx(grown, rel=0.01)


def test_sampled_faults_are_scaled_up(run, tmp_path):
    program = run(compiled(tmp_path, GROWER.read_text()))
    recording = recorded(program, every=8)
    assert recording.sampled_every == 8
    assert by_name(recording)["by_memset"].total_bytes == pytest.approx(32 * MIB, rel=0.05)
    assert by_name(recording)["by_loop"].total_bytes == pytest.approx(16 * MIB, rel=0.05)


def test_names_of_cpp_are_as_their_author_wrote_them(run, tmp_path):
    source = (
        "#include <cstdio>\n#include <vector>\nnamespace shop { struct Basket { std::vector<long> held;\n"
        "__attribute__((noinline)) void fill(long n) { held.assign(n, 7); } }; }\n"
        'int main() { shop::Basket b; puts("ready"); fflush(stdout); getchar(); b.fill(4 << 20);\n'
        'puts("done"); fflush(stdout); for (;;) getchar(); }\n'
    )
    program = run(compiled(tmp_path, source, "g++", ("-O1", "-fno-omit-frame-pointer"), ".cc"))
    found = by_name(recorded(program))
    (fill,) = (one for name, one in found.items() if name.startswith("shop::Basket::fill"))
    assert fill.function == "shop::Basket::fill(long)"
    assert fill.total_bytes == pytest.approx(32 * MIB, rel=0.05)


def test_a_python_program_s_growth_is_attributed(run):
    recording = recorded(run(sys.executable, "-c", PYTHON))
    grown = recording.after.own_bytes - recording.before.own_bytes
    assert grown > 45 * MIB
    assert sum(one.held_bytes for one in recording.stacks if one.kind != "file") == pytest.approx(grown, rel=0.05)
    # Debian's interpreter carries few names of its own: then the module is told.
    through_python = [one for one in recording.stacks if any("python3" in module for _, module in one.frames)]
    assert sum(one.held_bytes for one in through_python) == pytest.approx(grown, rel=0.05)


def test_a_jit_s_own_map_gives_names(run, tmp_path):
    """A program that makes code and says its name in /tmp/perf-PID.map, as Python -X perf, Node and the JVM do."""
    source = r"""
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
	/* void made(char *at, long pages): while (pages--) { *at = 1; at += 4096; } */
	static const unsigned char code[] = {0x48, 0x85, 0xf6, 0x74, 0x0f, 0xc6, 0x07, 0x01, 0x48, 0x81, 0xc7, 0x00, 0x10,
		0x00, 0x00, 0x48, 0xff, 0xce, 0xeb, 0xec, 0xc3};
	char *made = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), name[64];
	memcpy(made, code, sizeof(code));
	snprintf(name, sizeof(name), "/tmp/perf-%d.map", getpid());
	FILE *map = fopen(name, "w");
	fprintf(map, "%lx %lx py::made_by_a_jit:program.py\n", (long)made, (long)sizeof(code));
	fclose(map);
	puts("ready"); fflush(stdout); getchar();
	((void (*)(char *, long))made)(mmap(0, 16 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
	puts("done"); fflush(stdout);
	for (;;) getchar();
}
"""
    program = run(compiled(tmp_path, source))
    try:
        found = by_name(recorded(program))
    finally:
        Path(f"/tmp/perf-{program.pid}.map").unlink()
    assert found["py::made_by_a_jit:program.py"].self_bytes == pytest.approx(16 * MIB, rel=0.05)
    assert found["py::made_by_a_jit:program.py"].module == "[jit]"


def test_threads_count_and_children_do_not(run):
    code = (
        "import os, sys, threading\nprint('ready', flush=True)\nkept = []\n"
        "for line in sys.stdin:\n"
        "    one = threading.Thread(target=lambda: kept.append(bytearray(16 << 20)))\n    one.start(); one.join()\n"
        "    if os.fork() == 0:\n        held = bytearray(24 << 20); os._exit(0)\n"
        "    os.wait(); print('done', flush=True)\n"
    )
    recording = recorded(run(sys.executable, "-c", code))
    touched = sum(one.touched_bytes for one in recording.stacks if one.kind != "file")
    assert 16 * MIB <= touched < 20 * MIB


def test_a_process_that_ends_gives_what_was_seen(run, tmp_path):
    program = run(compiled(tmp_path, GROWER.read_text()))
    steps = iter((program.work, lambda: os.kill(program.pid, signal.SIGKILL)))
    recording = drilldown.record_growth(program.pid, for_s=50.0, on_progress=lambda _elapsed_s, _seen: next(steps)())
    assert recording.ended == "the process ended"
    assert recording.after is None
    assert by_name(recording)["by_loop"].total_bytes == pytest.approx(16 * MIB, rel=0.05)


def test_the_command_tells_and_draws(run, tmp_path):
    """The program works once the command shows, on a terminal, that it watches."""
    program = run(compiled(tmp_path, GROWER.read_text()))
    files = {name: tmp_path / f"growth.{name}" for name in ("svg", "html", "speedscope")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "memsculpt", "growth", str(program.pid), "--for", "3s", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as ran:
        os.close(theirs)
        os.read(ours, 4096)
        program.work()
        told = json.loads(ran.communicate()[0])
    os.close(ours)
    assert ran.returncode == 0
    assert told["held_bytes"] == pytest.approx(told["grown_bytes"], rel=0.01)
    assert told["dropped"] == 0
    assert {one["function"] for one in told["functions"]} >= set(HELD_BYTES)
    assert "by_memset" in files["svg"].read_text()
    assert "<table>" in files["html"].read_text()
    profile = json.loads(files["speedscope"].read_text())["profiles"][0]
    assert sum(profile["weights"]) == profile["endValue"]
    assert len(profile["weights"]) == len(profile["samples"])


def test_nothing_is_left_in_the_kernel(run, tmp_path):
    program = run(compiled(tmp_path, GROWER.read_text()))

    def opened():
        return len(os.listdir("/proc/self/fd"))

    drilldown.record_growth(program.pid, for_s=0.05)
    before = opened()
    for _ in range(20):
        drilldown.record_growth(program.pid, for_s=0.01)
    assert opened() == before
    reader = FaultReader()
    reader.watch(program.pid)
    program.work()
    deadline_s = time.monotonic() + 5.0
    while reader.seen_count == 0 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(reader.drain()) > 0
    reader.close()
    reader.close()
    assert opened() == before
