# SPDX-License-Identifier: Apache-2.0
"""Our programs in the kernel (native/bpf): loaded through libbpf, one file here for each, and gone when closed."""

from memsculpt.host.bpf.tasks import TaskReader

__all__ = ["TaskReader"]
