# SPDX-License-Identifier: Apache-2.0
"""A source that fails while the agent runs is replaced for that look, and asked again at the next."""

import pytest

from memsculpt.act import Sensor
from memsculpt.domain.heat import LookAt, LookKind
from memsculpt.host.simulated import Constant, DeniedLooking, SimulatedHost
from memsculpt.host.simulated.looking import SOURCES

MIB = 1 << 20
BEST = SOURCES[0]


def sensor_on(*faults):
    host = SimulatedHost(1, workloads=(Constant(name="server", cgroup="srv", size_bytes=64 * MIB),), faults=faults)
    host.wait_until(1005.0)
    (process,) = host.instances("server")
    return host, Sensor(host), process


def look(sensor, process, kind=LookKind.SURVEY):
    sensor.start([LookAt(kind=kind, process=process, start=1 << 32, end=(1 << 32) + 64 * MIB)])
    (done,) = sensor.collect()
    return done


def found(done):
    return done.extents if done.task.kind is LookKind.SURVEY else done.touches


@pytest.mark.parametrize("kind", list(LookKind))
def test_the_next_best_does_the_look_and_the_reason_is_kept(kind):
    host, sensor, process = sensor_on(DeniedLooking(source=BEST, from_s=10.0, until_s=20.0))
    assert look(sensor, process).problem == ""
    host.wait_until(1012.0)
    done = look(sensor, process, kind)
    assert found(done) is not None
    assert f"source {BEST}" in done.problem
    assert "may not be looked at" in done.problem
    assert done.is_first
    again = look(sensor, process, kind)
    assert again.problem == done.problem
    assert not again.is_first
    host.wait_until(1021.0)
    well = look(sensor, process, kind)
    assert found(well) is not None
    assert well.problem == ""
    assert not well.is_first
    sensor.close()


def test_it_is_replaced_once_and_then_the_process_is_let_be():
    """Where the stand-in fails as well, both reasons are said."""
    faults = [DeniedLooking(source=one, from_s=10.0, until_s=20.0) for one in SOURCES]
    host, sensor, process = sensor_on(*faults)
    look(sensor, process)
    host.wait_until(1012.0)
    done = look(sensor, process)
    assert found(done) is None
    assert done.problem.startswith(f"source {BEST}")
    assert done.problem.count("may not be looked at") == 2
    sensor.close()


def test_one_that_never_worked_for_a_process_is_replaced_as_well():
    """It cannot even be opened."""
    host, sensor, process = sensor_on(DeniedLooking(source=BEST, from_s=4.0, until_s=6.0))
    done = look(sensor, process)
    assert found(done) is not None
    assert done.is_first
    host.wait_until(1008.0)
    assert look(sensor, process).problem == ""
    sensor.close()
