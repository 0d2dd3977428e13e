# SPDX-License-Identifier: Apache-2.0
"""Decisions as sentences with figures, for `plan` and `explain`. Units are read off the figures' names."""

import re
from collections.abc import Mapping

from memsculpt.domain.plan import (
    Action,
    Answer,
    CreateCgroup,
    Grant,
    LimitKind,
    MoveProcess,
    PageIn,
    PageOut,
    Plan,
    Reason,
    Reclaim,
    SculptPool,
    SetBalloon,
    SetSharing,
)
from memsculpt.domain.pool import ColdZone, HotZone, Prefetch, Promote
from memsculpt.domain.sharing import SharingStep
from memsculpt.domain.units import format_bytes, format_duration_s

_FIELD = re.compile(r"\{(\w+)\}")
_LIMIT_NAMES = {LimitKind.GUARANTEE: "guarantee", LimitKind.LIMIT: "limit", LimitKind.HARD: "hard limit"}
_SHARING = {
    SharingStep.MERGE: "merge identical pages",
    SharingStep.PAUSE: "pause merging",
    SharingStep.END: "end merging and take apart what is merged",
}
_SCULPTS = {
    HotZone: ("gather", "hot blocks"),
    ColdZone: ("send out", "cold blocks"),
    Prefetch: ("bring back", "what a phase uses"),
    Promote: ("bring back from the slow node", "what is in use"),
}
_ANSWERS = {
    Answer.ENOUGH: "granted, there is room",
    Answer.RESIZED: "granted by resizing partition {partition}",
    Answer.MOVED: "granted by moving to partition {partition}",
    Answer.CREATED: "granted by creating partition {partition}",
    Answer.REFUSED: "refused",
}


def explain_reason(reason: Reason) -> str:
    """Fill a reason's sentence with its figures; a name in braces that is no figure stays as it is."""
    return _printable(_FIELD.sub(lambda found: _figure(found[1], reason.figures, found[0]), reason.text))


def explain_action(action: Action) -> str:
    """Say what is done to whom, and why."""
    return f"{_printable(_what(action))}: {explain_reason(action.reason)}"


def explain_grant(grant: Grant) -> str:
    """Say how a request was met, and why."""
    answer = _ANSWERS[grant.answer].format(partition=grant.partition)
    size = "" if grant.answer is Answer.REFUSED else f" ({format_bytes(grant.granted_bytes)})"
    stays = (
        f"; {format_bytes(grant.stays_charged_bytes)} stay charged where it was" if grant.stays_charged_bytes else ""
    )
    return f"{_printable(answer)}{size}{stays}: {explain_reason(grant.reason)}"


def explain_plan(plan: Plan) -> tuple[str, ...]:
    """Return one line per action, then one per wish that was held back."""
    actions = tuple(explain_action(action) for action in plan.actions)
    return actions + tuple(f"not done: {explain_reason(reason)}" for reason in plan.held_back)


def _what(action: Action) -> str:
    if isinstance(action, PageOut):
        return f"{action.workload}: page out {format_bytes(action.size_bytes)} of process {action.process.pid}"
    if isinstance(action, PageIn):
        return f"{action.workload}: bring back {format_bytes(action.size_bytes)} of process {action.process.pid}"
    if isinstance(action, SculptPool):
        does, what = _SCULPTS[type(action.request)]
        does = "send to the slow node" if action.is_demotion else does
        return f"{action.workload}: {does} {format_bytes(action.size_bytes)} of {what} of pool {action.pool}"
    if isinstance(action, Reclaim):
        of_what = " of page cache" if action.only_cache else ""
        return f"{action.cgroup}: reclaim {format_bytes(action.size_bytes)}{of_what}"
    if isinstance(action, CreateCgroup):
        return f"{action.partition}: create cgroup {action.cgroup}"
    if isinstance(action, MoveProcess):
        return f"{action.partition}: move process {action.process.pid} to {action.to_cgroup}"
    if isinstance(action, SetSharing):
        rate = ""
        if action.rate is not None:
            rate = f", {action.rate.pages_to_scan} pages every {action.rate.sleep_ms} ms"
        return f"trust group {action.group}: {_SHARING[action.step]}{rate}"
    if isinstance(action, SetBalloon):
        change = f"from {format_bytes(action.from_bytes)} to {format_bytes(action.to_bytes)}"
        return f"{action.workload}: what its balloon leaves it {change}"
    name = _LIMIT_NAMES[action.kind]
    change = f"from {format_bytes(action.from_bytes)} to {format_bytes(action.to_bytes)}"
    if action.from_bytes == action.to_bytes:
        change = f"kept at {format_bytes(action.to_bytes)}"
    until = "" if action.lift_at_s is None else " (a squeeze, lifted by itself)"
    return f"{action.cgroup}: {name} {change}{until}"


def _figure(name: str, figures: Mapping[str, float], missing: str) -> str:
    if name not in figures:
        return missing
    value = figures[name]
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_s"):
        return format_duration_s(value)
    if name.endswith("_ratio"):
        return f"{value:.1%}"
    return f"{value:.4g}"


def _printable(text: str) -> str:
    """Escape what a hostile name may carry to the terminal: control characters, line ends, surrogates."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
