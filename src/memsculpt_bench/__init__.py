# SPDX-License-Identifier: Apache-2.0
"""Side-by-side experiments, one file per bench. The product never imports this package."""

__all__: list[str] = []
