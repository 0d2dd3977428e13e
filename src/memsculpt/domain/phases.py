# SPDX-License-Identifier: Apache-2.0
"""What is foreseen of a pool: which sets of blocks come next, when, and how sure that is."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64

Float32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sight:
    """What was touched in a pool between the last look and this one."""

    at_s: float  # host's clock, at the end of the interval
    blocks: Int64  # numbers of touched blocks, ascending, each once; any numbering that does not change will do
    blocks_in_pool: int = 0  # that hold anything, touched or not; 0: not known
    cpu_ratio: float = 0.0  # of one processor, in the interval
    io_bytes_per_s: float = 0.0


class Sign(StrEnum):
    """What a prediction rests on."""

    CURRENT = "current"  # the phase has begun, and not all of it has been touched yet
    SUCCESSOR = "successor"  # it follows what is there now
    PERIOD = "period"  # it comes at regular times
    TRIGGER = "trigger"  # a change in processor time or I/O comes before it
    STREAM = "stream"  # blocks are touched one after the other, at a stride


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upcoming:
    """A set of blocks that is expected to be used."""

    phase: int  # -1: no phase but a stream
    sign: Sign
    probability: float  # that it comes within the time that was asked for
    onset_s: tuple[float, float, float]  # 10 %, 50 % and 90 % quantile, host's clock
    dwell_s: float  # how long it is in use
    blocks: Int64  # ascending
    block_probability: Float32  # that a block is touched if the phase comes, shape (n_blocks,)

    def __post_init__(self) -> None:
        if self.blocks.shape != self.block_probability.shape:
            raise ValueError(f"{self.blocks.shape} blocks with {self.block_probability.shape} probabilities")
        self.blocks.flags.writeable = False
        self.block_probability.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """What a plan has to know of an expected phase that lacks blocks: when, how much, and what moving it takes."""

    phase: int
    sign: Sign
    probability: float
    onset_s: tuple[float, float, float]  # 10 %, 50 % and 90 % quantile, host's clock
    lacking_bytes: int  # likely needed, and in swap
    spare_bytes: int  # in memory, and needed by neither the present phase nor an earlier one that is as likely
    in_bytes_per_s: float  # how fast blocks of this pool come and leave, as measured
    out_bytes_per_s: float
    margin_s: float  # how much earlier than needed they are to be there, from experience


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What is expected of a pool within a time from now, the earliest first."""

    at_s: float
    within_s: float
    upcoming: tuple[Upcoming, ...] = ()
    current: int = -1  # the phase that is there now; -1: none that is known
    in_use: Int64  # blocks that the present phase has touched: they are not to be taken, ascending
