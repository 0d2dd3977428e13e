# SPDX-License-Identifier: Apache-2.0
"""GET /v1/vms and `memsculpt vms`: what monitors and guests tell, and why one does not."""

import json

import msgspec
import pytest
from starlette.testclient import TestClient

from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, Settings
from memsculpt.domain.vm import VmFeatures
from memsculpt.domain.workload import Match
from memsculpt.doors.api.app import make_app
from memsculpt.doors.api.schema import StatusView, VmsView
from memsculpt.doors.api.vms import view_vms
from memsculpt.doors.cli.status import status_words
from memsculpt.doors.cli.vms import vm_table
from memsculpt.host.simulated import SilentMonitor, SimulatedHost, VirtualMachine

MIB = 1 << 20
HOSTILE = "we\nb \x1b[31m"


@pytest.fixture(scope="module")
def agent() -> Agent:
    """An agent that has seen three VMs: one in a partition, one whose monitor fell silent, one without a balloon."""
    host = SimulatedHost(
        1,
        workloads=[
            VirtualMachine(name="web-1", ram_bytes=512 * MIB, demand=lambda _: 128 * MIB),
            VirtualMachine(name="silent", ram_bytes=256 * MIB, demand=lambda _: 64 * MIB),
            VirtualMachine(name=HOSTILE, ram_bytes=256 * MIB, demand=lambda _: 64 * MIB, features=VmFeatures()),
        ],
        faults=[SilentMonitor(program="silent", from_s=2.5, until_s=60.0)],
    )
    settings = Settings(partitions=(PartitionSettings(name="web", match=Match(vm="web-*")),))
    host.watch(settings.partitions)
    agent = Agent(host=host, settings=settings)
    for _ in range(5):
        agent.tick()
        host.wait_until(host.now_s() + 1.0)
    return agent


def test_each_vm_is_told(agent):
    """Figures as they were read; what is not known is null, and the reason is a sentence."""
    vms = {one.name: one for one in view_vms(agent.report).vms}
    web, silent, bare = vms["web-1"], vms["silent"], vms[HOSTILE]
    assert (web.workload, web.partition, web.state) == ("vm:web-1", "web", "running")
    assert web.ram_bytes == web.balloon_bytes == 512 * MIB
    assert web.guest is not None
    assert web.guest.used_bytes == 128 * MIB
    assert web.guest.total_bytes - web.guest.available_bytes == web.guest.used_bytes
    assert web.features == ["balloon"]
    assert (silent.state, silent.partition) == ("unreachable", None)
    assert silent.age_s is not None
    assert silent.age_s >= 1.0
    assert silent.problem
    assert (bare.balloon_bytes, bare.guest, bare.features) == (None, None, [])


def test_the_api_serves_them_alone_and_in_the_status(agent):
    """Both are the same list, and what is served has the schema's types."""
    client = TestClient(make_app(agent, takes_requests=True))
    alone = client.get("/v1/vms")
    status = client.get("/v1/status")
    assert alone.status_code == status.status_code == 200
    assert len(msgspec.json.decode(alone.content, type=VmsView).vms) == 3
    assert (
        msgspec.json.decode(status.content, type=StatusView).vms == msgspec.json.decode(alone.content, type=VmsView).vms
    )
    assert "NaN" not in alone.text


def test_people_get_a_table_with_problems_below(agent):
    """One line for each VM, whatever its name; a dash for what is not known."""
    told = json.loads(msgspec.json.encode(view_vms(agent.report)))
    lines = vm_table(told).splitlines()
    assert len(lines) == 1 + 3 + 1 + 1
    (web,) = [line for line in lines if line.startswith("web-1")]
    assert "512 MiB" in web
    assert "128 MiB" in web
    assert "running" in web
    (bare,) = [line for line in lines if "\\x1b[31m" in line]
    assert bare.split().count("-") == 4  # balloon, need, used, available
    assert any(line.startswith("silent: ") for line in lines)
    assert "\x1b" not in "".join(lines)
    assert vm_table({"vms": []}).startswith("no virtual machines")
    status = json.loads(TestClient(make_app(agent, takes_requests=True)).get("/v1/status").content)
    assert "web-1" in status_words(status)
