# SPDX-License-Identifier: Apache-2.0
"""bench store: what it makes of a recording is like it and never twice the same, and what it counts is known."""

import numpy as np
import pytest

from memsculpt.domain.series import METRICS, SAMPLED
from memsculpt.domain.workload import WorkloadId
from memsculpt.profile.store import Reader
from memsculpt_bench import store
from tests.profile.shelf import steps

pytestmark = pytest.mark.timeout(60)


def recorded():
    table = steps(90)
    table[:, 8] = np.nan  # never sensed
    return {WorkloadId("a"): table, WorkloadId("b"): steps(60, seed=2)}


def test_an_hour_is_like_the_recording_but_never_twice_the_same():
    maker = store._Maker(recorded()[WorkloadId("a")], (1, 2))
    first, second = maker.hour(store.BEGIN_S), maker.hour(store.BEGIN_S + 3600)
    assert first.shape == (3600, SAMPLED)
    assert np.isnan(first[:, 8]).all()
    assert np.isfinite(np.delete(first, 8, axis=1)).all()
    assert (first[:, 0] != second[:, 0]).mean() > 0.9
    rates = first[:, [one.bits < 9 for one in METRICS[:SAMPLED]]]
    assert len(np.unique(rates[:, 0])) > 3000  # jittered: no stretch is met twice byte by byte


def test_only_known_samples_are_counted_and_all_of_them_are_in_the_file(tmp_path):
    (ratio, size), (usual, _) = store._fill(tmp_path, recorded(), 2, 1, seed=0)
    reader = Reader.open(tmp_path)
    known = 0
    for number in range(2):
        found = reader.read(WorkloadId(f"workload-{number:03}"), 1, store.BEGIN_S, store.BEGIN_S + 86_400)
        known += int(found.is_valid.sum())
    assert known == 86_400 * (2 * SAMPLED - 1)
    assert ratio == size / known
    assert 0.0 < usual <= ratio
    assert size <= reader.path.stat().st_size
    reader.close()
