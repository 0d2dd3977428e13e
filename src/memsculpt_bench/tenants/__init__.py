# SPDX-License-Identifier: Apache-2.0
"""Programs that the benches run as tenants of a lab, each in a process of its own."""

__all__: list[str] = []
