# SPDX-License-Identifier: Apache-2.0
"""`python -m memsculpt` and the `memsculpt` command: the way into `doors.cli`, nothing else."""

import sys

from memsculpt.doors.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
