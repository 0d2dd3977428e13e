# SPDX-License-Identifier: Apache-2.0
"""What bench phases runs: one program with sets that take turns, or a cache by day and a table program by night.

Each is built without a limit, says which blocks its sets are, and begins its turns when it is told to. A block's number
is that of 64 KiB of address space, and tells the process, too (phase_driver.numbered).
"""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.phases import Prediction, Sign, Upcoming
from memsculpt.domain.workload import Instance
from memsculpt.host.protocol import Host
from memsculpt.profile import slots
from memsculpt.profile.phases import PhaseState
from memsculpt_bench import tenants as tenants_package
from memsculpt_bench.lab import Lab, poll
from memsculpt_bench.phase_driver import BLOCK_BYTES, PROCESS_BLOCKS, instance_of, numbered, ranges_of

MIB = 1 << 20
TENANT = "program"
PROGRAMS = Path(tenants_package.__file__).parent
TENANT_CPU, MANAGER_CPU = {1}, {0}
FIRST_TURN_S = 1.0  # after `go`
STEP_BYTES = 8 * MIB  # is paged out at once, before the limit is set
KEY_BYTES = 1360  # what Redis takes for a key and its value of 1 KiB, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is run, in every arm alike."""

    habit: str = "random"
    set_bytes: int = 128 * MIB
    sets: int = 2
    limit_bytes: int = 224 * MIB  # a set, the interpreter's own 7 MiB, and two thirds of the other set
    is_rested: bool = True  # all sets are out when the turns begin; else only what does not fit
    touches: int = 10_000_000
    requests: int = 40_000  # cache: in a turn
    slot_s: float = 2.5
    jitter: float = 0.08
    periods: int = 6
    swap_bytes: int = 2048 * MIB

    @property
    def turns(self) -> int:
        """Return how many turns are taken."""
        return self.periods * self.sets


class Tenants:
    """The programs of one run, and the lines that they have printed so far."""

    def __init__(self) -> None:
        self.managed: list[Instance] = []
        self.sets: list[Int64] = []
        self.turns: list[dict[str, Any]] = []
        self._workers: list[subprocess.Popen[str]] = []  # those that take turns
        self._servers: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._besides: Int64 = np.empty(0, np.int64)

    def start_sets(self, lab: Lab, scenario: Scenario, seed: int, *, willneed: bool) -> None:
        """Start one program with all the sets, and wait until they are built."""
        options = _options(scenario, seed, scenario.slot_s, scenario.turns)
        options |= {"--habit": scenario.habit, "--sets": scenario.sets}
        self._start_program(lab, scenario, options, willneed=willneed)

    def start_cache_and_table(self, lab: Lab, scenario: Scenario, seed: int, folder: Path, *, willneed: bool) -> None:
        """Start a redis-server and a program over a table, fill both, and connect the clients."""
        address = str(folder / "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", address, "--save", "", "--appendonly", "no"]
        server = lab.start(TENANT, [*command, "--dir", str(folder)], cpus=TENANT_CPU, stdout=subprocess.DEVNULL)
        self._servers.append(server)
        poll(lambda: os.path.exists(address), what="redis-server to listen")
        keys = scenario.set_bytes // KEY_BYTES
        filling = [sys.executable, str(PROGRAMS / "cache_client.py"), "--socket", address, "--fill"]
        subprocess.run([*filling, "--keys", str(keys), "--seed", str(seed)], check=True)
        self.managed.append(instance_of(server.pid))
        self.sets.append(numbered(0, _heap_blocks(server.pid)))
        slot_s = scenario.sets * scenario.slot_s
        options = _options(scenario, seed, slot_s, scenario.periods)
        options |= {"--habit": "analytics", "--sets": 1, "--first-set": 1}
        self._start_program(lab, scenario, options, willneed=willneed)
        asking = {"--socket": address, "--keys": keys, "--requests": scenario.requests, "--turns": scenario.periods}
        asking |= {"--slot-s": slot_s, "--jitter": scenario.jitter / scenario.sets, "--seed": seed + 1}
        words = _words(asking | {"--server-pid": server.pid}, willneed=willneed)
        command = ["taskset", "-c", ",".join(map(str, TENANT_CPU)), sys.executable, str(PROGRAMS / "day_client.py")]
        client = subprocess.Popen([*command, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._workers.append(client)
        _line_of(client)

    def begin(self, slot_s: float) -> None:
        """Let them take their turns, one program's first a slot after the other's."""
        # The cache's clients were started last, and begin the day.
        for number, worker in enumerate(reversed(self._workers)):
            if worker.stdin is None:
                raise ValueError("the program has no input")
            worker.stdin.write(f"go {time.monotonic() + FIRST_TURN_S + number * slot_s}\n")
            worker.stdin.flush()
            self._readers.append(threading.Thread(target=self._read, args=(worker,), name="turns", daemon=True))
        for reader in self._readers:
            reader.start()

    @property
    def is_over(self) -> bool:
        """Tell whether all turns have been taken, or somebody was killed."""
        return all(one.poll() is not None for one in self._workers) or any(
            one.poll() is not None for one in self._servers
        )

    @property
    def killed(self) -> int:
        """Return how many programs have ended as nobody asked them to."""
        return sum(one.poll() not in {None, 0} for one in (*self._workers[:1], *self._servers))

    def finish(self) -> None:
        """End what still runs, and take what was printed to the end."""
        for one in self._workers:
            if one.poll() is None:
                one.kill()
            one.wait()
        for reader in self._readers:
            reader.join(timeout=5.0)
        self.turns.sort(key=lambda turn: turn["start_s"])

    def told(self, state: PhaseState, now_s: float) -> Prediction:
        """Foresee as somebody who knows the programs: after a turn comes the next set, at once."""
        following = (self.turns[-1]["set"] + 1) % len(self.sets) if self.turns else 0
        blocks = self.sets[following]
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
        besides = touched[~np.isin(touched, np.concatenate(self.sets))]
        self._besides = np.union1d(self._besides, besides)
        return Prediction(at_s=now_s, within_s=0.0, upcoming=(one,), in_use=self._besides)

    def page_out(self, host: Host, lab: Lab, limit_bytes: int) -> None:
        """Send sets out, the end of the last one first, until what is left is within the limit."""
        for number, blocks in reversed(list(enumerate(self.sets))):
            process = self.managed[number if len(self.managed) > 1 else 0]
            for ranges in reversed(ranges_of(blocks % PROCESS_BLOCKS)):
                for end in range(ranges[1], ranges[0], -STEP_BYTES):
                    if lab.used_bytes() <= limit_bytes:
                        return
                    host.page_out_ranges(process, [(max(ranges[0], end - STEP_BYTES), end)])

    def _start_program(self, lab: Lab, scenario: Scenario, options: dict[str, Any], *, willneed: bool) -> None:
        command = [sys.executable, str(PROGRAMS / "phases.py"), *_words(options, willneed=willneed)]
        program = lab.start(TENANT, command, cpus=TENANT_CPU, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._workers.append(program)
        ready = _line_of(program)
        if not ready:
            raise RuntimeError(f"the program ended with {program.wait()} before it was ready, without a limit")
        number = len(self.managed)
        self.managed.append(instance_of(program.pid))
        for at, size in ready["sets"]:
            blocks = np.arange(at // BLOCK_BYTES, -(-(at + size) // BLOCK_BYTES), dtype=np.int64)
            self.sets.append(numbered(number, blocks))

    def _read(self, worker: "subprocess.Popen[str]") -> None:
        while line := _line_of(worker):
            self.turns.append(line)


def _options(scenario: Scenario, seed: int, slot_s: float, turns: int) -> dict[str, Any]:
    return {
        "--bytes": scenario.set_bytes,
        "--turns": turns,
        "--touches": scenario.touches,
        "--slot-s": slot_s,
        # Of the scenario's slot, also where one program takes every other turn.
        "--jitter": scenario.jitter * scenario.slot_s / slot_s,
        "--seed": seed,
    }


def _words(options: dict[str, Any], *, willneed: bool) -> list[str]:
    return [str(word) for option in options.items() for word in option] + ["--willneed"] * willneed


def _line_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return the next line that it prints; nothing when it has ended."""
    if process.stdout is None:
        raise ValueError("the program has no output")
    text = process.stdout.readline()
    return json.loads(text) if text.endswith("\n") else {}


def _heap_blocks(pid: int) -> Int64:
    """Return the blocks of a process's private memory without a file behind it."""
    found: list[Int64] = []
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[1].startswith("rw-p") and (len(words) == 5 or words[5] == "[heap]"):
            start, end = (int(word, 16) for word in words[0].split("-"))
            found.append(np.arange(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)))
    return np.unique(np.concatenate(found)).astype(np.int64)
