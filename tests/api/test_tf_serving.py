"""Messages of TensorFlow Serving as protoc's own code writes them, and every answer that is none."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.protobuf import encode_bytes, encode_varint
from berthmaster.api.tf_serving import decode_response, encode_request

FLOAT, DOUBLE, INT32 = 1, 2, 3
# What protobuf 7.36 for Python, with code that protoc made of the definitions, serialises.
REQUEST = (
    "0a190a086b6f6e6f68616e61120308c2091a086b6f6e6f68616e6112380a06696e70757473122e0801120812020802"
    "120208042a200000003f0000003f0000003f0000003f0000803f0000803e000080bf00004040"
)
MODEL_SPEC = "12170a086b6f6e6f68616e61120b08fdffffffffffffffff01"
RESPONSES = {
    "float_val": "0a210a076f75747075747312160801120812020802120208012a08759b164300805243",
    "float tensor_content": "0a210a076f757470757473121608011208120208021202080122"
    "08759b164300805243",
    "double_val": "0a290a076f757470757473121e0802120812020802120208013210"
    "b0cbf09f6ed362400000000000506a40",
    "double tensor_content": "0a290a076f757470757473121e0802120812020802120208012210"
    "b0cbf09f6ed362400000000000506a40",
}


def tensor(
    *, dtype: int = FLOAT, sizes: tuple[int, ...] = (2, 1), values: bytes = struct.pack("<2f", 1, 2)
) -> bytes:
    """Return a TensorProto with its values in tensor_content."""
    shape = b"".join(encode_bytes(2, encode_varint(1, it)) for it in sizes)
    return encode_varint(1, dtype) + encode_bytes(2, shape) + encode_bytes(4, values)


def response(*tensors: bytes, name: str = "outputs") -> bytes:
    """Return a PredictResponse; further outputs have a number behind their name."""
    return b"".join(
        encode_bytes(1, encode_bytes(1, f"{name}{at or ''}".encode()) + encode_bytes(2, it))
        for at, it in enumerate(tensors)
    )


def test_request_is_what_protoc_s_code_sends() -> None:
    rows = [[0.5, 0.5, 0.5, 0.5], [1.0, 0.25, -1.0, 3.0]]

    sent = encode_request(rows, model="konohana", version=1218, signature="konohana")

    assert sent.hex() == REQUEST


@pytest.mark.parametrize("form", RESPONSES)
def test_response_of_protoc_s_code_is_read(form: str) -> None:
    found = decode_response(bytes.fromhex(RESPONSES[form] + MODEL_SPEC))

    assert found == pytest.approx((150.607254, 210.5), rel=1e-7 if "float" in form else 1e-15)


def test_values_in_a_field_each_are_read() -> None:
    shape = encode_bytes(2, encode_bytes(2, encode_varint(1, 2)))
    each = b"".join(b"\x2d" + struct.pack("<f", it) for it in (3.0, 4.5))

    assert decode_response(response(encode_varint(1, FLOAT) + shape + each)) == (3.0, 4.5)


@pytest.mark.parametrize("sizes", [(2,), (2, 1), (1, 2), (1, 2, 1)], ids=str)
def test_row_and_column_are_the_same(sizes: tuple[int, ...]) -> None:
    assert decode_response(response(tensor(sizes=sizes))) == (1.0, 2.0)


def test_a_single_value_fills_the_shape() -> None:
    one = tensor(sizes=(3, 1), values=b"") + encode_bytes(5, struct.pack("<f", 7))

    assert decode_response(response(one)) == (7.0, 7.0, 7.0)


def test_the_only_output_may_have_any_name_and_outputs_counts_among_several() -> None:
    other = tensor(values=struct.pack("<2f", 8, 9))

    assert decode_response(response(tensor(), name="watts")) == (1.0, 2.0)
    assert decode_response(response(other, name="watts") + response(tensor())) == (1.0, 2.0)


def test_what_is_no_number_arrives_as_it_is() -> None:
    nan, infinite = decode_response(response(tensor(values=struct.pack("<2f", math.nan, math.inf))))

    assert math.isnan(nan)
    assert math.isinf(infinite)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no outputs in it"),
        (bytes.fromhex(MODEL_SPEC), "no outputs in it"),
        (b"HTTP/1.1 400 Bad Request", "no PredictResponse: "),
        (b"\x08\x01", "no PredictResponse: field 1 of wire type 0"),
        (response(tensor(), tensor(), name="x"), "found 2 outputs, none of them called outputs"),
        (response(tensor(dtype=INT32)), r"of type 3, expected float \(1\) or double \(2\)"),
        (response(encode_bytes(4, bytes(8))), "of type 0, expected float"),
        (response(tensor(sizes=(2, 2))), "shape 2x2, expected one number for each input"),
        (response(tensor(sizes=(-1, 1))), "shape -1x1, expected"),
        (response(tensor(sizes=(4097,))), "shape 4097, expected"),
        (response(tensor(sizes=(2**62, 2**62))), "expected one number for each input"),
        (response(tensor(sizes=(1,) * 9)), "more than 8 dimensions"),
        (response(tensor() + encode_bytes(2, encode_varint(3, 1))), "no shape"),
        (response(tensor(sizes=(3, 1))), "found 8 bytes of values, expected 12"),
        (response(tensor(dtype=DOUBLE)), "found 8 bytes of values, expected 16"),
        (response(tensor(values=bytes(4))), "found 4 bytes of values, expected 8"),
        (response(tensor(values=bytes(7))), "found 7 bytes of values, expected 8"),
        (response(tensor(values=b"")), "found 0 bytes of values, expected 8"),
        (response(encode_varint(1, 1) + encode_varint(5, 1)), "field 5 of wire type 0"),
        (response(encode_varint(1, 1) + b"\x29" + bytes(8)), "field 5 of wire type 1"),
        (encode_varint(9, 1) * 5000, "no PredictResponse: more than 4096 fields"),
        (response(encode_varint(9, 1) * 5000), "no PredictResponse: more than 4096 fields"),
    ],
)
def test_answers_that_are_none(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_response(data)


@settings(deadline=None)
@given(data=st.binary(max_size=200), at=st.integers(0, 60), cut=st.integers(0, 70))
def test_whatever_comes_is_numbers_or_a_value_error(data: bytes, at: int, cut: int) -> None:
    good = bytes.fromhex(RESPONSES["float_val"] + MODEL_SPEC)
    for broken in (data, good[:cut], good[:at] + data[:2] + good[at + 2 :]):
        try:
            found = decode_response(broken)
        except ValueError:
            continue
        assert all(isinstance(it, float) for it in found)
