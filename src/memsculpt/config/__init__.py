# SPDX-License-Identifier: Apache-2.0
"""The configuration: TOML text -> checked Settings; complaints with file, line and the fix, all of them at once."""

from memsculpt.config.load import SettingsSource, load_settings, load_source, parse_settings, read_socket

__all__ = ["SettingsSource", "load_settings", "load_source", "parse_settings", "read_socket"]
