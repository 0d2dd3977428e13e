# SPDX-License-Identifier: Apache-2.0
"""GET /v1/pools and POST /v1/sculpts: good requests reach a tick, bad ones never do."""

import pytest
from starlette.testclient import TestClient

from memsculpt.doors.api import ApiServer, make_app
from memsculpt.doors.cli import main
from tests.doors.scene import MIB, Scene


@pytest.fixture(scope="module")
def own_scene():
    made = Scene()
    made.tick(40)
    return made


@pytest.fixture(scope="module")
def served(own_scene, tmp_path_factory):
    server = ApiServer(own_scene, socket_path=str(tmp_path_factory.mktemp("run") / "agent.sock"))
    yield server.start().socket_path
    server.stop()


@pytest.mark.parametrize(
    "body",
    [
        {"zone": "cold", "size": "8MiB"},
        {"zone": "hot", "bytes": 8 * MIB},
        {"zone": "prefetch", "window": "30s"},
        {"zone": "prefetch", "window": 5},
    ],
)
def test_a_sculpt_is_done_by_the_next_tick(own_scene, body):
    """The agent observes, so it says what it would do, or why nothing; programs find every figure."""
    answer = TestClient(make_app(own_scene, takes_requests=True)).post(
        "/v1/sculpts", json={"pool": "lab/redis", **body}
    )
    assert answer.status_code == 200
    told = answer.json()
    assert told["verdict"] in {"rehearsed", "nothing-to-do", "refused"}  # the scene's lab is tight: it stalls
    assert told["reason"]
    assert told["moved_bytes"] == 0
    assert set(told["zones"]) == {"hot", "warm", "cold", "prefetch"}
    assert told["zones"]["warm"] > 0
    assert set(told["prefetch"]) == {"recall", "precision", "timeliness"}


@pytest.mark.parametrize(
    "body",
    [
        {"pool": "lab/redis", "zone": "tepid", "size": "8MiB"},
        {"pool": "lab/redis", "zone": "hot"},
        {"pool": "lab/redis", "zone": "hot", "size": "much"},
        {"pool": "lab/redis", "zone": "hot", "bytes": 0},
        {"pool": "lab/redis", "zone": "hot", "bytes": -5},
        {"pool": "lab/redis", "zone": "hot", "size": "8MiB", "window": "1s"},
        {"pool": "lab/redis", "zone": "prefetch", "window": "0s"},
        {"pool": "lab/redis", "zone": "prefetch", "window": 1e9},
        {"pool": "nobody", "zone": "cold", "size": "8MiB"},
        {"zone": "cold", "size": "8MiB"},
        {},
    ],
)
def test_what_has_no_meaning_is_refused(own_scene, body):
    answer = TestClient(make_app(own_scene, takes_requests=True)).post("/v1/sculpts", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["fix"]


def test_on_loopback_nothing_is_sculpted(own_scene):
    app = make_app(own_scene, takes_requests=False)
    answer = TestClient(app, base_url="http://localhost").post("/v1/sculpts", json={})
    assert answer.status_code in {404, 405}
    assert "Unix socket" in answer.json()["error"]["problem"]


def test_the_commands_ask_and_show(served, capsys):
    """Words for people; a wrong name is wrong usage."""
    assert main(["pools", "--socket", served]) == 0
    assert "lab/redis" in capsys.readouterr().out
    assert main(["sculpt", "lab/redis", "hot", "--size", "8MiB", "--socket", served]) == 0
    assert "lab/redis: " in capsys.readouterr().out
    assert main(["sculpt", "lab/redis", "prefetch", "--window", "30s", "--socket", served, "--json"]) == 0
    assert '"precision"' in capsys.readouterr().out
    assert main(["pool-stats", "lab/redis", "--socket", served]) == 0
    assert "LAST SCULPT" in capsys.readouterr().out
    assert main(["pool-stats", "nobody", "--socket", served]) == 2
    assert main(["sculpt", "lab/redis", "cold", "--size", "much", "--socket", served]) == 2
    assert main(["sculpt", "nobody", "hot", "--socket", served]) == 2
