# SPDX-License-Identifier: Apache-2.0
"""The words: frozen data and their checks. Imports nothing of ours."""

__all__: list[str] = []
