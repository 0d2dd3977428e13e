# SPDX-License-Identifier: Apache-2.0
"""No host goes untested."""

from pathlib import Path

import memsculpt.host
from tests.hosts.conftest import STAGES


def test_every_host_has_a_stage():
    """Each package below memsculpt.host with a host in it (`host.py`) runs this suite."""
    packages = {found.parent.name for place in memsculpt.host.__path__ for found in Path(place).glob("*/host.py")}

    assert packages == {stage.host_package for stage in STAGES}
