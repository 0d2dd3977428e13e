# SPDX-License-Identifier: Apache-2.0
"""What every host must tell of page faults that it watches."""

from collections.abc import Iterator

import numpy as np
import pytest

from memsculpt.domain.growth import FaultRate
from memsculpt.domain.workload import Instance
from memsculpt.host.protocol import FaultWatch
from tests.hosts.stages import Stage, offers

EVERY = FaultRate(shift=0, refill=1 << 20)


@pytest.fixture
def watch(stage: Stage) -> Iterator[FaultWatch]:
    opened = stage.host.open_faults()
    yield opened
    opened.close()


@offers("page_walk")
def test_who_sleeps_has_no_faults_and_is_counted(stage: Stage, watch: FaultWatch):
    watch.watch({stage.process: EVERY})
    found = watch.drain()
    assert len(found.page) == 0
    assert found.counts[stage.process].shift == 0
    assert found.counts[stage.process].seen_count == 0
    assert watch.modules()[0].name == "[unknown]"


@offers("page_walk")
def test_who_is_watched_no_longer_is_not_told_of(stage: Stage, watch: FaultWatch):
    watch.watch({stage.process: EVERY})
    watch.watch({})
    stage.touch_all()
    found = watch.drain()
    assert found.counts == {}
    assert len(found.page) == 0


@offers("page_walk")
def test_of_whom_has_ended_nothing_is_held(stage: Stage, watch: FaultWatch):
    watch.watch({stage.process: EVERY})
    stage.end_process()
    pages, sizes = np.array([1 << 20, 1 << 21], np.int64), np.array([1, 512], np.int64)
    assert watch.count_held(stage.process, pages, sizes).tolist() == [0, 0]
    watch.watch({stage.process: EVERY})
    assert len(watch.drain().page) == 0


@offers("page_walk")
def test_who_never_was_is_passed_over(watch: FaultWatch):
    nobody = Instance(pid=(1 << 22) + 9, start_ticks=1)
    watch.watch({nobody: EVERY})
    assert len(watch.drain().page) == 0


@offers("page_walk")
def test_the_prices_are_known(watch: FaultWatch):
    assert 0.0 <= watch.pass_cost_s < 1e-4
    assert 0.0 <= watch.record_cost_s < 1e-3
