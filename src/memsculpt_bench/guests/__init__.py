# SPDX-License-Identifier: Apache-2.0
"""Virtual machines with kernels of Debian, for tests (tests/vm) and for benches that need a kernel of their own."""

__all__: list[str] = []
