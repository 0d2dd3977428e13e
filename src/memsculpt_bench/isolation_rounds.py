# SPDX-License-Identifier: Apache-2.0
"""The whole of bench isolation: what has to be tried first, the rounds, and the figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from memsculpt_bench import contract, isolation, upkeep
from memsculpt_bench.contract import Figure
from memsculpt_bench.isolation import ALL, JOBS, KERNEL, MEMSCULPT, MIB, ROOMY, Arm, Scenario
from memsculpt_bench.lab import sweep

Result = dict[str, Any]
Say = Callable[[str], None]

JOB_OVERHEAD_BYTES = 34 * MIB  # interpreter and numpy, besides the data set
REDIS_NEED_BYTES = 540 * MIB
TIGHT_LIMITS_MIB = (900, 620)  # below what is in use at any one moment


def run(*, rounds: int, quick: bool, swap: str, say: Say) -> Result:
    """Run the bench and return the contract's object. `swap`: "zram", "disk" or "both"; quickly, one of them."""
    swaps = (("zram",) if quick else ("zram", "disk")) if swap == "both" else (swap,)
    isolation.check_machine()
    for leftover in sweep():
        say(f"removed {leftover}, left by an earlier bench")
    variants = {name: _run_variant(Scenario(swap=name), rounds, say, quick=quick) for name in swaps}
    main = variants[swaps[0]]
    cost = upkeep.measure_cost(seconds=20.0 if quick else 60.0, say=say)
    restored = upkeep.measure_restore(say=say)
    figures = {
        **main["figures"],
        "agent_cpu": contract.at_most(0.01, [cost["cpu_ratio"]]),
        "agent_resident": contract.at_most(64.0 * MIB, [cost["resident_peak_bytes"]]),
        "restored": contract.at_least(1.0, [restored["restored_ratio"]]),
    }
    for other in swaps[1:]:
        figures |= {f"{name}_{other}": figure for name, figure in variants[other]["figures"].items()}
    return contract.result(
        "isolation",
        rounds,
        main["arms"],
        figures,
        variants={swap: {**variant, "figures": {}} for swap, variant in variants.items()},
        agent_cost=cost,
        restore=restored,
        verdict=verdict(variants),
    )


def _run_variant(scenario: Scenario, rounds: int, say: Say, *, quick: bool) -> Result:
    scenario = isolation.quick(scenario) if quick else scenario
    say(f"-- swap on {scenario.swap}, limit {scenario.limit_bytes // MIB} MiB, {scenario.periods} periods")
    arms = [ROOMY, KERNEL, MEMSCULPT]
    trials: list[Result] = []
    if not quick:
        static, tried = find_static(scenario, say)
        reactive, tried_too = find_reactive(scenario, say)
        trials = tried + tried_too
        arms = [ROOMY, KERNEL, static, reactive, MEMSCULPT, ALL]
    runs: dict[str, list[Result]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        shift = number % len(arms)  # no arm always runs first, on a rested machine
        for arm in arms[shift:] + arms[:shift]:
            result = isolation.run_arm(arm, scenario, seed=number + 1)
            say(f"round {number + 1}: {isolation.summary_of(result)}")
            runs[arm.name].append(result)
    tight = [] if quick else run_tight(scenario, say)
    return {
        "scenario": {name: getattr(scenario, name) for name in scenario.__slots__},
        "arms": runs,
        "trials": trials,
        "tight": tight,
        "figures": figures_of(runs, tight),
    }


def find_static(scenario: Scenario, say: Say) -> tuple[Arm, list[Result]]:
    """Try splits of the limit and return the best: no kills first, then the least slowdown."""
    short = replace(scenario, periods=4)
    job_need = scenario.job_bytes + JOB_OVERHEAD_BYTES
    least_redis = max(120 * MIB, scenario.limit_bytes - len(JOBS) * job_need)
    candidates: list[Arm] = []
    for share in (1.0, 0.75, 0.5, 0.0):
        redis = int(least_redis + share * (REDIS_NEED_BYTES - least_redis))
        each = (scenario.limit_bytes - redis) // len(JOBS)
        split = {"redis": redis, **dict.fromkeys(JOBS, each)}
        candidates.append(Arm(name="static", split_bytes=split))
    return _best(candidates, short, say)


def find_reactive(scenario: Scenario, say: Say) -> tuple[Arm, list[Result]]:
    """Try both starts of the reactive rule (at present use, as published; at the limit) and keep the better."""
    candidates = [Arm(name="reactive", senpai_start_at_usage=start) for start in (True, False)]
    return _best(candidates, replace(scenario, periods=4), say)


def _best(candidates: Sequence[Arm], scenario: Scenario, say: Say) -> tuple[Arm, list[Result]]:
    tried: list[Result] = []
    scores: list[tuple[float, ...]] = []
    for arm in candidates:
        result = isolation.run_arm(arm, scenario, seed=99)
        say(f"trial ({_describe(arm)}): {isolation.summary_of(result)}")
        result["trial"] = _describe(arm)
        tried.append(result)
        phases = result["late_phase_s"]
        slowness = (median(phases) if phases else 1e9) * result["redis"]["late"]["p999"]
        scores.append((result["oom_kills"], result["missing_phases"], slowness))
    return candidates[scores.index(min(scores))], tried


def _describe(arm: Arm) -> str:
    if arm.split_bytes:
        return ", ".join(f"{tenant} {size // MIB} MiB" for tenant, size in arm.split_bytes.items())
    return "starts at use" if arm.senpai_start_at_usage else "starts at the limit"


def run_tight(scenario: Scenario, say: Say) -> list[Result]:
    """Run the kernel alone and memsculpt at limits that do not even hold what is in use at one moment."""
    results: list[Result] = []
    for limit_mib in TIGHT_LIMITS_MIB:
        tight = replace(scenario, periods=4, limit_bytes=limit_mib * MIB)
        for arm in (KERNEL, MEMSCULPT):
            result = isolation.run_arm(arm, tight, seed=7)
            say(f"tight, {limit_mib} MiB: {isolation.summary_of(result)}")
            result["limit_bytes"] = tight.limit_bytes
            results.append(result)
    return results


def figures_of(runs: Mapping[str, list[Result]], tight: Sequence[Result]) -> dict[str, Figure]:
    """Return the issue's figures: ratios within a round, their median and range over the rounds."""
    ours = runs["memsculpt"]
    p999 = {arm: [result["redis"]["late"]["p999"] for result in results] for arm, results in runs.items()}
    phase = {arm: [_median_phase(result) for result in results] for arm, results in runs.items()}
    faults = {arm: [result["late_major_faults"]["redis"] for result in results] for arm, results in runs.items()}
    stall = {arm: [sum(result["late_stall_s"].values()) for result in results] for arm, results in runs.items()}
    rivals = [arm for arm in ("kernel", "reactive") if arm in runs]
    kills = [float(result["oom_kills"]) for result in ours]
    kills += [float(result["oom_kills"]) for result in runs.get(ALL.name, [])]
    kills += [float(result["oom_kills"]) for result in tight if result["arm"] == MEMSCULPT.name]
    figures = {
        "redis_p999_over_roomy": contract.at_most(
            1.3,
            _ratios(p999["memsculpt"], p999["roomy"]),
            also=all(median(p999["memsculpt"]) < median(p999[rival]) for rival in rivals),
        ),
        "redis_faults_kernel_over_ours": contract.at_least(
            20.0, _ratios(faults["kernel"], [max(1, count) for count in faults["memsculpt"]])
        ),
        "jobs_time_over_kernel": contract.at_most(1.0, _ratios(phase["memsculpt"], phase["kernel"])),
        "oom_kills": contract.at_most(0.0, [sum(kills)]),
        "late_phase_over_roomy": contract.at_most(1.10, _ratios(phase["memsculpt"], phase["roomy"])),
        "agent_cpu_s_per_phase": contract.at_most(0.5, [_agent_s_per_phase(result) for result in ours]),
    }
    if ALL.name in runs:
        theirs = runs[ALL.name]
        figures |= {
            "all_redis_p999_over_roomy": contract.at_most(1.3, _ratios(p999["all"], p999["roomy"])),
            "all_late_phase_over_roomy": contract.at_most(1.10, _ratios(phase["all"], phase["roomy"])),
            "all_agent_cpu_s_per_phase": contract.at_most(0.5, [_agent_s_per_phase(result) for result in theirs]),
        }
    if "reactive" in runs:
        figures["stall_reactive_over_ours"] = contract.at_least(
            1.5, _ratios(stall["reactive"], [max(1e-3, seconds) for seconds in stall["memsculpt"]])
        )
    return figures


def _agent_s_per_phase(result: Result) -> float:
    """Return the agent's processor time for each late phase, everything that it did in that time."""
    return result["agent"]["late_cpu_s"] / max(1, len(result["late_phase_s"]))


def _median_phase(result: Result) -> float:
    return median(result["late_phase_s"]) if result["late_phase_s"] else float("inf")


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def verdict(variants: Mapping[str, Result]) -> list[str]:
    """Return the closing lines: ratios to having room enough, and to the kernel alone."""
    lines: list[str] = []
    for swap, variant in variants.items():
        runs = variant["arms"]
        for arm in runs:
            if arm == "roomy":
                continue
            p999 = median(_ratios(*[[r["redis"]["late"]["p999"] for r in runs[name]] for name in (arm, "roomy")]))
            phase = median(_ratios(*[[_median_phase(r) for r in runs[name]] for name in (arm, "roomy")]))
            faults = median(r["late_major_faults"]["redis"] for r in runs[arm])
            stall = median(sum(r["late_stall_s"].values()) for r in runs[arm])
            kills = sum(r["oom_kills"] for r in runs[arm])
            lines.append(
                f"{swap}: {arm:<10} Redis p99.9 {p999:.2f} x roomy, a late phase {phase:.2f} x roomy, "
                f"{faults:.0f} Redis faults, {stall:.1f} s stalled, {kills} OOM kills"
            )
    return lines
