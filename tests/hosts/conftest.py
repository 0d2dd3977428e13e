# SPDX-License-Identifier: Apache-2.0
"""Runs the conformance suite on every host: each test that takes `stage` once for each of them."""

import importlib.util
from collections.abc import Iterator

import pytest

from memsculpt_bench.lab import zram_swap
from tests.hosts.simulated_stage import SimulatedStage, SimulatedStageV2
from tests.hosts.stages import MIB, Stage

STAGES: tuple[type[Stage], ...] = (SimulatedStage, SimulatedStageV2)
if importlib.util.find_spec("memsculpt.host.linux"):
    from tests.hosts.linux_stage import LinuxStage

    STAGES = (*STAGES, LinuxStage)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" not in metafunc.fixturenames:
        return
    wanted = getattr(metafunc.function, "offers", ())
    told = {"elsewhere": metafunc.function.elsewhere} if getattr(metafunc.function, "elsewhere", "") else {}
    params = [
        pytest.param(
            stage,
            id=stage.__name__,
            marks=[pytest.mark.needs(name, **told) for name in wanted] if stage.is_real else [],
        )
        for stage in STAGES
    ]
    metafunc.parametrize("stage", params, indirect=True)


@pytest.fixture(scope="module")
def own_swap() -> Iterator[None]:
    """Swap of our own for a file of tests: turning it off takes longer than a test; others count swap devices."""
    with zram_swap(512 * MIB):
        yield


@pytest.fixture
def stage(request: pytest.FixtureRequest, own_cgroup_name: str) -> Iterator[Stage]:
    if request.param.is_real:
        request.getfixturevalue("own_swap")
    with request.param(own_cgroup_name) as built:
        yield built
