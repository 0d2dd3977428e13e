# SPDX-License-Identifier: Apache-2.0
"""The REST API of a running agent: one file per resource, types in `schema`, docs/reference/api.md for people."""

from memsculpt.doors.api.app import make_app
from memsculpt.doors.api.resource import Asked
from memsculpt.doors.api.server import ApiServer, Listening

__all__ = ["ApiServer", "Asked", "Listening", "make_app"]
