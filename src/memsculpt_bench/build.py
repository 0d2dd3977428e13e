# SPDX-License-Identifier: Apache-2.0
"""bench build: how little memory a parallel build needs before it takes longer.

The experiment by which Senpai is known (facebookincubator/senpai, README). The job is that of a build machine:
unpack a C project, configure it, build it with `make -j2`: Debian's kernel source, the parts that a tiny x86 kernel
has no use for left out, `tinyconfig`, and of that `mm/` with what it depends on, as the whole of it takes longer
than two minutes. Arms, interleaved within a round:

    unlimited  nobody manages the job's memory
    fixed      the best fixed limit, found by trying
    reactive   Senpai's rule on PSI (senpai.py; better of two starts, by trying)
    memsculpt  the agent in apply mode, with a partition around the job that is configured to be trimmed

*Held* is the peak of what the kernel charges to the job's cgroup (v1 memory.max_usage_in_bytes, v2 memory.peak):
the processes' memory, page cache, slab. Every arm starts with no page of archive or tree in memory: the archive's are
dropped, the tree is unpacked anew, on a fresh file system (build_disk.py). The job may not swap, in any arm. Tools and
libraries are in memory already, charged elsewhere.
"""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsculpt_bench import build_disk, build_source
from memsculpt_bench.isolation import Agent
from memsculpt_bench.lab import Lab, open_lab
from memsculpt_bench.senpai import Senpai, SenpaiRule

MIB = 1 << 20
JOB = "job"
SETTLE_S = 4.0  # an agent runs before a job comes: its start is none of the job's time; the same in every arm
SAMPLE_S = 0.25
STEP_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of managing the job's memory."""

    name: str
    limit_bytes: int | None = None  # fixed
    senpai_start_at_usage: bool | None = None  # reactive
    senpai_max_bytes: int = 0
    agent: bool = False

    def described(self) -> str:
        """Return the arm with its parameter, for people and as a key."""
        if self.limit_bytes is not None:
            return f"{self.name} {self.limit_bytes // MIB} MiB"
        if self.senpai_start_at_usage is not None:
            return f"{self.name} from {'use' if self.senpai_start_at_usage else f'{self.senpai_max_bytes // MIB} MiB'}"
        return self.name


UNLIMITED = Arm(name="unlimited")
MEMSCULPT = Arm(name="memsculpt", agent=True)


def steps(archive: Path, *, is_quick: bool) -> list[tuple[str, list[str]]]:
    """Return the job's commands in order, by name; they run in the same folder. `is_quick` builds a part."""
    left_out = [f"--exclude={pattern}" for pattern in build_source.LEFT_OUT]
    unpack = ["tar", "-x", "-J", "-f", str(archive), "--strip-components=1", *left_out]
    targets = ["mm/util.o"] if is_quick else ["mm/"]
    return [
        ("unpack", unpack),
        ("configure", ["make", "-s", "tinyconfig"]),
        ("build", ["make", "-s", "-j2", *targets]),
    ]


def run_arm(arm: Arm, archive: Path, *, is_quick: bool) -> dict[str, Any]:
    """Run the job once under one arm and return the raw measurements; `failed` names the step that did."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        tree = stack.enter_context(build_disk.fresh_disk(archive.parent)) / "tree"
        tree.mkdir()
        build_source.warm_tools(folder)
        build_source.drop_from_cache(archive)
        lab = stack.enter_context(open_lab((JOB,)))
        lab.forbid_swap(JOB)
        if arm.limit_bytes is not None:
            lab.limit(arm.limit_bytes, JOB)
        agent = stack.enter_context(Agent(agent_config(lab, folder), folder)) if arm.agent else None
        senpai = _senpai(lab, arm)
        samples: list[dict[str, float]] = []
        took_s: dict[str, float] = {}
        peaks: dict[str, int] = {}
        failed = ""
        time.sleep(SETTLE_S)
        begin_s = time.monotonic()
        with (folder / "output").open("w+") as output:
            for name, command in steps(archive, is_quick=is_quick):
                step_s = time.monotonic()
                process = lab.start(JOB, command, stdout=output.fileno(), stderr=subprocess.STDOUT, cwd=tree)
                _watch(lab, process, senpai, samples, begin_s)
                took_s[name] = time.monotonic() - step_s
                peaks[name] = lab.peak_bytes(JOB)
                if process.returncode != 0:
                    output.seek(0)
                    failed = f"{name}: exit {process.returncode}: {output.read()[-400:]}"
                    break
        reading = lab.read(JOB)
        return {
            "arm": arm.name,
            "parameter": arm.described(),
            "failed": failed,
            "wall_s": sum(took_s.values()),
            "held_peak_bytes": lab.peak_bytes(JOB),
            "step_s": took_s,
            "peak_so_far_bytes": peaks,
            "anon_peak_bytes": max(sample["anon"] for sample in samples),
            "stall_s": reading.some_stall_s,
            "major_faults": reading.major_faults,
            "oom_kills": reading.oom_kills,
            "samples": samples,
            "agent": agent.measure() if agent else None,
        }


def _senpai(lab: Lab, arm: Arm) -> Senpai | None:
    if arm.senpai_start_at_usage is None:
        return None
    rule = SenpaiRule()
    senpai = Senpai(
        lab=lab, tenant=JOB, rule=rule, max_bytes=arm.senpai_max_bytes, start_at_usage=arm.senpai_start_at_usage
    )
    senpai.start()
    return senpai


def _watch(
    lab: Lab, process: "subprocess.Popen[str]", senpai: Senpai | None, samples: list[dict[str, float]], begin_s: float
) -> None:
    """Sample four times a second and tick the reactive rule once, until the step is done."""
    while True:
        at_s = time.monotonic() - begin_s
        if at_s > STEP_TIMEOUT_S:
            process.kill()
        kinds = {name: float(value) for name, value in lab.kinds(JOB).items()}
        samples.append({"at_s": at_s, "used": float(lab.read(JOB).used_bytes), **kinds})
        if senpai is not None and int(at_s) > int(samples[-2]["at_s"] if len(samples) > 1 else 0.0):
            senpai.tick()
        try:
            process.wait(SAMPLE_S)
        except subprocess.TimeoutExpired:
            continue
        return


def agent_config(lab: Lab, folder: Path) -> str:
    """Return the configuration that a user would write for a build machine."""
    return f"""
[agent]
mode = "apply"
interval = "1s"
socket = "{folder}/agent.sock"
state = "{folder}/state"

[[partition]]
name = "build"
match = {{ cgroup = "{lab.name}/{JOB}" }}
trim = true
"""


def summary_of(result: dict[str, Any]) -> str:
    """Return one line of a run for the terminal."""
    steps_s = ", ".join(f"{name} {value:.1f}" for name, value in result["step_s"].items())
    return (
        f"{result['parameter']:<22} {result['wall_s']:.1f} s ({steps_s}), held at most "
        f"{result['held_peak_bytes'] / MIB:.0f} MiB, stalled {result['stall_s']:.2f} s, "
        f"OOM kills {result['oom_kills']}"
        + (f", agent {result['agent']['cpu_s']:.1f} s cpu" if result["agent"] else "")
        + (f", FAILED at {result['failed']}" if result["failed"] else "")
    )


def best_fixed(trials: Sequence[dict[str, Any]], unlimited: dict[str, Any], slower_ratio: float) -> dict[str, Any]:
    """Return the trial of the lowest peak among those that finished in time; if none did, the quickest that finished.

    Raises ValueError when no trial finished.
    """
    finished = [trial for trial in trials if not trial["failed"]]
    if not finished:
        raise ValueError("no trial finished: " + "; ".join(trial["failed"] for trial in trials))
    in_time = [trial for trial in finished if trial["wall_s"] <= slower_ratio * unlimited["wall_s"]]
    if in_time:
        return min(in_time, key=lambda trial: trial["held_peak_bytes"])
    return min(finished, key=lambda trial: trial["wall_s"])
