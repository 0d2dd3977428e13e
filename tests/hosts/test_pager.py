# SPDX-License-Identifier: Apache-2.0
"""What every host's page-out and page-in must do."""

import pytest

from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished
from tests.hosts.stages import MIB, Stage, offers


@pytest.fixture
def watched(stage: Stage) -> Stage:
    stage.host.watch([stage.partition()])
    return stage


def in_memory_and_swap(stage: Stage) -> tuple[int, int]:
    seen = stage.host.observe()
    row = stage.process_row(seen)
    return int(seen.processes.anon_bytes[row]), int(seen.processes.swapped_bytes[row])


def major_faults(stage: Stage) -> int:
    seen = stage.host.observe()
    return int(seen.processes.major_faults_count[stage.process_row(seen)])


@offers("page_out")
def test_page_out_moves_about_what_was_asked(watched: Stage):
    """So many bytes leave memory for swap, no more, and the answer tells how many."""
    resident_bytes, _ = in_memory_and_swap(watched)
    moved = watched.host.page_out(watched.process, 24 * MIB)
    after_bytes, swapped_bytes = in_memory_and_swap(watched)

    assert moved.asked_bytes == 24 * MIB
    assert moved.moved_bytes == pytest.approx(24 * MIB, abs=watched.slack_bytes)
    assert resident_bytes - after_bytes == pytest.approx(moved.moved_bytes, abs=watched.slack_bytes)
    assert swapped_bytes == pytest.approx(moved.moved_bytes, abs=watched.slack_bytes)
    assert moved.duration_s >= 0.0
    assert moved.cpu_s >= 0.0


@offers("page_out", "page_in")
def test_page_in_brings_back_and_maps(watched: Stage):
    """What was sent out comes back, in the size asked for, and is then touched without a fault."""
    watched.host.page_out(watched.process, 24 * MIB)
    half = watched.host.page_in(watched.process, 12 * MIB)
    _, left_bytes = in_memory_and_swap(watched)
    rest = watched.host.page_in(watched.process, 64 * MIB)
    resident_bytes, swapped_bytes = in_memory_and_swap(watched)
    faults = major_faults(watched)
    watched.touch_all()

    assert half.moved_bytes == pytest.approx(12 * MIB, abs=watched.slack_bytes)
    assert left_bytes == pytest.approx(12 * MIB, abs=watched.slack_bytes)
    assert rest.moved_bytes == pytest.approx(12 * MIB, abs=watched.slack_bytes)
    assert resident_bytes == pytest.approx(watched.memory_bytes, abs=watched.slack_bytes)
    assert swapped_bytes <= watched.slack_bytes
    assert major_faults(watched) == faults


@offers("page_out")
def test_contents_survive_a_page_out(watched: Stage):
    """A process that touches what was sent out finds its memory as it left it, by way of faults."""
    watched.host.page_out(watched.process, watched.memory_bytes)
    watched.touch_all()

    assert major_faults(watched) > 0
    assert in_memory_and_swap(watched)[0] == pytest.approx(watched.memory_bytes, abs=watched.slack_bytes)


@offers("page_out")
def test_asking_for_nothing_moves_nothing(watched: Stage):
    """Zero bytes are zero bytes, and nothing in swap means nothing to bring back."""
    before = in_memory_and_swap(watched)

    assert watched.host.page_out(watched.process, 0).moved_bytes == 0
    assert watched.host.page_in(watched.process, 0).moved_bytes == 0
    assert watched.host.page_in(watched.process, 64 * MIB).moved_bytes <= before[1]
    assert in_memory_and_swap(watched)[0] == before[0]


@offers("page_out")
def test_a_process_that_is_gone_raises_vanished(watched: Stage):
    """Neither direction touches whoever has the pid next: the instance must fit, not only the number."""
    stranger = Instance(pid=watched.process.pid, start_ticks=watched.process.start_ticks + 1)
    with pytest.raises(Vanished):
        watched.host.page_out(stranger, MIB)
    watched.end_process()

    with pytest.raises(Vanished):
        watched.host.page_out(watched.process, MIB)
    with pytest.raises(Vanished):
        watched.host.page_in(watched.process, MIB)
