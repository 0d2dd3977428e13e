# SPDX-License-Identifier: Apache-2.0
"""What the tests of doors share."""

import pytest

from tests.doors.scene import TICKS, Scene


@pytest.fixture(scope="session")
def scene() -> Scene:
    """A scene that has run for a while; who changes it makes one of his own."""
    made = Scene()
    made.tick(TICKS)
    return made
