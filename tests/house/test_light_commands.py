# SPDX-License-Identifier: Apache-2.0
"""Commands that only ask a running agent start fast: they load neither numpy nor an HTTP library.

Importing numpy alone takes 0.13 to 0.32 s and 16 MiB, which `status` in a shell loop would pay every time. They talk
HTTP through the standard library's http.client.
"""

import subprocess
import sys

import pytest

from tests.house.tree import SOURCE

HEAVY = {"numpy", "starlette", "uvicorn", "anyio", "h11", "httpx", "httpx2", "requests", "aiohttp"}
HELP = [["status", "--help"], ["partitions", "--help"], ["plan", "--help"], ["restore", "--help"]]
# Beyond their help: asking an agent takes the same road whether one answers or not. `restore` would undo something.
ASK = [["status"], ["partitions"], ["plan"]]

# Runs one command in this fresh interpreter and prints, after whatever the command says, what it has loaded.
PROGRAM = """
import sys
from memsculpt.__main__ import main
sys.argv = ["memsculpt", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print()
print("loaded:", *sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.skipif(not (SOURCE / "memsculpt/doors/cli").is_dir(), reason="the command line is not written yet")
@pytest.mark.parametrize("arguments", HELP + ASK, ids=" ".join)
def test_a_light_command_loads_nothing_heavy(arguments):
    """Neither numpy nor an HTTP library is loaded when the command has done its work."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=9,
    )
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.rpartition("loaded:")[2].split())
    assert "memsculpt" in loaded
    assert not HEAVY & loaded, f"`memsculpt {' '.join(arguments)}` loads {sorted(HEAVY & loaded)}; import them later"
