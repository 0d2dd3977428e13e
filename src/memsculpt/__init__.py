# SPDX-License-Identifier: Apache-2.0
"""Predictive memory management for Linux.

memsculpt watches what every workload does with its memory, forecasts what each will need next, and reshapes the
memory before the need arrives. docs/architecture.md tells which room of this package holds what.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
