# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document and the page for people tell of the API that is served, all of it."""

import re

import msgspec
import pytest
from starlette.testclient import TestClient

from memsculpt.doors.api import make_app
from memsculpt.doors.api.app import READS, operations
from tests.house.tree import ROOT


@pytest.fixture(scope="module")
def document(scene):
    return TestClient(make_app(scene, takes_requests=True)).get("/v1/openapi.json").json()


def test_every_reference_is_there(document):
    """No schema points to one that is not in the document."""
    names = set(re.findall(r"#/components/schemas/(\w+)", msgspec.json.encode(document).decode()))
    assert names
    assert names <= set(document["components"]["schemas"])


def test_every_operation_is_served(document, scene):
    """Each path of the document answers something else than "not there"."""
    client = TestClient(make_app(scene, takes_requests=True))
    for path, methods in document["paths"].items():
        for method in methods:
            asked = path.replace("{id}", str(scene.report.applied[-1].action_id)).replace("{workload}", "lab%2Fredis")
            assert client.request(method.upper(), asked).status_code in {200, 400}, asked


@pytest.mark.parametrize("path", [path for path, *_ in READS])
def test_what_is_served_is_what_is_described(path, scene):
    """Each answer decodes into the very type that its schema was made from, and nothing is left over."""
    kind = next(answers for known, answers, *_ in READS if known == path)
    body = TestClient(make_app(scene, takes_requests=True)).get(path).content
    assert msgspec.json.decode(msgspec.json.encode(msgspec.json.decode(body, type=kind))) == msgspec.json.decode(body)


def test_the_docs_name_every_operation():
    """docs/reference/api.md has a line for each."""
    text = (ROOT / "docs/reference/api.md").read_text()
    missing = [f"{one.method} {one.path}" for one in operations() if f"`{one.method} {one.path}`" not in text]
    assert not missing
