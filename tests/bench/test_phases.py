# SPDX-License-Identifier: Apache-2.0
"""The figures of bench phases on runs that are written down, runs put together, and blocks as ranges."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.errors import UsageError
from memsculpt_bench import phase_rounds
from memsculpt_bench.phase_driver import BLOCK_BYTES, PROCESS_BLOCKS, numbered, ranges_of


def ran(turn_s, *, missing=0, kills=0, recall=0.95, precision=0.9, seed=1):
    return {
        "seed": seed,
        "late_turn_s": [turn_s] * 3,
        "late_turn_cpu_s": [turn_s] * 3,
        "missing_turns": missing,
        "oom_kills": kills,
        "recall": recall,
        "precision": precision,
        "manager_cpu_ratio": 0.1,
        "looking_cpu_ratio": 0.03,
        "learning_cpu_ratio": 0.01,
    }


def alternated(*ratios, missing=0, kills=0):
    return {
        "seed": 1,
        "managed_over_alone": list(ratios),
        "managed_over_alone_cpu": list(ratios),
        "alone_over_alone": [1.0],
        "alone_over_alone_cpu": [1.0],
        "missing_groups": missing,
        "oom_kills": kills,
    }


def parts(**changes):
    turns = {"roomy": 0.3, "kernel": 1.5, "readahead": 1.2, "replay": 1.0, "memsculpt": 0.4, "oracle": 0.35} | changes
    return {
        "random": {arm: [ran(turn_s)] for arm, turn_s in turns.items()},
        "nightly": {arm: [ran(turn_s)] for arm, turn_s in turns.items()},
        "tight": {"kernel": [ran(1.0, missing=3, kills=1)], "memsculpt": [ran(0.4)]},
        "uniform": {"memsculpt": [alternated(1.0, 1.004, 0.99)]},
    }


def test_lost_time_is_what_exceeds_a_turn_with_room():
    """(1.5 - 0.3) / (0.4 - 0.3), and every bar holds."""
    figures = phase_rounds.figures_of(parts())

    assert figures["lost_kernel_over_ours_random"].value == pytest.approx(12.0)
    assert figures["turn_ours_over_oracle_random"].value == pytest.approx(0.4 / 0.35)
    assert all(figure.holds for figure in figures.values())


def test_a_round_in_which_the_kernel_killed_is_told_apart():
    """It has no lost time, so where all rounds are such there is no value; how many there were is a figure."""
    written = parts()
    written["random"]["kernel"] = [ran(0.5, missing=4, kills=1)]
    figures = phase_rounds.figures_of(written)

    assert figures["lost_kernel_over_ours_random"].value is None
    assert not figures["lost_kernel_over_ours_random"].holds
    assert figures["rounds_killed_kernel_random"].value == 1.0
    assert figures["rounds_killed_replay_random"].value == 0.0


def test_an_arm_that_was_too_slow_counts_with_what_it_finished():
    """It was not killed, only ended: its turns are as long as they are."""
    written = parts()
    written["random"]["kernel"] = [ran(9.3, missing=4)]

    assert phase_rounds.figures_of(written)["lost_kernel_over_ours_random"].value == pytest.approx(90.0)


@pytest.mark.parametrize("ended", [{"missing": 2}, {"missing": 2, "kills": 1}])
def test_turns_that_memsculpt_did_not_take_miss_every_figure(ended):
    """One such round of three: whatever the others say."""
    written = parts()
    written["random"] = {arm: runs * 3 for arm, runs in written["random"].items()}
    written["random"]["memsculpt"] = [ran(0.4), ran(0.4), ran(0.4, **ended)]
    figures = phase_rounds.figures_of(written)

    names = ("lost_kernel_over_ours", "lost_replay_over_ours", "turn_ours_over_oracle", "recall", "precision")
    assert not any(figures[f"{name}_random"].holds for name in names)
    assert all(figures[f"{name}_nightly"].holds for name in names)


@pytest.mark.parametrize("part", ["random", "nightly", "tight", "uniform"])
def test_our_own_kill_is_counted(part):
    """A kill under memsculpt, in whichever part, misses the bar."""
    written = parts()
    written[part]["memsculpt"] = [alternated(1.0, kills=1) if part == "uniform" else ran(0.4, kills=1)]

    assert not phase_rounds.figures_of(written)["oom_kills"].holds


def test_a_group_without_turns_misses():
    """The program without a pattern ended before its time: what was measured until then does not stand for it."""
    written = parts()
    written["uniform"]["memsculpt"] = [alternated(1.0, missing=1)]

    assert not phase_rounds.figures_of(written)["uniform_managed_over_alone"].holds


def test_runs_that_were_made_apart_are_put_together(tmp_path):
    """Every round of every file is there, figures are those of all, and no round counts twice."""
    paths = []
    for number, turn_s in enumerate((0.4, 0.5), start=1):
        written = parts(memsculpt=turn_s)
        for runs in written.values():
            for results in runs.values():
                results[0]["seed"] = number
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"bench": "phases", "machine": {"cpus": 2}, "parts": written}))
    whole = phase_rounds.merged(paths)

    assert whole["rounds"] == 2
    assert whole["figures"]["lost_kernel_over_ours_random"]["low"] == pytest.approx(6.0)
    assert whole["figures"]["lost_kernel_over_ours_random"]["high"] == pytest.approx(12.0)
    with pytest.raises(UsageError, match="twice"):
        phase_rounds.merged([*paths, paths[0]])


@given(blocks=st.sets(st.integers(0, 1 << 20), min_size=1, max_size=100))
def test_blocks_as_ranges_are_the_same_memory(blocks):
    """Ranges ascend, are apart, and hold exactly the blocks."""
    ranges = ranges_of(np.array(sorted(blocks)))

    held = [at // BLOCK_BYTES for start, end in ranges for at in range(start, end, BLOCK_BYTES)]
    assert held == sorted(blocks)
    assert all(end < start for (_, end), (start, _) in pairwise(ranges))


@given(process=st.integers(0, 3), blocks=st.sets(st.integers(0, (1 << 47) // BLOCK_BYTES), max_size=20))
def test_a_block_number_tells_its_process(process, blocks):
    """Process and block come back from the number, for every address that a process can have."""
    numbers = numbered(process, np.array(sorted(blocks), np.int64))

    assert (numbers // PROCESS_BLOCKS).tolist() == [process] * len(blocks)
    assert (numbers % PROCESS_BLOCKS).tolist() == sorted(blocks)
