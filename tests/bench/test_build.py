# SPDX-License-Identifier: Apache-2.0
"""bench build on runs that are written down: the choice of the fixed limit, the figures, going on from a file."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt_bench import build, build_rounds, build_source
from memsculpt_bench.build import UNLIMITED, Arm
from memsculpt_bench.build_rounds import OutOfTime, Runs


def ran(wall_s=100.0, held=800, *, failed="", arm="fixed"):
    return {
        "arm": arm,
        "parameter": arm,
        "failed": failed,
        "wall_s": wall_s,
        "held_peak_bytes": held,
        "anon_peak_bytes": held / 4,
        "stall_s": 0.0,
    }


def arms(**changes):
    runs = {"unlimited": ran(), "fixed": ran(), "reactive": ran(), "memsculpt": ran(101.0, 300)} | changes
    return {name: [run] for name, run in runs.items()}


@given(
    st.lists(
        st.builds(ran, st.floats(50, 200), st.integers(100, 900), failed=st.sampled_from(["", "build: exit 2"])),
        min_size=1,
        max_size=6,
    )
)
def test_the_best_fixed_limit_is_the_lowest_of_those_in_time(trials):
    """A trial that failed is never chosen, one in time before any that is late, and nothing in time holds less."""
    finished = [trial for trial in trials if not trial["failed"]]
    if not finished:
        with pytest.raises(ValueError, match="exit 2"):
            build.best_fixed(trials, ran(), 1.02)
        return
    best = build.best_fixed(trials, ran(), 1.02)
    in_time = [trial for trial in finished if trial["wall_s"] <= 102.0]

    assert best in (in_time or finished)
    assert all(best["held_peak_bytes"] <= trial["held_peak_bytes"] for trial in in_time)
    assert in_time or all(best["wall_s"] <= trial["wall_s"] for trial in finished)


@pytest.mark.parametrize(
    ("ours", "holds"),
    [
        (ran(101.0, 300), {"held_over_unlimited", "time_over_unlimited", "failed"}),
        (ran(101.0, 400), {"time_over_unlimited", "failed"}),
        (ran(110.0, 300), {"failed"}),  # little memory at the price of time is no gain
        (ran(101.0, 300, failed="build: exit 2"), {"time_over_unlimited"}),
    ],
    ids=["holds", "holds too much", "too late", "failed"],
)
def test_little_memory_counts_only_in_time_and_when_it_was_built(ours, holds):
    """The figure of memory asks for the time, too."""
    figures = build_rounds.figures_of(arms(memsculpt=ours))

    assert {name for name, figure in figures.items() if figure.holds} == holds


def test_nothing_measured_holds_nothing():
    """A bench that was stopped before its first round is whole has met no bar."""
    figures = build_rounds.figures_of({name: [] for name in build_rounds.ARMS})

    assert not any(figure.holds for figure in figures.values())
    assert build_rounds.verdict({name: [] for name in build_rounds.ARMS}) == []


def test_what_was_run_is_not_run_again(tmp_path: Path):
    """A run that is in the file is taken from it; one that is not is not begun after the time is over."""
    keep = tmp_path / "runs"
    keep.write_text(json.dumps({"key": "trial unlimited", "result": ran(arm="unlimited")}) + "\n")
    runs = Runs(archive=tmp_path / "none", is_quick=False, say=print, keep=keep, stop_at_s=0.0)

    assert runs.once("trial unlimited", UNLIMITED)["wall_s"] == 100.0
    with pytest.raises(OutOfTime, match="round 1"):
        runs.once("round 1 unlimited", UNLIMITED)


def test_arms_with_other_parameters_have_other_names():
    """A trial is found again by its parameter."""
    tried = [
        UNLIMITED,
        Arm(name="fixed", limit_bytes=300 << 20),
        Arm(name="fixed", limit_bytes=400 << 20),
        Arm(name="reactive", senpai_start_at_usage=True, senpai_max_bytes=1 << 30),
        Arm(name="reactive", senpai_start_at_usage=False, senpai_max_bytes=1 << 30),
    ]

    assert len({arm.described() for arm in tried}) == len(tried)


def test_what_is_missing_is_named_by_its_package():
    """What is there is not asked for."""
    assert build_source.missing_packages({"sh": "dash", "no-such-program": "no-such-package"}) == ["no-such-package"]
