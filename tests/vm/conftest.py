# SPDX-License-Identifier: Apache-2.0
"""Guests as fixtures: one boot of each flavour in a session, and tenants in them that remove themselves.

No test here says `needs("qemu_guest")`: doctor tells users what their machine offers, and users need no QEMU. Asking
for a guest is the need, and the skip of its fixture goes the way of every skip (tests/conftest.py).
"""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from memsculpt_bench import known_pages
from memsculpt_bench.guests import debian, image, inside, lab
from memsculpt_bench.guests.guest import Guest
from tests.vm.tenant import TENANT_BYTES, Tenant


def _boot(
    stack: ExitStack,
    factory: pytest.TempPathFactory,
    *,
    init: str,
    series: str = "6.1",
    memory_bytes: int = 512 << 20,
    slow_bytes: int = 0,
) -> Guest:
    """Boot a guest, or skip with the lab's reason; where all is required tests/conftest.py makes that a failure."""
    possible, reason = lab.probe()
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    try:
        folder = factory.mktemp("guest")
        guest = lab.guest(folder, init=init, series=series, memory_bytes=memory_bytes, slow_bytes=slow_bytes)
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")
    return stack.enter_context(guest)


@pytest.fixture(scope="session")
def guest_v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A bare kernel 6.1 with 512 MiB, zram swap of 256 MiB, and cgroup v2 with the memory controller."""
    with ExitStack() as stack:
        yield _boot(stack, tmp_path_factory, init=image.INIT_PLAIN)


@pytest.fixture(scope="session")
def guest_612(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A bare kernel 6.12, which has DAMON, with 1 GiB: below half of that the kernel makes no huge pages."""
    with ExitStack() as stack:
        guest = _boot(stack, tmp_path_factory, init=image.INIT_PLAIN, series="6.12", memory_bytes=1 << 30)
        guest.install(known_pages.SOURCES / "toucher.c", inside.TOUCHER)
        yield guest


@pytest.fixture(params=["6.1", "6.12"])
def guest_of(request: pytest.FixtureRequest) -> Guest:
    """A bare kernel of each series, with the program of known pages."""
    if request.param == "6.12":
        return request.getfixturevalue("guest_612")
    guest = request.getfixturevalue("guest_v2")
    if guest.sh(f"[ -x {inside.TOUCHER} ]").rc:
        guest.install(known_pages.SOURCES / "toucher.c", inside.TOUCHER)
    return guest


@pytest.fixture(scope="session", params=["6.12", "6.1"])
def guest_slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A bare kernel of each series with 512 MiB beside its processor, and 128 MiB on a node without any.

    6.12 sorts the two into tiers; 6.1 does not, and has no PAGEMAP_SCAN.
    """
    with ExitStack() as stack:
        yield _boot(
            stack,
            tmp_path_factory,
            init=image.INIT_PLAIN,
            series=request.param,
            memory_bytes=640 << 20,
            slow_bytes=128 << 20,
        )


@pytest.fixture(scope="session")
def guest_systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The same machine run by systemd, with D-Bus."""
    with ExitStack() as stack:
        yield _boot(stack, tmp_path_factory, init=image.INIT_SYSTEMD)


@pytest.fixture
def start_tenant(guest_v2: Guest) -> Iterator[Callable[..., Tenant]]:
    """Start a program that holds memory in a new cgroup of the plain guest; all is gone after the test."""
    started: list[str] = []

    def start(cgroup: str, held_bytes: int = TENANT_BYTES) -> Tenant:
        path = f"/sys/fs/cgroup/{cgroup}"
        quoted, ready = shlex.quote(path), f"/tmp/ready-{len(started)}"
        parent = shlex.quote(os.path.dirname(path))
        guest_v2.check(f"mkdir -p {quoted}; echo +memory > {parent}/cgroup.subtree_control")
        started.append(path)
        program = shlex.join(["exec", "python3.11", image.TENANT, str(held_bytes), ready])
        guest_v2.check(f"rm -f {ready}; (echo 0 > {quoted}/cgroup.procs; {program}) >/tmp/tenant.log 2>&1 &")
        guest_v2.wait_until(f"[ -e {ready} ]")
        return Tenant(path, int(guest_v2.check(f"cat {quoted}/cgroup.procs")), held_bytes)

    yield start
    for path in reversed(started):
        quoted = shlex.quote(path)
        guest_v2.check(f"echo 1 > {quoted}/cgroup.kill")
        guest_v2.wait_until(f"rmdir {quoted}")


@pytest.fixture
def start_unit(guest_systemd: Guest) -> Iterator[Callable[..., Tenant]]:
    """Start a service that holds memory, from a unit file as administrators write them; all is gone after the test."""
    started: list[str] = []

    def start(unit: str, held_bytes: int = TENANT_BYTES, settings: str = "") -> Tenant:
        ready = f"/tmp/ready-{unit}"
        started.append(unit)
        program = f"ExecStart=python3.11 {image.TENANT} {held_bytes} {ready}"
        guest_systemd.write_file(f"/etc/systemd/system/{unit}", f"[Service]\n{settings}\n{program}\n".encode())
        guest_systemd.check(f"rm -f {ready}; systemctl daemon-reload && systemctl start {unit}")
        guest_systemd.wait_until(f"[ -e {ready} ]")
        cgroup = f"/sys/fs/cgroup{guest_systemd.check(f'systemctl show -P ControlGroup {unit}')}"
        return Tenant(cgroup, int(guest_systemd.check(f"systemctl show -P MainPID {unit}")), held_bytes)

    yield start
    for unit in started:
        own = f"/etc/systemd/system/{unit} /run/systemd/system.control/{unit}.d"
        guest_systemd.check(f"systemctl stop {unit}; rm -rf {own}")
    if started:
        guest_systemd.check("systemctl daemon-reload")
