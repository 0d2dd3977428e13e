# SPDX-License-Identifier: Apache-2.0
"""What every test session shares: what this machine lacks, what is required of it, and what an aborted one left.

`needs("page_out")` skips a test with doctor's own reason. Where everything is required (MEMSCULPT_REQUIRE=all: CI as
root, the reference machine) a skip is a failure, because there nobody would notice that a test stopped running. The two
ways to say that a skip is all right even there both demand a reason: `needs(..., elsewhere="...")`, `elsewhere("...")`.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

REFUSE_SKIPS = os.environ.get("MEMSCULPT_REQUIRE") == "all"
CGROUP_ROOTS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
TEST_CGROUP_PREFIX = "memsculpt-test-"

# Seconds per test where the default of pyproject.toml (rings a to c) is too short: real kernels, guests, browsers.
TIMEOUT_S = {"kernel": 60, "vm": 300, "browser": 120, "demo": 300}

# What runs side by side when pytest-xdist runs the tests (`make test`): guests are machines of their own; tests of this
# machine share its swap, cgroups and list of processes, so they keep to one process, as do rooms with costly fixtures.
# Each file of tests in guests goes wherever there is room: together they take longer than all the others.
GROUPS = dict.fromkeys(("agent", "bench", "doors", "host", "hosts", "kernel", "workers"), "machine")

_ELSEWHERE = pytest.StashKey[str]()
_number = iter(range(1_000_000))

# Deadlines measure the neighbours on a shared machine, so there are none. CI repeats the same examples every time;
# at a desk new ones are tried, and failures are remembered in .hypothesis.
hypothesis.settings.register_profile("desk", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") or REFUSE_SKIPS else "desk")


@functools.cache
def capabilities() -> Mapping[str, Any] | None:
    """What doctor finds on this machine, asked once per session; None while there is no doctor."""
    try:
        doctor = importlib.import_module("memsculpt.host.doctor")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("memsculpt"):
            raise
        return None
    return doctor.examine()


# --- what this machine lacks ------------------------------------------------------------------------------------------


def why_not(name: str) -> str | None:
    """Return the reason why a test that needs `name` cannot run here, or None when it can."""
    known = capabilities()
    if known is None:
        return f"{name}: there is no doctor to ask (memsculpt.host.doctor)"
    if name not in known:
        pytest.fail(f"needs({name!r}): doctor knows no such capability; it knows {', '.join(sorted(known))}")
    capability = known[name]
    return None if capability.available else f"{capability.name}: {capability.reason} (fix: {capability.fix})"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("elsewhere"):
        item.stash[_ELSEWHERE] = mark.args[0]
    for mark in item.iter_markers("needs"):
        reason = why_not(*mark.args)
        if reason is None:
            continue
        elsewhere = mark.kwargs.get("elsewhere")
        if elsewhere:
            item.stash[_ELSEWHERE] = elsewhere
            reason = f"{reason}; {elsewhere}"
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if REFUSE_SKIPS and report.skipped and not hasattr(report, "wasxfail") and _ELSEWHERE not in item.stash:
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if REFUSE_SKIPS and report.skipped:
        _refuse(report)
    return report


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = (
        f"{reason}\n"
        "  everything is required here (MEMSCULPT_REQUIRE=all), so a skip is a failure\n"
        "  fix: give this machine what is missing, or say in the test where it runs instead: needs(..., elsewhere=...)"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's, which reads the groups and would find none
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        ring = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem if ring == "vm" else GROUPS.get(ring, ring)))
        if ring in TIMEOUT_S and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[ring]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run groups side by side that pytest-xdist does not see (it writes them behind the tests' names)."""
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError(
            "tests/conftest.py: pytest-xdist does not see the groups, so tests of this machine would meet each other;\n"
            "  fix: install the versions of requirements/dev.txt (docs/decisions/0057)"
        )


# --- what the session tells first -------------------------------------------------------------------------------------


def pytest_report_header() -> list[str]:
    lines = [f"memsculpt: a skip is {'a failure' if REFUSE_SKIPS else 'allowed'} (MEMSCULPT_REQUIRE)"]
    lines += [f"memsculpt: {line}" for line in _swept]
    known = capabilities()
    if known is None:
        return [*lines, "memsculpt: no doctor yet; tests that need something of the machine are skipped"]
    here = [name for name, capability in sorted(known.items()) if capability.available]
    lines.append(f"memsculpt: this machine offers {', '.join(here) or 'nothing of what tests may need'}")
    lines += [
        f"memsculpt: not tested here: {name}: {capability.reason}"
        for name, capability in sorted(known.items())
        if not capability.available
    ]
    return lines


# --- what an aborted earlier session left -----------------------------------------------------------------------------

_swept: list[str] = []


def pytest_sessionstart() -> None:
    _swept.extend(sweep_cgroups(CGROUP_ROOTS))


def sweep_cgroups(roots: tuple[str, ...]) -> list[str]:
    """Remove test cgroups whose session is gone; return one line for each that was found.

    The name is memsculpt-test-PID-N. One that belongs to a living process is left alone (several sessions may share a
    machine), and so is one that still holds processes: nothing is killed here, it is only told.
    """
    lines: list[str] = []
    for root in roots:
        for leftover in sorted(Path(root).glob(f"{TEST_CGROUP_PREFIX}*")):
            if leftover.is_dir() and not _owner_lives(leftover.name):
                lines.extend(_remove(leftover))
    return lines


def _owner_lives(name: str) -> bool:
    """Tell whether the process in the name lives; a name without one is nobody's."""
    owner = name.removeprefix(TEST_CGROUP_PREFIX).split("-")[0]
    return owner.isdigit() and Path("/proc", owner).exists()


def _remove(leftover: Path) -> Iterator[str]:
    children = sorted((path for path in leftover.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    for cgroup in (*children, leftover):
        with contextlib.suppress(FileNotFoundError):  # another session was quicker
            try:
                cgroup.rmdir()
            except OSError as error:
                yield f"cgroup {cgroup}, left by an aborted session, could not be removed: {error.strerror}"
            else:
                yield f"cgroup {cgroup}, left by an aborted session, was removed"


@pytest.fixture
def own_cgroup_name() -> str:
    """A name for a cgroup of this test: an aborted session's are recognised by it and removed."""
    return f"{TEST_CGROUP_PREFIX}{os.getpid()}-{next(_number)}"
