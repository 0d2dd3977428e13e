# SPDX-License-Identifier: Apache-2.0
"""Who moved a balloon: we, the guest, or somebody else; and whether the guest follows what it is asked. Pure.

A balloon moves at the guest's pace, so every value between where it was when we asked and what we asked for is ours.

- Lower than that, or higher than what the operator ever left the guest: somebody else has asked (virsh setmem, another
  manager). It is theirs from then on, and for FOREIGN_REST_S we do not ask at all.
- Back up, within what the operator left it: the guest took memory back (deflate-on-oom, a reboot), or somebody gave it.
  We stand back for GIVEN_BACK_REST_S. After a reboot a guest returns to our ask by itself (QEMU keeps the target), so
  what is still elsewhere then was somebody's ask; not where the guest has deflate-on-oom, for that lasts.
- The VM goes on in another process, after a migration or from a saved state: its balloon is where it was, and ours.
- No step nearer for PATIENCE_S in which it ran: it refuses, or ignores us. It is left alone, longer each time, and the
  ask is taken back: one that stays open might be followed later, when the guest needs the memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import SetBalloon
from memsculpt.domain.vm import VmId, VmReading, VmState
from memsculpt.plan.state import Balloon

TOLERANCE_BYTES = 2 << 20  # guests move in steps of 1 MiB (VIRTIO_BALLOON_ARRAY_PFNS_MAX pages)
OVERSHOOT_BYTES = 512 << 10  # they stop at the very page that was asked for
PATIENCE_S = 10.0  # a guest may wait so long for a processor
FOREIGN_REST_S = 60.0
GIVEN_BACK_REST_S = 15.0
REFUSED_REST_S = 60.0
REFUSED_REST_MOST_S = 3600.0


def follow_balloon(known: Balloon | None, reading: VmReading, now_s: float) -> Balloon | None:
    """Take in where a balloon is now; None where there is none."""
    actual = reading.balloon_bytes
    if actual is None:
        return None
    if known is not None and known.process != reading.process:
        known = _come_along(known, reading, actual, now_s)
    if known is None:
        return Balloon(process=reading.process, most_bytes=actual, seen_bytes=actual, moved_at_s=-math.inf)
    if reading.state is not VmState.RUNNING:
        known = replace(known, stood_at_s=now_s)
    before = known.seen_bytes
    if actual != before:
        known = replace(known, seen_bytes=actual, moved_at_s=now_s)
    if known.asked_bytes is None:
        return _theirs(known, now_s) if abs(actual - before) > OVERSHOOT_BYTES else known
    low = min(known.asked_bytes, known.asked_from_bytes) - OVERSHOOT_BYTES
    if actual < low or actual > known.most_bytes + OVERSHOOT_BYTES:
        return _theirs(known, now_s)
    distance = abs(actual - known.asked_bytes)
    if known.is_given_back:
        if now_s < known.rests_until_s:
            return known
        if distance <= TOLERANCE_BYTES:
            return replace(known, is_given_back=False)
        if reading.features.deflate_on_oom:
            return replace(known, is_given_back=False, asked_bytes=actual, asked_from_bytes=actual)
        return _theirs(known, now_s, rests=False)
    if actual > before and distance > abs(before - known.asked_bytes) + TOLERANCE_BYTES:
        return _rests(
            replace(known, is_given_back=True, foreign_at_s=now_s, pressed_at_s=now_s),
            now_s + GIVEN_BACK_REST_S,
            "memory that it had given was taken back, by the guest or by somebody else",
        )
    if distance <= TOLERANCE_BYTES:
        followed = known.moved_at_s > known.asked_at_s
        return replace(known, refusals_count=0) if followed and known.refusals_count else known
    if now_s - max(known.asked_at_s, known.moved_at_s, known.stood_at_s) > PATIENCE_S and now_s >= known.rests_until_s:
        rest_s = min(REFUSED_REST_S * 2.0**known.refusals_count, REFUSED_REST_MOST_S)
        return _rests(
            replace(known, refusals_count=known.refusals_count + 1),
            now_s + rest_s,
            "its guest does not follow what its balloon is asked",
        )
    return known


def _come_along(known: Balloon, reading: VmReading, actual_bytes: int, now_s: float) -> Balloon | None:
    """Return what is known of a balloon that has come to another process with its VM; None where it began anew.

    A migration and a saved state take it along, where it was and is asked to be; a VM that is started has all it may
    have. So what lies where our asks have led is ours to give back still.
    """
    if known.asked_bytes is None:
        return None
    low, high = sorted((known.asked_bytes, known.asked_from_bytes))
    is_ours = low - OVERSHOOT_BYTES <= actual_bytes <= high + OVERSHOOT_BYTES
    if not is_ours or actual_bytes >= known.most_bytes:
        return None
    return replace(known, process=reading.process, seen_bytes=actual_bytes, asked_at_s=now_s, moved_at_s=now_s)


def must_withdraw(balloon: Balloon, now_s: float) -> bool:
    """Tell whether an open ask is to be taken back: the guest refuses, and nobody has done so yet."""
    if balloon.asked_bytes is None or balloon.is_given_back or not balloon.refusals_count:
        return False
    is_open = abs(balloon.seen_bytes - balloon.asked_bytes) > TOLERANCE_BYTES
    return is_open and balloon.rests_until_s > now_s


def after_asking(balloons: Mapping[VmId, Balloon], applied: Sequence[Applied]) -> Mapping[VmId, Balloon]:
    """Return what is known of balloons once a plan was carried out: what was really asked, and of whom."""
    known = dict(balloons)
    for one in applied:
        action = one.action
        if not isinstance(action, SetBalloon) or one.status not in {Status.DONE, Status.PARTIAL}:
            continue
        balloon = known.get(action.vm)
        if balloon is not None:
            known[action.vm] = replace(
                balloon,
                asked_bytes=one.done_bytes,
                asked_from_bytes=_outermost(balloon, one.done_bytes),
                asked_at_s=one.at_s,
                is_given_back=False,
            )
    return known


def _outermost(balloon: Balloon, asked_bytes: int) -> int:
    """Return how far from a new ask a balloon may be by our own doing: an earlier ask may still be under way."""
    ours = [balloon.seen_bytes]
    if balloon.asked_bytes is not None and abs(balloon.seen_bytes - balloon.asked_bytes) > TOLERANCE_BYTES:
        ours += [balloon.asked_bytes, balloon.asked_from_bytes]
    return max(ours, key=lambda one: abs(one - asked_bytes)) if min(ours) >= asked_bytes else min(ours)


def _theirs(known: Balloon, now_s: float, *, rests: bool = True) -> Balloon:
    found = replace(
        known, most_bytes=known.seen_bytes, asked_bytes=None, is_given_back=False, foreign_at_s=now_s, refusals_count=0
    )
    if not rests:
        return found
    return _rests(found, now_s + FOREIGN_REST_S, "somebody else moves its balloon")


def _rests(known: Balloon, until_s: float, why: str) -> Balloon:
    return replace(known, rests_until_s=until_s, rests_why=why)
