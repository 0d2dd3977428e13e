# SPDX-License-Identifier: Apache-2.0
"""bench phases: working sets that take turns, under a limit that holds one of them and not both.

They are those of one program (habit random), or of a cache by day and of a table program by night (habit nightly): a
redis-server that clients ask for keys by a Zipf law, and numpy over a table, in one cgroup with one limit.

Arms, interleaved within a round:

    roomy      no limit: what can be reached at best
    kernel     the limit, no management
    readahead  the limit, and MADV_WILLNEED is advised on a whole set when its turn begins (by the program itself; for
               the cache, by its client). That is the largest readahead the kernel can be asked for. (vm.page-cluster
               is no arm: it holds for the whole machine, and the kernel reads nothing ahead from compressed memory,
               which answers at once.)
    replay     the limit, and once a phase has begun all that its last occurrence touched is brought back: record and
               replay, without a model
    memsculpt  the limit, and the learner, from nothing
    oracle     the limit, and the same mover told which set is next as soon as the last turn has ended

The programs run on one processor, whoever manages them on the other. Everything is built without a limit; in every
limited arm the sets are then paged out (where the program is not rested, only the end of the last one, as far as it
does not fit), the limit is set, and only then the turns begin. A round's figures leave out the first three periods.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsculpt.domain.settings import Settings
from memsculpt.host import open_host
from memsculpt.profile import phase_outlook
from memsculpt_bench.lab import Lab, open_lab, zram_swap
from memsculpt_bench.phase_driver import BLOCK_BYTES, Driver, Foresee, learnt
from memsculpt_bench.phase_programs import MANAGER_CPU, MIB, TENANT, Scenario, Tenants

PAGE = 4096
LATE_PERIOD = 3
SLACK_BYTES = 6 * MIB  # is left free below the limit by whoever brings back
OVERTIME_S = 15.0
SWAP_PRIORITY = 32_000  # above that of any swap of the machine: all that leaves goes to ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of managing the programs' memory."""

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


def run_arm(arm: Arm, scenario: Scenario, seed: int) -> dict[str, Any]:
    """Run one arm once and return its raw measurements."""
    with ExitStack() as stack:
        stack.enter_context(zram_swap(scenario.swap_bytes, SWAP_PRIORITY))
        lab = stack.enter_context(open_lab((TENANT,)))
        tenants = Tenants()
        if scenario.habit == "nightly":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
            tenants.start_cache_and_table(lab, scenario, seed, folder, willneed=arm.willneed)
        else:
            tenants.start_sets(lab, scenario, seed, willneed=arm.willneed)
        stack.callback(tenants.finish)
        host = open_host(Settings())
        stack.callback(host.close)
        before = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, MANAGER_CPU & before or before)
        if arm.limited:
            tenants.page_out(host, lab, 0 if scenario.is_rested else scenario.limit_bytes - SLACK_BYTES)
            lab.limit(scenario.limit_bytes)
        foresee = tenants.told if arm.told else arm.foresee
        driver = None
        if foresee is not None:
            driver = Driver(host, tenants.managed, lambda: room_of(lab, scenario), foresee, doubts=not arm.told)
            stack.callback(driver.close)
        return _watched(arm, scenario, seed, lab, tenants, driver)


def _watched(
    arm: Arm, scenario: Scenario, seed: int, lab: Lab, tenants: Tenants, driver: Driver | None
) -> dict[str, Any]:
    tenants.begin(scenario.slot_s)
    began_s = time.monotonic()
    deadline_s = began_s + scenario.slot_s * (scenario.turns + 1) + OVERTIME_S
    while not tenants.is_over and time.monotonic() < deadline_s:
        if driver is not None:
            driver.step()
        time.sleep(0.01)
    elapsed_s = time.monotonic() - began_s
    kills = max(lab.read(TENANT).oom_kills, tenants.killed)
    swapped_bytes = lab.read(TENANT).swapped_bytes
    tenants.finish()
    late = [turn for turn in tenants.turns if turn["period"] >= LATE_PERIOD]
    found: dict[str, Any] = {
        "arm": arm.name,
        "seed": seed,
        "turns": tenants.turns,
        "late_turn_s": [turn["end_s"] - turn["start_s"] for turn in late],
        "missing_turns": scenario.turns - len(tenants.turns),
        "late_major_faults": sum(turn["major_faults"] for turn in late),
        "late_turn_cpu_s": [turn["cpu_s"] for turn in late],
        "oom_kills": kills,
        "swapped_bytes": swapped_bytes,
    }
    return found | _managed(scenario, driver, late, found["late_major_faults"], elapsed_s)


def _managed(
    scenario: Scenario, driver: Driver | None, late: list[dict[str, Any]], faults: int, elapsed_s: float
) -> dict[str, Any]:
    """Return what the manager did, and how well; judged are the prefetches for the turns after the third period."""
    if driver is None:
        nothing = dict.fromkeys(("precision", "recall", "timeliness"))
        return nothing | {"moved_bytes": 0, "manager_cpu_ratio": 0.0, "looks": 0}
    late_s = min((turn["start_s"] for turn in late), default=float("inf")) - scenario.slot_s / 2
    judged = [one for one in driver.judged if one.at_s >= late_s]
    brought = sum(one.blocks for one in judged)
    used = sum(one.outcome.precision * one.blocks for one in judged)
    pages = used * BLOCK_BYTES / PAGE
    timely = sum(one.outcome.timeliness * one.blocks for one in judged)
    return {
        "precision": used / brought if brought else None,
        # A page that was needed and not there is a major fault: swap on compressed memory reads nothing ahead.
        "recall": pages / (pages + faults) if brought else None,
        "timeliness": timely / brought if brought else None,
        "prefetches": [
            {
                "at_s": one.at_s,
                "sign": one.sign,
                "blocks": one.blocks,
                "precision": one.outcome.precision,
                "timeliness": one.outcome.timeliness,
            }
            for one in driver.judged
        ],
        "moved_bytes": driver.moved_bytes,
        "manager_cpu_ratio": driver.cpu_s / elapsed_s,
        "looking_cpu_ratio": driver.looking_cpu_s / elapsed_s,
        "learning_cpu_ratio": driver.learning_cpu_s / elapsed_s,
        "looks": driver.looks,
        "looks_per_s": driver.looks / elapsed_s,
        "phases_known": len(driver.state.phases),
    }


def room_of(lab: Lab, scenario: Scenario) -> int:
    """Return what may yet be brought back."""
    return scenario.limit_bytes - SLACK_BYTES - lab.used_bytes()


def summary_of(result: Mapping[str, Any]) -> str:
    """Return one line of a round for the terminal."""
    turns = result["late_turn_s"]
    cpu_s = result["late_turn_cpu_s"]
    text = (
        f"{result['arm']:<10} late turn {sum(turns) / len(turns) if turns else float('nan'):.3f} s "
        f"({sum(cpu_s) / len(turns) if turns else float('nan'):.3f} of the processor), "
        f"{result['late_major_faults']} major faults, {result['missing_turns']} turns missing, "
        f"OOM kills {result['oom_kills']}"
    )
    if result["looks"]:
        text += f", manager {result['manager_cpu_ratio']:.3f} cpu (looking {result['looking_cpu_ratio']:.3f}, "
        text += f"learning {result['learning_cpu_ratio']:.3f}), {result['looks_per_s']:.1f} looks a second"
    if result["precision"] is not None:
        text += f", recall {result['recall']:.3f}, precision {result['precision']:.3f}"
        text += f", timely {result['timeliness']:.2f}"
    return text
