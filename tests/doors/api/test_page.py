# SPDX-License-Identifier: Apache-2.0
"""The page: nothing from elsewhere, no markup from names, and only its own script may run."""

import base64
import hashlib
import re

from starlette.testclient import TestClient

from memsculpt.doors.api import make_app, page


def test_nothing_comes_from_elsewhere():
    """No address but its own API's paths."""
    assert not re.findall(r"https?:|//[\w.]+/|@import|src=", page.HTML)


def test_only_its_own_script_and_style_are_allowed(scene):
    """The policy names both by hash, and nothing inline besides."""
    answer = TestClient(make_app(scene, takes_requests=False), base_url="http://127.0.0.1").get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src 'unsafe" not in policy


def test_names_become_text_not_markup():
    """The script never hands text to the parser of markup."""
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=", page.HTML)


def test_it_reads_only_what_the_status_has(scene):
    """Each field that the script takes from the status is one that the API gives."""
    status = TestClient(make_app(scene, takes_requests=True)).get("/v1/status").json()
    shown = page.HTML[page.HTML.index("function show(s)") : page.HTML.index("async function poll")]
    taken = set(re.findall(r"\bs\.(\w+)", shown))
    assert taken <= set(status), taken - set(status)
    for letter, one in (("p", status["partitions"][0]), ("w", status["workloads"][0]), ("m", status["memory"])):
        fields = set(re.findall(rf"\b{letter}\.(\w+_bytes|kind|name|id|partition|forecast)\b", shown))
        assert fields
        assert fields <= set(one), fields - set(one)
