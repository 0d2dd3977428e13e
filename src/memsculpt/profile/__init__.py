# SPDX-License-Identifier: Apache-2.0
"""What we know: rates, idleness, heat, and how much of its memory each workload really needs."""

from memsculpt.profile.sensing import SensingState
from memsculpt.profile.sensing import absorb as absorb_looks
from memsculpt.profile.sensing import choose as choose_looks
from memsculpt.profile.sensing import summarize as summarize_heat
from memsculpt.profile.state import ProfileState
from memsculpt.profile.update import update

__all__ = ["ProfileState", "SensingState", "absorb_looks", "choose_looks", "summarize_heat", "update"]
