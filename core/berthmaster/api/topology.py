"""Upstream's NUMA kind: NodeResourceTopology of `topology.node.k8s.io`, v1alpha1 and v1alpha2.

Two updaters write it, each in its own dialect: node-feature-discovery fills the deprecated
`topologyPolicies` beside attributes, resource-topology-exporter only attributes and annotations. Read
leniently: what cannot be understood is left out and named in `problems`, in words that say what was
expected. Amounts stay text, as exact as they came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.quantities import QuantityError, parse_quantity

POLICIES = ("none", "best-effort", "restricted", "single-numa-node")
SCOPES = ("container", "pod")
DEFAULT_POLICY, DEFAULT_SCOPE, DEFAULT_MAX_NUMA_NODES = "none", "container", 8
HIGHEST_MAX_NUMA_NODES = 1024
# The kubelet's own masks have 64 bits.
HIGHEST_ZONE_ID = 63

_DEPRECATED = {
    f"{word}{level}Level": (policy, scope)
    for word, policy in (
        ("SingleNUMANode", "single-numa-node"),
        ("BestEffort", "best-effort"),
        ("Restricted", "restricted"),
    )
    for level, scope in (("Pod", "pod"), ("Container", "container"))
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_ZONE_ID = re.compile(r"[+-]?[0-9]{1,18}")
_MOST_ZONES = 1024
# Of one zone: an inventory of 64 such zones is half a megabyte, and can be stored.
_MOST_BYTES = 8192
_MOST_PROBLEMS = 20
_DEEPEST = 4
_SHOWN_CHARS = 60
_MANAGERS = ("none", "static", "None", "Static")


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much of a resource a zone has, as quantities in text."""

    capacity: str
    allocatable: str
    available: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyZone:
    """One NUMA zone; `costs` are the distances to other zones by id.

    `placement` is the updater's text about the containers that lie there, empty where it says nothing.
    """

    id: int
    resources: Mapping[str, Amounts]
    costs: Mapping[int, int]
    placement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResourceTopology:
    """The NUMA zones of the node of the same name; zones stand in the order of the object.

    `written_s` is when the updater last wrote, in seconds since the epoch by the API server's clock.
    """

    name: str
    uid: str = ""
    policy: str = DEFAULT_POLICY
    scope: str = DEFAULT_SCOPE
    max_numa_nodes: int = DEFAULT_MAX_NUMA_NODES
    cpu_manager_policy: str | None = None
    memory_manager_policy: str | None = None
    fingerprint: str = ""
    # Empty where the updater does not say which pods its fingerprint covers.
    fingerprint_method: str = ""
    is_fingerprint_annotated: bool = False
    # What the zones' `placement` is to be read by.
    placement: str = ""
    written_s: float | None = None
    zones: tuple[TopologyZone, ...] = ()
    problems: tuple[str, ...] = field(default=())


def topology_from_manifest(manifest: Mapping[str, Any]) -> NodeResourceTopology:
    """Read a NodeResourceTopology of either version; never raises on odd content."""
    problems = _Problems()
    metadata = _object(manifest.get("metadata"), "metadata", problems)
    attributes = _attributes(manifest.get("attributes"), problems)
    policy, scope, most = _manager(manifest.get("topologyPolicies"), attributes, problems)
    fingerprint, is_annotated = _fingerprint(metadata, attributes)
    return NodeResourceTopology(
        name=_text(metadata.get("name")),
        uid=_text(metadata.get("uid")),
        policy=policy,
        scope=scope,
        max_numa_nodes=most,
        cpu_manager_policy=_manager_policy(attributes, names.CPU_MANAGER_POLICY),
        memory_manager_policy=_manager_policy(attributes, names.MEMORY_MANAGER_POLICY),
        fingerprint=fingerprint,
        fingerprint_method=_first(attributes, names.FINGERPRINT_METHOD) or "",
        is_fingerprint_annotated=is_annotated,
        placement=_first(attributes, names.PLACEMENT_METADATA) or "",
        written_s=_written_s(metadata.get("managedFields")),
        zones=tuple(_zones(manifest.get("zones"), problems)),
        problems=tuple(problems.words),
    )


class _Problems:
    """A bounded list of faults: an object of a megabyte may hold ten thousand."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def add(self, text: str) -> None:
        if len(self.words) < _MOST_PROBLEMS:
            self.words.append(text)
        elif len(self.words) == _MOST_PROBLEMS:
            self.words.append("more faults are not listed")


def _manager(
    deprecated: object, attributes: Sequence[tuple[str, str]], problems: _Problems
) -> tuple[str, str, int]:
    """Return policy, scope and most zones: defaults, then the deprecated list, then attributes."""
    policy, scope, most = DEFAULT_POLICY, DEFAULT_SCOPE, DEFAULT_MAX_NUMA_NODES
    if isinstance(deprecated, list) and deprecated:
        policy, scope = _DEPRECATED.get(_text(deprecated[0]), (policy, scope))
    for name, value in attributes:
        if name == names.TOPOLOGY_POLICY:
            policy = _one_of(value, POLICIES, policy, name, problems)
        elif name == names.TOPOLOGY_SCOPE:
            scope = _one_of(value, SCOPES, scope, name, problems)
        elif name == names.TOPOLOGY_MAX_NUMA_NODES:
            if _INTEGER.fullmatch(value) and int(value) > 1:
                most = min(int(value), HIGHEST_MAX_NUMA_NODES)
            else:
                problems.add(
                    f'attributes[{name}]: expected a whole number above 1, found "{_cut(value)}"; '
                    f"{most} is used"
                )
    return policy, scope, most


def _one_of(value: str, known: Sequence[str], before: str, name: str, problems: _Problems) -> str:
    if value in known:
        return value
    problems.add(
        f'attributes[{name}]: expected one of {", ".join(known)}, found "{_cut(value)}"; '
        f"{before} is used"
    )
    return before


def _manager_policy(attributes: Sequence[tuple[str, str]], name: str) -> str | None:
    value = _first(attributes, name)
    return value.lower() if value in _MANAGERS else None


def _vector(value: object, at: str, problems: _Problems) -> str:
    attributes = _attributes(value, problems, f"{at}.attributes") if value else []
    return _first(attributes, names.PLACEMENT_VECTOR) or ""


def _attributes(
    value: object, problems: _Problems, at: str = "attributes"
) -> list[tuple[str, str]]:
    found = []
    for index, entry in enumerate(_list(value, at, problems)):
        it = _object(entry, f"{at}[{index}]", problems)
        found.append((_text(it.get("name")), _text(it.get("value"))))
    return found


def _first(attributes: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((value for key, value in attributes if key == name), None)


def _fingerprint(
    metadata: Mapping[str, Any], attributes: Sequence[tuple[str, str]]
) -> tuple[str, bool]:
    value = _first(attributes, names.FINGERPRINT)
    if value is not None:
        return value, False
    annotations = metadata.get("annotations")
    noted = annotations.get(names.FINGERPRINT_ANNOTATION) if isinstance(annotations, dict) else None
    return _text(noted), bool(noted)


def _written_s(managed: object) -> float | None:
    """Return when whoever writes the zones last wrote; others only touch labels and the like."""
    newest: float | None = None
    for entry in managed if isinstance(managed, list) else ():
        if not isinstance(entry, dict) or "f:zones" not in (entry.get("fieldsV1") or {}):
            continue
        try:
            at_s = datetime.fromisoformat(_text(entry.get("time"))).timestamp()
        except (ValueError, OverflowError):
            continue
        newest = at_s if newest is None else max(newest, at_s)
    return newest


def _zones(value: object, problems: _Problems) -> Iterator[TopologyZone]:
    seen: set[int] = set()
    for count, (at, zone) in enumerate(_walk(value, "zones", problems, depth=0)):
        if count >= _MOST_ZONES:
            problems.add(f"zones: more than {_MOST_ZONES}, the rest is not read")
            return
        # Sockets, cores and the like are legal, and nothing is aligned to them.
        if zone.get("type") != names.ZONE_TYPE:
            continue
        id_ = _zone_id(zone.get("name"))
        if id_ is None:
            problems.add(
                f"{at}.name: expected node-<0..{HIGHEST_ZONE_ID}>, "
                f'found "{_cut(_text(zone.get("name")))}"; the zone is ignored'
            )
        elif id_ in seen:
            problems.add(f"{at}.name: node-{id_} is there already; only the first is read")
        else:
            seen.add(id_)
            yield TopologyZone(
                id=id_,
                resources=_resources(zone.get("resources"), at, problems),
                costs=_costs(zone.get("costs"), at, problems),
                placement=_vector(zone.get("attributes"), at, problems),
            )


def _walk(
    value: object, at: str, problems: _Problems, *, depth: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield zones in the order of the object, and those that are nested in one after it."""
    for index, entry in enumerate(_list(value, at, problems)):
        place = f"{at}[{index}]"
        zone = _object(entry, place, problems)
        yield place, zone
        if zone.get("zones") and depth < _DEEPEST:
            yield from _walk(zone["zones"], f"{place}.zones", problems, depth=depth + 1)


def _zone_id(name: object) -> int | None:
    text = _text(name)
    if not text.startswith(names.ZONE_PREFIX):
        return None
    number = text[len(names.ZONE_PREFIX) :]
    if not _ZONE_ID.fullmatch(number):
        return None
    id_ = int(number)
    return id_ if 0 <= id_ <= HIGHEST_ZONE_ID else None


def _costs(value: object, at: str, problems: _Problems) -> dict[int, int]:
    found = {}
    for index, entry in enumerate(_list(value, f"{at}.costs", problems)):
        it = _object(entry, f"{at}.costs[{index}]", problems)
        id_, cost = _zone_id(it.get("name")), it.get("value")
        if id_ is None:
            continue
        if isinstance(cost, bool) or not isinstance(cost, int) or not 0 <= cost < 2**31:
            problems.add(f"{at}.costs[{index}].value: expected 0..2147483647, found {_show(cost)}")
            continue
        found[id_] = cost
    return found


def _resources(value: object, at: str, problems: _Problems) -> dict[str, Amounts]:
    """Return what a zone has; of more than fits `_MOST_BYTES` devices are left out first."""
    named: list[tuple[str, Mapping[str, Any]]] = []
    for index, entry in enumerate(_list(value, f"{at}.resources", problems)):
        it = _object(entry, f"{at}.resources[{index}]", problems)
        name = _text(it.get("name"))
        if name:
            named.append((name, it))
        else:
            problems.add(f"{at}.resources[{index}].name: missing, expected a resource's name")
    found: dict[str, Amounts] = {}
    left = _MOST_BYTES
    for name, it in sorted(named, key=lambda pair: "/" in pair[0]):
        amounts = _amounts(it, f"{at}.resources[{_cut(name)}]", problems)
        left -= _stored_bytes(name, amounts)
        if left < 0:
            problems.add(
                f"{at}.resources: more than {_MOST_BYTES} bytes of names and amounts, the rest is "
                "not read"
            )
            break
        found[name] = amounts
    return found


def _stored_bytes(name: str, amounts: Amounts) -> int:
    """Return about what a resource takes in an inventory, where its name stands three times."""
    texts = (amounts.capacity, amounts.allocatable, amounts.available)
    return sum(len(json.dumps(name)) + len(text) + 4 for text in texts)


def _amounts(it: Mapping[str, Any], at: str, problems: _Problems) -> Amounts:
    available, free = _quantity(it.get("available"), f"{at}.available", problems)
    # Only what is available is reckoned with; the others are told where they are known.
    allocatable, most = available, free
    if it.get("allocatable") is not None:
        allocatable, most = _quantity(it["allocatable"], f"{at}.allocatable", problems)
    capacity = allocatable
    if it.get("capacity") is not None:
        capacity, _ = _quantity(it["capacity"], f"{at}.capacity", problems)
    if free > most:
        problems.add(f"{at}: available {available} is above allocatable {allocatable}")
    return Amounts(capacity=capacity, allocatable=allocatable, available=available)


def _quantity(value: object, at: str, problems: _Problems) -> tuple[str, Fraction]:
    if value is None:
        problems.add(f"{at}: missing; taken as 0")
        return "0", Fraction(0)
    try:
        number = parse_quantity(value)
    except QuantityError as error:
        problems.add(f"{at}: {error}; taken as 0")
        return "0", Fraction(0)
    if number < 0:
        problems.add(f'{at}: "{value}" is negative; taken as 0')
        return "0", Fraction(0)
    return str(value), number


def _list(value: object, at: str, problems: _Problems) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return value
    problems.add(f"{at}: expected a list, found {type(value).__name__}")
    return ()


def _object(value: object, at: str, problems: _Problems) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    problems.add(f"{at}: expected an object, found {type(value).__name__}")
    return {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _show(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
