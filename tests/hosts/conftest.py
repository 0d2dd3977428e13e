# SPDX-License-Identifier: Apache-2.0
"""Runs the conformance suite on every host: each test that takes `stage` once for each of them."""

import pytest

from tests.hosts.simulated_stage import SimulatedStage, SimulatedStageV2

STAGES = (SimulatedStage, SimulatedStageV2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" not in metafunc.fixturenames:
        return
    wanted = getattr(metafunc.function, "offers", ())
    params = [
        pytest.param(
            stage, id=stage.__name__, marks=[pytest.mark.needs(name) for name in wanted] if stage.is_real else []
        )
        for stage in STAGES
    ]
    metafunc.parametrize("stage", params, indirect=True)


@pytest.fixture
def stage(request: pytest.FixtureRequest):
    with request.param() as built:
        yield built
