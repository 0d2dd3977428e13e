# SPDX-License-Identifier: Apache-2.0
"""A host in memory: a kernel, the programs on it, and the faults that befall them, deterministic from a seed.

It is part of the product, not of the tests: `replay`, learning and examples run on it.
"""

from memsculpt.host.simulated.faults import (
    BusyLimit,
    DeniedLooking,
    DeniedPaging,
    Fault,
    ForeignLimit,
    SilentMonitor,
    SwapFull,
    VanishBeforeAction,
)
from memsculpt.host.simulated.guests import Driver, VirtualMachine, Word
from memsculpt.host.simulated.host import SimulatedHost
from memsculpt.host.simulated.living import Costs, Record
from memsculpt.host.simulated.reclaim import ReclaimRules
from memsculpt.host.simulated.workloads import (
    Burst,
    CacheReader,
    Constant,
    Cycle,
    Leak,
    Phase,
    Program,
    Ramp,
    StartupPeak,
    Turns,
)

__all__ = [
    "Burst",
    "BusyLimit",
    "CacheReader",
    "Constant",
    "Costs",
    "Cycle",
    "DeniedLooking",
    "DeniedPaging",
    "Driver",
    "Fault",
    "ForeignLimit",
    "Leak",
    "Phase",
    "Program",
    "Ramp",
    "ReclaimRules",
    "Record",
    "SilentMonitor",
    "SimulatedHost",
    "StartupPeak",
    "SwapFull",
    "Turns",
    "VanishBeforeAction",
    "VirtualMachine",
    "Word",
]
