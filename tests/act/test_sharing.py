# SPDX-License-Identifier: Apache-2.0
"""One group of programs at a time may have its pages merged."""

import os
import subprocess
import sys

import pytest

from memsculpt.act.ownership import join_group
from memsculpt.errors import Refused

LIVES_ON = """
import os, sys
from memsculpt.act.ownership import join_group
from pathlib import Path
join_group(Path(sys.argv[1]), "blue")
os.execvp("cat", ["cat"])
"""


def test_another_group_waits_until_the_last_sharer_has_ended(tmp_path):
    """Across exec: the program that the sharer became, and its children, count as long as they live."""
    place = tmp_path / "run" / "sharing"
    sharer = subprocess.Popen([sys.executable, "-c", LIVES_ON, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sharer.stdin.write(b"joined\n")
    sharer.stdin.flush()
    assert sharer.stdout.readline() == b"joined\n"
    second = join_group(place, "blue")

    with pytest.raises(Refused, match='group "blue" share pages now'):
        join_group(place, "red")
    os.close(second)
    with pytest.raises(Refused):
        join_group(place, "red")
    sharer.communicate()
    os.close(join_group(place, "red"))


def test_who_is_refused_holds_nothing(tmp_path):
    """No descriptor is left open, and the group in the file is still the one that shares."""
    place = tmp_path / "sharing"
    ours = join_group(place, "blue")
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused):
        join_group(place, "red")

    assert len(os.listdir("/proc/self/fd")) == opened
    assert place.read_text() == "blue"
    os.close(ours)
