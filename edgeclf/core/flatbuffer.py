"""Flatbuffers in pure Python: a bounds-checked reader, for which hostile bytes are a ModelError, and a small writer.

Layout: https://github.com/google/flatbuffers/blob/master/docs/source/internals.md
Every offset is checked, and what is read in all is limited, because offsets may point a thousand times at one megabyte.
A slot is the place of a field in its table's schema, from 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from edgeclf.core.errors import ModelError

MAX_READ_BYTES = 8 << 20  # of structure; weights are not read. The largest classifiers hold well under 1 MB of it
TABLE_BYTES = 64  # what reading one table counts at least
BLOB_ALIGNMENT = 16


class Flatbuffer:
    """The file, with every access checked and counted."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.left = data, where, MAX_READ_BYTES

    def broken(self, what: str) -> ModelError:
        return ModelError(f"{self.where}: not a whole TFLite model ({what}); copy or export the file again")

    def charge(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise self.broken("its structure is larger than a classifier's")

    def check(self, at: int, size: int) -> None:
        if at < 0 or at + size > len(self.data):
            raise self.broken(f"it points to byte {at + size} of {len(self.data)}")

    def unpack(self, layout: str, at: int) -> Any:
        self.check(at, struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, at)[0]

    def follow(self, at: int) -> int:
        """Where the unsigned offset that is stored at `at` points."""
        return at + int(self.unpack("<I", at))


class Table:
    """One flatbuffer table; a slot that the writer left out reads as its default."""

    def __init__(self, file: Flatbuffer, at: int) -> None:
        self.file, self.at = file, at
        vtable = at - file.unpack("<i", at)
        size = file.unpack("<H", vtable)
        if size < 4 or size % 2:
            raise file.broken("a table of fields is damaged")
        file.check(vtable, size)
        file.charge(TABLE_BYTES + size)
        self.slots = struct.unpack_from(f"<{(size - 4) // 2}H", file.data, vtable + 4)

    def place(self, slot: int) -> int | None:
        """Byte position of the field, None when it is left out."""
        offset = self.slots[slot] if slot < len(self.slots) else 0
        return self.at + offset if offset else None

    def number(self, slot: int, layout: str, default: int = 0) -> int:
        at = self.place(slot)
        return default if at is None else int(self.file.unpack(layout, at))

    def vector_place(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """(byte position of the first item, number of items); (0, 0) when it is left out."""
        at = self.place(slot)
        if at is None:
            return 0, 0
        start = self.file.follow(at)
        count = int(self.file.unpack("<I", start))
        self.file.check(start + 4, count * item_bytes)
        return start + 4, count

    def vector(self, slot: int, code: str) -> tuple[Any, ...]:
        item_bytes = struct.calcsize("<" + code)
        start, count = self.vector_place(slot, item_bytes)
        self.file.charge(count * item_bytes)
        return struct.unpack_from(f"<{count}{code}", self.file.data, start)

    def text(self, slot: int) -> str:
        start, count = self.vector_place(slot, 1)
        self.file.charge(count)
        return self.file.data[start : start + count].decode("utf-8", "replace")

    def tables(self, slot: int) -> list[Table]:
        start, count = self.vector_place(slot, 4)
        self.file.charge(count * 4)
        return [Table(self.file, self.file.follow(start + 4 * i)) for i in range(count)]

    def table(self, slot: int) -> Table | None:
        at = self.place(slot)
        return None if at is None else Table(self.file, self.file.follow(at))


@dataclass(frozen=True)
class Number:
    """A number to write, with its `struct` code, such as `B` or `I`."""

    code: str
    value: int | float


@dataclass(frozen=True)
class Numbers:
    """A vector of numbers to write, with the `struct` code of one."""

    code: str
    values: tuple[int | float, ...]


@dataclass(frozen=True)
class Outside:
    """An object that lies at `position` of the bytes that are written behind the new ones."""

    position: int


def pack(root: dict[int, Any], identifier: bytes, behind: bytes = b"") -> bytes:
    """A flatbuffer of `root`, followed by `behind`, whose start keeps its alignment. Same input, same bytes.

    A table is a dict of slot → value, a value one of Number, Numbers, str, bytes (a vector of them), dict, list (of str,
    dict and Outside) and Outside.
    """
    writer = _Writer()
    position = writer.put(root)
    struct.pack_into("<I4s", writer.out, 0, position, identifier)
    writer.align(BLOB_ALIGNMENT)
    for place, target in writer.outside:
        struct.pack_into("<I", writer.out, place, len(writer.out) + target - place)
    return bytes(writer.out) + behind


class _Writer:
    """Writes parents before children, since offsets of a flatbuffer only point forward."""

    def __init__(self) -> None:
        self.out, self.outside = bytearray(8), list[tuple[int, int]]()

    def align(self, size: int, header: int = 0) -> None:
        """Pad so that what follows `header` further bytes starts at a multiple of `size`."""
        self.out += bytes(-(len(self.out) + header) % size)

    def put(self, value: Any) -> int:
        """Write `value` and what it holds; returns where it starts."""
        if isinstance(value, dict):
            return self._put_table(value)
        if isinstance(value, list):
            return self._put_links(value)
        if isinstance(value, str):
            return self._put_vector(len(value.encode()), value.encode() + b"\0", 1)
        if isinstance(value, bytes):
            return self._put_vector(len(value), value, BLOB_ALIGNMENT)
        size = struct.calcsize("<" + value.code)
        return self._put_vector(len(value.values), struct.pack(f"<{len(value.values)}{value.code}", *value.values), size)

    def _put_vector(self, count: int, body: bytes, alignment: int) -> int:
        self.align(max(4, alignment), header=4)
        start = len(self.out)
        self.out += struct.pack("<I", count) + body
        return start

    def _put_links(self, values: list[Any]) -> int:
        start = self._put_vector(len(values), bytes(4 * len(values)), 4)
        for i, value in enumerate(values):
            self._link(start + 4 + 4 * i, value)
        return start

    def _put_table(self, fields: dict[int, Any]) -> int:
        """Every field gets 4 bytes, a smaller number too: simple, and aligned. No field here is larger."""
        slots = [0] * (max(fields, default=-1) + 1)
        for i, slot in enumerate(fields):
            slots[slot] = 4 + 4 * i
        self.align(4, header=4 + 2 * len(slots))
        vtable = len(self.out)
        self.out += struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), 4 + 4 * len(fields), *slots)
        start = len(self.out)
        self.out += struct.pack("<i", start - vtable) + bytes(4 * len(fields))
        for slot, value in fields.items():
            self._link(start + slots[slot], value)
        return start

    def _link(self, place: int, value: Any) -> None:
        if isinstance(value, Number):
            struct.pack_into("<" + value.code, self.out, place, value.value)
        elif isinstance(value, Outside):
            self.outside.append((place, value.position))
        else:
            struct.pack_into("<I", self.out, place, self.put(value) - place)
