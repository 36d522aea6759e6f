"""Upstream's disk IO kinds: NodeDiskDevice and NodeDiskIOStats of `diskio.x-k8s.io/v1alpha1`.

Read leniently: these objects come from drivers of all ages, and the schema checks types only. What
cannot be understood is left out and named in `problems`, in words that say what was expected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.inventory import Bandwidth
from berthmaster.api.quantities import LIMIT, QuantityError, ceil, parse_quantity

_DIMENSIONS = ("read", "write", "total")
_MOST_DEVICES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDevice:
    """One disk as its driver profiled it; `capacity` in normalised bytes per second."""

    id: str
    vendor: str
    model: str
    type: str
    capacity: Bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDiskDevice:
    """The disks of one node; the node is `node_name`, the object's own name is a convention."""

    name: str
    namespace: str
    uid: str
    generation: int
    node_name: str
    devices: tuple[DiskDevice, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDiskIOStats:
    """Which pods are reserved on a node, and what its driver says is still free.

    `observed_generation` is None while the driver has not answered. The numbers count exactly the
    pods of `reserved_pods` when it equals `generation`, and otherwise pods of an older list.

    The last three say that the driver lives, and are no part of what the object says: `sign` differs
    whenever somebody else than our operator wrote, `written_at` is when (RFC 3339, empty: unknown);
    `heartbeat` is the driver's annotation, None without, and with one only that and the status count.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    node_name: str
    reserved_pods: tuple[str, ...]
    observed_generation: int | None = None
    allocable: Mapping[str, Bandwidth] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    sign: bytes = field(default=b"", compare=False)
    written_at: str = field(default="", compare=False)
    heartbeat: str | None = field(default=None, compare=False)


def device_from_manifest(manifest: Mapping[str, Any]) -> NodeDiskDevice:
    """Read a NodeDiskDevice; never raises on odd content."""
    problems: list[str] = []
    spec = _object(manifest.get("spec"), "spec", problems)
    node_name = _text(spec.get("nodeName"), "spec.nodeName", problems)
    if not node_name:
        problems.append("spec.nodeName: missing, expected the name of the node with these disks")
    devices = _object(spec.get("devices"), "spec.devices", problems)
    if len(devices) > _MOST_DEVICES:
        problems.append(f"spec.devices: {len(devices)} devices, only {_MOST_DEVICES} are read")
    return NodeDiskDevice(
        **_identity(manifest),
        node_name=node_name,
        devices=tuple(
            _device(id_, devices[id_], problems) for id_ in sorted(devices)[:_MOST_DEVICES]
        ),
        problems=tuple(problems),
    )


def stats_from_manifest(manifest: Mapping[str, Any]) -> NodeDiskIOStats:
    """Read a NodeDiskIOStats; never raises on odd content."""
    problems: list[str] = []
    spec = _object(manifest.get("spec"), "spec", problems)
    status = _object(manifest.get("status"), "status", problems)
    reserved = spec.get("reservedPods") or []
    if not isinstance(reserved, list) or not all(isinstance(uid, str) for uid in reserved):
        problems.append("spec.reservedPods: expected a list of pod UIDs")
        reserved = []
    observed = status.get("observedGeneration")
    if observed is not None and (isinstance(observed, bool) or not isinstance(observed, int)):
        problems.append(f"status.observedGeneration: expected a whole number, found {observed!r}")
        observed = None
    at = "status.allocableBandwidth"
    reported = _object(status.get("allocableBandwidth"), at, problems)
    return NodeDiskIOStats(
        **_identity(manifest),
        node_name=_text(spec.get("nodeName"), "spec.nodeName", problems),
        reserved_pods=tuple(reserved),
        observed_generation=observed,
        allocable={
            id_: _bandwidth(value, f"{at}[{id_}]", problems, lowest=-LIMIT)
            for id_, value in reported.items()
        },
        problems=tuple(problems),
        **_signs_of_life(manifest),
    )


def stats_name(node_name: str) -> str:
    """Return the name under which a node's NodeDiskIOStats is found."""
    return node_name + names.NODE_DISK_IO_STATS_SUFFIX


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    metadata = manifest.get("metadata") or {}
    return {
        "name": metadata.get("name", ""),
        "namespace": metadata.get("namespace", ""),
        "uid": metadata.get("uid", ""),
        "generation": metadata.get("generation", 0),
    }


def _signs_of_life(manifest: Mapping[str, Any]) -> dict[str, Any]:
    metadata = manifest.get("metadata") or {}
    annotations = metadata.get("annotations") or {}
    heartbeat = annotations.get(names.HEARTBEAT)
    # Writes of `reservedPods` are ours: they show in the spec and in our own entry only.
    others = [
        entry
        for entry in metadata.get("managedFields") or ()
        if entry.get("manager") != names.OPERATOR_MANAGER
    ]
    times = [(it.get("manager"), it.get("subresource"), it.get("time")) for it in others]
    written: tuple[object, ...] = (manifest.get("status"), heartbeat)
    if heartbeat is None:
        written = (manifest.get("status"), annotations, metadata.get("labels"), times)
    text = msgspec.json.encode(written, order="sorted", enc_hook=str)
    return {
        "sign": hashlib.blake2b(text, digest_size=16).digest(),
        "written_at": max((str(time) for *_, time in times if time), default=""),
        "heartbeat": heartbeat,
    }


def _device(id_: str, value: object, problems: list[str]) -> DiskDevice:
    at = f"spec.devices[{id_}]"
    device = _object(value, at, problems)
    type_ = _text(device.get("type"), f"{at}.type", problems)
    return DiskDevice(
        id=id_,
        vendor=_text(device.get("vendor"), f"{at}.vendor", problems),
        model=_text(device.get("model"), f"{at}.model", problems),
        type=type_,
        capacity=_bandwidth(
            device.get("capacity"),
            f"{at}.capacity",
            problems,
            lowest=0,
            # Other disks are never asked for their bandwidth.
            is_expected=type_ == names.EMPTY_DIR_DISK,
        ),
    )


def _bandwidth(
    value: object, at: str, problems: list[str], *, lowest: int, is_expected: bool = False
) -> Bandwidth:
    numbers = _object(value, at, problems)
    found: dict[str, int] = {}
    for dimension in _DIMENSIONS:
        text = numbers.get(dimension)
        if text is None:
            if is_expected:
                problems.append(f"{at}.{dimension}: missing; taken as 0")
            continue
        try:
            number = ceil(parse_quantity(text))
        except QuantityError as error:
            problems.append(f"{at}.{dimension}: {error}; taken as 0")
            continue
        if number < lowest:
            problems.append(f'{at}.{dimension}: "{text}" is below {lowest}; taken as {lowest}')
        if number > LIMIT:
            problems.append(f'{at}.{dimension}: "{text}" is beyond any disk; taken as {LIMIT}')
        found[dimension] = max(lowest, min(number, LIMIT))
    return Bandwidth.model_construct(
        read=found.get("read", 0), write=found.get("write", 0), total=found.get("total", 0)
    )


def _object(value: object, at: str, problems: list[str]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    problems.append(f"{at}: expected an object, found {type(value).__name__}")
    return {}


def _text(value: object, at: str, problems: list[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    problems.append(f"{at}: expected text, found {value!r}")
    return ""
