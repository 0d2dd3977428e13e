# SPDX-License-Identifier: Apache-2.0
"""Builders of stores: whole ones with known content, by the store's own calls and, for version 1, by none of them."""

import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.domain.series import METRICS, SAMPLED
from memsculpt.domain.workload import WorkloadId
from memsculpt.profile import codec
from memsculpt.profile.store import Block, Store

BEGIN_S = 1_800_000_000 // 3600 * 3600
REDIS, ODD = WorkloadId("system.slice/redis.service"), WorkloadId("exe:/opt/we\nird \udcff")
MIB = 1 << 20


def steps(samples: int, *, seed: int = 1, width: int = SAMPLED) -> Float64:
    """Sizes that step, rates that jitter: shape (samples, width)."""
    chance = np.random.default_rng(seed)
    values = np.zeros((samples, width))
    for place, metric in enumerate(METRICS[:width]):
        level = np.cumsum(chance.random(samples) < 0.05) % 7 + 1
        noise = chance.integers(0, 5, samples) if metric.bits < 9 else 0
        values[:, place] = metric.unit * (level * 1000 + noise)
    return values


def block(start_s: int, values: Float64, *ids: WorkloadId, resolution_s: int = 1) -> Block:
    """The same values for each of `ids`."""
    codes = codec.quantise(np.stack([values] * len(ids)))
    return Block(resolution_s=resolution_s, start_s=start_s, ids=ids, codes=codes)


def filled(folder: Path, *, hours: int = 2, minutes: int = 20) -> Path:
    """A closed store with sealed hours, unsealed minutes and a model; returns its file."""
    store = Store.open_to_write(folder, now_s=BEGIN_S)
    for hour in range(hours):
        store.append([block(BEGIN_S + hour * 3600, steps(3600, seed=hour), REDIS, ODD)])
    end_s = BEGIN_S + hours * 3600
    for each in store.unsealed(end_s):
        store.seal(*each)
    for minute in range(minutes):
        store.append([block(end_s + minute * 60, steps(60, seed=minute), REDIS, ODD)])
    store.put(REDIS, "model", b"weights" * 100, made_s=BEGIN_S)
    store.put(REDIS, "model", b"better weights", made_s=BEGIN_S + 60)
    store.close()
    return store.path


def version_1(path: Path) -> None:
    """Write a store of version 1 by hand: one workload, three samples of two known metrics, one model.

    This is the golden file: it must be readable for ever, so nothing here calls the code under test. The format is
    told in docs/methods/profile-store.md.
    """
    connection = sqlite3.connect(path)
    connection.executescript(
        "PRAGMA auto_vacuum = INCREMENTAL;"
        "CREATE TABLE workload (key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, first_s INTEGER NOT NULL, "
        "last_s INTEGER NOT NULL, checksum INTEGER NOT NULL);"
        "CREATE TABLE chunk (place INTEGER PRIMARY KEY, content BLOB NOT NULL);"
        "CREATE TABLE block (number INTEGER PRIMARY KEY, hour INTEGER NOT NULL, team INTEGER NOT NULL, "
        "content BLOB NOT NULL);"
        "CREATE TABLE version (number INTEGER PRIMARY KEY, workload INTEGER NOT NULL, kind TEXT NOT NULL, "
        "made_s INTEGER NOT NULL, content BLOB NOT NULL);"
        "CREATE TABLE broken (number INTEGER PRIMARY KEY, origin TEXT NOT NULL, place INTEGER NOT NULL, "
        "content BLOB NOT NULL, found_s INTEGER NOT NULL);"
        "CREATE INDEX block_by_hour ON block (hour, team);"
        "CREATE INDEX version_by_workload ON version (workload, kind);"
        "PRAGMA application_id = 0x4D536350; PRAGMA user_version = 1;"
    )
    name = b"system.slice/redis.service"
    connection.execute(
        "INSERT INTO workload VALUES (1, ?, ?, ?, ?)", (name, BEGIN_S, BEGIN_S + 3600, zlib.crc32(name, 1))
    )
    # 5 minutes is the fourth resolution, a chunk of it covers a day
    place = 3 << 51 | 1 << 27 | BEGIN_S // 86_400
    first = struct.pack("<I", BEGIN_S % 86_400 // 300)
    columns, samples = 21, 3
    # needed_bytes: 100, 103, unknown pages; minor_faults_per_s: 7.0 throughout, in tenths
    flags = bytes([3 if column == 0 else 0 if column == 13 else 2 for column in range(columns)])
    starts = struct.pack("<21i", *(100 if column == 0 else 70 if column == 13 else 0 for column in range(columns)))
    masks = bytes([0b11000000] + [0] * 19)
    changes = bytes([0, 6, 0]) + bytes(9)  # 0, +3, 0 as zigzag, lowest plane first
    body = flags + starts + masks + changes
    # a zstd frame by hand (RFC 8878): magic, single segment with its size in one byte, one last block, raw
    packed = b"\x28\xb5\x2f\xfd" + bytes([0x20, len(body)]) + struct.pack("<I", 1 | len(body) << 3)[:3] + body
    head = struct.pack("<BHI", 1, columns, samples)
    checksum = zlib.crc32(struct.pack("<q", place) + first + head + packed)
    content = first + struct.pack("<I", checksum) + head + packed
    connection.execute("INSERT INTO chunk VALUES (?, ?)", (place, content))
    model = b"\x28\xb5\x2f\xfd\x20\x05" + struct.pack("<I", 1 | 5 << 3)[:3] + b"model"
    checksum = zlib.crc32(name + b"\0model" + model)
    connection.execute(
        "INSERT INTO version VALUES (1, 1, 'model', ?, ?)", (BEGIN_S, struct.pack("<I", checksum) + model)
    )
    connection.commit()
    connection.close()
