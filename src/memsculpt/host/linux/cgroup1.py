# SPDX-License-Identifier: Apache-2.0
"""cgroup v1 memory."""

import os
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.host.protocol import LimitValue

FILES = {
    LimitKind.GUARANTEE: "memory.soft_limit_in_bytes",
    LimitKind.LIMIT: "memory.limit_in_bytes",
    LimitKind.HARD: "memory.limit_in_bytes",
}


def value(text: str) -> LimitValue:
    size = int(text)
    return LimitValue(text=text, size_bytes=UNLIMITED_BYTES if size >= 1 << 60 else size)
