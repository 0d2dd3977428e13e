# SPDX-License-Identifier: Apache-2.0
"""Programs in a guest that hold memory, each in a cgroup of its own; the fixtures in conftest.py start them."""

from __future__ import annotations

from dataclasses import dataclass

TENANT_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class Tenant:
    """A running program that holds memory."""

    cgroup: str  # absolute path in the guest
    pid: int
    held_bytes: int
