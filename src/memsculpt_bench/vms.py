# SPDX-License-Identifier: Apache-2.0
"""bench vms: virtual machines whose days come one after the other, in less memory than their days need together.

Real guests: Linux under QEMU's emulation (TCG), restored from one saved state, each in a cgroup of its own below the
lab's, which has the limit, with swap on zram on the host and in every guest. In each runs a service with a daily rhythm
(tenants/daily.c), compressed in time: a day of 24 hours takes `period_s`. The days are staggered, so that the sum of
what is in use fits, and the sum of the days does not. Arms, interleaved within a round:

    fixed      every guest has the same part of the memory, once and for all
    mom        MOM's rule (vms_rules.py), asked once a second
    proxmox    Proxmox's rule, asked once a second
    memsculpt  the agent in apply mode, from an empty profile

Both rules are asked ten times as often as published: the days are compressed, and so they are not held back by that.
The first periods are warm-up: as many as the seasons take to be learnt for memsculpt, two for the rules, which are then
as they stay, and one for the fixed parts. What is counted after them: pages that guests swap in, major faults of the
QEMU processes on the host, and memory stall (PSI "some", in the guests and in the host's cgroups).
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from memsculpt_bench.guests import lab as guest_lab
from memsculpt_bench.isolation import Agent
from memsculpt_bench.lab import Lab, LabUnavailable, open_lab, zram_swap, zram_used_bytes
from memsculpt_bench.vms_guests import DailyGuest, DailyMachine
from memsculpt_bench.vms_rules import GuestFigures, HostFigures, Rule, mom, proxmox

MIB = 1 << 20
SWAP_BYTES = 4096 * MIB
SAMPLE_S = 0.25
RULE_EVERY_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is run, in every arm alike."""

    guests: int = 3
    memory_bytes: int = 512 * MIB  # of each guest
    limit_bytes: int = 1020 * MIB  # for all QEMU processes together
    base_bytes: int = 40 * MIB
    peak_bytes: int = 300 * MIB
    period_s: float = 30.0
    day_s: float = 7.0  # ramp and all; the rest of a guest's part of the period lies between days
    ramp_s: float = 3.0
    warm_periods: int = 4
    periods: int = 2
    least_bytes: int = 128 * MIB  # what the operator leaves every guest at the least; memsculpt's floor is the same
    overhead_bytes: int = 100 * MIB  # of a QEMU process beside guest memory, about: fixed parts are made with it

    @property
    def names(self) -> tuple[str, ...]:
        """Return the guests' names, which are the lab's tenants', too."""
        return tuple(f"g{number}" for number in range(self.guests))

    @property
    def fixed_bytes(self) -> int:
        """Return each guest's part of the memory, in whole MiB."""
        part = self.limit_bytes // self.guests - self.overhead_bytes
        return min(max(part, self.least_bytes), self.memory_bytes) // MIB * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of moving balloons."""

    name: str
    rule: Rule | None = None
    is_fixed: bool = False
    agent: bool = False
    limit_ratio: float = 1.0  # of the scenario's limit


FIXED = Arm(name="fixed", is_fixed=True)
MOM = Arm(name="mom", rule=mom)
PROXMOX = Arm(name="proxmox", rule=proxmox)
MEMSCULPT = Arm(name="memsculpt", agent=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What is counted of one guest, from both sides."""

    guest_swap_ins: int
    guest_major_faults: int
    guest_stall_s: float
    service_stall_s: float
    service_steps: int
    host_major_faults: int
    host_stall_s: float
    oom_kills: int

    def since(self, before: "Counted") -> "Counted":
        """Return the differences."""
        return Counted(**{name: getattr(self, name) - getattr(before, name) for name in self.__slots__})


def check_machine() -> None:
    """Raise LabUnavailable where guests cannot be made."""
    possible, reason = guest_lab.probe({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "setpriv": "util-linux"})
    if not possible:
        raise LabUnavailable(reason)


def run_arm(arm: Arm, scenario: Scenario, machine: DailyMachine) -> dict[str, Any]:
    """Run one arm once and return its raw measurements."""
    scenario = replace(scenario, limit_bytes=int(scenario.limit_bytes * arm.limit_ratio) // MIB * MIB)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        device = stack.enter_context(zram_swap(SWAP_BYTES))
        lab = stack.enter_context(open_lab(scenario.names))
        lab.limit(scenario.limit_bytes)
        guests = start_guests(stack, lab, scenario, machine, folder)
        if arm.is_fixed:
            for guest in guests.values():
                guest.ask("balloon", value=scenario.fixed_bytes)
        agent = stack.enter_context(Agent(agent_config(scenario, folder), folder)) if arm.agent else None
        start_days(guests, scenario)
        begin_s = time.monotonic()
        late_s = begin_s + scenario.warm_periods * scenario.period_s
        samples: list[dict[str, float]] = []
        _watch(samples, lab, guests, arm.rule, scenario, device, begin_s, late_s)
        before = count(lab, guests)
        _watch(samples, lab, guests, arm.rule, scenario, device, begin_s, late_s + scenario.periods * scenario.period_s)
        after = count(lab, guests)
        counted = {name: after[name].since(before[name]) for name in guests}
        return {
            "arm": arm.name,
            "limit_bytes": scenario.limit_bytes,
            "fixed_bytes": scenario.fixed_bytes if arm.is_fixed else None,
            "guests": {name: {each: getattr(one, each) for each in one.__slots__} for name, one in counted.items()},
            "guest_swap_ins": sum(one.guest_swap_ins for one in counted.values()),
            "host_major_faults": sum(one.host_major_faults for one in counted.values()),
            "stall_s": sum(one.guest_stall_s + one.host_stall_s for one in counted.values()),
            "service_stall_s": sum(one.service_stall_s for one in counted.values()),
            "oom_kills": sum(one.oom_kills for one in counted.values()),
            "compressed_bytes": mean(sample["swap"] for sample in samples if sample["at_s"] >= late_s - begin_s),
            "samples": samples,
            "agent": agent.measure() if agent else None,
        }


def start_guests(
    stack: ExitStack, lab: Lab, scenario: Scenario, machine: DailyMachine, folder: Path
) -> dict[str, DailyGuest]:
    """Restore all guests, each inside its tenant's cgroups."""
    guests: dict[str, DailyGuest] = {}
    for name in scenario.names:
        cgroups = (lab.memory_folder(name), lab.pressure_folder(name))
        one = replace(machine, name=name, memory_bytes=scenario.memory_bytes, cgroups=tuple(dict.fromkeys(cgroups)))
        guests[name] = stack.enter_context(DailyGuest(one, folder / name))
    return guests


def start_days(guests: Mapping[str, DailyGuest], scenario: Scenario) -> None:
    """Start the services, their days one after the other."""
    for number, guest in enumerate(guests.values()):
        offset_s = scenario.period_s * number / scenario.guests
        times = (scenario.period_s, scenario.day_s, scenario.ramp_s, offset_s)
        guest.serve(scenario.base_bytes // MIB, scenario.peak_bytes // MIB, *(round(1000 * each) for each in times))


def count(lab: Lab, guests: Mapping[str, DailyGuest]) -> dict[str, Counted]:
    """Read everybody's counters."""
    counted: dict[str, Counted] = {}
    for name, guest in guests.items():
        inside, outside = guest.read(), lab.read(name)
        counted[name] = Counted(
            guest_swap_ins=inside.swapped_in_pages,
            guest_major_faults=inside.major_faults,
            guest_stall_s=inside.some_stall_s,
            service_stall_s=inside.service_stall_s,
            service_steps=inside.service_steps,
            host_major_faults=outside.major_faults,
            host_stall_s=outside.some_stall_s,
            oom_kills=inside.oom_kills + outside.oom_kills,
        )
    return counted


def figures_of(
    lab: Lab, guests: Mapping[str, DailyGuest], scenario: Scenario
) -> tuple[HostFigures, list[GuestFigures]]:
    """Return what a rule looks at."""
    found: list[GuestFigures] = []
    for name, guest in guests.items():
        told = guest.statistics()
        found.append(
            GuestFigures(
                name=name,
                balloon_bytes=guest.balloon(),
                most_bytes=scenario.memory_bytes,
                least_bytes=scenario.least_bytes,
                free_bytes=told["stat-free-memory"],
            )
        )
    host = HostFigures(total_bytes=scenario.limit_bytes, free_bytes=max(scenario.limit_bytes - lab.used_bytes(), 0))
    return host, found


def _watch(
    samples: list[dict[str, float]],
    lab: Lab,
    guests: Mapping[str, DailyGuest],
    rule: Rule | None,
    scenario: Scenario,
    device: Path,
    begin_s: float,
    until_s: float,
) -> None:
    """Sample memory and balloons, and ask the rule once a second."""
    rule_s = time.monotonic()
    while (now_s := time.monotonic()) < until_s:
        if rule is not None and now_s >= rule_s:
            rule_s = now_s + RULE_EVERY_S
            for name, target in rule(*figures_of(lab, guests, scenario)).items():
                guests[name].ask("balloon", value=target)
        sample = {"at_s": now_s - begin_s, "lab": float(lab.used_bytes()), "swap": float(zram_used_bytes(device))}
        for name, guest in guests.items():
            sample[name] = float(guest.balloon())
        samples.append(sample)
        time.sleep(max(0.0, now_s + SAMPLE_S - time.monotonic()))


def agent_config(scenario: Scenario, folder: Path) -> str:
    """Return the configuration a user would write: a partition for each VM, and a capacity."""
    partitions = "".join(f'\n[[partition]]\nname = "{name}"\nmatch = {{ vm = "{name}" }}\n' for name in scenario.names)
    return f"""
[agent]
mode = "apply"
interval = "1s"
capacity = "{scenario.limit_bytes // MIB}MiB"
socket = "{folder}/agent.sock"
state = "{folder}/state"

[vms]
discover = false
sockets = ["{folder}/*/manager.qmp"]
floor = "{scenario.least_bytes // MIB}MiB"
{partitions}"""


def summary_of(result: Mapping[str, Any]) -> str:
    """Return one line of a round for the terminal."""
    return (
        f"{result['arm']:<10} {result['limit_bytes'] // MIB} MiB: {result['guest_swap_ins']} guest swap-ins, "
        f"{result['host_major_faults']} host major faults, stall {result['stall_s']:.2f} s, services late by "
        f"{result['service_stall_s']:.1f} s, OOM kills {result['oom_kills']}, "
        f"{result['compressed_bytes'] / MIB:.0f} MiB compressed on the host"
        + (f", agent {result['agent']['cpu_s']:.1f} s cpu" if result["agent"] else "")
    )


def restore_command(config: Path) -> "subprocess.CompletedProcess[str]":
    """Run `memsculpt restore`, as a user would after a crash."""
    command = [sys.executable, "-m", "memsculpt", "restore", "--json", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
