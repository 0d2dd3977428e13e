# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per command. A command is a function `add_command(subparsers)`, also from elsewhere."""

from memsculpt.doors.cli.command_line import main

__all__ = ["main"]
