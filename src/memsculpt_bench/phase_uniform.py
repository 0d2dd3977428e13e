# SPDX-License-Identifier: Apache-2.0
"""A program without a pattern, managed and unmanaged in turns: what is lost where nothing can be foreseen.

One program touches all of its memory at random, without a pause, under a limit that barely holds it (of one that does
not, the kernel kills it, managed or not: there is nothing cold to take). Stretches in which it is managed (B) and in
which it is left alone (A) follow each other as A B B A, so that a drift of the machine weighs on both alike. The figure
of a group is the time that a turn took in its B over that in its A; two A beside each other tell how well the machine
can be measured.
"""

import os
import time
from contextlib import ExitStack
from itertools import pairwise
from statistics import mean
from typing import Any

from memsculpt.domain.settings import Settings
from memsculpt.host import open_host
from memsculpt_bench import phases
from memsculpt_bench.lab import open_lab, zram_swap
from memsculpt_bench.phase_driver import Driver, learnt
from memsculpt_bench.phase_programs import MANAGER_CPU, MIB, TENANT, Scenario, Tenants

UNIFORM = Scenario(
    habit="uniform",
    set_bytes=128 * MIB,
    sets=2,
    limit_bytes=272 * MIB,  # it has 263
    touches=1 << 20,
    slot_s=1.0,  # it does not wait
    jitter=0.0,
    periods=1_000_000,  # it is ended from outside
)
STRETCH_S, SETTLE_S = 2.0, 0.1  # the turns of the settling time after a change are left out
GROUPS, QUICK_GROUPS = 6, 1
WARM_S, WARM_MOST_S = 2.0, 30.0  # it is warm when it has not faulted for so long
ORDER = (False, True, True, False)


def run_once(seed: int, *, quick: bool) -> dict[str, Any]:
    """Run one program through all groups; return the ratio of each, and what the manager did."""
    with ExitStack() as stack:
        stack.enter_context(zram_swap(UNIFORM.swap_bytes, phases.SWAP_PRIORITY))
        lab = stack.enter_context(open_lab((TENANT,)))
        tenants = Tenants()
        tenants.start_sets(lab, UNIFORM, seed, willneed=False)
        stack.callback(tenants.finish)
        host = open_host(Settings())
        stack.callback(host.close)
        before = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, MANAGER_CPU & before or before)
        tenants.page_out(host, lab, 0)
        lab.limit(UNIFORM.limit_bytes)
        driver = Driver(host, tenants.managed, lambda: phases.room_of(lab, UNIFORM), learnt)
        stack.callback(driver.close)
        tenants.begin(0.0)
        _wait_until_warm(tenants)
        stretches: list[tuple[bool, float, float]] = []
        for _ in range(QUICK_GROUPS if quick else GROUPS):
            stretches += [_stretch(driver, tenants, is_managed=one) for one in ORDER]
        kills = max(lab.read(TENANT).oom_kills, tenants.killed)
        tenants.finish()
    groups = [stretches[at : at + 4] for at in range(0, len(stretches), 4)]
    means = [[_mean_turn(tenants, begin, end) for _, begin, end in group] for group in groups]
    whole = [known for group in means if len(known := [one for one in group if one is not None]) == len(ORDER)]
    wall, cpu = ([[one[place] for one in group] for group in whole] for place in (0, 1))
    return {
        "seed": seed,
        "stretch_turn_wall_and_cpu_s": means,
        "managed_over_alone": [(b + c) / (a + d) for a, b, c, d in wall],
        "managed_over_alone_cpu": [(b + c) / (a + d) for a, b, c, d in cpu],
        # The last stretch of a group and the first of the next are both unmanaged.
        "alone_over_alone": [after[0] / group[3] for group, after in pairwise(wall)],
        "alone_over_alone_cpu": [after[0] / group[3] for group, after in pairwise(cpu)],
        "missing_groups": len(groups) - len(whole),
        "major_faults": sum(turn["major_faults"] for turn in tenants.turns),
        "turns": len(tenants.turns),
        "oom_kills": kills,
        "looks": driver.looks,
        "moved_bytes": driver.moved_bytes,
        "manager_cpu_ratio": driver.cpu_s / (sum(end - begin for is_managed, begin, end in stretches if is_managed)),
    }


def summary_of(result: dict[str, Any]) -> str:
    """Return one line of a round for the terminal."""
    names = ("managed_over_alone", "managed_over_alone_cpu", "alone_over_alone")
    wall, cpu, alike = (" ".join(f"{one:.3f}" for one in result[name]) for name in names)
    return (
        f"uniform    managed over alone {wall} (processor time {cpu}), alone over alone {alike}, "
        f"{result['turns']} turns, {result['major_faults']} major faults, moved {result['moved_bytes']} B, "
        f"{result['looks']} looks, manager {result['manager_cpu_ratio']:.3f} cpu, OOM kills {result['oom_kills']}"
    )


def _wait_until_warm(tenants: Tenants) -> None:
    """Wait until all pages are back: what is left of that would weigh on the first stretches only."""
    begin_s = since_s = time.monotonic()
    seen = 0
    while (now_s := time.monotonic()) < min(since_s + WARM_S, begin_s + WARM_MOST_S) and not tenants.is_over:
        fresh = tenants.turns[seen:]
        seen += len(fresh)
        if not seen or any(turn["major_faults"] for turn in fresh):
            since_s = now_s
        time.sleep(0.05)


def _stretch(driver: Driver, tenants: Tenants, *, is_managed: bool) -> tuple[bool, float, float]:
    begin_s = time.monotonic()
    if is_managed:
        driver.skip()
    while (now_s := time.monotonic()) < begin_s + STRETCH_S and not tenants.is_over:
        if is_managed:
            driver.step()
        time.sleep(0.01)
    return is_managed, begin_s + SETTLE_S, now_s


def _mean_turn(tenants: Tenants, begin_s: float, end_s: float) -> tuple[float, float] | None:
    """Return the mean length of the turns that lie in a time, and their processor time; None where there is none."""
    inside = [turn for turn in tenants.turns if turn["start_s"] >= begin_s and turn["end_s"] <= end_s]
    if not inside:
        return None
    return mean(turn["end_s"] - turn["start_s"] for turn in inside), mean(turn["cpu_s"] for turn in inside)
