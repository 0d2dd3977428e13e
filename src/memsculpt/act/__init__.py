# SPDX-License-Identifier: Apache-2.0
"""Doing it, reversibly: the only stage that changes the host. Journal first, then act; everything can be undone."""

from memsculpt.act.apply import ActionIds, apply, rehearse
from memsculpt.act.budget import Budget
from memsculpt.act.growth import FaultSampler
from memsculpt.act.journal import Journal
from memsculpt.act.lease import Lease, lease_for, restore_command
from memsculpt.act.ownership import MACHINE_LOCK, SharingSeat
from memsculpt.act.restore import Outcome, Restored, RestoreReport, give_up_balloon, restore
from memsculpt.act.sculpt import PoolMoved, Sculptor, forget_slow, listed, reversed_order, sculpt
from memsculpt.act.self_meter import SelfMeter
from memsculpt.act.sense import Sensor

__all__ = [
    "MACHINE_LOCK",
    "ActionIds",
    "Budget",
    "FaultSampler",
    "Journal",
    "Lease",
    "Outcome",
    "PoolMoved",
    "RestoreReport",
    "Restored",
    "Sculptor",
    "SelfMeter",
    "Sensor",
    "SharingSeat",
    "apply",
    "forget_slow",
    "give_up_balloon",
    "lease_for",
    "listed",
    "rehearse",
    "restore",
    "restore_command",
    "reversed_order",
    "sculpt",
]
