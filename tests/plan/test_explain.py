# SPDX-License-Identifier: Apache-2.0
"""Explanations: sentences with figures in units people read, safe to print whatever a workload is called."""

from dataclasses import replace

import pytest

from memsculpt.domain.plan import (
    Answer,
    CreateCgroup,
    Grant,
    LimitKind,
    MoveProcess,
    PageIn,
    PageOut,
    Reason,
    Reclaim,
    SetLimit,
)
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.plan import explain_action, explain_grant, explain_reason

REASON = Reason(code="x", text="because of {held_bytes}", figures={"held_bytes": float(3 << 20)})
PROCESS = Instance(pid=42, start_ticks=7)
PAGING = {"partition": "p", "workload": WorkloadId("w"), "process": PROCESS, "size_bytes": 5 << 20, "reason": REASON}
LIMIT = SetLimit(
    partition="p",
    cgroup=CgroupPath("c"),
    kind=LimitKind.LIMIT,
    from_bytes=(1 << 63) - 1,
    to_bytes=5 << 20,
    reason=REASON,
)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (PageOut(**PAGING), "w: page out 5.0 MiB of process 42: because of 3.0 MiB"),
        (PageIn(**PAGING), "w: bring back 5.0 MiB of process 42: because of 3.0 MiB"),
        (
            Reclaim(partition="p", cgroup=CgroupPath("c"), size_bytes=5 << 20, reason=REASON),
            "c: reclaim 5.0 MiB: because of 3.0 MiB",
        ),
        (LIMIT, "c: limit from unlimited to 5.0 MiB: because of 3.0 MiB"),
        (
            replace(LIMIT, lift_at_s=3.0, from_bytes=5 << 20, kind=LimitKind.HARD),
            "c: hard limit kept at 5.0 MiB (a squeeze, lifted by itself): because of 3.0 MiB",
        ),
        (
            CreateCgroup(partition="p", cgroup=CgroupPath("memsculpt/p"), reason=REASON),
            "p: create cgroup memsculpt/p: because of 3.0 MiB",
        ),
        (
            MoveProcess(
                partition="p",
                from_cgroup=CgroupPath("a"),
                to_cgroup=CgroupPath("b"),
                process=PROCESS,
                charged_bytes=1,
                reason=REASON,
            ),
            "p: move process 42 to b: because of 3.0 MiB",
        ),
    ],
)
def test_each_action_is_a_sentence(action, sentence):
    """What is done to whom, and why, with sizes for people."""
    assert explain_action(action) == sentence


def test_figures_are_printed_by_their_unit():
    """Bytes, seconds, ratios and bare numbers each in their own way; unknown names stay."""
    figures = {"a_bytes": 1536.0, "b_s": 2.0, "c_ratio": 0.055, "level": 0.9}
    text = "{a_bytes} {b_s} {c_ratio} {level} {nothing}"

    assert explain_reason(Reason(code="x", text=text, figures=figures)) == "1.5 KiB 2.0 s 5.5% 0.9 {nothing}"


def test_hostile_names_cannot_talk_to_the_terminal():
    """Line ends, escapes and bytes that are no text come out escaped."""
    name = "a\n\x1b[31m\udc80{size}"
    said = explain_action(PageOut(**(PAGING | {"workload": WorkloadId(name)})))

    assert said.startswith("a\\n\\x1b[31m\\udc80{size}: page out")


@pytest.mark.parametrize(
    ("answer", "start"),
    [
        (Answer.ENOUGH, "granted, there is room (5.0 MiB): "),
        (Answer.RESIZED, "granted by resizing partition p (5.0 MiB): "),
        (Answer.MOVED, "granted by moving to partition p (5.0 MiB); 1.0 MiB stay charged where it was: "),
        (Answer.CREATED, "granted by creating partition p (5.0 MiB): "),
        (Answer.REFUSED, "refused: "),
    ],
)
def test_each_answer_is_a_sentence(answer, start):
    """How a request was met, how much, and what stays behind."""
    stays = 1 << 20 if answer is Answer.MOVED else 0
    grant = Grant(answer=answer, partition="p", granted_bytes=5 << 20, stays_charged_bytes=stays, reason=REASON)

    assert explain_grant(grant) == start + "because of 3.0 MiB"
