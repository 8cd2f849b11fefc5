"""Protocol buffers in pure Python: a bounds-checked reader of fields, for which hostile bytes are a ModelError, and two writers.

Encoding: https://protobuf.dev/programming-guides/encoding
What is read in all is limited by the number of fields, because a gigabyte may hold half as many of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from edgeclf.core.errors import ModelError

MAX_FIELDS = 1 << 18  # of all messages that are looked into; the largest classifiers have some ten thousand
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types; the groups of old (3 and 4) are refused
MOST_VARINT_BYTES = 10


class Field(NamedTuple):
    """One field of a message: `start` is where its tag stands, `at` where its value does, `end` what follows it.

    `number` is the value of a varint, signed as int64; 0 for the other wire types.
    """

    tag: int
    wire: int
    start: int
    at: int
    end: int
    number: int = 0


class Protobuf:
    """The file, with every access checked and every field counted."""

    def __init__(self, data: bytes, where: str, kind: str) -> None:
        self.data, self.where, self.kind, self.left = data, where, kind, MAX_FIELDS

    def broken(self, what: str) -> ModelError:
        return ModelError(f"{self.where}: not a whole {self.kind} ({what}); copy or export the file again")

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message in data[start:end], in order. Raises ModelError where they do not fill it exactly."""
        at = start
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise self.broken("its structure is larger than a classifier's")
            found = self._field(at, end)
            yield found
            at = found.end

    def inside(self, field: Field) -> Iterator[Field]:
        """The fields of the message that is the value of `field`."""
        self._need(field, DELIMITED)
        return self.fields(field.at, field.end)

    def text(self, field: Field) -> str:
        """The value as text. Raises ModelError when it is not UTF-8."""
        self._need(field, DELIMITED)
        try:
            return self.data[field.at : field.end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken("a name is not UTF-8") from error

    def numbers(self, field: Field) -> tuple[int, ...]:
        """The value of a repeated varint, one or, when packed, several."""
        if field.wire != DELIMITED:
            self._need(field, VARINT)
            return (field.number,)
        found, at = [], field.at
        while at < field.end:
            number, at = self._varint(at, field.end)
            found.append(number)
        return tuple(found)

    def _need(self, field: Field, wire: int) -> None:
        if field.wire != wire:
            raise self.broken("a field is of another type than the format says")

    def _field(self, start: int, end: int) -> Field:
        key, at = self._varint(start, end)
        tag, wire = key >> 3, key & 7
        if tag < 1 or tag >= 1 << 29 or wire not in (VARINT, FIXED64, DELIMITED, FIXED32):
            raise self.broken(f"byte {start} starts no field")
        if wire == VARINT:
            number, last = self._varint(at, end)
            return Field(tag, wire, start, at, last, number)
        size = 8 if wire == FIXED64 else 4
        if wire == DELIMITED:
            size, at = self._varint(at, end)
        if size < 0 or at + size > end:
            raise self.broken(f"a field reaches to byte {at + size} of {end}")
        return Field(tag, wire, start, at, at + size)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """(the number, signed as int64; where it ends)."""
        value = 0
        for place in range(MOST_VARINT_BYTES):
            if at + place >= end:
                break
            byte = self.data[at + place]
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return struct.unpack("<q", struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF))[0], at + place + 1
        raise self.broken(f"a number at byte {at} has no end")


def varint(value: int) -> bytes:
    """A number from 0 as a varint."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def delimited(tag: int, value: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return varint(tag << 3 | DELIMITED) + varint(len(value)) + value
