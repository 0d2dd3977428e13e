# SPDX-License-Identifier: Apache-2.0
"""Typed names for columns, and the one check that every columnar value makes of itself."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Int64: TypeAlias = npt.NDArray[np.int64]
Float64: TypeAlias = npt.NDArray[np.float64]
Float32: TypeAlias = npt.NDArray[np.float32]
Bool: TypeAlias = npt.NDArray[np.bool_]


def freeze_columns(owner: object, names: Iterable[str], shape: tuple[int, ...]) -> None:
    """Check that each named column of `owner` has `shape`, and make it read-only.

    Raises ValueError naming the first column that does not fit.
    """
    for name in names:
        column: npt.NDArray[Any] = getattr(owner, name)
        if column.shape != shape:
            kind = type(owner).__name__
            raise ValueError(f"{kind}.{name}: shape {column.shape}, expected {shape}")
        column.flags.writeable = False
