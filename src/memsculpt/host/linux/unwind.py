# SPDX-License-Identifier: Apache-2.0
"""Copied stacks -> the addresses that called one another, by the call frame information of the files (cfi.py).

All stacks of a batch take their steps together: one step is a lookup of the rules of the addresses reached, and an
addition and a read for each stack.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.host.bpf.faults import Copies
from memsculpt.host.linux import cfi
from memsculpt.host.linux.symbols import Symbols

DEPTH_MOST = 128
WORD = 8
UNKNOWN = cfi.Rule(0, 0, 0, 0)


class Unwound(NamedTuple):
    """One stack: where the fault was, then return addresses."""

    addresses: tuple[int, ...]
    is_whole: bool  # up to the thread's first function


class Unwinder:
    """Unwinds stacks of one process; each stack is kept once."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._tables: dict[str, cfi.FrameTable | None] = {}
        self._rules: dict[int, cfi.Rule] = {}
        self._number_of: dict[tuple[bytes, bool], int] = {}
        self.stacks: list[Unwound] = []

    def forget_unknown(self) -> None:
        """Look anew for what was not known: libraries come."""
        self._rules = {address: rule for address, rule in self._rules.items() if rule != UNKNOWN}

    def unwind(self, copies: Copies) -> dict[int, int]:
        """Return, by the copies' numbers, which of `stacks` each is."""
        addresses, depths, is_whole = unwind(copies, self._rules_of)
        found: dict[int, int] = {}
        for copy, row, depth, whole in zip(
            copies["number"].tolist(), addresses, depths.tolist(), is_whole.tolist(), strict=True
        ):
            key = row[:depth].tobytes(), whole
            number = self._number_of.get(key)
            if number is None:
                number = self._number_of[key] = len(self.stacks)
                self.stacks.append(Unwound(tuple(row[:depth].tolist()), whole))
            found[copy] = number
        return found

    def _rules_of(self, addresses: list[int]) -> Int64:
        known = self._rules
        for address in addresses:
            if address not in known:
                known[address] = self._find(address)
        return np.array([known[address] for address in addresses], np.int64).reshape(-1, 4)

    def _find(self, address: int) -> cfi.Rule:
        code = self._symbols.code_at(address)
        if code is None:
            return UNKNOWN
        name, descriptor, offset = code
        if name not in self._tables:
            try:
                self._tables[name] = cfi.read_table(descriptor)
            except OSError:  # a file on a mount that is gone: as one without a table
                self._tables[name] = None
        table = self._tables[name]
        found = None if table is None else table.rule_at(table.address_of(offset))
        return UNKNOWN if found is None else found


def unwind(copies: Copies, rules_of: Callable[[list[int]], Int64]) -> tuple[npt.NDArray[np.uint64], Int64, Bool]:
    """Return addresses, innermost first, shape (n, DEPTH_MOST), their numbers, and which stacks are whole. Pure.

    `rules_of` returns the rules (cfi.Rule) of addresses, shape (n, 4); of return addresses it is asked for the call.
    """
    count = len(copies)
    found = np.zeros((count, DEPTH_MOST), np.uint64)
    depths, is_whole = np.ones(count, np.int64), np.zeros(count, np.bool_)
    found[:, 0] = copies["ip"]
    at = found[:, 0].copy()  # where the next rule is looked for
    low = copies["sp"].astype(np.int64)
    high = low + copies["bytes"].astype(np.int64)
    sp, bp = low.copy(), copies["bp"].astype(np.int64)
    has_bp = np.ones(count, np.bool_)
    words: npt.NDArray[np.uint64] = copies["words"]
    alive = np.arange(count)
    for depth in range(1, DEPTH_MOST):
        unique, inverse = np.unique(at[alive], return_inverse=True)
        rules = rules_of(unique.tolist())[inverse.reshape(-1)]
        is_whole[alive[rules[:, 0] == cfi.RETURN]] = True
        by_bp = rules[:, 0] == cfi.RBP
        cfa = np.where(by_bp, bp[alive], sp[alive]) + rules[:, 1]
        place = cfa + rules[:, 2]
        good = ((rules[:, 0] == cfi.RSP) | (by_bp & has_bp[alive])) & (cfa > sp[alive])
        good &= (place >= low[alive]) & (place + WORD <= high[alive]) & (place % WORD == 0)
        alive, rules, cfa, place = alive[good], rules[good], cfa[good], place[good]
        if not len(alive):
            break
        back = words[alive, (place - low[alive]) // WORD]
        _restore_bp(alive, rules[:, 3], cfa, (bp, has_bp, low, high), words)
        sp[alive] = cfa
        is_whole[alive[back == 0]] = True
        alive, back = alive[back != 0], back[back != 0]
        found[alive, depth] = back
        depths[alive] = depth + 1
        at[alive] = back - np.uint64(1)
    return found, depths, is_whole


def _restore_bp(
    alive: Int64, offsets: Int64, cfa: Int64, state: tuple[Int64, Bool, Int64, Int64], words: npt.NDArray[np.uint64]
) -> None:
    """Set the callers' frame pointers."""
    bp, has_bp, low, high = state
    has_bp[alive[offsets == 1]] = False
    saved = (offsets != 0) & (offsets != 1)
    rows, place = alive[saved], (cfa + offsets)[saved]
    inside = (place >= low[rows]) & (place + WORD <= high[rows]) & (place % WORD == 0)
    has_bp[rows] = inside
    rows, place = rows[inside], place[inside]
    bp[rows] = words[rows, (place - low[rows]) // WORD].astype(np.int64)
