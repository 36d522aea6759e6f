"""Fields come out of bytes as they went in, and bytes that are no message are refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.protobuf import (
    MOST_FIELDS,
    FieldReader,
    WireError,
    WireType,
    encode_bytes,
    encode_varint,
    signed,
)


def test_numbers_are_written_as_the_encoding_page_has_them() -> None:
    # 150 in field 1, and "testing" in field 2: protobuf.dev, "Encoding".
    assert encode_varint(1, 150) == b"\x08\x96\x01"
    assert encode_bytes(2, b"testing") == b"\x12\x07testing"
    assert encode_varint(1, -2) == b"\x08\xfe" + b"\xff" * 8 + b"\x01"


@settings(deadline=None)
@given(
    tag=st.integers(1, 2**29 - 1),
    number=st.integers(-(2**63), 2**63 - 1),
    data=st.binary(max_size=300),
)
def test_what_was_written_is_read(tag: int, number: int, data: bytes) -> None:
    fields = list(FieldReader().read(encode_varint(tag, number) + encode_bytes(tag, data)))

    assert [(it.tag, it.wire) for it in fields] == [(tag, WireType.VARINT), (tag, WireType.BYTES)]
    assert (signed(fields[0].number), fields[1].data) == (number, data)


def test_numbers_of_fixed_size_are_read_as_bytes() -> None:
    fields = list(FieldReader().read(b"\x0d\x00\x00\x80\x3f" + b"\x11" + bytes(8)))

    assert [(it.wire, it.data) for it in fields] == [
        (WireType.FIXED32, b"\x00\x00\x80\x3f"),
        (WireType.FIXED64, bytes(8)),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x05four", "ends within a field"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends within a field"),
        (b"\x0d\x00", "ends within a field"),
        (b"\x08", "ends within a field"),
        (b"\x08\x80\x80", "ends within a field"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x00\x00", "field number 0"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0f\x00", "wire type 7"),
        (b"\x80\x80\x80\x80\x10\x00", "field number 536870912"),
    ],
)
def test_bytes_that_are_no_message(data: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        list(FieldReader().read(data))


def test_fields_of_all_messages_together_are_counted() -> None:
    reader = FieldReader()
    half = encode_varint(1, 0) * (MOST_FIELDS // 2)
    assert len(list(reader.read(half))) == len(list(reader.read(half))) == MOST_FIELDS // 2

    with pytest.raises(WireError, match=f"more than {MOST_FIELDS} fields"):
        list(reader.read(b"\x08\x00"))
