# SPDX-License-Identifier: Apache-2.0
"""What stands in a row of the store: chunks, blocks and names, with their checksums; and how pieces become one. No I/O.

The layout, byte by byte: docs/methods/profile-store.md.
"""

import os
import struct
import zlib

import numpy as np

from memsculpt.domain.series import RESOLUTIONS_S
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import CorruptRecord
from memsculpt.profile import codec
from memsculpt.profile.codec import MISSING, Codes
from memsculpt.profile.series import fold

HOUR_S = 3600
BLOCK_HEAD = struct.Struct("<BIIH")  # place among RESOLUTIONS_S, start, samples, workloads
CHUNK_HEAD = struct.Struct("<I")  # the first sample's number within the chunk
_FOLDED_AT_ONCE = 480


def identity_checksum(key: int, content: bytes) -> int:
    """Return the checksum of a workload's row: its key and its name."""
    return zlib.crc32(content, key & 0xFFFFFFFF)


def version_place(workload: WorkloadId, kind: str) -> bytes:
    """Return what a version belongs to, for its checksum."""
    return os.fsencode(workload) + b"\0" + kind.encode()


def decode_chunk(content: object, place: int, name: str) -> tuple[int, Codes]:
    """Return the number of the first sample and the codes, shape (n_samples, n_metrics). Raises CorruptRecord."""
    if not isinstance(content, bytes) or len(content) < CHUNK_HEAD.size:
        raise CorruptRecord(place=name, offset=0, problem="is too short")
    head = content[: CHUNK_HEAD.size]
    (first,) = CHUNK_HEAD.unpack(head)
    codes = codec.decode(content[CHUNK_HEAD.size :], place=place.to_bytes(8, "little", signed=True) + head, name=name)
    return first, codes


def encode_chunk(first: int, codes: Codes, place: int) -> bytes:
    """Return the bytes of a chunk."""
    head = CHUNK_HEAD.pack(first)
    return head + codec.encode(codes, place=place.to_bytes(8, "little", signed=True) + head)


def decode_block(content: object, hour: int, name: str) -> tuple[int, int, list[int], Codes]:
    """Return resolution, start, keys and codes, shape (n_workloads, n_samples, n_metrics). Raises CorruptRecord."""
    if not isinstance(content, bytes) or len(content) < BLOCK_HEAD.size:
        raise CorruptRecord(place=name, offset=0, problem="is too short")
    resolution, start_s, samples, count = BLOCK_HEAD.unpack_from(content)
    end = BLOCK_HEAD.size + 4 * count
    codes = codec.decode(content[end:], place=hour.to_bytes(8, "little") + content[:end], name=name)
    keys: list[int] = np.frombuffer(content, "<u4", count, BLOCK_HEAD.size).tolist()
    return resolution, start_s, keys, codes.reshape(samples, count, -1).transpose(1, 0, 2)


def encode_block(resolution: int, start_s: int, keys: list[int], codes: Codes, hour: int) -> bytes:
    """Return the bytes of a block; codes have the shape (n_workloads, n_samples, n_metrics)."""
    count, samples, _ = codes.shape
    head = BLOCK_HEAD.pack(resolution, start_s, samples, count) + np.array(keys, "<u4").tobytes()
    table = codes.transpose(1, 0, 2).reshape(samples, -1)
    return head + codec.encode(table, place=hour.to_bytes(8, "little") + head)


def overlay(codes: Codes, begin_s: int, piece: Codes, start_s: int, step_s: int) -> None:
    """Write the known codes of a piece into `codes`, whose first sample is at `begin_s`, as far as they overlap."""
    at = (start_s - begin_s) // step_s
    low, high = max(at, 0), min(at + len(piece), len(codes))
    if low >= high:
        return
    new = piece[low - at : high - at]
    target = codes[low:high, : new.shape[1]]
    np.copyto(target, new, where=new != MISSING)


def merged_coarse(fine: Codes | None, coarse: Codes | None) -> Codes | None:
    """Return the second resolution of an hour: what was sampled in it, and the first folded over that."""
    if fine is None:
        return coarse
    merged = folded(fine, RESOLUTIONS_S[1] // RESOLUTIONS_S[0])
    if coarse is None:
        return merged
    whole = coarse.copy()
    overlay(whole, 0, merged, 0, 1)
    return whole


def folded(codes: Codes, factor: int) -> Codes:
    """Return codes of samples `factor` times as long."""
    if factor == 1:
        return codes
    step = factor * max(_FOLDED_AT_ONCE // factor, 1)  # in parts: as numbers, samples take many times their room
    parts = [codec.quantise(fold(*codec.restore(codes[at : at + step]), factor)) for at in range(0, len(codes), step)]
    return np.concatenate(parts)


def whole_number(value: object) -> int:
    """Return a whole number of the file; a flipped bit can make it anything, and then it fits nothing."""
    return value if isinstance(value, int) else -1
