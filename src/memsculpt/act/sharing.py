# SPDX-License-Identifier: Apache-2.0
"""Have the kernel merge the identical pages of one trust group's VMs; stop it; take everything apart.

The plan has checked that nobody else offers memory. That is checked once more here, at the last moment before KSM runs.
"""

from dataclasses import dataclass

from memsculpt.act import knobs
from memsculpt.act.journal import Journal
from memsculpt.act.records import KnobTurned, Origin, Undone
from memsculpt.domain.plan import SetSharing
from memsculpt.domain.sharing import SharingStep, ksm_knob, offer_knob
from memsculpt.errors import MemsculptError, Refused, Transient, Unavailable, Vanished
from memsculpt.host.protocol import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingDone:
    """How it went; `problem` is "" when all of it was done."""

    is_left_alone: bool = False
    saved_bytes: int = 0  # now
    problem: str = ""


def share(host: Host, journal: Journal, action: SetSharing, origin: Origin) -> SharingDone:
    """Carry an action out. Raises what the host raises, Refused where somebody outside offers memory."""
    match action.step:
        case SharingStep.MERGE:
            return _merge(host, journal, action, origin)
        case SharingStep.PAUSE:
            knobs.turn(host, journal, knobs.RUN, knobs.STOPPED, origin)
            return _done(host)
        case SharingStep.END:
            return end(host, journal)


def end(host: Host, journal: Journal) -> SharingDone:
    """Take apart what is merged, and put every value back that sharing has changed."""
    problems: list[str] = []
    changes = [one for one in journal.ledger.changes if isinstance(one, KnobTurned)]
    for change in knobs.in_order(changes):
        name = change.knob.describe()
        try:
            done = knobs.put_back(host, journal, change)
        except Vanished:
            done = knobs.PutBack()
        except (Transient, Unavailable, Refused) as error:
            problems.append(f"{name}: {error.problem}")
            continue
        if not done.is_ours:
            problems.append(f"{name}: holds {done.text.strip()!r}, which memsculpt did not write: left alone")
        if done.problem:
            problems.append(f"{name}: {done.problem}")
        else:
            journal.forget(Undone(change=change.knob, text=done.text))
    return _done(host, problem="; ".join(problems))


def _merge(host: Host, journal: Journal, action: SetSharing, origin: Origin) -> SharingDone:
    left_alone = [one for one in journal.left_alone if one in _ours(action)]
    if left_alone:
        return SharingDone(is_left_alone=True, problem="somebody else has changed KSM's settings: they are left alone")
    if action.rate is None:
        raise Refused(place=f"trust {action.group}", problem="no rate was planned", fix="report it")
    found = host.read_ksm("run").strip()
    if journal.ledger.turned(knobs.RUN) is None and found != knobs.STOPPED:
        raise Refused(
            place="ksm/run",
            problem=f"was {found} before memsculpt came: somebody else merges pages on this machine",
            fix="stop ksmtuned or what else runs KSM (echo 0 > /sys/kernel/mm/ksm/run)",
        )
    check_alone(host, action)
    try:
        for vm in action.vms:
            knobs.turn(host, journal, offer_knob(vm), knobs.ON, origin)
        values = {
            "advisor_mode": "none",
            "smart_scan": "0",  # it skips pages without counting them, and the count is what keeps watch possible
            "pages_to_scan": str(action.rate.pages_to_scan),
            "sleep_millisecs": str(action.rate.sleep_ms),
        }
        for name, text in values.items():
            if host.has_ksm(name):
                knobs.turn(host, journal, ksm_knob(name), text, origin)
        check_alone(host, action)
        knobs.turn(host, journal, knobs.RUN, knobs.RUNS, origin)
    except MemsculptError:
        if host.read_ksm("run").strip() != knobs.RUNS:
            end(host, journal)  # half begun is not begun
        raise
    return _done(host)


def check_alone(host: Host, action: SetSharing) -> None:
    """Raise Refused where anybody but the group's VMs offers memory, or has merged pages."""
    others = [one for one in host.offerers() if one.process not in action.processes]
    if others:
        names = ", ".join(f"{one.name} (pid {one.process.pid})" for one in others[:3])
        raise Refused(
            place=f"trust {action.group}",
            problem=f"{len(others)} outside of the group offer memory to KSM, too: {names}",
            fix="VMs outside: start QEMU with -machine mem-merge=off (libvirt: <nosharepages/>)",
        )


def _ours(action: SetSharing) -> frozenset[object]:
    names = ("run", "advisor_mode", "smart_scan", "pages_to_scan", "sleep_millisecs")
    return frozenset((*map(ksm_knob, names), *map(offer_knob, action.vms)))


def _done(host: Host, problem: str = "") -> SharingDone:
    now = host.merging()
    return SharingDone(saved_bytes=now.saved_pages * knobs.PAGE_BYTES, problem=problem)
