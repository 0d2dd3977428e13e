# SPDX-License-Identifier: Apache-2.0
"""No host goes untested."""

import pkgutil

import memsculpt.host
from tests.hosts.conftest import STAGES


def test_every_host_has_a_stage():
    """Each package below memsculpt.host is a host and runs this suite."""
    packages = {found.name for found in pkgutil.iter_modules(memsculpt.host.__path__) if found.ispkg}

    assert packages == {stage.host_package for stage in STAGES}
