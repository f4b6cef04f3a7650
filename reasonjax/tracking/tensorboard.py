"""TensorBoard's event files: length-delimited protocol buffers, each with its checksum.

Written here because the libraries that write them import torch or tensorflow wherever these are
installed, seconds before the first step.
"""

import functools
import struct
import time
from collections.abc import Mapping


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def event(step: int, field: int, content: bytes) -> bytes:
    """Encodes an Event: wall_time (field 1, a double), step (field 2), and `content` as `field`."""
    return (
        struct.pack('<Bd', 1 << 3 | 1, time.time())
        + _varint(2 << 3)
        + _varint(step)
        + _message(field, content)
    )


def summary(scalars: Mapping[str, float]) -> bytes:
    """Encodes a Summary: per scalar a Value of tag (field 1) and simple_value (field 2, float)."""
    return b''.join(
        _message(1, _message(1, tag.encode()) + struct.pack('<Bf', 2 << 3 | 5, value))
        for tag, value in scalars.items()
    )


@functools.cache
def _crc_table() -> tuple[int, ...]:
    """Computes the table of CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), by byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def checksum(data: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    # The format masks it, so that a checksum of data that holds checksums stays sound.
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    length = struct.pack('<Q', len(data))
    return length + checksum(length) + data + checksum(data)
