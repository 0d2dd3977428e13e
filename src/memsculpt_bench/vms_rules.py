# SPDX-License-Identifier: Apache-2.0
"""The two published rules to compare with, written in our own words from what they do. Pure.

MOM (oVirt, doc/balloon.rules): below 20 % of free memory on the host every guest is shrunk by at most 5 % of what it
has, down to what it uses and a part of 20 % free that falls with the host's own; below 5 % the guests are made to swap
(a negative part). Above 20 % every guest grows by 5 %, at once up to what it uses and 20 % free. Changes below 0.25 %
are left. Figures of guests and host are means over its last samples.

Proxmox (PVE::AutoBalloon, pvestatd): the host is to be 80 % full. What is missing or over is divided by shares among
the guests above their minimum, at most 100 MiB a guest and turn; growing begins with guests whose free memory is below
a quarter of their minimum, shrinking with the others; within 10 MiB of the target nothing is done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFigures:
    """One guest as its monitor tells it."""

    name: str
    balloon_bytes: int
    most_bytes: int
    least_bytes: int  # the operator's minimum
    free_bytes: int  # MemFree, which is what both rules look at


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFigures:
    """The host's memory."""

    total_bytes: int
    free_bytes: int


Rule = Callable[[HostFigures, Sequence[GuestFigures]], Mapping[str, int]]

MOM_PRESSURE, MOM_CRITICAL, MOM_GUEST_FREE, MOM_CHANGE, MOM_WORTH = 0.20, 0.05, 0.20, 0.05, 0.0025


def mom(host: HostFigures, guests: Sequence[GuestFigures]) -> Mapping[str, int]:
    """Return MOM's new targets, by guest; who is not named stays."""
    free = host.free_bytes / host.total_bytes
    targets: dict[str, int] = {}
    for one in guests:
        used = one.balloon_bytes - one.free_bytes
        if free < MOM_PRESSURE:
            part = free - MOM_CRITICAL if free <= MOM_CRITICAL else MOM_GUEST_FREE * free / MOM_PRESSURE
            least = max(one.least_bytes, used + int(part * one.balloon_bytes))
            target = max(int(one.balloon_bytes * (1.0 - MOM_CHANGE)), least)
            if target > one.balloon_bytes:
                continue
        else:
            least = used + int(MOM_GUEST_FREE * one.balloon_bytes)
            target = min(max(int(one.balloon_bytes * (1.0 + MOM_CHANGE)), least), one.most_bytes)
        if abs(target - one.balloon_bytes) > MOM_WORTH * one.balloon_bytes:
            targets[one.name] = target
    return targets


PROXMOX_FULL, PROXMOX_STEP_BYTES, PROXMOX_DEAD_BYTES, PROXMOX_SHORT = 0.80, 100 * MIB, 10 * MIB, 0.25


def proxmox(host: HostFigures, guests: Sequence[GuestFigures]) -> Mapping[str, int]:
    """Return Proxmox's new targets, by guest, all with the same shares; who is not named stays."""
    goal = int(PROXMOX_FULL * host.total_bytes) - (host.total_bytes - host.free_bytes)
    if abs(goal) <= PROXMOX_DEAD_BYTES:
        return {}
    short = [one for one in guests if one.free_bytes <= PROXMOX_SHORT * one.least_bytes]
    first = short if goal > 0 else [one for one in guests if one not in short]
    targets, left = _divided(first, goal)
    if left == goal:  # none of these can: everybody
        targets, _ = _divided(guests, goal)
    return targets


def _divided(guests: Sequence[GuestFigures], goal: int) -> tuple[dict[str, int], int]:
    """Divide a change evenly above the minima, within the step and each one's bounds, again until nothing moves."""
    targets: dict[str, int] = {}
    left = goal
    while guests and left:
        above = sum(targets.get(one.name, one.balloon_bytes) - one.least_bytes for one in guests) + left
        moved = 0
        for one in guests:
            desired = min(max(one.least_bytes + above // len(guests), one.least_bytes), one.most_bytes)
            if goal > 0 and desired > one.balloon_bytes:
                target = min(desired, one.balloon_bytes + PROXMOX_STEP_BYTES)
            elif desired < one.balloon_bytes:
                target = max(desired, one.balloon_bytes - PROXMOX_STEP_BYTES)
            else:
                continue
            moved += target - targets.get(one.name, one.balloon_bytes)
            targets[one.name] = target
        if not moved:
            break
        left -= moved
    return targets, left
