# SPDX-License-Identifier: Apache-2.0
"""How many pages of a group of VMs hold the same: what merging would save, before anything is merged.

Every page is read once, at the pace that is allowed, and hashed with a secret salt. Equal pages have equal hashes
wherever they lie, so what is kept is chosen by the hash: all pages whose hash ends in `level` zero bits, in every VM
the same contents (distinct sampling: Gibbons, VLDB 2001; Poisson sampling of contents, each kept with p = 2^-level).
Choosing addresses instead would find a pair of equal pages with the square of the chance of either, and there is no
good estimate of distinct values from such a sample (Charikar et al., PODS 2000). Reading only parts of pages does not
pay: a read of 64 bytes costs what a whole page costs (docs/methods/sharing.md).

Of a content with n users the kernel saves n less one page for every `most_sharing` of them. With s_c the saving of a
content c that was kept, the Horvitz-Thompson estimate is sum(s_c) / p, its variance sum(s_c^2) (1 - p) / p^2. Pages
of zeros are one content with very many users, which a sample would mostly miss or blow up: they are all counted.

Beside the sampling there is time: pages change between the look and the merge. DRIFT_RATIO of the estimate on either
side stands for that: chosen, not measured.

What changes between two looks is not merged by the kernel (it compares a checksum of the scan before), so only pages
that were the same at both looks count; the upper end of the interval is what all of them would give.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.sharing import PAGE_WORDS, Gain, GroupGain, PageContents, UInt64
from memsculpt.domain.vm import VmId

KEPT_MOST = 1 << 18  # pages whose hashes are kept: 6 MiB
ZEROS_KEPT = 1 << 10  # a VM's pages of zeros that are looked at twice
HASHED_AT_ONCE = 32
WIDTH = 2.0  # standard deviations on either side: 95 % where sampling is all that errs
DRIFT_RATIO = 0.1
PAGE_BYTES = 8 * PAGE_WORDS
_HIGH_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Salt:
    """Secret multipliers, made anew for every process: nobody can prepare pages that collide, or read a hash back."""

    low: UInt64  # shape (PAGE_WORDS,)
    high: UInt64


def salt_from(random_bytes: bytes) -> Salt:
    """Return multipliers from 8192 random bytes. Raises ValueError for another length."""
    if len(random_bytes) != 2 * PAGE_BYTES:
        raise ValueError(f"a salt is made from {2 * PAGE_BYTES} bytes, not {len(random_bytes)}")
    words = np.frombuffer(random_bytes, np.uint64)
    return Salt(low=words[:PAGE_WORDS], high=words[PAGE_WORDS:])


def hashes_of(words: UInt64, salt: Salt) -> UInt64:
    """Return a 64-bit hash of each page, shape (n,); a page of zeros has the hash 0, and as good as no other.

    Multilinear (Carter and Wegman 1979, over the whole words and once more over their upper halves, so that no
    difference is divisible by more than 2^31): two different pages collide with a chance of 2^-33 at most.
    """
    hashes = np.empty(len(words), np.uint64)
    for at in range(0, len(words), HASHED_AT_ONCE):  # so many stay in a processor's own cache
        part = words[at : at + HASHED_AT_ONCE]
        hashes[at : at + HASHED_AT_ONCE] = np.einsum("ij,j->i", part, salt.low)
        hashes[at : at + HASHED_AT_ONCE] += np.einsum("ij,j->i", part >> _HIGH_HALF, salt.high)
    return hashes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """What is known of a group in the middle of a look. Rows are pages whose contents are compared."""

    vms: tuple[VmId, ...]
    salt: Salt
    level: int = 0
    vm_rows: Int64 = field(default_factory=lambda: np.empty(0, np.int64))  # whose, an index of `vms`
    addresses: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    hashes: UInt64 = field(default_factory=lambda: np.empty(0, np.uint64))
    is_same: Bool = field(default_factory=lambda: np.empty(0, np.bool_))  # at the second look
    read_pages: Int64 = field(default_factory=lambda: np.empty(0, np.int64))  # by VM
    zero_pages: Int64 = field(default_factory=lambda: np.empty(0, np.int64))  # by VM
    zeros: Mapping[int, Int64] = field(default_factory=dict[int, Int64])  # addresses of some, by row of `vms`
    same_zeros: Mapping[int, int] = field(default_factory=dict[int, int])  # of these, how many were zeros again

    @property
    def kept_ratio(self) -> float:
        """Return the chance with which a content is kept."""
        return 2.0**-self.level


def begin_sweep(vms: tuple[VmId, ...], salt: Salt) -> Sweep:
    """Begin to look through a group."""
    return Sweep(vms=vms, salt=salt, read_pages=np.zeros(len(vms), np.int64), zero_pages=np.zeros(len(vms), np.int64))


def take_in(sweep: Sweep, vm: VmId, pages: PageContents, *, kept_most: int = KEPT_MOST) -> Sweep:
    """Take in pages at the first look."""
    row = sweep.vms.index(vm)
    hashes = hashes_of(pages.words, sweep.salt)
    is_zero = hashes == 0
    read, zero = sweep.read_pages.copy(), sweep.zero_pages.copy()
    read[row] += len(hashes)
    zero[row] += int(is_zero.sum())
    kept = ~is_zero & _is_kept(hashes, sweep.level)
    zeros = {**sweep.zeros, row: _spread(sweep.zeros.get(row), pages.addresses[is_zero], sweep.salt)}
    grown = replace(
        sweep,
        vm_rows=np.append(sweep.vm_rows, np.full(int(kept.sum()), row, np.int64)),
        addresses=np.append(sweep.addresses, pages.addresses[kept]),
        hashes=np.append(sweep.hashes, hashes[kept]),
        is_same=np.append(sweep.is_same, np.zeros(int(kept.sum()), np.bool_)),
        read_pages=read,
        zero_pages=zero,
        zeros=zeros,
    )
    while len(grown.hashes) > kept_most:
        grown = _thinned(grown)
    return grown


def to_see_again(sweep: Sweep, vm: VmId) -> Int64:
    """Return the addresses that the second look reads, ascending."""
    row = sweep.vms.index(vm)
    return np.sort(np.append(sweep.addresses[sweep.vm_rows == row], sweep.zeros.get(row, np.empty(0, np.int64))))


def see_again(sweep: Sweep, vm: VmId, pages: PageContents) -> Sweep:
    """Take in pages at the second look; those that are not there any more have changed."""
    row = sweep.vms.index(vm)
    order = np.argsort(pages.addresses, kind="stable")
    addresses, hashes = pages.addresses[order], hashes_of(pages.words, sweep.salt)[order]
    if not len(addresses):
        return sweep
    ours = np.flatnonzero(sweep.vm_rows == row)
    same = sweep.is_same.copy()
    same[ours] |= _hash_at(addresses, hashes, sweep.addresses[ours]) == sweep.hashes[ours]
    zeros = sweep.zeros.get(row, np.empty(0, np.int64))
    still = _is_there(addresses, zeros) & (_hash_at(addresses, hashes, zeros) == 0)
    return replace(
        sweep,
        is_same=same,
        same_zeros={**sweep.same_zeros, row: sweep.same_zeros.get(row, 0) + int(still.sum())},
    )


def estimate_gain(sweep: Sweep, *, most_sharing: int, uses_zero_pages: bool, at_s: float) -> GroupGain:
    """Return what merging would save, by the pages that were the same at both looks."""
    p = sweep.kept_ratio
    saved, by_vm = _savings(sweep, sweep.is_same, most_sharing)
    deviation = sqrt(float((saved**2).sum()) * (1.0 - p)) / p
    every, _ = _savings(sweep, np.ones(len(sweep.hashes), np.bool_), most_sharing)
    every_deviation = sqrt(float((every**2).sum()) * (1.0 - p)) / p
    steady = np.array([_steady_zeros(sweep, row) for row in range(len(sweep.vms))])
    zeros_saved, zeros_by_vm = _of_zeros((sweep.zero_pages * steady).astype(np.float64), most_sharing, uses_zero_pages)
    zeros_every, _ = _of_zeros(sweep.zero_pages.astype(np.float64), most_sharing, uses_zero_pages)
    size = float(saved.sum()) / p + zeros_saved
    high = float(every.sum()) / p + WIDTH * every_deviation + zeros_every
    low = max(size - WIDTH * deviation, float(saved.sum()) + zeros_saved) - DRIFT_RATIO * size
    high = max(high, size) + DRIFT_RATIO * size
    seen = len(sweep.is_same)
    return GroupGain(
        total=Gain(size_bytes=size * PAGE_BYTES, low_bytes=low * PAGE_BYTES, high_bytes=high * PAGE_BYTES),
        by_vm={vm: float(by_vm[row] / p + zeros_by_vm[row]) * PAGE_BYTES for row, vm in enumerate(sweep.vms)},
        looked_pages=int(sweep.read_pages.sum()),
        zero_pages=int(sweep.zero_pages.sum()),
        unsteady_ratio=1.0 - float(sweep.is_same.sum()) / seen if seen else 0.0,
        kept_ratio=p,
        at_s=at_s,
    )


def _savings(sweep: Sweep, counted: Bool, most_sharing: int) -> tuple[Int64, Float64]:
    """Return pages saved by content, and by VM (an even part for every user of a content)."""
    contents, content, users = np.unique(sweep.hashes[counted], return_inverse=True, return_counts=True)
    saved = users - -(-users // most_sharing)
    part = saved / np.maximum(users, 1)
    by_vm = np.bincount(sweep.vm_rows[counted], weights=part[content], minlength=len(sweep.vms)).astype(np.float64)
    return saved if len(contents) else np.zeros(0, np.int64), by_vm


def _of_zeros(pages: Float64, most_sharing: int, uses_zero_pages: bool) -> tuple[float, Float64]:  # noqa: FBT001
    """Return what pages of zeros save, in all and by VM: all of them where the kernel's own page stands in."""
    count = float(pages.sum())
    saved = count if uses_zero_pages else max(0.0, count - -(-count // most_sharing))
    return saved, pages * (saved / count if count else 0.0)


def _steady_zeros(sweep: Sweep, row: int) -> float:
    seen = len(sweep.zeros.get(row, ()))
    return sweep.same_zeros.get(row, 0) / seen if seen else 0.0


def _is_kept(hashes: UInt64, level: int) -> Bool:
    # The upper bits: of a multilinear hash these are the good ones (Lemire and Kaser 2014).
    return hashes >> np.uint64(64 - level) == 0 if level else np.ones(len(hashes), np.bool_)


def _thinned(sweep: Sweep) -> Sweep:
    kept = _is_kept(sweep.hashes, sweep.level + 1)
    return replace(
        sweep,
        level=sweep.level + 1,
        vm_rows=sweep.vm_rows[kept],
        addresses=sweep.addresses[kept],
        hashes=sweep.hashes[kept],
        is_same=sweep.is_same[kept],
    )


def _spread(before: Int64 | None, found: Int64, salt: Salt) -> Int64:
    """Keep some addresses, any with the same chance: the smallest by a salted hash of the address (bottom-k)."""
    every = found if before is None else np.append(before, found)
    if len(every) <= ZEROS_KEPT:
        return every
    ranks = every.astype(np.uint64) // np.uint64(PAGE_BYTES) * (salt.low[0] | np.uint64(1))
    return every[np.argpartition(ranks, ZEROS_KEPT)[:ZEROS_KEPT]]


def _is_there(addresses: Int64, wanted: Int64) -> Bool:
    at = np.minimum(np.searchsorted(addresses, wanted), max(len(addresses) - 1, 0))
    return addresses[at] == wanted


def _hash_at(addresses: Int64, hashes: UInt64, wanted: Int64) -> UInt64:
    """Return the hash at each of `wanted`; the largest number, which nothing has, where there is none."""
    at = np.minimum(np.searchsorted(addresses, wanted), max(len(addresses) - 1, 0))
    return np.where(addresses[at] == wanted, hashes[at], np.uint64((1 << 64) - 1))
