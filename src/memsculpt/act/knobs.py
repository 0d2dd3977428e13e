# SPDX-License-Identifier: Apache-2.0
"""Values of KSM, and offers of VMs' memory to it: turned with the old text journalled first, and put back.

KSM's `run` is special. To put it back is to take apart what was merged (2, then the old value): pages that stay merged
would stay shared after nobody vouches for it any more. That needs memory; where there is too little, merging is
stopped, what is merged stays so until it is written, and the change stays in the journal for another `restore`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from memsculpt.act.journal import Journal
from memsculpt.act.records import KnobKept, KnobTurned, Origin
from memsculpt.domain.sharing import Knob, KnobKind, Merging, ksm_knob
from memsculpt.domain.units import format_bytes
from memsculpt.domain.vm import VmId
from memsculpt.errors import Transient
from memsculpt.host.protocol import Host

RUN = ksm_knob("run")
STOPPED, RUNS, TAKE_APART = "0", "1", "2"
ON, OFF = "on", "off"
PAGE_BYTES = 4096
LEFT_FREE_BYTES = 64 << 20  # of memory, when everything is taken apart
# advisor_mode last: while the kernel's own advisor is on it refuses pages_to_scan.
_ORDER = ("run", "", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBack:
    """What became of a knob."""

    is_ours: bool = True  # False: somebody else has turned it since; it was left alone
    text: str = ""  # what it holds now
    problem: str = ""  # why it is not as it was


def read(host: Host, knob: Knob) -> str:
    """Return what a knob holds. Raises as the host's calls."""
    if knob.kind is KnobKind.KSM:
        return host.read_ksm(knob.name)
    return ON if host.is_offered(VmId(knob.name)) else OFF


def turn(host: Host, journal: Journal, knob: Knob, text: str, origin: Origin) -> str:
    """Write a value, the old one on the disk before; return what the machine holds now.

    Raises Transient where somebody else has turned it since (it is left alone), JournalUnwritable, and as the host.
    """
    present = read(host, knob)
    change = journal.ledger.turned(knob)
    if change is not None and not journal.ledger.is_ours_on(knob, present):
        journal.left_alone.add(knob)
        raise Transient(
            place=knob.describe(), problem=f"holds {present.strip()!r}, which memsculpt did not write", retry_in_s=60.0
        )
    if present.strip() == text:
        return present
    old = present if change is None else change.old_text
    journal.append(KnobTurned(knob=knob, old_text=old, present_text=present, new_text=text, origin=origin))
    kept = _write(host, knob, text)
    journal.append(KnobKept(knob=knob, text=kept), durable=False)
    return kept


def in_order(changes: Iterable[KnobTurned]) -> list[KnobTurned]:
    """Return knobs in the order in which they are put back: merging ends before anything else is touched."""
    return sorted(changes, key=lambda one: _ORDER.index(one.knob.name if one.knob.kind is KnobKind.KSM else ""))


def put_back(host: Host, journal: Journal, change: KnobTurned) -> PutBack:
    """Put one knob back as it was before memsculpt; what somebody else wrote since stays. Raises as the host."""
    knob = change.knob
    present = read(host, knob)
    if knob == RUN:
        return _put_run_back(host, journal, change, present)
    if present.strip() == change.old_text.strip():
        return PutBack(text=present)
    if knob.kind is KnobKind.KSM and not journal.ledger.is_ours_on(knob, present):
        return PutBack(is_ours=False, text=present)
    if knob.kind is KnobKind.OFFER and change.old_text == OFF and (lacking := _lacking(host.merging())):
        return PutBack(text=present, problem=lacking)
    return PutBack(text=_write(host, knob, change.old_text))


def _put_run_back(host: Host, journal: Journal, change: KnobTurned, present: str) -> PutBack:
    # Who stopped KSM meanwhile wants it stopped: it stays so, and what we had merged is taken apart all the same.
    is_stopped = present.strip() == STOPPED
    if not is_stopped and not journal.ledger.is_ours_on(RUN, present):
        return PutBack(is_ours=False, text=present)
    last = present if is_stopped else change.old_text
    if lacking := _lacking(host.merging()):
        return PutBack(text=_write(host, RUN, last), problem=lacking)
    if change.old_text.strip() != RUNS:
        _write(host, RUN, TAKE_APART)
    return PutBack(text=_write(host, RUN, last))


def _lacking(now: Merging) -> str:
    """Return why merged pages cannot be taken apart, "" where they can."""
    needed = now.saved_pages * PAGE_BYTES
    if needed == 0 or needed + LEFT_FREE_BYTES <= now.available_bytes:
        return ""
    return (
        f"what is merged takes {format_bytes(needed)} apart and {format_bytes(now.available_bytes)} are available: "
        "it stays merged; free memory, then: memsculpt restore"
    )


def _write(host: Host, knob: Knob, text: str) -> str:
    if knob.kind is KnobKind.KSM:
        return host.write_ksm(knob.name, text)
    return ON if host.offer(VmId(knob.name), to_ksm=text.strip() == ON) else OFF
