# SPDX-License-Identifier: Apache-2.0
"""The whole of bench vms: the rounds, how fast somebody else's balloon request is answered, and the figures.

A round takes a quarter of an hour, so it may be run in parts: with `keep` every run is written to a file as it ends,
and a later call with the same file goes on from there.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from memsculpt.doors.client import Client
from memsculpt_bench import contract, vms, vms_guests
from memsculpt_bench.contract import Figure
from memsculpt_bench.guests.debian import Unavailable
from memsculpt_bench.isolation import Agent
from memsculpt_bench.lab import LabUnavailable, open_lab, poll, sweep, zram_swap
from memsculpt_bench.vms import FIXED, MEMSCULPT, MIB, MOM, PROXMOX, Arm, Scenario
from memsculpt_bench.vms_guests import DailyGuest, DailyMachine

Result = dict[str, Any]
Say = Callable[[str], None]

# Of the limit: fixed parts with more memory, to find how much they need.
MORE_RATIOS, QUICK_RATIOS = (1.2, 1.4, 1.6), (1.4,)
LESS_BYTES, LEAST_BYTES = 64 * MIB, 144 * MIB  # what the operator takes, and what a guest needs at night
STILL_S, CALM_MOST_S = 2.0, 60.0
LOOKED_S = 25.0  # the agent has looked at the guests' pages twice by then


class OutOfTime(Exception):
    """The time for this part of the bench is over."""


@dataclass(slots=True)
class Runs:
    """Runs by key; each is done once, and kept in a file if there is one."""

    scenario: Scenario
    say: Say
    keep: Path | None = None
    stop_at_s: float | None = None  # on the monotonic clock: no run is begun after it
    machine: DailyMachine | None = None
    folder: Path | None = None
    done: dict[str, Result] = field(default_factory=dict[str, Result])

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep.exists():
            lines = [json.loads(line) for line in self.keep.read_text(encoding="utf-8").splitlines()]
            self.done = {line["key"]: line["result"] for line in lines}

    def once(self, key: str, arm: Arm | None) -> Result:
        """Return the run of this key, doing it now if it was not done before; without an arm the reaction is timed."""
        if key in self.done:
            return self.done[key]
        if self.stop_at_s is not None and time.monotonic() >= self.stop_at_s:
            raise OutOfTime(key)
        machine = self._machine()
        if arm is None:
            result = react(self.scenario, machine, self.say)
        else:
            result = vms.run_arm(arm, shortened(arm, self.scenario), machine)
            self.say(f"{key}: {vms.summary_of(result)}")
        self.done[key] = result
        if self.keep is not None:
            with self.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "result": result}) + "\n")
        return result

    def close(self) -> None:
        """Remove the saved machine."""
        if self.folder is not None:
            shutil.rmtree(self.folder)

    def _machine(self) -> DailyMachine:
        if self.machine is None:
            self.folder = Path(tempfile.mkdtemp(prefix="memsculpt-lab-"))
            try:
                self.machine = vms_guests.prepare(self.folder, memory_bytes=self.scenario.memory_bytes)
            except Unavailable as error:
                raise LabUnavailable(str(error)) from error
        return self.machine


def run(*, rounds: int, quick: bool, say: Say, keep: Path | None = None, stop_after: float | None = None) -> Result:
    """Run the bench, or go on with it, and return the contract's object."""
    vms.check_machine()
    for leftover in sweep():
        say(f"removed {leftover}, left by an earlier bench")
    scenario = replace(Scenario(), warm_periods=3, periods=1) if quick else Scenario()
    stop_at_s = None if stop_after is None else time.monotonic() + stop_after
    ratios = QUICK_RATIOS if quick else MORE_RATIOS
    more = [replace(FIXED, name=f"fixed-{ratio:g}", limit_ratio=ratio) for ratio in ratios]
    arms = [FIXED, MOM, PROXMOX, MEMSCULPT]
    results: dict[str, list[Result]] = {arm.name: [] for arm in (*arms, *more)}
    reactions: list[Result] = []
    notes: list[str] = []
    runs = Runs(scenario=scenario, say=say, keep=keep, stop_at_s=stop_at_s)
    try:
        for number in range(rounds):
            shift = number % len(arms)  # no arm always runs first, on a rested machine
            order = (*arms[shift:], *arms[:shift], *more)
            whole = {arm.name: runs.once(f"round {number + 1} {arm.name}", arm) for arm in order}
            reaction = runs.once(f"round {number + 1} reaction", None)
            for name, result in whole.items():
                results[name].append(result)
            reactions.append(reaction)
    except OutOfTime as error:
        notes.append(f"not finished: {error} comes next, and {len(reactions)} of {rounds} rounds are whole")
    finally:
        runs.close()
    return contract.result(
        "vms",
        len(reactions),
        results,
        figures_of(results, reactions),
        scenario={name: getattr(scenario, name) for name in scenario.__slots__},
        reactions=reactions,
        real="guests are real: Linux under QEMU's emulation, one virtual processor each",
        verdict=[*notes, *verdict(results, reactions)],
    )


def shortened(arm: Arm, scenario: Scenario) -> Scenario:
    """Return the scenario for an arm: rules do not learn, and are as they stay after two periods, fixed after one."""
    warm = scenario.warm_periods if arm.agent else 1 if arm.is_fixed else 2
    return replace(scenario, warm_periods=min(warm, scenario.warm_periods))


def react(scenario: Scenario, machine: DailyMachine, say: Say) -> Result:
    """Have an operator move a balloon, and time the agent: until it has planned anew, and until it has sculpted."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        stack.enter_context(zram_swap(vms.SWAP_BYTES))
        lab = stack.enter_context(open_lab(scenario.names))
        lab.limit(scenario.limit_bytes)
        guests = vms.start_guests(stack, lab, scenario, machine, folder)
        agent = stack.enter_context(Agent(vms.agent_config(scenario, folder), folder))
        vms.start_days(guests, scenario)
        client = Client(str(folder / "agent.sock"))
        poll(lambda: all(_knows(client, name) for name in guests), what="the agent to know the VMs", timeout_s=30.0)
        time.sleep(LOOKED_S)
        name, asked_bytes = _calm(guests)
        guest, before = guests[name], _pool(client, name)
        begin_s = time.monotonic()
        guest.ask("balloon", value=asked_bytes)
        times: dict[str, float] = {}
        while time.monotonic() < begin_s + 15.0 and len(times) < 2:
            if "planned" not in times and _stands_back(client, name):
                times["planned"] = time.monotonic() - begin_s
            if "sculpted" not in times and _is_sculpted(client, name, before, asked_bytes):
                times["sculpted"] = time.monotonic() - begin_s
            time.sleep(0.01)
        told = ", ".join(f"{each} after {took_s:.2f} s" for each, took_s in times.items()) or "nothing came of it"
        say(f"a balloon moved by an operator: {told}")
        took = {f"{each}_s": took_s for each, took_s in times.items()}
        return {"asked_bytes": asked_bytes, **took, "agent": agent.measure()}


def _calm(guests: Mapping[str, DailyGuest]) -> tuple[str, int]:
    """Wait for a guest at night whose balloon stands still; return it and what the operator leaves it.

    A request while the agent moves the same balloon could not be told from the agent's own.
    """
    deadline_s = time.monotonic() + CALM_MOST_S
    while time.monotonic() < deadline_s:
        before = {name: guest.balloon() for name, guest in guests.items()}
        time.sleep(STILL_S)
        for name, guest in guests.items():
            size, is_night = guest.balloon(), guest.read().held_bytes <= Scenario().base_bytes
            if size == before[name] and is_night and size - LESS_BYTES >= LEAST_BYTES:
                return name, size - LESS_BYTES
    raise TimeoutError(f"waited {CALM_MOST_S:g} s for a guest whose balloon stands still")


def _knows(client: Client, name: str) -> bool:
    return any(one["id"] == f"vm:{name}" for one in client.get("/v1/status")["workloads"])


def _stands_back(client: Client, name: str) -> bool:
    held_back = client.get("/v1/plan")["held_back"]
    return any(one["code"] == "balloon-rests" and f"vm:{name}" in one["text"] for one in held_back)


def _is_sculpted(client: Client, name: str, before: tuple[Any, ...], asked_bytes: int) -> bool:
    """Tell whether all that the balloon leaves was sculpted anew; what the agent does by itself asks for less."""
    now = _pool(client, name)
    return now != before and bool(now) and now[0] >= asked_bytes


def _pool(client: Client, name: str) -> tuple[Any, ...]:
    """Return what changes when a pool is sculpted."""
    for one in client.get("/v1/pools")["pools"]:
        if one["pool"].startswith(f"vm:{name}"):
            return one["asked_bytes"], one["reason"], one["moved_bytes"]
    return ()


def figures_of(runs: Mapping[str, Sequence[Result]], reactions: Sequence[Result]) -> dict[str, Figure]:
    """Return the issue's figures: ratios within a round, their median and range over the rounds."""
    ours = [_touched(result) for result in runs["memsculpt"]]
    rules = [min(_touched(one), _touched(other)) for one, other in zip(runs["mom"], runs["proxmox"], strict=True)]
    planned = [one.get("planned_s", float("inf")) for one in reactions]
    sculpted = [one.get("sculpted_s", float("inf")) for one in reactions]
    return {
        "faults_better_rule_over_ours": contract.at_least(
            3.0, [rule / max(mine, 1) for rule, mine in zip(rules, ours, strict=True)]
        ),
        "memory_fixed_over_ours_same_stall": contract.at_least(1.4, same_stall_ratios(runs)),
        "balloon_request_planned_s": contract.at_most(1.0, planned),
        "balloon_request_sculpted_s": contract.at_most(1.0, sculpted),
    }


def _touched(result: Result) -> int:
    """Return the pages that had to come back: swapped in by guests, and faulted in on the host."""
    return result["guest_swap_ins"] + result["host_major_faults"]


def same_stall_ratios(runs: Mapping[str, Sequence[Result]]) -> list[float]:
    """Return, by round, how much memory fixed parts take for memsculpt's stall, in memsculpt's memory.

    Between two tried sizes stall falls linearly. Where even the largest tried stalls longer, it is that size: a lower
    bound.
    """
    fixed = [name for name in runs if name.startswith("fixed")]
    ratios: list[float] = []
    for number, ours in enumerate(runs["memsculpt"]):
        tried = sorted((runs[name][number]["limit_bytes"], runs[name][number]["stall_s"]) for name in fixed)
        ratios.append(_memory_for(tried, ours["stall_s"]) / ours["limit_bytes"])
    return ratios


def _memory_for(tried: Sequence[tuple[int, float]], stall_s: float) -> float:
    before = tried[0]
    if before[1] <= stall_s:
        return float(before[0])
    for size, stalled in tried[1:]:
        if stalled <= stall_s:
            part = (before[1] - stall_s) / (before[1] - stalled)
            return before[0] + part * (size - before[0])
        before = (size, stalled)
    return float(before[0])


def verdict(runs: Mapping[str, Sequence[Result]], reactions: Sequence[Result]) -> list[str]:
    """Return the closing lines."""
    lines: list[str] = []
    for arm, results in runs.items():
        if not results:
            continue
        swaps = median(one["guest_swap_ins"] for one in results)
        faults = median(one["host_major_faults"] for one in results)
        stall_s = median(one["stall_s"] for one in results)
        late_s = median(one["service_stall_s"] for one in results)
        lines.append(
            f"{arm:<10} {results[0]['limit_bytes'] // MIB:>5} MiB: {swaps:.0f} guest swap-ins, {faults:.0f} host major "
            f"faults, {stall_s:.1f} s stalled on memory, services late by {late_s:.1f} s"
        )
    sculpted = [one["sculpted_s"] for one in reactions if "sculpted_s" in one]
    if sculpted:
        lines.append(f"a balloon moved by somebody else: sculpted {median(sculpted):.2f} s later")
    return lines
