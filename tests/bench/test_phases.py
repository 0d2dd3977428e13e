# SPDX-License-Identifier: Apache-2.0
"""The figures of bench phases on runs that are written down, and blocks as ranges."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt_bench import phase_rounds
from memsculpt_bench.phase_driver import BLOCK_BYTES, ranges_of


def ran(turn_s, *, missing=0, kills=0, recall=0.95, precision=0.9):
    return {
        "late_turn_s": [turn_s] * 3,
        "missing_turns": missing,
        "oom_kills": kills,
        "recall": recall,
        "precision": precision,
    }


def parts(**changes):
    turns = {"roomy": 0.3, "kernel": 1.5, "readahead": 1.2, "replay": 1.0, "memsculpt": 0.4, "oracle": 0.35} | changes
    return {
        "random": {arm: [ran(turn_s)] for arm, turn_s in turns.items()},
        "tight": {"kernel": [ran(1.0, missing=3, kills=1)], "memsculpt": [ran(0.4)]},
        "uniform": {"kernel": [ran(1.0)], "memsculpt": [ran(1.005)]},
    }


def test_lost_time_is_what_exceeds_a_turn_with_room():
    """(1.5 - 0.3) / (0.4 - 0.3), and every bar holds."""
    figures = phase_rounds.figures_of(parts())

    assert figures["lost_kernel_over_ours"].value == pytest.approx(12.0)
    assert figures["turn_ours_over_oracle"].value == pytest.approx(0.4 / 0.35)
    assert all(figure.holds for figure in figures.values())


def test_a_killed_round_is_not_measured_and_does_not_hold():
    """Where the kernel's run was killed there is no turn to compare: a figure without a value is missed."""
    written = parts()
    written["random"]["kernel"] = [ran(0.5, missing=4, kills=1)]
    figure = phase_rounds.figures_of(written)["lost_kernel_over_ours"]

    assert figure.value is None
    assert not figure.holds


def test_our_own_kill_is_counted():
    """A kill under memsculpt, in whichever part, misses the bar."""
    written = parts()
    written["tight"]["memsculpt"] = [ran(0.4, kills=1)]

    assert not phase_rounds.figures_of(written)["oom_kills"].holds


@given(blocks=st.sets(st.integers(0, 1 << 20), min_size=1, max_size=100))
def test_blocks_as_ranges_are_the_same_memory(blocks):
    """Ranges ascend, are apart, and hold exactly the blocks."""
    ranges = ranges_of(np.array(sorted(blocks)))

    held = [at // BLOCK_BYTES for start, end in ranges for at in range(start, end, BLOCK_BYTES)]
    assert held == sorted(blocks)
    assert all(end < start for (_, end), (start, _) in pairwise(ranges))
