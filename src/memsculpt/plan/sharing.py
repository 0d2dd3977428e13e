# SPDX-License-Identifier: Apache-2.0
"""Whose identical pages are merged: at most one trust group's, and only while nobody else offers memory.

KSM merges for the whole machine, so two groups cannot be merged side by side; nor in turns, for pages that are merged
already are found by everybody's. So the group that would save most has it, until it does not pay or somebody outside
offers memory: then merging stops at once, and what is merged inside of the group stays so.

Somebody outside can appear between two looks. The kernel puts him behind its own place in its list, so his pages come
after one pass through everybody else's. Merging is so slow that a pass takes longer than nobody may be looking: not
only between two ticks, but until a dead agent's changes are undone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memsculpt.domain.plan import Reason, SetSharing
from memsculpt.domain.sharing import (
    Gain,
    Group,
    Merging,
    Offerer,
    Phase,
    ScanRate,
    SharingStep,
)

PAGE_BYTES = 4096
RMAP_ITEM_BYTES = 64  # what the kernel keeps for every page that it compares (struct ksm_rmap_item)
FAST_PAGES_PER_S = 10_000.0
FAST_SLEEP_MS, SLOW_SLEEP_MS = 20, 100
MEASURED_LEAST_PAGES = 2_000  # scanned, before a page's price is known


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingRules:
    """Bounds."""

    least_bytes: int = 16 << 20  # what merging must save, and ...
    least_ratio: float = 0.01  # ... of the members' memory
    cpu_most_ratio: float = 0.05  # of one processor, ksmd's, while there is much to merge
    cpu_kept_ratio: float = 0.01  # and when all is merged
    kept_scan_s: float = 600.0  # then all memory is gone through once in this time
    unwatched_s: float = (
        20.0  # how long nobody may be looking: the lease of an agent that dies, and what restoring takes
    )
    settle_scans: int = 3  # full scans before it is judged: a page is merged at the second that finds it unchanged
    settled_ratio: float = 0.01  # growth in one full scan below which all is merged
    refused_s: float = 600.0  # a group that did not pay is left alone so long, doubled each time
    page_cost_s: float = 2e-6  # of ksmd for a page, until it was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingView:
    """What is known now."""

    now_s: float
    groups: tuple[Group, ...]
    merging: Merging
    offerers: tuple[Offerer, ...]
    is_foreign: bool = False  # somebody else has changed KSM's settings since


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingState:
    """What was decided; goes from one decision to the next."""

    phase: Phase = Phase.IDLE
    group: str = ""
    since_s: float = 0.0  # when it became so
    forecast: Gain | None = None
    rate: ScanRate | None = None
    offered: frozenset[str] = frozenset()  # VMs that were to be offered
    scans_at_begin: int = 0
    scans_seen: int = 0
    saved_at_scan: int = 0  # pages, when the last full scan was over
    page_cost_s: float | None = None
    cpu_ratio: float = 0.0
    before: Merging | None = None
    before_s: float = 0.0
    refused_until_s: Mapping[str, float] = field(default_factory=dict[str, float])
    mistakes: Mapping[str, int] = field(default_factory=dict[str, int])


def choose_sharing(
    state: SharingState, now: SharingView, rules: SharingRules
) -> tuple[SharingState, SetSharing | None, Reason | None]:
    """Return the next state, what is done, and why more is not done."""
    state = _measured(state, now)
    action, held_back = _begin(state, now, rules) if state.phase is Phase.IDLE else _go_on(state, now, rules)
    if action is None and state.phase is not Phase.IDLE and now.merging.full_scans > state.scans_seen:
        state = replace(state, scans_seen=now.merging.full_scans, saved_at_scan=now.merging.saved_pages)
    return replace(state, before=now.merging, before_s=now.now_s), action, held_back


def after_sharing(
    state: SharingState, action: SetSharing, now: SharingView, rules: SharingRules, *, is_done: bool
) -> SharingState:
    """Return the state after an action went, or did not."""
    match action.step:
        case SharingStep.MERGE if is_done:
            begins = state.phase is Phase.IDLE
            group = _find(now.groups, action.group)
            gain = None if group is None or group.gain is None else group.gain.total
            slow = action.reason.code == "sharing-settled"
            return replace(
                state,
                phase=Phase.KEPT if slow else Phase.MERGING,
                group=action.group,
                since_s=now.now_s,
                forecast=gain if begins else state.forecast,
                rate=action.rate,
                offered=frozenset(action.vms),
                scans_at_begin=now.merging.full_scans if begins else state.scans_at_begin,
                scans_seen=now.merging.full_scans,
                saved_at_scan=now.merging.saved_pages,
            )
        case SharingStep.PAUSE if is_done:
            return replace(state, phase=Phase.PAUSED, since_s=now.now_s)
        case SharingStep.END:
            mistakes = state.mistakes.get(state.group, 0) + 1
            wait_s = rules.refused_s * 2.0 ** (mistakes - 1)
            return SharingState(
                page_cost_s=state.page_cost_s,
                refused_until_s={**state.refused_until_s, state.group: now.now_s + wait_s},
                mistakes={**state.mistakes, state.group: mistakes},
            )
        case _ if state.phase is Phase.IDLE:  # could not begin: not tried again in every tick
            return replace(state, refused_until_s={**state.refused_until_s, action.group: now.now_s + 60.0})
        case _:
            return state


def saved_bytes(now: Merging) -> int:
    """Return what merging saves, less nothing of what it costs."""
    return now.saved_pages * PAGE_BYTES


def scan_rate(group: Group, cpu_ratio: float, page_cost_s: float, rules: SharingRules, *, kept: bool) -> ScanRate:
    """Return how fast memory is gone through: within the processor's budget, and never faster than can be watched."""
    sizes = [one.resident_pages for one in group.members]
    total = sum(sizes)
    # A newcomer is reached when all but the VM that is being scanned now have been.
    watched = (total - max(sizes, default=0)) / rules.unwatched_s
    pages_per_s = min(cpu_ratio / page_cost_s, watched)
    if kept:
        pages_per_s = min(pages_per_s, total / rules.kept_scan_s)
    sleep_ms = FAST_SLEEP_MS if pages_per_s >= FAST_PAGES_PER_S else SLOW_SLEEP_MS
    return ScanRate(pages_to_scan=max(1, int(pages_per_s * sleep_ms / 1000.0)), sleep_ms=sleep_ms)


# --- inside -----------------------------------------------------------------------------------------------------------


def _begin(state: SharingState, now: SharingView, rules: SharingRules) -> tuple[SetSharing | None, Reason | None]:
    if not now.groups:
        return None, None
    if now.is_foreign:
        return None, _why_not("sharing-foreign", "somebody else has changed KSM's settings: they are left alone")
    if now.merging.run == 1:
        return None, _why_not("sharing-foreign", "KSM runs, and memsculpt did not start it: it is left alone")
    held_back: Reason | None = None
    for group in sorted(now.groups, key=lambda one: (-_promised(one), one.name)):
        held_back = held_back or _objection(state, group, now, rules)
        if _objection(state, group, now, rules) is None:
            return _merge(state, group, rules, _why_merge(group)), None
    return None, held_back


def _objection(state: SharingState, group: Group, now: SharingView, rules: SharingRules) -> Reason | None:
    """Return why a group is not merged, None where it may be."""
    gain, members = group.gain, [one for one in group.members if one.is_private]
    if len(members) < 2:
        return _why_not(
            "sharing-alone",
            f"trust group {group.name}: fewer than two of its VMs run, with private memory and a monitor that answers",
        )
    if gain is None:
        text = f"trust group {group.name}: its memory is looked through, {{looked_ratio}} so far"
        return _why_not("sharing-unknown", text, looked_ratio=group.looked_ratio)
    left_s = state.refused_until_s.get(group.name, now.now_s) - now.now_s
    if left_s > 0.0:
        text = f"trust group {group.name}: merging did not pay or could not begin; refused for another {{left_s}}"
        return _why_not("sharing-refused", text, left_s=left_s)
    least = least_bytes(group, rules)
    if gain.total.low_bytes < least:
        text = (
            f"trust group {group.name}: {{low_bytes}} to {{high_bytes}} would be saved by merging, "
            "less than {least_bytes}, from where on it pays"
        )
        figures = {"low_bytes": gain.total.low_bytes, "high_bytes": gain.total.high_bytes, "least_bytes": float(least)}
        return _why_not("sharing-too-little", text, **figures)
    return _strangers(group, now.offerers)


def least_bytes(group: Group, rules: SharingRules) -> int:
    """Return what merging must save to be worth its while."""
    total = sum(one.resident_pages for one in group.members)
    return max(rules.least_bytes, int(rules.least_ratio * total * PAGE_BYTES)) + total * RMAP_ITEM_BYTES


def _strangers(group: Group, offerers: Sequence[Offerer]) -> Reason | None:
    """Return who outside of the group offers memory, None where nobody does, and the members are one user's."""
    ours = {one.process for one in group.members}
    others = [one for one in offerers if one.process not in ours]
    if others:
        names = ", ".join(f"{one.name} (pid {one.process.pid})" for one in others[:3])
        text = (
            f"trust group {group.name}: {{others}} outside of it offer memory to KSM, too, and the kernel would merge "
            f"with theirs: {names}; VMs outside need -machine mem-merge=off (libvirt: <nosharepages/>)"
        )
        return _why_not("sharing-strangers", text, others=float(len(others)))
    users = {one.uid for one in offerers}
    if len(users) > 1:
        text = f"trust group {group.name}: its VMs run as {{users}} users, and names alone are no reason to trust"
        return _why_not("sharing-users", text, users=float(len(users)))
    return None


def _go_on(state: SharingState, now: SharingView, rules: SharingRules) -> tuple[SetSharing | None, Reason | None]:
    group = _find(now.groups, state.group)
    if group is None or len(group.members) < 2:
        return _end(state, "sharing-gone", "fewer than two VMs of the group are left"), None
    if now.is_foreign or now.merging.run == 2 or (now.merging.run == 0) is not (state.phase is Phase.PAUSED):
        return _end(
            state, "sharing-foreign", "somebody else has changed KSM's settings: memsculpt merges no more"
        ), None
    stranger = _strangers(group, now.offerers)
    if stranger is not None:
        ours = {one.process for one in group.members}
        if any(one.process not in ours and one.merging_pages for one in now.offerers):
            return _end(state, "sharing-outside", stranger.text, **stranger.figures), None
        if state.phase is Phase.PAUSED:
            return None, stranger
        return SetSharing(group=group.name, step=SharingStep.PAUSE, reason=stranger), None
    if state.phase is Phase.PAUSED:
        return _merge(
            state, group, rules, Reason(code="sharing-alone-again", text="nobody else offers memory any more")
        ), None
    if frozenset(one.vm for one in group.members if one.is_private) - state.offered:
        return _merge(state, group, rules, Reason(code="sharing-new-vm", text="a VM has joined the group")), None
    scans = now.merging.full_scans
    if scans == state.scans_seen or scans - state.scans_at_begin < rules.settle_scans:
        return None, None
    saved, before = now.merging.saved_pages, state.saved_at_scan
    grows = saved - before > rules.settled_ratio * max(saved, 1)
    figures = {"saved_bytes": float(saved * PAGE_BYTES), "cpu_ratio": state.cpu_ratio}
    if not grows and saved * PAGE_BYTES < (least := least_bytes(group, rules)):
        text = "merging saves {saved_bytes}, less than {least_bytes}, from where on it pays"
        return _end(state, "sharing-does-not-pay", text, **figures, least_bytes=float(least)), None
    if state.phase is Phase.MERGING and not grows:
        text = "all is merged: {saved_bytes} saved; from now on slowly, for what changes"
        return _merge(state, group, rules, Reason(code="sharing-settled", text=text, figures=figures)), None
    if state.phase is Phase.KEPT and grows:
        text = "more has become identical: {saved_bytes} saved, and growing"
        return _merge(state, group, rules, Reason(code="sharing-grows", text=text, figures=figures)), None
    return None, None


def _measured(state: SharingState, now: SharingView) -> SharingState:
    """Learn what a scanned page costs, and what KSM takes of a processor."""
    before = state.before
    if before is None or now.now_s <= state.before_s or state.phase is Phase.IDLE:
        return state
    pages = now.merging.scanned_pages - before.scanned_pages
    cpu_s = now.merging.cpu_s - before.cpu_s
    if not cpu_s >= 0.0:  # NaN: the kernel does not tell
        return state
    state = replace(state, cpu_ratio=cpu_s / (now.now_s - state.before_s))
    if pages < MEASURED_LEAST_PAGES:
        return state
    cost = cpu_s / pages
    return replace(state, page_cost_s=cost if state.page_cost_s is None else 0.7 * state.page_cost_s + 0.3 * cost)


def _merge(state: SharingState, group: Group, rules: SharingRules, reason: Reason) -> SetSharing:
    kept = reason.code == "sharing-settled"
    cost = state.page_cost_s or rules.page_cost_s
    ratio = rules.cpu_kept_ratio if kept else rules.cpu_most_ratio
    members = [one for one in group.members if one.is_private]
    return SetSharing(
        group=group.name,
        step=SharingStep.MERGE,
        reason=reason,
        vms=tuple(one.vm for one in members),
        processes=frozenset(one.process for one in group.members),
        rate=scan_rate(group, ratio, cost, rules, kept=kept),
        size_bytes=int(_promised(group)),
    )


def _end(state: SharingState, code: str, text: str, **figures: float) -> SetSharing:
    return SetSharing(group=state.group, step=SharingStep.END, reason=Reason(code=code, text=text, figures=figures))


def _why_merge(group: Group) -> Reason:
    gain = group.gain
    total = Gain() if gain is None else gain.total
    figures = {
        "vms": float(len(group.members)),
        "gain_bytes": total.size_bytes,
        "low_bytes": total.low_bytes,
        "high_bytes": total.high_bytes,
        "unsteady_ratio": 0.0 if gain is None else gain.unsteady_ratio,
    }
    text = (
        "{vms} VMs hold identical pages: merging them would save {gain_bytes} ({low_bytes} to {high_bytes}); "
        "{unsteady_ratio} of the pages change too fast for it; nobody else offers memory"
    )
    return Reason(code="sharing-pays", text=text, figures=figures)


def _why_not(code: str, text: str, **figures: float) -> Reason:
    return Reason(code=code, text=text, figures=figures)


def _promised(group: Group) -> float:
    return 0.0 if group.gain is None else group.gain.total.low_bytes


def _find(groups: Sequence[Group], name: str) -> Group | None:
    return next((one for one in groups if one.name == name), None)
