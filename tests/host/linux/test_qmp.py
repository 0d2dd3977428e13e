# SPDX-License-Identifier: Apache-2.0
"""QMP without a socket: what is understood, in whatever pieces it comes, and that nothing else gets in."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.vm import VmState
from memsculpt.host.linux.qmp import EVENTS_KEPT_MOST, Command, CommandError, Event, ProtocolError, Session, Stage
from memsculpt.host.linux.vm_asking import VmAsking, VmFacts
from memsculpt_bench.qmp_peers import GREETING, Peer

HELLO = json.dumps(GREETING).encode() + b"\r\n"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def ready() -> Session:
    session = Session()
    assert b"qmp_capabilities" in session.feed(HELLO)
    session.feed(b'{"return": {}, "id": 0}\r\n')
    assert session.stage is Stage.READY
    return session


def test_a_conversation():
    """Greeting, negotiation, a batch whose answers come in any order, events in between."""
    session = ready()
    assert session.version == "7.2.22"
    asked = [json.loads(line) for line in session.ask([Command("a"), Command("b", {"x": 1})]).splitlines()]
    assert [one["execute"] for one in asked] == ["a", "b"]
    assert asked[1]["arguments"] == {"x": 1}
    session.feed(b'{"return": 2, "id": %d}\n{"event": "STOP"}\n' % asked[1]["id"])
    assert not session.is_answered
    session.feed(b'{"error": {"class": "GenericError", "desc": "no"}, "id": %d}\n' % asked[0]["id"])
    assert session.is_answered
    assert session.take() == [CommandError("GenericError", "no"), 2]
    assert [one.name for one in session.events] == ["STOP"]


@given(cuts=st.lists(st.integers(0, 400), max_size=12), pretty=st.booleans(), answer=JSON)
def test_pieces_and_layout_do_not_matter(cuts: list[int], pretty: bool, answer: object):
    """However the stream is cut, and also as `-qmp-pretty` prints it, the same is understood."""

    def pieces(*messages: object) -> Iterator[bytes]:
        printed = [json.dumps(each, indent=4 if pretty else None).replace("\n", "\r\n") for each in messages]
        whole = b"".join(each.encode() + b"\r\n" for each in printed)
        for start, end in pairwise(sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})):
            yield whole[start:end]

    session = Session()
    for piece in pieces(GREETING, {"return": {}, "id": 0}):
        session.feed(piece)
    assert session.stage is Stage.READY
    session.ask([Command("x")])
    for piece in pieces({"event": "STOP", "data": {"a": answer}}, {"return": answer, "id": 1}):
        session.feed(piece)
    assert json.dumps(session.take()) == json.dumps([answer])
    assert session.event_count == 1


@given(st.lists(st.binary(max_size=60) | JSON.map(lambda each: json.dumps(each).encode() + b"\n"), max_size=6))
def test_anything_is_understood_or_refused(pieces: list[bytes]):
    """No bytes make it fail otherwise, before the greeting or after."""
    for session in (Session(), ready()):
        with contextlib.suppress(ProtocolError):
            for piece in pieces:
                session.feed(piece)
        assert len(session.events) <= EVENTS_KEPT_MOST


def test_events_are_counted_and_few_are_kept():
    """A flood costs no memory."""
    session = ready()
    session.feed(b'{"event": "X", "data": 3}\n' * 10_000)
    assert session.event_count == 10_000
    assert len(session.events) == 64
    assert session.events[0].data == {}


@pytest.mark.parametrize("answer", [b'{"return": 1}', b'{"return": 1, "id": 2}', b'{"return": 1, "id": "1"}'])
def test_an_answer_to_nothing_is_refused(answer: bytes):
    """Neither without the question's number nor with another's."""
    session = ready()
    session.ask([Command("x")])
    with pytest.raises(ProtocolError, match="not asked"):
        session.feed(answer + b"\n")


def test_no_second_batch_before_the_answers():
    """A slip of ours is an error of ours."""
    session = ready()
    session.ask([Command("x")])
    with pytest.raises(ValueError, match="one batch"):
        session.ask([Command("y")])


@given(data=st.data(), rounds=st.integers(1, 4))
def test_no_answer_breaks_the_asking(data: st.DataObject, rounds: int):
    """Whatever JSON comes back to whatever question, facts stay facts and counters never fall."""
    asking = VmAsking(stats_interval_s=1, dirty_every_s=10.0)
    past = (0, 0)
    told = JSON | st.sampled_from(
        [
            CommandError("GenericError", "no"),
            {"base-memory": 1 << 29, "plugged-memory": 0},
            [{"name": "b", "type": "child<virtio-balloon-pci>"}],
            {"actual": 1 << 28},
            {"status": "running"},
            {"status": "active"},
            {"UUID": "a"},
            {"stats": {"stat-total-memory": 1 << 28}, "last-update": 5},
        ]
    )
    for number in range(rounds):
        for _, handler in asking.questions(60.0 * number, 1e9):
            handler(data.draw(told))
        facts = asking.facts
        assert facts.ram_bytes >= 0
        assert facts.balloon_bytes is None or facts.balloon_bytes >= 0
        assert (facts.read_bytes, facts.written_bytes) >= past
        past = (facts.read_bytes, facts.written_bytes)
        if facts.guest is not None:
            assert facts.guest.updated_at_s <= 60.0 * number


def test_a_vm_that_migrates_is_not_called_running():
    """A migration under way counts, not that the guest runs meanwhile; when it fails the VM runs again."""
    asking, now_s = VmAsking(stats_interval_s=1), 0.0
    for status, migration, state in (
        ("running", {}, VmState.RUNNING),
        ("running", {"status": "active"}, VmState.MIGRATING),
        ("paused", {"status": "device"}, VmState.MIGRATING),
        ("running", {"status": "failed"}, VmState.RUNNING),
        ("inmigrate", {"status": "active"}, VmState.ARRIVING),
        ("shutdown", {}, VmState.ENDING),
        ("some-new-state", {}, VmState.PAUSED),
    ):
        now_s += 10.0
        by_name = {command.name: handler for command, handler in asking.questions(now_s, 0.0)}
        by_name["query-status"]({"status": status})
        by_name["query-migrate"](migration)
        assert asking.facts.state is state, (status, migration)


def test_dirtying_is_measured_only_when_wanted():
    """It costs the guest's processor, so nobody asks for it by himself."""
    quiet, curious = VmAsking(stats_interval_s=1), VmAsking(stats_interval_s=1, dirty_every_s=60.0)
    asked: dict[str, int] = {}
    for now_s in range(120):
        for one, name in ((quiet, "quiet"), (curious, "curious")):
            for command, handler in one.questions(float(now_s), 0.0):
                if command.name == "query-status":
                    handler({"status": "running"})
                elif command.name == "query-dirty-rate":
                    handler({"status": "measured", "dirty-rate": 17})
                asked[f"{name} {command.name}"] = asked.get(f"{name} {command.name}", 0) + 1
    assert "quiet calc-dirty-rate" not in asked
    assert asked["curious calc-dirty-rate"] == 2
    assert curious.facts.dirtied_bytes_per_s == 17 << 20


def test_what_events_tell_is_asked_seldom_while_the_vm_is_at_rest():
    """The guest's figures come every time; state and balloon every third, but while something moves."""
    peer = Peer(path=Path("unused"))
    asking = VmAsking(stats_interval_s=1)

    def names_at(now_s: float) -> set[str]:
        questions = asking.questions(now_s, 1e9)
        for command, handler in questions:
            handler(peer.answer(command.name, command.arguments or {}))
        return {command.name for command, _ in questions}

    rounds = [names_at(float(now_s)) for now_s in range(40)]
    assert all("qom-get" in names for names in rounds[2:])
    asked = [now_s for now_s in range(20, 40) if "query-status" in rounds[now_s]]
    assert [after - before for before, after in pairwise(asked)] == [3] * (len(asked) - 1)
    assert asked == [now_s for now_s in range(20, 40) if "query-balloon" in rounds[now_s]]

    asking.hear(Event("BALLOON_CHANGE", {"actual": 256 << 20}))
    assert asking.facts.balloon_bytes == 256 << 20
    assert all(names_at(40.0 + step) >= {"query-status", "query-balloon"} for step in range(4))
    names_at(60.0)
    asking.hear(Event("STOP", {}))
    peer.status = "paused"
    assert asking.facts.state is VmState.PAUSED
    assert all("query-status" in names_at(70.0 + step) for step in range(20)), "who is not running is not left alone"


def test_what_a_guest_says_twice_keeps_its_age():
    """Figures that the guest has not told anew are no newer for having been read again."""
    peer = Peer(path=Path("unused"))
    peer.answers["guest-stats"] = {"stats": {"stat-total-memory": 1 << 28}, "last-update": 1000}
    asking = VmAsking(stats_interval_s=1)
    for now_s in range(10, 16):
        for command, handler in asking.questions(float(now_s), 990.0 + now_s):
            handler(peer.answer(command.name, command.arguments or {}))
    assert asking.facts.guest is not None
    assert asking.facts.guest.updated_at_s <= 10.0


def test_a_copy_of_facts_has_all_of_them_and_changes_no_more():
    """Whatever field there is, also one that is added later."""
    facts = VmFacts()
    for number, one in enumerate(fields(VmFacts)):
        setattr(facts, one.name, {"a": "b"} if one.name == "refusals" else f"value {number}")
    copied = facts.copy()
    assert copied == facts
    facts.refusals["c"] = "d"
    assert copied.refusals == {"a": "b"}
