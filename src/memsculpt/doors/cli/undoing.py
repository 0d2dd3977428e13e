# SPDX-License-Identifier: Apache-2.0
"""The heavy half of `restore`: opens host and journal. Apart, so that the command's help stays light."""

from dataclasses import replace

from memsculpt import act
from memsculpt.doors.cli.preparing import read_settings
from memsculpt.host import open_host


def undo(*, state: str | None, config: str | None) -> act.RestoreReport:
    """Undo everything that the journal names.

    Raises Refused when a running agent owns the journal, ConfigError for a configuration that cannot be followed.
    """
    settings = read_settings(config, is_named=config is not None)
    # The partitions are not watched: what is to undo stands in the journal, also for those that are gone from the file.
    host = open_host(replace(settings, partitions=()))
    try:
        journal = act.Journal.open(state or settings.state, machine_lock=None)  # the folder's own lock is enough
        try:
            return act.restore(host, journal)
        finally:
            journal.close()
    finally:
        host.close()
