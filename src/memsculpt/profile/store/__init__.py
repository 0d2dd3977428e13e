# SPDX-License-Identifier: Apache-2.0
"""The profile store: one file a host, in which series, models, heat and phases of its workloads last.

What it promises, and its format byte by byte: docs/methods/profile-store.md.
"""

from memsculpt.profile.store.file import NAME, VERSION, find_set_aside
from memsculpt.profile.store.reading import HOST, KINDS, Kept, Reader, Version
from memsculpt.profile.store.writing import Block, Store

__all__ = ["HOST", "KINDS", "NAME", "VERSION", "Block", "Kept", "Reader", "Store", "Version", "find_set_aside"]
