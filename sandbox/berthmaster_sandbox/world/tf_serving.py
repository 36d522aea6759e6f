"""TensorFlow Serving's gRPC side, as its protocol definitions have it, and as a server that lies or hangs would be.

    PredictionService/Predict     inputs["inputs"]: [points, features] -> outputs["outputs"]: [points, 1], watts

It is the judge of who asks it, so it shares no code with them: messages are read by the tables below, which repeat
`tensorflow_serving/apis/{predict,model}.proto` and `tensorflow/core/framework/{tensor,tensor_shape}.proto`, and a
request with anything else in it is refused. What is wrong with its answers, if anything, says `behaviour`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc

_SERVICE = "tensorflow.serving.PredictionService"
_DT_FLOAT, _DT_DOUBLE, _DT_INT32 = 1, 2, 3
_LONG = 10_000_000
# Message -> field number -> name and what it is: another message, or the type of a value.
_FIELDS: dict[str, dict[int, tuple[str, str]]] = {
    "PredictRequest": {1: ("model_spec", "ModelSpec"), 2: ("inputs", "Input")},
    "Input": {1: ("key", "string"), 2: ("value", "TensorProto")},
    "ModelSpec": {
        1: ("name", "string"),
        2: ("version", "Int64Value"),
        3: ("signature_name", "string"),
    },
    "Int64Value": {1: ("value", "int64")},
    "TensorProto": {
        1: ("dtype", "int64"),
        2: ("tensor_shape", "TensorShapeProto"),
        5: ("float_val", "floats"),
    },
    "TensorShapeProto": {2: ("dim", "Dim")},
    "Dim": {1: ("size", "int64")},
}


class Form(Enum):
    """How the values of an answer are written."""

    FLOAT_VAL = "float_val"
    DOUBLE_VAL = "double_val"
    FLOAT_CONTENT = "float tensor_content"
    DOUBLE_CONTENT = "double tensor_content"


class Behaviour(Enum):
    """What the server does with a request that it understands."""

    WELL = "answers"
    HANGS = "never answers"
    NAN = "answers NaN"
    NEGATIVE = "answers negative watts"
    FEW = "answers one point less than was asked"
    WIDE = "answers two columns"
    SHORT = "answers fewer values than its shape says"
    INTEGERS = "answers 32-bit integers"
    EMPTY = "answers a message without outputs"
    MANY = "answers several outputs of other names"
    RUBBISH = "answers what is no message"
    LONG = "answers 10 MB"
    REFUSES = "answers an error with words of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as it was understood."""

    model: str
    version: int | None
    signature: str
    rows: tuple[tuple[float, ...], ...]
    authorization: str


@dataclass(slots=True, kw_only=True)
class TfServing:
    """A running server; `origin` is `host:port`. Change `behaviour` and `form` as you like."""

    origin: str = ""
    watts: Callable[[Sequence[float]], float] = lambda row: 100 + 100 * row[0]
    behaviour: Behaviour = Behaviour.WELL
    form: Form = Form.FLOAT_VAL
    model: str = "konohana"
    asked: list[Asked] = field(default_factory=list)
    # Connections that requests came over, and how many requests there were at a time.
    peers: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0
    # Set while somebody waits for an answer that never comes; and once that one has gone away.
    is_waiting: asyncio.Event = field(default_factory=asyncio.Event)
    was_left: asyncio.Event = field(default_factory=asyncio.Event)

    async def predict(self, request: bytes, context: Any) -> bytes:
        """Answer one call of Predict."""
        try:
            asked = _understand(request, dict(context.invocation_metadata() or ()))
        except (ValueError, KeyError, IndexError, struct.error) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no PredictRequest: {error}")
        self.asked.append(asked)
        self.peers.add(context.peer())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._give(asked, context)
        finally:
            self.at_once -= 1

    async def _give(self, asked: Asked, context: Any) -> bytes:
        if asked.model != self.model:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {asked.model}")
        if self.behaviour is Behaviour.REFUSES:
            await context.abort(grpc.StatusCode.INTERNAL, "secret words of a server")
        if self.behaviour is Behaviour.HANGS:
            await self._wait()
        return self._answer(asked.rows)

    async def _wait(self) -> None:
        self.is_waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.was_left.set()

    def _answer(self, rows: Sequence[Sequence[float]]) -> bytes:
        values = [self.watts(row) for row in rows]
        match self.behaviour:
            case Behaviour.NAN:
                values = [float("nan")] * len(rows)
            case Behaviour.NEGATIVE:
                values = [-value for value in values]
            case Behaviour.FEW:
                values = values[1:]
            case Behaviour.WIDE:
                return _response({"outputs": _tensor(self.form, values * 2, (len(values), 2))})
            case Behaviour.SHORT:
                return _response({"outputs": _tensor(self.form, values[2:], (len(values), 1))})
            case Behaviour.INTEGERS:
                whole = _number(1, _DT_INT32) + _shape((len(rows), 1)) + _part(7, bytes(len(rows)))
                return _response({"outputs": whole})
            case Behaviour.EMPTY:
                return _response({})
            case Behaviour.MANY:
                tensor = _tensor(self.form, values, (len(values), 1))
                return _response({"mean": tensor, "deviation": tensor})
            case Behaviour.RUBBISH:
                return b"\x0a\xff\xff\xff\x7fwatts"
            case Behaviour.LONG:
                return bytes(_LONG)
        return _response({"outputs": _tensor(self.form, values, (len(values), 1))})


@asynccontextmanager
async def serve_tf(
    *, key: bytes | None = None, certificate: bytes = b"", address: str = "127.0.0.1:0"
) -> AsyncIterator[TfServing]:
    """Run a server on loopback, over TLS where a key is given."""
    found = TfServing()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(found.predict)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {"Predict": handler}),)
    )
    if key is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    found.origin = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield found
    finally:
        await server.stop(grace=None)


def _understand(request: bytes, metadata: dict[str, Any]) -> Asked:
    read = _read("PredictRequest", request)
    [spec] = read["model_spec"]
    [entry] = read["inputs"]
    [tensor] = entry["value"]
    [shape] = tensor["tensor_shape"]
    if entry["key"] != ["inputs"] or tensor["dtype"] != [_DT_FLOAT]:
        raise ValueError("expected the input inputs of type DT_FLOAT")
    points, features = (it["size"][0] for it in shape["dim"])
    values = tensor["float_val"][0]
    if len(values) != points * features:
        raise ValueError(f"{len(values)} values for a shape of {points}x{features}")
    version = spec.get("version")
    return Asked(
        model=spec["name"][0],
        version=version[0].get("value", [0])[0] if version else None,
        signature=spec.get("signature_name", [""])[0],
        rows=tuple(values[at : at + features] for at in range(0, len(values), features)),
        authorization=metadata.get("authorization", ""),
    )


def _read(message: str, data: bytes) -> dict[str, list[Any]]:
    """Return a message's fields by name, each a list of what came."""
    found: dict[str, list[Any]] = {}
    rest = memoryview(data)
    while rest:
        key, rest = _take_number(rest)
        if key >> 3 not in _FIELDS[message]:
            raise ValueError(f"field {key >> 3} of {message} is not expected")
        name, kind = _FIELDS[message][key >> 3]
        if kind == "int64":
            value, rest = _take_number(rest)
            found.setdefault(name, []).append(value - (1 << 64) if value >> 63 else value)
            continue
        if key & 7 != 2:
            raise ValueError(f"{message}.{name} has wire type {key & 7}")
        size, rest = _take_number(rest)
        part, rest = bytes(rest[:size]), rest[size:]
        if len(part) != size:
            raise ValueError(f"{message}.{name} ends early")
        found.setdefault(name, []).append(_value(kind, part))
    return found


def _value(kind: str, part: bytes) -> Any:
    if kind == "string":
        return part.decode()
    if kind == "floats":
        return tuple(it for (it,) in struct.iter_unpack("<f", part))
    return _read(kind, part)


def _take_number(rest: memoryview) -> tuple[int, memoryview]:
    size = next(at for at, byte in enumerate(rest) if byte < 128) + 1
    return sum((byte & 127) << 7 * at for at, byte in enumerate(rest[:size])), rest[size:]


def _response(outputs: dict[str, bytes]) -> bytes:
    spec = _part(1, b"konohana") + _part(2, _number(1, 1218))
    entries = (
        _part(1, _part(1, name.encode()) + _part(2, tensor)) for name, tensor in outputs.items()
    )
    return b"".join(entries) + _part(2, spec)


def _tensor(form: Form, values: Sequence[float], shape: Sequence[int]) -> bytes:
    is_float = form in (Form.FLOAT_VAL, Form.FLOAT_CONTENT)
    content = struct.pack(f"<{len(values)}{'f' if is_float else 'd'}", *values)
    number = {Form.FLOAT_VAL: 5, Form.DOUBLE_VAL: 6}.get(form, 4)
    dtype = _number(1, _DT_FLOAT if is_float else _DT_DOUBLE)
    return dtype + _shape(shape) + _part(number, content)


def _shape(sizes: Sequence[int]) -> bytes:
    return _part(2, b"".join(_part(2, _number(1, size)) for size in sizes))


def _number(tag: int, value: int) -> bytes:
    return bytes([tag << 3]) + _base_128(value)


def _part(tag: int, content: bytes) -> bytes:
    return bytes([tag << 3 | 2]) + _base_128(len(content)) + content


def _base_128(value: int) -> bytes:
    digits = [value & 127]
    while value := value >> 7:
        digits.append(value & 127)
    return bytes([*(it | 128 for it in digits[:-1]), digits[-1]])
