# SPDX-License-Identifier: Apache-2.0
"""The API in process, on the real agent over a simulated host: shapes, names, who may ask, what is not there."""

import json

import pytest
from starlette.testclient import TestClient

from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.doors.api import make_app
from memsculpt.doors.api.app import READS
from tests.doors.scene import HOSTILE, MIB, TICKS, Scene

PATHS = [path for path, *_ in READS]


@pytest.fixture(scope="module")
def owner(scene):
    """Who asks through the Unix socket."""
    return TestClient(make_app(scene, takes_requests=True), base_url="http://localhost")


@pytest.fixture(scope="module")
def anybody(scene):
    """Who asks through loopback."""
    return TestClient(make_app(scene, takes_requests=False), base_url="http://127.0.0.1:8472")


def test_the_status_has_the_shape_of_the_contract(owner):
    """Mode, uptime, the agent's cost, workloads, and partitions with their forecasts."""
    status = owner.get("/v1/status").json()
    assert status["mode"] == "observe"
    assert status["uptime_s"] == pytest.approx(TICKS - 1, abs=1.5)
    assert status["agent"]["cpu_share"] >= 0
    assert status["agent"]["resident_bytes"] >= 0
    assert [one["name"] for one in status["partitions"]] == ["redis", "job-a", "job-b", "odd"]
    assert [one["kind"] for one in status["partitions"]] == ["dynamic", "dynamic", "fixed", "dynamic"]
    for one in status["partitions"]:
        assert one["guarantee_bytes"] <= one["size_bytes"] <= one["ceiling_bytes"]
        assert one["used_bytes"] > 0
        forecast = one["forecast"]
        assert forecast["horizon_s"] == 3.0
        assert len(forecast["levels"]) == len(forecast["quantiles_bytes"]) > 0
        assert forecast["quantiles_bytes"] == sorted(forecast["quantiles_bytes"])
    assert status["partitions"][2]["size_bytes"] == 300 * MIB
    assert "lab/redis" in {one["id"] for one in status["workloads"]}


def test_scores_and_actions_are_in_the_status(owner, scene):
    """Coverage per level, pinball loss, and what was done or rehearsed."""
    status = owner.get("/v1/status").json()
    scores = status["scores"]
    assert scores["scored_count"] > 0
    assert len(scores["levels"]) == len(scores["covered_ratio"]) == len(scores["pinball_bytes"])
    assert all(0 <= ratio <= 1 for ratio in scores["covered_ratio"])
    assert status["actions"]["counts"].get("rehearsed", 0) == len(scene.report.applied) > 0


def test_every_size_fits_what_a_page_can_count(owner):
    """No number is beyond 2**53, where JavaScript begins to round, but the one that means unlimited."""

    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [number for one in value for number in numbers(one)]
        return [value] if isinstance(value, int | float) else []

    for path in PATHS:
        large = {number for number in numbers(owner.get(path).json()) if number > 1 << 53}
        assert large <= {UNLIMITED_BYTES}, path


def test_a_hostile_name_is_valid_text_and_names_its_workload(owner):
    """Line ends stay what they are in JSON; a byte that is no UTF-8 is written as backslash, x and its digits."""
    told = HOSTILE.replace("\udcff", "\\xff")
    ids = {one["id"] for one in owner.get("/v1/workloads").json()["workloads"]}
    assert told in ids
    assert owner.post("/v1/requests", json={"workload": told, "bytes": 4096}).json()["partition"] == "odd"


@pytest.mark.parametrize("path", [*PATHS, "/v1/openapi.json", "/"])
def test_before_the_first_tick_everything_answers(path):
    """Empty lists, not errors."""
    assert TestClient(make_app(Scene(), takes_requests=True)).get(path).status_code == 200


def test_each_action_is_explained(owner, scene):
    """Its number leads to its reason with figures; a number that never was is not found."""
    recent = owner.get("/v1/actions").json()["recent"]
    assert recent[0]["id"] == scene.report.applied[-1].action_id
    told = owner.get(f"/v1/actions/{recent[0]['id']}").json()
    assert told["applied"]["action"]["reason"]["code"]
    assert len(told["explanation"]) >= 2
    assert "{" not in "".join(told["explanation"])
    missing = owner.get("/v1/actions/999999999")
    assert missing.status_code == 404
    assert set(missing.json()["error"]) == {"place", "problem", "fix"}


def test_the_plan_names_its_division(owner):
    """Every partition has its share, and the shares fit."""
    told = owner.get("/v1/plan").json()
    assert {one["name"] for one in told["division"]["shares"]} == {"redis", "job-a", "job-b", "odd"}
    assert sum(one["size_bytes"] for one in told["division"]["shares"]) <= told["division"]["capacity_bytes"]


def test_one_tick_is_read_once():
    """Within a tick everybody is given the same bytes; after the next tick, newer ones."""
    scene = Scene()
    scene.tick(2)
    client = TestClient(make_app(scene, takes_requests=True))
    first, again = client.get("/v1/status").content, client.get("/v1/status").content
    scene.tick()
    assert first == again
    assert json.loads(client.get("/v1/status").content)["agent"]["tick_count"] == 3


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_loopback_reads_and_cannot_ask(anybody):
    """Every read answers; a request is refused with the way that is open."""
    for path in PATHS:
        assert anybody.get(path).status_code == 200
    refused = anybody.post("/v1/requests", json={"workload": "lab/redis", "bytes": 1})
    assert refused.status_code == 404
    assert "Unix socket" in refused.json()["error"]["problem"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8472", "127.0.0.1.evil.example", "", "localhost.:1"])
def test_a_foreign_host_header_is_refused(anybody, host):
    """A page on the web that points its own name at 127.0.0.1 reads nothing."""
    answer = anybody.get("/v1/status", headers={"host": host})
    assert answer.status_code == 421
    assert "workloads" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8472", "localhost:1", "LOCALHOST", "[::1]:8472"])
def test_a_loopback_host_header_is_welcome(anybody, host):
    """Each way to write this machine's own address."""
    assert anybody.get("/v1/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/status", "/no/such"])
def test_no_other_origin_may_use_an_answer(anybody, path):
    """Errors carry the same headers as answers, and no answer opens itself to other origins."""
    headers = anybody.get(path).headers
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/no/such", 404), ("POST", "/v1/status", 405)])
def test_what_is_not_there_says_so(owner, method, path, status):
    """In the same form as every error."""
    answer = owner.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"place", "problem", "fix"}
