# SPDX-License-Identifier: Apache-2.0
"""bench phases: a program that uses its working sets in turn, under a limit that holds one set and not both.

Arms, interleaved within a round:

    roomy      no limit: what can be reached at best
    kernel     the limit, no management
    readahead  the limit, and the program itself advises MADV_WILLNEED on a whole set when its turn begins. That is the
               largest readahead the kernel can be asked for. (vm.page-cluster is no arm: it holds for the whole
               machine, and the kernel reads nothing ahead from compressed memory, which answers at once.)
    replay     the limit, and once a phase has begun all that its last occurrence touched is brought back: record and
               replay, without a model
    memsculpt  the limit, and the learner, from nothing
    oracle     the limit, and the same mover told which set is next as soon as the last turn has ended

The program runs on one processor, whoever manages it on the other. A round's figures leave out the first three periods.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.phases import Prediction, Sign, Upcoming
from memsculpt.domain.settings import Settings
from memsculpt.host import open_host
from memsculpt.profile import phase_outlook, slots
from memsculpt.profile.phases import PhaseState
from memsculpt_bench import tenants as tenants_package
from memsculpt_bench.lab import Lab, open_lab, zram_swap
from memsculpt_bench.phase_driver import BLOCK_BYTES, Driver, Foresee, instance_of, learnt

MIB = 1 << 20
PAGE = 4096
PROGRAM = Path(tenants_package.__file__).parent / "phases.py"
TENANT_CPU, MANAGER_CPU = {1}, {0}
LATE_PERIOD = 3
SLACK_BYTES = 6 * MIB  # is left free below the limit by whoever brings back
OVERTIME_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is run, in every arm alike."""

    habit: str = "random"
    set_bytes: int = 128 * MIB
    sets: int = 2
    limit_bytes: int = 248 * MIB  # a set, interpreter and numpy (40 MiB), and half of the other set
    touches: int = 10_000_000
    slot_s: float = 2.5
    jitter: float = 0.08
    periods: int = 8
    swap_bytes: int = 2048 * MIB

    @property
    def turns(self) -> int:
        """Return how many turns the program takes."""
        return self.periods * self.sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of managing the program's memory."""

    name: str
    limited: bool = True
    willneed: bool = False
    foresee: Foresee | None = None
    told: bool = False  # oracle


ROOMY = Arm(name="roomy", limited=False)
KERNEL = Arm(name="kernel")
READAHEAD = Arm(name="readahead", willneed=True)
REPLAY = Arm(name="replay", foresee=phase_outlook.replay)
MEMSCULPT = Arm(name="memsculpt", foresee=learnt)
ORACLE = Arm(name="oracle", told=True)
ARMS = (ROOMY, KERNEL, READAHEAD, REPLAY, MEMSCULPT, ORACLE)


class Program:
    """The program, and the lines that it has printed so far."""

    def __init__(self, lab: Lab, tenant: str, scenario: Scenario, seed: int, *, willneed: bool) -> None:
        options = {
            "--habit": scenario.habit,
            "--bytes": scenario.set_bytes,
            "--sets": scenario.sets,
            "--turns": scenario.turns,
            "--touches": scenario.touches,
            "--slot-s": scenario.slot_s,
            "--jitter": scenario.jitter,
            "--seed": seed,
        }
        words = [str(word) for option in options.items() for word in option] + ["--willneed"] * willneed
        self.process = lab.start(
            tenant, [sys.executable, str(PROGRAM), *words], cpus=TENANT_CPU, stdout=subprocess.PIPE
        )
        self.turns: list[dict[str, Any]] = []
        self._besides: Int64 = np.empty(0, np.int64)
        ready = self._line()
        # None: it ended (was killed) while it built its sets.
        self.sets: list[tuple[int, int]] | None = [(at, size) for at, size in ready["sets"]] if ready else None
        self._reader = threading.Thread(target=self._read, name="turns", daemon=True)
        self._reader.start()

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended, one way or the other."""
        return self.process.poll() is not None

    def finish(self) -> None:
        """Take what it has printed to the end."""
        self._reader.join(timeout=5.0)

    def told(self, state: PhaseState, now_s: float) -> Prediction:
        """Foresee as somebody who knows the program: after a turn comes the next set, at once."""
        sets = self.sets or []
        following = (self.turns[-1]["set"] + 1) % len(sets) if self.turns else 0
        at, size = sets[following]
        blocks = np.arange(at // BLOCK_BYTES, -(-(at + size) // BLOCK_BYTES), dtype=np.int64)
        one = Upcoming(
            phase=following,
            sign=Sign.PERIOD,
            probability=1.0,
            onset_s=(now_s, now_s, now_s),
            dwell_s=5.0,
            blocks=blocks,
            block_probability=np.ones(len(blocks), np.float32),
        )
        # Only other sets may leave: what is touched besides (interpreter, numpy) is always needed.
        touched = slots.numbers_where(state.slots, slots.flags_of(state.touched_before) > 0)
        low, high = min(at for at, _ in sets) // BLOCK_BYTES, max(at + size for at, size in sets) // BLOCK_BYTES
        self._besides = np.union1d(self._besides, touched[(touched < low) | (touched > high)])
        return Prediction(at_s=now_s, within_s=0.0, upcoming=(one,), in_use=self._besides)

    def _line(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise ValueError("the program has no output")
        text = self.process.stdout.readline()
        return json.loads(text) if text.endswith("\n") else {}

    def _read(self) -> None:
        while line := self._line():
            self.turns.append(line)


def run_arm(arm: Arm, scenario: Scenario, seed: int) -> dict[str, Any]:
    """Run one arm once and return its raw measurements."""
    with ExitStack() as stack:
        stack.enter_context(zram_swap(scenario.swap_bytes))
        lab = stack.enter_context(open_lab(("program",)))
        if arm.limited:
            lab.limit(scenario.limit_bytes)
        before = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, before)
        program = Program(lab, "program", scenario, seed, willneed=arm.willneed)
        os.sched_setaffinity(0, MANAGER_CPU & before or before)
        foresee = program.told if arm.told else arm.foresee
        driver = None
        if foresee is not None and program.sets is not None:
            host = open_host(Settings())
            stack.callback(host.close)
            driver = Driver(
                host, instance_of(program.process.pid), lambda: _room(lab, scenario), foresee, doubts=not arm.told
            )
            stack.callback(driver.close)
        deadline_s = time.monotonic() + scenario.slot_s * (scenario.turns + 1) + OVERTIME_S
        began_s = time.monotonic()
        while not program.is_over and time.monotonic() < deadline_s:
            if driver is not None:
                driver.step()
            time.sleep(0.01)
        elapsed_s = time.monotonic() - began_s
        is_late = not program.is_over
        if is_late:
            program.process.kill()
            program.process.wait()
        program.finish()
        return _result(arm, scenario, seed, lab, program, driver, elapsed_s, is_late=is_late)


def _room(lab: Lab, scenario: Scenario) -> int:
    return scenario.limit_bytes - SLACK_BYTES - lab.used_bytes()


def _result(
    arm: Arm,
    scenario: Scenario,
    seed: int,
    lab: Lab,
    program: Program,
    driver: Driver | None,
    elapsed_s: float,
    *,
    is_late: bool,
) -> dict[str, Any]:
    reading = lab.read("program")
    late = [turn for turn in program.turns if turn["turn"] >= LATE_PERIOD * scenario.sets]
    late_s = min((turn["start_s"] for turn in late), default=float("inf")) - scenario.slot_s / 2
    judged = [one for one in (driver.judged if driver else []) if one.at_s >= late_s]
    brought = sum(one.blocks for one in judged)
    used = sum(one.outcome.precision * one.blocks for one in judged)
    faults = sum(turn["major_faults"] for turn in late)
    pages = used * BLOCK_BYTES / PAGE
    return {
        "arm": arm.name,
        "seed": seed,
        "turns": program.turns,
        "late_turn_s": [turn["end_s"] - turn["start_s"] for turn in late],
        "missing_turns": scenario.turns - len(program.turns),
        "late_major_faults": faults,
        "late_cpu_s": sum(turn["cpu_s"] for turn in late),
        "ended_with": program.process.poll(),  # minus nine: killed
        "oom_kills": max(reading.oom_kills, int(program.process.poll() == -signal.SIGKILL and not is_late)),
        "swapped_bytes": reading.swapped_bytes,
        "precision": used / brought if brought else None,
        # A page that was needed and not there is a major fault: swap on compressed memory reads nothing ahead.
        "recall": pages / (pages + faults) if brought else None,
        "timeliness": median([one.outcome.timeliness for one in judged]) if judged else None,
        "prefetches": [
            {
                "at_s": one.at_s,
                "sign": one.sign,
                "blocks": one.blocks,
                "precision": one.outcome.precision,
                "timeliness": one.outcome.timeliness,
            }
            for one in (driver.judged if driver else [])
        ],
        "moved_bytes": driver.moved_bytes if driver else 0,
        "manager_cpu_ratio": driver.cpu_s / elapsed_s if driver else 0.0,
        "manager_cpu_s": driver.cpu_s if driver else 0.0,
        "looks": driver.looks if driver else 0,
        "phases_known": len(driver.state.phases) if driver else 0,
    }


def summary_of(result: Mapping[str, Any]) -> str:
    """Return one line of a round for the terminal."""
    turns = result["late_turn_s"]
    text = (
        f"{result['arm']:<10} late turn {median(turns) if turns else float('nan'):.3f} s, "
        f"{result['late_major_faults']} major faults, {result['missing_turns']} turns missing, "
        f"OOM kills {result['oom_kills']}"
    )
    if result["looks"]:
        text += f", manager {result['manager_cpu_ratio']:.3f} cpu, {result['looks']} looks"
    if result["precision"] is not None:
        text += f", recall {result['recall']:.3f}, precision {result['precision']:.3f}"
        text += f", timely {result['timeliness']:.2f}"
    return text
