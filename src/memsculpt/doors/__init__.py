# SPDX-License-Identifier: Apache-2.0
"""The ways in: command line, REST API, page. Thin: parse, ask, print; none of them decides anything."""

__all__: list[str] = []
