"""What disk IO decides about one node of a decision case, spelled out over its manifests in exact fractions.

Written from the rules alone and sharing no code with the concern. Only what the first model function says of a
request is told: where JSON cannot be decoded, or a number is invalid, the words of the refusal are left open.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Case = Mapping[str, Any]
Amounts = tuple[Fraction, Fraction, Fraction]  # read, write, total

KEY = "blockio.kubernetes.io/resources"
BLOCK_SIZES = ("512", "1k", "4k", "8k", "16k", "32k")
MIB = Fraction(2**20)
DEFAULT: Amounts = (5 * MIB, 5 * MIB, 10 * MIB)
_POWERS = "KMGTPE"
_SUFFIXES = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "k": Fraction(10**3),
    **{letter: Fraction(10 ** (3 * n)) for n, letter in enumerate(_POWERS, 1) if n > 1},
    **{f"{letter}i": Fraction(2 ** (10 * n)) for n, letter in enumerate(_POWERS, 1)},
}
_QUANTITY = re.compile(r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)(?:([eE][+-]?[0-9]+)|([a-zA-Z]*))")


class RefusedError(Exception):
    """A request that no disk takes; its text is what must be said, empty where that is open."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must come out for one node: a reason, open where it is empty, or a score."""

    fits: bool
    reason: str = ""
    score: int = 0


def quantity(text: str) -> Fraction:
    """Return what a Kubernetes quantity says; raise `RefusedError` if it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None or (match[4] is not None and match[4] not in _SUFFIXES):
        raise RefusedError
    factor = Fraction(10) ** int(match[3][1:]) if match[3] else _SUFFIXES[match[4] or ""]
    return Fraction(f"{match[1]}{match[2].removesuffix('.')}") * factor


def request_of(text: str, model: Mapping[str, Mapping[str, float]]) -> Amounts:
    """Return what the model function makes of an annotation's text."""
    if not text:
        return DEFAULT
    found = _decoded(text)
    if found["blocksize"] not in BLOCK_SIZES:
        raise RefusedError("unsupported block size" if found["rbps"] and found["wbps"] else "")
    read, write = (
        Fraction(math.ceil(_asked(found[key]) * Fraction(str(model[table][found["blocksize"]]))))
        for key, table in (("rbps", "readRatio"), ("wbps", "writeRatio"))
    )
    return read, write, read + write


def expect(case: Case, node: str) -> Expected:
    """Return what the rules say about one node."""
    config, metadata = case["config"], case["pod"]["metadata"]
    text = (metadata.get("annotations") or {}).get(KEY)
    if metadata["namespace"] in config["nsWhiteList"]:
        return Expected(fits=True, score=100)
    devices = _devices(case, node)
    if devices is None:
        if text is None:
            return Expected(fits=True, score=100)
        words = "without disk io aware support cannot schedule disk io aware workload"
        return Expected(fits=False, reason=f"node {node} {words}")
    id_ = min((id_ for id_, it in devices.items() if it.get("type") == "emptyDir"), default=None)
    if id_ is None:
        return Expected(fits=False, reason="emptydir disk  not registered in cache")
    key = f"{devices[id_].get('vendor', '')}-{devices[id_].get('model', '')}"
    model = config["normalizers"].get(key)
    if model is None:
        return Expected(fits=False, reason=f"normalizer {key} not found")
    try:
        asked = request_of(text or "", model)
    except RefusedError as refused:
        return Expected(fits=False, reason=str(refused))
    free = _free(case, node, id_, model)
    for name, want, have in zip(("read", "write", "total"), asked, free, strict=True):
        if have < want:
            words = f"disk IO {name} bandwidth is not enough"
            return Expected(fits=False, reason=f"node {node} {words}")
    shares = [want / have if have else Fraction(1) for want, have in zip(asked, free, strict=True)]
    ratio = (shares[0] + shares[1]) / 2
    share = 1 - ratio if config["scoreStrategy"] == "LeastAllocated" else ratio
    return Expected(fits=True, score=math.floor(share * 100))


def _decoded(text: str) -> dict[str, str]:
    """Return the three texts of an annotation, as Go's decoder fills them."""

    def fail(word: str) -> None:
        raise ValueError(word)

    try:
        parsed = json.loads(text, object_pairs_hook=tuple, parse_constant=fail)
    except (ValueError, RecursionError):
        raise RefusedError from None
    pairs: Sequence[tuple[str, Any]] = () if parsed is None else parsed
    if not isinstance(pairs, tuple):
        raise RefusedError
    found = {"rbps": "", "wbps": "", "blocksize": ""}
    for key, value in pairs:
        if key.casefold() not in found or value is None:
            continue
        if not isinstance(value, str):
            raise RefusedError
        found[key.casefold()] = value
    return found


def _asked(text: str) -> Fraction:
    asked = quantity(text)
    if asked < 0:
        raise RefusedError
    return Fraction(math.ceil(asked))


def _devices(case: Case, node: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = None
    for it in case["cluster"]["resources"]:
        if it["kind"] == "NodeDiskDevice" and it["spec"]["nodeName"] == node:
            found = it["spec"].get("devices") or {}
    return found


def _free(case: Case, node: str, id_: str, model: Mapping[str, Mapping[str, float]]) -> Amounts:
    """Return what a report for the present generation says, or else what the pods leave of the capacity."""
    for it in case["cluster"]["resources"]:
        if it["kind"] != "NodeDiskIOStats" or it["spec"]["nodeName"] != node:
            continue
        status = it.get("status") or {}
        reported = (status.get("allocableBandwidth") or {}).get(id_)
        if (
            reported is not None
            and status.get("observedGeneration") == it["metadata"]["generation"]
        ):
            return _amounts(reported)
    devices = _devices(case, node) or {}
    free = _amounts(devices[id_].get("capacity") or {})
    for pod in case["cluster"]["pods"]:
        if _holds(pod, node, case["config"]["nsWhiteList"]):
            taken = _taken(pod, model)
            free = (
                max(free[0] - taken[0], Fraction(0)),
                max(free[1] - taken[1], Fraction(0)),
                max(free[2] - taken[2], Fraction(0)),
            )
    return free


def _holds(pod: Mapping[str, Any], node: str, white_list: Sequence[str]) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    return (
        pod["spec"].get("nodeName") == node
        and phase not in ("Succeeded", "Failed")
        and pod["metadata"]["namespace"] not in white_list
    )


def _taken(pod: Mapping[str, Any], model: Mapping[str, Mapping[str, float]]) -> Amounts:
    try:
        return request_of((pod["metadata"].get("annotations") or {}).get(KEY, ""), model)
    except RefusedError:
        return DEFAULT


def _amounts(written: Mapping[str, str]) -> Amounts:
    read, write, total = (quantity(str(written.get(it, "0"))) for it in ("read", "write", "total"))
    return read, write, total
