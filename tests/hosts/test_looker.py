# SPDX-License-Identifier: Apache-2.0
"""What every host must tell of touched pages."""

from collections.abc import Iterator

import pytest

from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.errors import Vanished
from memsculpt.host.protocol import PageReader
from tests.hosts.stages import Stage, offers


@pytest.fixture
def reader(stage: Stage) -> Iterator[PageReader]:
    opened = stage.host.open_pages(stage.process)
    yield opened
    opened.close()


def touched_bytes(reader: PageReader) -> int:
    return int(reader.read().touched.sum()) * PAGE_BYTES


@offers("page_walk")
def test_what_sleeps_touches_nothing_and_what_wakes_is_seen(stage: Stage, reader: PageReader):
    reader.clear()
    assert touched_bytes(reader) < stage.slack_bytes
    stage.touch_all()
    reader.look()
    assert touched_bytes(reader) == pytest.approx(stage.memory_bytes, abs=stage.slack_bytes)
    assert touched_bytes(reader) > 0  # reading changes nothing
    reader.clear()
    assert touched_bytes(reader) < stage.slack_bytes


@offers("page_walk")
def test_a_part_can_be_read_and_cleared_alone(stage: Stage, reader: PageReader):
    reader.clear()
    stage.touch_all()
    whole = reader.read()
    row = int(whole.touched.argmax())
    start = int(whole.starts[row])
    pauses: list[float] = []
    part = reader.turn(start, int(whole.ends[-1]), pauses.append)
    assert int(part.touched.sum()) > 0
    assert all(0.0 < share < 1.0 for share in pauses)
    assert int(reader.read([(start, start + (2 << 20))]).touched.sum()) <= 1


@offers("page_walk")
def test_a_survey_tells_where_there_is_memory(stage: Stage, reader: PageReader):
    extents = reader.survey()
    assert (extents.regions % REGION_BYTES == 0).all()
    assert (extents.regions[1:] > extents.regions[:-1]).all()
    assert int(extents.present.sum()) == pytest.approx(int(reader.read().present.sum()), abs=stage.slack_bytes)
    assert int(extents.present.sum()) * PAGE_BYTES >= stage.memory_bytes - stage.slack_bytes


@offers("page_walk")
def test_who_has_ended_is_vanished(stage: Stage, reader: PageReader):
    stage.end_process()
    with pytest.raises(Vanished):
        reader.read()
    with pytest.raises(Vanished):
        reader.survey()
    with pytest.raises(Vanished):
        reader.clear()
    with pytest.raises(Vanished):
        stage.host.open_pages(stage.process)


@offers("page_walk")
def test_the_price_of_a_touch_is_known(stage: Stage):
    assert 0.0 <= stage.host.touch_cost_s() < 1e-5
