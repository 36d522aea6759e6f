"""What TensorFlow Serving is asked by gRPC, and what it answers: `PredictionService.Predict`, in the wire format.

Of each message only the fields that are needed, by number:

    PredictRequest     model_spec 1, inputs 2 (a map: name 1, tensor 2)
    PredictResponse    outputs 1 (a map: name 1, tensor 2)
    ModelSpec          name 1, version 2 (an Int64Value: value 1), signature_name 3
    TensorProto        dtype 1, tensor_shape 2, tensor_content 4, float_val 5, double_val 6
    TensorShapeProto   dim 2 (size 1), unknown_rank 3

Source: `tensorflow/serving: tensorflow_serving/apis/{predict,model}.proto` and
`tensorflow/tensorflow: tensorflow/core/framework/{tensor,tensor_shape,types}.proto`. WAO's models call their
input `inputs` and their output `outputs`; where a model has one output only, its name does not matter.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from enum import Enum

from berthmaster.api.protobuf import (
    Field,
    FieldReader,
    WireError,
    WireType,
    encode_bytes,
    encode_varint,
    signed,
)

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_INPUT, _OUTPUT = "inputs", b"outputs"
# An output for each point of a curve, and as many again for who answers more than was asked.
_MOST_VALUES = 4096
_MOST_DIMENSIONS = 8


class _Type(Enum):
    """A kind of tensor that is understood: its `dtype`, the field of its values, and how one is written."""

    FLOAT = (1, 5, WireType.FIXED32, "f")
    DOUBLE = (2, 6, WireType.FIXED64, "d")

    def __init__(self, dtype: int, field: int, wire: WireType, code: str) -> None:
        self.dtype = dtype
        self.field = field
        self.wire = wire
        self.code = code
        self.size = struct.calcsize(f"<{code}")


def encode_request(
    rows: Sequence[Sequence[float]], *, model: str, version: int | None = None, signature: str = ""
) -> bytes:
    """Return a PredictRequest with one matrix of 32-bit numbers, a row for each prediction.

    Without a version the server takes its newest, without a signature `serving_default`.
    """
    spec = encode_bytes(1, model.encode())
    if version is not None:
        spec += encode_bytes(2, encode_varint(1, version))
    if signature:
        spec += encode_bytes(3, signature.encode())
    shape = b"".join(encode_bytes(2, encode_varint(1, it)) for it in (len(rows), len(rows[0])))
    values = [value for row in rows for value in row]
    content = struct.pack(f"<{len(values)}f", *values)
    tensor = encode_varint(1, _Type.FLOAT.dtype) + encode_bytes(2, shape) + encode_bytes(5, content)
    entry = encode_bytes(1, _INPUT.encode()) + encode_bytes(2, tensor)
    return encode_bytes(1, spec) + encode_bytes(2, entry)


def decode_response(data: bytes) -> tuple[float, ...]:
    """Return the numbers of a PredictResponse: of its output `outputs`, or of the only one that it has.

    Raises:
        ValueError: it is no such message, or its output is no row or column of float or double numbers.
    """
    try:
        return _read_response(FieldReader(), data)
    except WireError as error:
        raise ValueError(f"no PredictResponse: {error}") from error


def _read_response(reader: FieldReader, data: bytes) -> tuple[float, ...]:
    outputs: dict[bytes, bytes] = {}
    for entry in reader.read(data):
        if entry.tag != 1:
            continue
        # A field that comes twice counts as if both were one, as it does for messages in messages.
        name, tensor = b"", b""
        for field in reader.read(_bytes_of(entry)):
            if field.tag == 1:
                name = _bytes_of(field)
            elif field.tag == 2:
                tensor += _bytes_of(field)
        outputs[name] = tensor
    if not outputs:
        raise ValueError("no outputs in it")
    if _OUTPUT not in outputs and len(outputs) > 1:
        raise ValueError(f"found {len(outputs)} outputs, none of them called outputs")
    return _read_tensor(reader, outputs.get(_OUTPUT, next(iter(outputs.values()))))


def _read_tensor(reader: FieldReader, data: bytes) -> tuple[float, ...]:
    dtype, shape, content = 0, b"", b""
    values = {it: b"" for it in _Type}
    for field in reader.read(data):
        if field.tag == 1 and field.wire is WireType.VARINT:
            dtype = field.number
        elif field.tag == 2:
            shape += _bytes_of(field)
        elif field.tag == 4:
            content = _bytes_of(field)
        for kind in _Type:
            # Packed into one field, or a field for each, as older writers do.
            if field.tag == kind.field:
                if field.wire not in (WireType.BYTES, kind.wire):
                    raise WireError(f"field {field.tag} of wire type {field.wire}")
                values[kind] += field.data
    found = next((it for it in _Type if it.dtype == dtype), None)
    if found is None:
        raise ValueError(f"its outputs are of type {dtype}, expected float (1) or double (2)")
    count, each = _count(reader, shape), values[found]
    if len(each) == found.size:
        # A single value stands for all: so says the comment at TensorProto's version_number.
        each *= count
    return _unpack(found, count, content or each)


def _count(reader: FieldReader, data: bytes) -> int:
    """Return how many numbers a shape holds; one of them may be longer than 1."""
    sizes: list[int] = []
    for field in reader.read(data):
        if field.tag == 2:
            inner = reader.read(_bytes_of(field))
            size = 0
            for it in inner:
                if it.tag == 1 and it.wire is WireType.VARINT:
                    size = signed(it.number)
            sizes.append(size)
        elif field.tag == 3 and field.number:
            raise ValueError("its outputs have no shape")
        if len(sizes) > _MOST_DIMENSIONS:
            raise ValueError(f"its outputs have more than {_MOST_DIMENSIONS} dimensions")
    shown = "x".join(map(str, sizes)) or "of a single number"
    if any(not 0 <= it <= _MOST_VALUES for it in sizes) or sum(it != 1 for it in sizes) > 1:
        raise ValueError(f"its outputs have the shape {shown}, expected one number for each input")
    return math.prod(sizes)


def _unpack(kind: _Type, count: int, content: bytes) -> tuple[float, ...]:
    if len(content) != count * kind.size:
        raise ValueError(f"found {len(content)} bytes of values, expected {count * kind.size}")
    return struct.unpack(f"<{count}{kind.code}", content)


def _bytes_of(field: Field) -> bytes:
    if field.wire is not WireType.BYTES:
        raise WireError(f"field {field.tag} of wire type {field.wire}")
    return field.data
