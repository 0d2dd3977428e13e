# SPDX-License-Identifier: Apache-2.0
"""From the options of a command to checked settings: the file, the places of this user, what the options override."""

import os
from pathlib import Path

from memsculpt.config import load_settings
from memsculpt.domain.settings import Settings
from memsculpt.doors import places


def total_memory_bytes() -> int:
    """Return this machine's main memory, which capacities given as shares refer to."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_settings(config: str | None, *, is_named: bool) -> Settings:
    """Return the settings of a file (`is_named`: it must be there), or the defaults, at this user's places.

    Raises ConfigError when the file cannot be followed.
    """
    path = Path(config) if config is not None and is_named else places.config_path(config)
    return places.placed(load_settings(path, total_memory_bytes()))
