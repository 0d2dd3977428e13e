# SPDX-License-Identifier: Apache-2.0
"""The arm of bench sense that runs in a guest of its own: one short round of it."""

from __future__ import annotations

import pytest

from memsculpt_bench import sense_guest
from memsculpt_bench.guests import lab


def test_a_round_tells_of_every_source():
    """The walker is exact; what the others name covers what was touched, and more than that."""
    possible, reason = lab.probe()
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    said: list[str] = []
    told = sense_guest.measure(1, said.append, patterns=(("block", 2.9),), pages=32 << 8)
    assert told["kernel"].startswith("6.12")
    assert len(said) == 3
    (walker,), (damon,), (smaps,) = (list(told[name].values()) for name in sense_guest.ARMS)
    assert (walker["recall"], walker["precision"]) == ([1.0], [1.0])
    assert walker["kernel_ratio"] == [0.0]
    assert damon["recall"][0] > 0.5
    assert damon["kernel_ratio"][0] > 0.0
    assert smaps["recall"] == [1.0]
    assert smaps["precision"][0] == pytest.approx(0.25, abs=0.01)
