"""The wire format of protocol buffers, as much as a few small messages need: fields out of bytes and into them.

A message is a row of fields, each a tag and a value: `tag = number << 3 | wire type`. Varints carry seven bits a
byte, the lowest first; numbers of fixed size are little-endian. Source: protobuf.dev, "Encoding".

Bytes come from servers that may send anything. So nothing is read beyond its end, all messages of an answer
together have at most `MOST_FIELDS` fields, groups (which nobody writes any more) are refused, and there is no
recursion: who reads a message decides which of its fields are messages, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

MOST_FIELDS = 4096
_LONGEST_VARINT = 10
_UINT64 = 1 << 64


class WireType(IntEnum):
    """How a field's value is written."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


_SIZES = {WireType.FIXED64: 8, WireType.FIXED32: 4}


class WireError(ValueError):
    """Bytes that are no message; the words say why."""


class Field(NamedTuple):
    """A field of a message: `number` is a varint's value, `data` the bytes of any other."""

    tag: int
    wire: WireType
    number: int
    data: bytes


class FieldReader:
    """Reads a message and the messages in it; one reader for each answer."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def read(self, data: bytes) -> Iterator[Field]:
        """Yield the fields of a message; raises `WireError` where it is none."""
        at = 0
        while at < len(data):
            if self._left <= 0:
                raise WireError(f"more than {MOST_FIELDS} fields")
            self._left -= 1
            key, at = _read_varint(data, at)
            tag = key >> 3
            if not 0 < tag < 1 << 29:
                raise WireError(f"field number {tag}")
            try:
                wire = WireType(key & 7)
            except ValueError as error:
                raise WireError(f"wire type {key & 7}") from error
            if wire is WireType.VARINT:
                number, at = _read_varint(data, at)
                yield Field(tag, wire, number, b"")
                continue
            size = _SIZES.get(wire)
            if size is None:
                size, at = _read_varint(data, at)
            if size > len(data) - at:
                raise WireError("it ends within a field")
            yield Field(tag, wire, 0, data[at : at + size])
            at += size


def encode_varint(tag: int, number: int) -> bytes:
    """Return a field with a whole number of at most 64 bits; negative ones take ten bytes, as `int64` does."""
    return _varint(tag << 3 | WireType.VARINT) + _varint(number % _UINT64)


def encode_bytes(tag: int, data: bytes) -> bytes:
    """Return a field with bytes, a text in UTF-8, packed numbers or a message."""
    return _varint(tag << 3 | WireType.BYTES) + _varint(len(data)) + data


def signed(number: int) -> int:
    """Return a varint as the `int64` that it stands for."""
    return number - _UINT64 if number >= _UINT64 >> 1 else number


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            if number >= _UINT64:
                raise WireError("a number of more than 64 bits")
            return number, at + shift + 1
    if len(data) - at < _LONGEST_VARINT:
        raise WireError("it ends within a field")
    raise WireError("a number of more than 64 bits")
