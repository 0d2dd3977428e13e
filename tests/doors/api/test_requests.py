# SPDX-License-Identifier: Apache-2.0
"""POST /v1/requests: good requests are answered by the next tick, bad ones never reach it."""

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from memsculpt.doors.api import make_app
from memsculpt.doors.api.requests import BODY_MAX_BYTES, read_request
from memsculpt.errors import MemsculptError, Refused, UsageError
from tests.doors.scene import MIB, Scene


@pytest.fixture
def own_scene():
    """A scene that the test may change."""
    made = Scene()
    made.tick(3)
    return made


@pytest.mark.parametrize(
    "body",
    [
        {"workload": "lab/redis", "size": "4MiB", "within": "5s"},
        {"workload": "lab/redis", "bytes": 4 * MIB, "within": 5},
        {"workload": "lab/redis", "bytes": 4 * MIB},
    ],
)
def test_a_request_is_answered_by_the_next_tick(own_scene, body):
    """Each form says the same: which answer, how much, and the reason with its figures filled in."""
    answer = TestClient(make_app(own_scene, takes_requests=True)).post("/v1/requests", json=body)
    grant = answer.json()
    assert answer.status_code == 200
    assert grant["answer"] in {"enough", "resized"}
    assert grant["partition"] == "redis"
    assert grant["granted_bytes"] >= 4 * MIB
    assert grant["reason"]["code"]
    assert "{" not in grant["text"]


BAD = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no workload": b'{"bytes": 1}',
    "neither": b'{"workload": "a"}',
    "both": b'{"workload": "a", "bytes": 1, "size": "1KiB"}',
    "negative": b'{"workload": "a", "bytes": -1}',
    "a number as text": b'{"workload": "a", "bytes": "1"}',
    "no unit": b'{"workload": "a", "size": "64"}',
    "decimal unit": b'{"workload": "a", "size": "64MB"}',
    "no time": b'{"workload": "a", "bytes": 1, "within": "soon"}',
    "negative time": b'{"workload": "a", "bytes": 1, "within": -1}',
    "endless": b'{"workload": "a", "bytes": 1, "within": 1e999}',
    "unknown field": b'{"workload": "a", "bytes": 1, "withn": "5s"}',
    "not UTF-8": b'{"workload": "\xff", "bytes": 1}',
    "too large": b'{"workload": "' + b"a" * BODY_MAX_BYTES + b'", "bytes": 1}',
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused(own_scene, case):
    """400, with what is wrong and how to say it; no tick is spent on it."""
    before = own_scene.report.tick_count
    answer = TestClient(make_app(own_scene, takes_requests=True)).post("/v1/requests", content=BAD[case])
    assert answer.status_code == 400, answer.text
    assert '"workload"' in answer.json()["error"]["fix"]
    assert own_scene.report.tick_count == before


@given(
    body=st.one_of(
        st.binary(max_size=200), st.from_regex(r'\{"workload": "a", "(bytes|size)": .{0,20}\}').map(str.encode)
    )
)
def test_no_body_does_more_than_be_refused(body, scene):
    """Whatever is sent is a request or a UsageError."""
    try:
        request = read_request(body, scene.report)
    except UsageError:
        return
    assert request.size_bytes >= 0
    assert 0 <= request.within_s < float("inf")


class Answering:
    """An agent whose ticks end as it is told."""

    def __init__(self, scene, error):
        self.report = scene.report
        self._error = error

    def ask(self, request):
        answer = Future()
        answer.set_exception(self._error)
        return answer


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused(place="agent", problem="is ending", fix="ask again"), 409),
        (MemsculptError(place="agent", problem="broke", fix="mend it"), 500),
    ],
)
def test_what_the_agent_raises_is_told(scene, error, status):
    """Place, problem and fix arrive, with the status of the error's class."""
    answer = TestClient(make_app(Answering(scene, error), takes_requests=True)).post(
        "/v1/requests", json={"workload": "a", "bytes": 1}
    )
    assert answer.status_code == status
    assert answer.json()["error"] == {"place": error.place, "problem": error.problem, "fix": error.fix}
