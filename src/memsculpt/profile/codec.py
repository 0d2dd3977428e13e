# SPDX-License-Identifier: Apache-2.0
"""Samples to few bytes and back: quantised to a stated precision, differences, byte planes, zstd. No I/O.

A sample becomes a whole number, its *code*: the value in the metric's unit while that is small, above a logarithmic
scale with `2 ** bits` steps for each doubling. Codes rise with the values, so differences of codes are small where the
series is calm, whatever its size. What is not known is carried along as the value before it, and a mask tells; negative
values, which a metric of ours cannot have but a broken counter can give, keep their sign.

The layout, byte by byte: docs/methods/profile-store.md. Sources: the scale is that of HdrHistogram (Gil Tene); parting
numbers into planes of bytes before a general compressor is Blosc's shuffle (Francesc Alted).
"""

import struct
import sys
import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.domain.series import METRICS
from memsculpt.errors import CorruptRecord

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Codes: TypeAlias = npt.NDArray[np.int32]

LEVEL = 3
ROWS_AT_ONCE = 512
MISSING = np.iinfo(np.int32).min
"""The code of what is not known."""

_MOST_CODE = (1 << 24) - 1  # far above 2 ** 63 of any unit; differences of two, doubled, stay below 2 ** 31
_SUM = struct.Struct("<I")  # CRC-32 of what the bytes belong to and of all that follows
_HEAD = struct.Struct("<BHI")  # layout, columns, samples
_LAYOUT = 1

_UNITS = np.array([one.unit for one in METRICS])
_BITS = np.array([one.bits for one in METRICS], dtype=np.int64)


def quantise(values: Float64) -> Codes:
    """Return the codes of `values`, shape (..., n_metrics) with at most all metrics; NaN and infinity are MISSING."""
    count = values.shape[-1]
    bits = _BITS[:count]
    with np.errstate(invalid="ignore", over="ignore"):
        units = np.abs(values) / _UNITS[:count]
        is_known = np.isfinite(units)
        units = np.where(is_known, units, 0.0)
        _, exponents = np.frexp(units)
        shifts = np.maximum(exponents.astype(np.int64) - (bits + 1), 0)
        codes = np.rint(np.ldexp(units, -shifts)).astype(np.int64) + (shifts << bits)
    codes = np.minimum(codes, _MOST_CODE)
    codes = np.where(values < 0.0, -codes, codes)
    return np.where(is_known, codes, MISSING).astype(np.int32)


def restore(codes: Codes) -> tuple[Float64, Bool]:
    """Return values and which of them are known, both in the shape of `codes`; 0 where they are not.

    Some rows at a time: what it takes meanwhile is several times the result, and the agent has little memory.
    """
    values, is_known = np.empty(codes.shape, np.float64), codes != MISSING
    for at in range(0, len(codes), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        values[part] = _values_of(codes[part], is_known[part])
    return values, is_known


def _values_of(codes: Codes, is_known: Bool) -> Float64:
    count = codes.shape[-1]
    bits = _BITS[:count]
    size = np.abs(np.where(is_known, codes, 0).astype(np.int64))
    shifts = np.maximum((size >> bits) - 1, 0)
    units = np.ldexp((size - (shifts << bits)).astype(np.float64), shifts)
    return np.where((codes < 0) & is_known, -units, units) * _UNITS[:count]


def encode(codes: Codes, *, place: bytes) -> bytes:
    """Return a table of codes as bytes, shape (n_samples, n_columns), at least one sample.

    `place` is what the bytes belong to (their key in the file); the checksum covers it, so that bytes that end up in
    the wrong place are found out.
    """
    samples, columns = codes.shape
    if not samples:
        raise ValueError("encode: there are no samples")
    is_known = codes != MISSING
    filled = _carried(codes, is_known)
    first = filled[:1]
    change = np.diff(filled, axis=0, prepend=first)
    folded = ((change << 1) ^ (change >> 31)).astype(np.uint32)  # 0, -1, 1, -2 ... become 0, 1, 2, 3
    is_moving = folded.any(axis=0)
    is_masked = ~is_known.all(axis=0)
    moving = np.ascontiguousarray(folded[:, is_moving].T)
    planes = [((moving >> shift) & 255).astype(np.uint8) for shift in (0, 8, 16, 24)]
    body = b"".join(
        (
            (is_moving.astype(np.uint8) | is_masked.astype(np.uint8) << 1).tobytes(),
            first.astype("<i4").tobytes(),
            np.packbits(is_known[:, is_masked].T, axis=1).tobytes(),
            *(plane.tobytes() for plane in planes),
        )
    )
    packed = zstd.compress(body, LEVEL)
    head = _HEAD.pack(_LAYOUT, columns, samples)
    return _SUM.pack(_checksum(place, head, packed)) + head + packed


def decode(content: bytes, *, place: bytes, name: str) -> Codes:
    """Return the table of codes that `encode` was given.

    Raises CorruptRecord, naming `name`, when a byte of it is not as it was written.
    """
    if len(content) < _SUM.size + _HEAD.size:
        raise CorruptRecord(place=name, offset=0, problem=f"{len(content)} bytes are too short to be samples")
    (checksum,) = _SUM.unpack_from(content)
    head, packed = content[_SUM.size : _SUM.size + _HEAD.size], content[_SUM.size + _HEAD.size :]
    if checksum != _checksum(place, head, packed):
        raise CorruptRecord(place=name, offset=0, problem="the checksum does not fit")
    layout, columns, samples = _HEAD.unpack(head)
    if layout != _LAYOUT:
        raise CorruptRecord(place=name, offset=_SUM.size, problem=f"layout {layout} is not known to this memsculpt")
    return _unpacked(zstd.decompress(packed), samples, columns)


def pack(content: bytes, *, place: bytes) -> bytes:
    """Return any bytes (a model, a summary) compressed, with a checksum that covers `place` too."""
    packed = zstd.compress(content, LEVEL)
    return _SUM.pack(_checksum(place, packed)) + packed


def unpack(content: bytes, *, place: bytes, name: str) -> bytes:
    """Return what `pack` was given. Raises CorruptRecord."""
    packed = content[_SUM.size :]
    if len(content) < _SUM.size or _SUM.unpack_from(content)[0] != _checksum(place, packed):
        raise CorruptRecord(place=name, offset=0, problem="the checksum does not fit")
    return zstd.decompress(packed)


def _unpacked(body: bytes, samples: int, columns: int) -> Codes:
    flags = np.frombuffer(body, np.uint8, columns)
    is_moving, is_masked = (flags & 1).astype(np.bool_), (flags & 2).astype(np.bool_)
    first = np.frombuffer(body, "<i4", columns, columns).astype(np.int32)
    at = columns * 5
    width = -(-samples // 8)
    masks = np.frombuffer(body, np.uint8, int(is_masked.sum()) * width, at).reshape(-1, width)
    at += masks.size
    count = int(is_moving.sum())
    planes = np.frombuffer(body, np.uint8, 4 * count * samples, at).reshape(4, count, samples)
    folded = np.zeros((count, samples), np.uint32)
    for number in range(4):
        folded |= planes[number].astype(np.uint32) << np.uint32(8 * number)
    change = (folded >> 1).astype(np.int32) ^ -(folded & 1).astype(np.int32)
    codes = np.broadcast_to(first, (samples, columns)).copy()
    codes[:, is_moving] += np.cumsum(change, axis=1, dtype=np.int32).T
    known = np.unpackbits(masks, axis=1, count=samples).astype(np.bool_)
    missing = np.zeros((samples, columns), np.bool_)
    missing[:, is_masked] = ~known.T
    codes[missing] = MISSING
    return codes


def _carried(codes: Codes, is_known: Bool) -> Codes:
    """Return the codes with the last known one in place of each missing one, 0 before the first."""
    if is_known.all():
        return codes
    rows = np.where(is_known, np.arange(len(codes))[:, np.newaxis], 0)
    rows = np.maximum.accumulate(rows, axis=0)
    carried = np.take_along_axis(codes, rows, axis=0)
    return np.where(carried == MISSING, 0, carried)


def _checksum(*parts: bytes) -> int:
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return total
