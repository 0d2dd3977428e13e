# SPDX-License-Identifier: Apache-2.0
"""The profile store on a disk that is really full: said once, nothing torn, and kept again when there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memsculpt.domain.series import SAMPLED
from memsculpt.domain.settings import ProfileSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.profile import Recorder
from memsculpt.profile.store import Reader, find_set_aside

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(90)]

BEGIN_S = 1_800_000_000 // 3600 * 3600
IDS = tuple(WorkloadId(f"workload-{number}") for number in range(50))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "memsculpt-test", str(place)]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield place
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_survived(small_disk):
    chance = np.random.default_rng(5)
    clock = [float(BEGIN_S)]
    recorder = Recorder(str(small_disk), ProfileSettings(), clock_s=lambda: clock[0])

    def run(seconds: int) -> None:
        for _ in range(seconds):
            rows = chance.uniform(0, 2.0**40, (len(IDS), SAMPLED))  # noise: as large as samples can be
            recorder.record(IDS, rows, is_named=np.ones(len(IDS), np.bool_), now_s=clock[0])
            clock[0] += 1.0

    run(200)
    assert recorder.notes == ()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(4 << 20))
    run(600)
    assert "disk is full" in recorder.problem
    assert len(recorder.notes) == 1
    filler.unlink()
    began_s = clock[0]
    run(120)
    assert recorder.problem == ""
    recorder.close()

    reader = Reader.open(small_disk)
    assert reader.check() == []
    known = reader.last(IDS[0], 1, 10_000)
    assert known.is_valid[:180, 0].all()
    assert known.times_s[known.is_valid[:, 0]][-1] >= began_s + 119
    assert find_set_aside(small_disk) == []
    reader.close()
