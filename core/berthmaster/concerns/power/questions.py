"""What a model server is asked: a node's curve as one batch, in the language of its generation.

    v1   [cpu ratio, ambient', cpu1', cpu2'], each to one decimal: the ratios 0.0 .. 2.0
    v2   [cpu, inlet temperature, differential pressure], cpu in cores or percent of capacity

A question holds everything that is needed to send it and to read the answer, so that whoever speaks HTTP or
gRPC knows nothing of nodes. Where something is missing there is no question, and words that say what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from berthmaster.api import names, tf_serving
from berthmaster.api.inventory import PowerCurve, Reading
from berthmaster.api.power import EndpointTerm, LabelConfig
from berthmaster.api.quantities import NANO
from berthmaster.api.settings.power import CpuUsageFormat

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32] | np.float32

# A megawatt: more is no node.
MOST_WATTS = 1e6
FAKE_WATTS = 3.14
# Inputs that differ by less are the same question to a model: it computes with 32-bit numbers.
TOLERANCE_CORES = 1e-4
# v2's grid: every 5 percent, and finer where most nodes are and curves bend.
_PERCENTS = (0, 1, 2, 5, 7.5, 10, 12.5, 15, 17.5, *range(20, 101, 5))
# v1's, beyond the capacity too: only the limit has to fit beside the usage, and requests have none of that.
_TENTHS = range(21)
_V1_MINUTES = 15
_MOST_QUESTIONS = 200
_V2 = "V2InferenceProtocol"
# Not upstream's: TensorFlow Serving in a NodeConfig.
_TF_SERVING = "TensorFlowServing"
_TF_GRPC_PORT, _TF_REST_PORT = 8500, "8501"
# TensorFlow Serving's versions are 64-bit numbers.
_VERSION = re.compile(r"-?[0-9]{1,18}")
_REDFISH_FIELDS = ("Type", "Url", "Name", "Version")


class Protocol(Enum):
    """How a model server is spoken to."""

    V2 = "KServe V2"
    TF_REST = "TensorFlow Serving by REST"
    TF_GRPC = "TensorFlow Serving by gRPC"
    FAKE = "Fake"


_TF_SCHEMES = {
    "grpc": Protocol.TF_GRPC,
    "grpcs": Protocol.TF_GRPC,
    "http": Protocol.TF_REST,
    "https": Protocol.TF_REST,
}
# What an endpoint's URL may begin with, by its type.
_SCHEMES = {_V2: ("http", "https"), _TF_SERVING: tuple(_TF_SCHEMES)}


class UnaskableError(Exception):
    """There is no question; the message says what is missing, for the node's condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model on a server; `base` is `scheme://host:port`, `version` empty for the server's choice."""

    protocol: Protocol
    base: str = ""
    model: str = ""
    version: str = ""
    signature: str = ""

    def __str__(self) -> str:
        if self.protocol is Protocol.FAKE:
            return "Fake"
        version = f" {self.version}" if self.version else ""
        return f"{self.model}{version} at {self.base}"

    @property
    def url(self) -> str:
        """Return where the question is sent; by gRPC the message itself names the model."""
        if self.protocol is Protocol.TF_GRPC:
            return self.base
        if self.protocol is Protocol.TF_REST:
            version = f"/versions/{self.version}" if self.version else ""
            return f"{self.base}/v1/models/{self.model}{version}:predict"
        version = f"/versions/{self.version}" if self.version else ""
        return f"{self.base}/v2/models/{self.model}{version}/infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One node's curve: `cores[i]` is the CPU usage that `inputs[i]` stands for."""

    ref: ModelRef
    cores: tuple[float, ...]
    inputs: tuple[tuple[float, ...], ...]

    def body(self) -> dict[str, Any]:
        """Return what is sent, as JSON data."""
        if self.ref.protocol is Protocol.TF_REST:
            signature = {"signature_name": self.ref.signature} if self.ref.signature else {}
            return {"inputs": [list(it) for it in self.inputs], **signature}
        tensor = {
            "name": "predict-prob",
            "shape": [len(self.inputs), len(self.inputs[0])],
            "datatype": "FP32",
            "data": [list(it) for it in self.inputs],
        }
        return {"inputs": [tensor]}

    def message(self) -> bytes:
        """Return what is sent by gRPC."""
        ref = self.ref
        return tf_serving.encode_request(
            self.inputs,
            model=ref.model,
            version=int(ref.version) if ref.version else None,
            signature=ref.signature,
        )

    def read_answer(self, answer: object) -> tuple[float, ...]:
        """Return the watts of an answer, JSON data or by gRPC bytes, one for each input.

        Raises:
            ValueError: the answer is not one, or not of this many numbers.
        """
        watts = _numbers_of(self.ref.protocol, answer)
        if len(watts) != len(self.inputs):
            raise ValueError(f"found {len(watts)} numbers, expected {len(self.inputs)}")
        return watts


def curve_of(cores: Sequence[float], watts: Iterable[float | None]) -> PowerCurve | None:
    """Return the curve through some points, gaps where an answer is absent or no number of watts.

    Watts below zero are kept: WAO's rules reckon with differences alone. None if no point is left. Points
    of equal usage: the first counts.
    """
    points: dict[float, float | None] = {}
    for usage, value in sorted(zip(cores, watts, strict=True), key=lambda it: it[0]):
        points.setdefault(usage, value if _is_watts(value) else None)
    known = {usage: value for usage, value in points.items() if value is not None}
    if not known:
        return None
    return PowerCurve(
        cores=tuple(known),
        watts=tuple(known.values()),
        gaps=tuple(usage for usage, value in points.items() if value is None),
    )


def needs_temperatures(age_s: float) -> bool:
    """Tell whether v1's temperatures are fetched again: after 15 whole minutes."""
    return age_s // 60 >= _V1_MINUTES


def ask_by_labels(
    config: LabelConfig,
    readings: Mapping[str, Reading],
    capacity_nanocores: int,
    *,
    more_tenths: Iterable[int] = (),
) -> Question:
    """Return v1's question for a node's curve; raises `UnaskableError`.

    `more_tenths` are CPU usages, in tenths of the capacity, that are asked for beside the usual grid.
    """
    ref = ref_of_labels(config)
    temperatures = []
    for sensor in names.WAO_TEMPERATURES:
        if sensor not in config.ranges:
            raise UnaskableError(
                "; ".join(config.problems)
                or f"labels {sensor}/min and {sensor}/max: missing, expected degrees Celsius"
            )
        if sensor not in readings:
            raise UnaskableError(f"no reading of the sensor {sensor}")
        value, low, high = map(np.float32, (readings[sensor].value, *config.ranges[sensor]))
        temperatures.append(float(tenths_of((value - low) / (high - low))) / 10)
    capacity = _capacity(capacity_nanocores)
    tenths = sorted({*_TENTHS, *more_tenths})[:_MOST_QUESTIONS]
    return Question(
        ref=ref,
        cores=tuple(tenth / 10 * capacity for tenth in tenths),
        inputs=tuple((tenth / 10, *temperatures) for tenth in tenths),
    )


def ask_by_term(
    term: EndpointTerm,
    readings: Mapping[str, Reading],
    capacity_nanocores: int,
    *,
    usage_format: CpuUsageFormat = CpuUsageFormat.RAW,
    more_cores: Iterable[float] = (),
) -> Question:
    """Return v2's question for a node's curve; raises `UnaskableError`.

    `more_cores` are CPU usages that are asked for beside the usual grid, and instead of what of it is so
    near to them that the curve would not tell the two apart.
    """
    ref = ref_of_term(term)
    missing = [name for name in ("inlet", "deltaP") if name not in readings]
    if missing:
        raise UnaskableError(f"no reading of {' and '.join(missing)}")
    inlet, delta = readings["inlet"].value, readings["deltaP"].value
    capacity = _capacity(capacity_nanocores)
    more = tuple(more_cores)
    usual = (percent / 100 * capacity for percent in _PERCENTS)
    apart = (it for it in usual if all(abs(it - near) > 2 * TOLERANCE_CORES for near in more))
    cores = tuple(sorted({*apart, *more}))[:_MOST_QUESTIONS]
    scale = 100 / capacity if usage_format is CpuUsageFormat.PERCENT else 1.0
    return Question(
        ref=ref, cores=cores, inputs=tuple((usage * scale, inlet, delta) for usage in cores)
    )


def tenths_of(values: Float32s) -> Floats:
    """Return how many tenths 32-bit numbers are, half away from zero, as v1 rounds.

    The number has 32 bits, what it is multiplied to has 64: 0.85, which is a little more then, gives 9 and
    0.35, which is a little less, gives 3.
    """
    scaled = np.asarray(values, dtype=np.float64) * 10
    tenths: Floats = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)
    return tenths


def ref_of_labels(config: LabelConfig) -> ModelRef:
    """Return v1's model server; raises `UnaskableError`.

    v1 speaks gRPC. What it never did is asked for by a label of ours, or by the port that TensorFlow Serving gives
    to REST unless told otherwise.
    """
    if not (config.host and config.port and config.model):
        there = {
            key: "true" if value else "false"
            for key, value in zip(
                names.WAO_PREDICTOR, (config.host, config.port, config.model), strict=True
            )
        }
        shown = ", ".join(f"{key}: {value}" for key, value in there.items())
        raise UnaskableError(f"Label is not defined. [{shown}]")
    if not config.port.isdecimal():
        raise UnaskableError(f'label {names.WAO_PORT}: found "{config.port}", expected a number')
    scheme = config.scheme or ("http" if config.port == _TF_REST_PORT else "grpc")
    if scheme not in _TF_SCHEMES:
        raise UnaskableError(
            f'label {names.TENSORFLOW_SCHEME}: found "{scheme}", expected grpc, grpcs, http or https'
        )
    return ModelRef(
        protocol=_TF_SCHEMES[scheme],
        base=f"{scheme}://{config.host}:{config.port}",
        model=config.model,
        version="" if config.version is None else str(config.version),
        signature=config.signature or "",
    )


def ref_of_term(term: EndpointTerm) -> ModelRef:
    """Return the model that an endpoint names; raises `UnaskableError`.

    Of the path only what follows `models` and `versions` counts, of several the last.
    """
    if term.type == "Fake":
        return ModelRef(protocol=Protocol.FAKE)
    if term.type not in _SCHEMES:
        raise UnaskableError(f"unknown endpoint type: {term.type}")
    parts, base = _split(term)
    found = {"models": "", "versions": ""}
    segments = parts.path.split("/")
    for key, value in zip(segments, [*segments[1:], ""], strict=True):
        if key in found:
            found[key] = value
    model, version = found["models"], found["versions"]
    if term.type == _TF_SERVING:
        return _tf_ref(term, parts, base, model.removesuffix(":predict"), version)
    if not model:
        raise _unaskable(term, "model name is not specified")
    return ModelRef(protocol=Protocol.V2, base=base, model=model, version=version)


def _split(term: EndpointTerm) -> tuple[SplitResult, str]:
    """Return an endpoint's parts, and its `scheme://host:port` without a user."""
    schemes = _SCHEMES[term.type]
    try:
        parts = urlsplit(term.endpoint)
        is_url = parts.scheme in schemes and bool(parts.hostname)
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if parts.scheme.startswith("grpc") and parts.port is None:
            base += f":{_TF_GRPC_PORT}"
    except ValueError:
        is_url = False
    if not is_url:
        expected = "http(s)" if term.type == _V2 else "grpc(s) or http(s)"
        raise _unaskable(term, f"expected {expected}://host:port/...")
    return parts, base


def _tf_ref(
    term: EndpointTerm, parts: SplitResult, base: str, model: str, version: str
) -> ModelRef:
    version = version.removesuffix(":predict")
    if not model:
        raise _unaskable(term, "model name is not specified")
    if version and not _VERSION.fullmatch(version):
        raise _unaskable(term, f'version "{version}", expected a whole number')
    return ModelRef(
        protocol=_TF_SCHEMES[parts.scheme],
        base=base,
        model=model,
        version=version,
        signature=parse_qs(parts.query).get("signature_name", [""])[-1],
    )


def _unaskable(term: EndpointTerm, words: str) -> UnaskableError:
    return UnaskableError(f'endpoint "{term.endpoint:.200}": {words}')


def term_of_redfish(answer: object, term: EndpointTerm | None) -> EndpointTerm:
    """Return the endpoint that a BMC's MachineLearningModel names; the secret stays `term`'s.

    Raises `UnaskableError` where a field is missing or empty.
    """
    found = answer if isinstance(answer, Mapping) else {}
    texts = {key: found.get(key) for key in _REDFISH_FIELDS}
    faulty = [key for key, it in texts.items() if not isinstance(it, str) or not it]
    if faulty:
        raise UnaskableError(f"PowerConsumptionModel: {', '.join(faulty)} missing or empty")
    path = f"/v2/models/{texts['Name']}/versions/{texts['Version']}/infer"
    return EndpointTerm(
        type=str(texts["Type"]),
        endpoint=f"{texts['Url']}{path}",
        secret=term.secret if term is not None else None,
    )


def _numbers_of(protocol: Protocol, answer: object) -> tuple[float, ...]:
    if protocol is Protocol.TF_GRPC:
        if not isinstance(answer, bytes):
            raise ValueError("expected a message")
        return tf_serving.decode_response(answer)
    if not isinstance(answer, Mapping):
        raise ValueError("expected a JSON object")
    if protocol is Protocol.TF_REST:
        data = answer.get("outputs", answer.get("predictions"))
    else:
        outputs = answer.get("outputs")
        first = outputs[0] if isinstance(outputs, list) and outputs else None
        data = first.get("data") if isinstance(first, Mapping) else None
    if not isinstance(data, list) or not data:
        raise ValueError("no outputs in it")
    flat = [it[0] if isinstance(it, list) and len(it) == 1 else it for it in data]
    if any(isinstance(it, bool) or not isinstance(it, int | float) for it in flat):
        raise ValueError("its outputs are no numbers")
    return tuple(map(float, flat))


def _is_watts(value: float | None) -> bool:
    return value is not None and abs(value) <= MOST_WATTS


def _capacity(nanocores: int) -> float:
    if nanocores <= 0:
        raise UnaskableError("status.capacity.cpu of the Node: missing or zero")
    return nanocores / NANO
