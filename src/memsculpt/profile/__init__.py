# SPDX-License-Identifier: Apache-2.0
"""What we know: rates, idleness, and how much of its memory each workload really needs."""

from memsculpt.profile.state import ProfileState
from memsculpt.profile.update import update

__all__ = ["ProfileState", "update"]
