# SPDX-License-Identifier: Apache-2.0
"""The stacks of one process's faults, in three forms: by frame pointers, the top's words, and unwound (unwind.py).

The kernel follows frame pointers itself; where code keeps none, its stack ends early or leads astray. A copied stack is
unwound by what the files tell of their functions, which is exact, but not every fault has one: there may be no room.
Such a fault takes the stack of the nearest in time that has the same frame pointers and the same return addresses at
the top, or at least the former, or at the very least was at the same instruction. Which faults are copied does not
depend on what they are, so in sum that comes out right.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.host.bpf.faults import UNMAPPED, Copies, FaultReader, Faults
from memsculpt.host.linux.symbols import Frame, Symbols
from memsculpt.host.linux.unwind import Unwinder

NO_COPY = -1


class FaultStacks:
    """Gives stacks numbers, and the numbers frames."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._unwinder = Unwinder(symbols)
        self._stack_of: dict[int, tuple[int, ...]] = {}
        self._unwound_of: dict[int, int] = {}
        self._is_return: dict[int, bool] = {}
        self._words: dict[bytes, int] = {}
        self._words_of: list[tuple[int, ...]] = []

    def update(self) -> None:
        """Take note that the mappings were read anew."""
        self._unwinder.forget_unknown()

    def take(self, faults: FaultReader, found: Faults, copies: Copies) -> tuple[Int64, Int64]:
        """Keep what the stacks of these faults are; return the numbers of the words and of what was unwound.

        The copies are drained after the faults: so all that these have are among them.
        """
        for number in np.unique(found["stack"]).tolist():
            if number not in self._stack_of:
                self._stack_of[number] = faults.stack(number)
        self._unwound_of.update(self._unwinder.unwind(copies))  # some are of faults that come with the next call
        is_fault = found["stack"] > UNMAPPED
        unwound = [
            self._unwound_of.pop(copy, NO_COPY) if known else NO_COPY
            for copy, known in zip(found["copy"].tolist(), is_fault.tolist(), strict=True)
        ]
        return self._take_words(found), np.array(unwound, np.int64)

    def shared(self, stacks: Int64, words: Int64, unwound: Int64) -> Int64:
        """Return what was unwound, for faults without a copy that of the nearest like one. In order of time."""
        whole = stacks.tolist()
        places = [self._stack_of.get(number, ())[:1] or number for number in whole]
        for keys in (list(zip(whole, words.tolist(), strict=True)), whole, places):
            unwound = nearest(keys, unwound)
        return unwound

    def frames(self, stack: int, words: int, unwound: int) -> tuple[Frame, ...]:
        """Return the functions of a stack, innermost first."""
        by_pointers = self._stack_of.get(stack, ())
        shown = self._symbols.frames(by_pointers, self._words_of[words])
        if unwound == NO_COPY:
            return shown
        one = self._unwinder.stacks[unwound]
        if one.is_whole:
            return self._symbols.frames_of_calls(one.addresses)
        joined = self._symbols.frames_of_calls(one.addresses, by_pointers)
        return joined if len(one.addresses) > 1 and len(joined) >= len(shown) else shown

    def is_whole(self, unwound: int) -> bool:
        """Tell whether a stack was unwound up to the first function of its thread."""
        return unwound != NO_COPY and self._unwinder.stacks[unwound].is_whole

    def _take_words(self, found: Faults) -> Int64:
        """Return a number for the words of each stack: of those only what can be a return counts."""
        words: npt.NDArray[np.uint64] = np.array(found["words"])
        words[found["stack"] <= UNMAPPED] = 0
        is_code = self._symbols.may_be_code(words)
        candidates, inverse = np.unique(words[is_code], return_inverse=True)
        for address in candidates.tolist():
            if address not in self._is_return:
                self._is_return[address] = self._symbols.is_return(address)
        good = np.array([self._is_return[address] for address in candidates.tolist()], np.bool_)
        is_code[is_code] = good[inverse.reshape(-1)]
        words[~is_code] = 0
        return np.array([self._words_number(row) for row in words], np.int64)

    def _words_number(self, row: npt.NDArray[np.uint64]) -> int:
        key = row.tobytes()
        number = self._words.get(key)
        if number is None:
            number = self._words[key] = len(self._words_of)
            self._words_of.append(tuple(word for word in row.tolist() if word))
        return number


def nearest(keys: Sequence[Hashable], unwound: Int64) -> Int64:
    """Fill what is missing: as the last of the same key before, else as the first of them after. Pure."""
    known = [(key, one) for key, one in zip(keys, unwound.tolist(), strict=True) if one != NO_COPY]
    last = dict(reversed(known))
    filled: list[int] = []
    for key, one in zip(keys, unwound.tolist(), strict=True):
        if one != NO_COPY:
            last[key] = one
        filled.append(last.get(key, NO_COPY))
    return np.array(filled, np.int64)
