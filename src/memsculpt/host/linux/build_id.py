# SPDX-License-Identifier: Apache-2.0
"""What tells one content of a file from another: the build id of an ELF file (elf(5), NT_GNU_BUILD_ID).

Read by hand and not by pyelftools, because the agent does it.
"""

import os
import struct

PT_NOTE, NT_GNU_BUILD_ID = 4, 3
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")
SEGMENTS_MOST, NOTES_MOST_BYTES = 64, 64 << 10


def read_identity(descriptor: int) -> str:
    """Return the build id in hexadecimal digits; of a file without one its inode, size and time. Raises OSError."""
    found = _read_build_id(descriptor)
    if found:
        return found
    facts = os.fstat(descriptor)
    return f"inode {facts.st_dev:x}:{facts.st_ino:x} {facts.st_size} {facts.st_mtime_ns}"


def _read_build_id(descriptor: int) -> str:
    header = os.pread(descriptor, HEADER.size, 0)
    if len(header) < HEADER.size or header[:6] != b"\x7fELF\x02\x01":  # of 64 bits, little end first
        return ""
    fields = HEADER.unpack(header)
    begin, size, count = fields[5], fields[9], min(fields[10], SEGMENTS_MOST)
    if size != SEGMENT.size:
        return ""
    table = os.pread(descriptor, SEGMENT.size * count, begin)
    for at in range(0, len(table) - SEGMENT.size + 1, SEGMENT.size):
        kind, _, offset, _, _, length, _, _ = SEGMENT.unpack_from(table, at)
        if kind == PT_NOTE and offset < 1 << 62:
            found = parse_notes(os.pread(descriptor, min(length, NOTES_MOST_BYTES), offset))
            if found:
                return found
    return ""


def parse_notes(content: bytes) -> str:
    """Return the build id among the notes of a segment, "" where there is none or they are broken."""
    at = 0
    while at + NOTE.size <= len(content):
        name_size, size, kind = NOTE.unpack_from(content, at)
        name_at = at + NOTE.size
        value_at = name_at + -(-name_size // 4) * 4
        at = value_at + -(-size // 4) * 4
        if kind == NT_GNU_BUILD_ID and content[name_at : name_at + name_size] == b"GNU\0" and at <= len(content):
            return content[value_at : value_at + size].hex()
    return ""
