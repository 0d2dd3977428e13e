# SPDX-License-Identifier: Apache-2.0
"""From the options of a command to checked settings: the file, the places of this user, what the options override."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memsculpt.config import load_settings
from memsculpt.domain.settings import Settings
from memsculpt.doors import places
from memsculpt.errors import MemsculptError

if TYPE_CHECKING:
    from memsculpt.agent.refitting import Refitting
    from memsculpt.forecast.longterm import Gate

GATE_NAME = "forecast.gate"  # in the state folder: what `memsculpt train --out` wrote for this agent


def total_memory_bytes() -> int:
    """Return this machine's main memory, which capacities given as shares refer to."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_settings(config: str | None, *, is_named: bool) -> Settings:
    """Return the settings of a file (`is_named`: it must be there), or the defaults, at this user's places.

    Raises ConfigError when the file cannot be followed.
    """
    path = Path(config) if config is not None and is_named else places.config_path(config)
    return places.placed(load_settings(path, total_memory_bytes()))


def read_gate(state: Path, tell: Callable[[str], None]) -> "Gate | None":
    """Return the long-term forecaster's gate where one was trained; None, and why, where it cannot be used."""
    from memsculpt.forecast.longterm import gate_from_bytes

    path = state / GATE_NAME
    try:
        return gate_from_bytes(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        tell(f"note: {path} cannot be read ({error.strerror}): the long-term forecaster uses its prior")
    except MemsculptError as error:
        tell(f"note: {error.place}: {error.problem}: the long-term forecaster uses its prior")
    return None


def refitting_for(settings: Settings) -> "Refitting | None":
    """Return what has models fitted; None where that is switched off, or `doctor` says what is missing for it."""
    from memsculpt.agent.refitting import Refitting
    from memsculpt.forecast import selection

    count = settings.forecast.refit_count
    return Refitting(count=count) if count and settings.profile.keep and selection.is_available() else None
