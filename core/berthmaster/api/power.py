"""What both generations of WAO publish about a node's power: labels, NodeConfig, NodeConfigTemplate, metrics.

v1 keeps a node's configuration in its labels (`LabelConfig`), v2 in NodeConfig objects of two API groups,
which differ in nothing else. All of it is read leniently: what cannot be understood is left out and named in
`problems`, with what was expected. Secrets are named, never read here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.quantities import MOST_NANOCORES, QuantityError, parse_nanocores
from berthmaster.api.schema import LabelSelector

DEFAULT_FETCH_INTERVAL_S = 15.0

_GO_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?(?:h|ms|us|µs|ns|m|s))+")
_GO_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(h|ms|us|µs|ns|m|s)")
_GO_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LONGEST_TEXT = 2048
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointTerm:
    """Where something is asked for; `type` says in which language."""

    type: str = ""
    endpoint: str = ""
    # None: no secret is named.
    secret: str | None = None
    # As written; None: absent.
    fetch_interval: str | None = None

    @property
    def fetch_interval_s(self) -> float:
        """Return how often to ask, at least every second and at most once a day apart."""
        seconds = parse_go_duration_s(self.fetch_interval or "")
        return DEFAULT_FETCH_INTERVAL_S if seconds is None else min(max(seconds, 1.0), 86400.0)

    def to_manifest(self) -> dict[str, Any]:
        """Return the term as it stands in a NodeConfig."""
        manifest: dict[str, Any] = {"type": self.type, "endpoint": self.endpoint}
        if self.secret is not None:
            manifest["basicAuthSecret"] = {"name": self.secret}
        if self.fetch_interval is not None:
            manifest["fetchInterval"] = self.fetch_interval
        return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfigTerms:
    """The four endpoints of a NodeConfig; the predictor's may be absent."""

    inlet_temp: EndpointTerm = EndpointTerm()
    delta_p: EndpointTerm = EndpointTerm()
    power: EndpointTerm | None = None
    provider: EndpointTerm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """A NodeConfig of either group, stored or made from a template."""

    namespace: str
    name: str
    node_name: str
    api_version: str = names.WAO_API_VERSIONS[0]
    uid: str = ""
    created: str = ""
    terms: NodeConfigTerms = NodeConfigTerms()
    problems: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[str, str, str]:
        """Return what tells which of several for one node counts: the oldest, then by name."""
        return (self.created, self.namespace, self.name)

    def to_manifest(self) -> dict[str, Any]:
        """Return the object as upstream's controller would write it."""
        predictor = {}
        if self.terms.power is not None:
            predictor["powerConsumption"] = self.terms.power.to_manifest()
        if self.terms.provider is not None:
            predictor["powerConsumptionEndpointProvider"] = self.terms.provider.to_manifest()
        return {
            "apiVersion": self.api_version,
            "kind": "NodeConfig",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "nodeName": self.node_name,
                "metricsCollector": {
                    "inletTemp": self.terms.inlet_temp.to_manifest(),
                    "deltaP": self.terms.delta_p.to_manifest(),
                },
                "predictor": predictor,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfigTemplate:
    """NodeConfigs for all nodes that a selector selects; `selector` None selects none."""

    namespace: str
    name: str
    api_version: str = names.WAO_API_VERSIONS[0]
    uid: str = ""
    created: str = ""
    selector: LabelSelector | None = None
    terms: NodeConfigTerms = NodeConfigTerms()
    problems: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[str, str, str]:
        """Return what tells which of several for one node counts: the oldest, then by name."""
        return (self.created, self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerNode:
    """What power reads of a Node. `address` is its first InternalIP, of whatever family."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    capacity_nanocores: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """v1's configuration of a node: which model, and the range of each temperature in deg C.

    `ranges` has only those that can be used; what is wrong with the others is in `problems`.
    """

    host: str | None = None
    port: str | None = None
    model: str | None = None
    version: int | None = None
    signature: str | None = None
    # None: as the port says.
    scheme: str | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def is_present(self) -> bool:
        """Return whether the node carries any of v1's labels."""
        return any((self.host, self.port, self.model, self.ranges))


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUsage:
    """A node's or pod's CPU usage, when it was sampled, and the time that it is an average over."""

    nanocores: int
    sampled_s: float
    window_s: float


def node_config_from_manifest(manifest: Mapping[str, Any]) -> NodeConfig:
    """Read a NodeConfig of either group; never raises on odd content."""
    metadata = _object(manifest.get("metadata"))
    spec = _object(manifest.get("spec"))
    node_name = _text(spec.get("nodeName"))
    terms, problems = _terms(spec, "spec")
    if not node_name:
        problems.insert(0, "spec.nodeName: missing, expected the name of a Node")
    return NodeConfig(
        namespace=_text(metadata.get("namespace")),
        name=_text(metadata.get("name")),
        node_name=node_name,
        api_version=_text(manifest.get("apiVersion")),
        uid=_text(metadata.get("uid")),
        created=_text(metadata.get("creationTimestamp")),
        terms=terms,
        problems=tuple(problems),
    )


def template_from_manifest(manifest: Mapping[str, Any]) -> NodeConfigTemplate:
    """Read a NodeConfigTemplate of either group; never raises on odd content."""
    metadata = _object(manifest.get("metadata"))
    spec = _object(manifest.get("spec"))
    terms, problems = _terms(_object(spec.get("template")), "spec.template")
    selector: LabelSelector | None = None
    try:
        selector = LabelSelector.model_validate(spec.get("nodeSelector") or {})
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        problems.insert(0, f"spec.nodeSelector.{place}: {fault['msg']}; no node is selected")
    return NodeConfigTemplate(
        namespace=_text(metadata.get("namespace")),
        name=_text(metadata.get("name")),
        api_version=_text(manifest.get("apiVersion")),
        uid=_text(metadata.get("uid")),
        created=_text(metadata.get("creationTimestamp")),
        selector=selector,
        terms=terms,
        problems=tuple(problems),
    )


def power_node_from_manifest(manifest: Mapping[str, Any]) -> PowerNode:
    """Read a Node; never raises on odd content."""
    metadata, status = _object(manifest.get("metadata")), _object(manifest.get("status"))
    labels = _object(metadata.get("labels"))
    addresses = (_object(it) for it in _list(status.get("addresses")))
    internal = (_text(it.get("address")) for it in addresses if it.get("type") == "InternalIP")
    return PowerNode(
        name=_text(metadata.get("name")),
        labels={key: it for key, it in labels.items() if isinstance(it, str)},
        address=next(internal, ""),
        capacity_nanocores=read_nanocores(_object(status.get("capacity"))),
    )


def label_config_of(labels: Mapping[str, str]) -> LabelConfig:
    """Read v1's labels of a node; a bad version is ignored, as upstream does."""
    ranges: dict[str, tuple[float, float]] = {}
    problems: list[str] = []
    for sensor in names.WAO_TEMPERATURES:
        texts = [labels.get(f"{sensor}/{end}") for end in ("min", "max")]
        if texts == [None, None]:
            continue
        numbers = [_number(text) for text in texts]
        if None in texts:
            missing = f"{sensor}/{'min' if texts[0] is None else 'max'}"
            problems.append(f"label {missing}: missing, expected degrees Celsius")
        elif numbers[0] is None or numbers[1] is None:
            end = "min" if numbers[0] is None else "max"
            text = texts[0] if numbers[0] is None else texts[1]
            problems.append(f'label {sensor}/{end}: found "{text}", expected degrees Celsius')
        elif numbers[0] == numbers[1]:
            problems.append(f"labels {sensor}/min and {sensor}/max: both are {texts[0]}")
        else:
            ranges[sensor] = (numbers[0], numbers[1])
    version = labels.get(names.WAO_MODEL_VERSION)
    given = {key: labels.get(key) for key in names.WAO_PREDICTOR}
    missing_keys = [key for key, value in given.items() if not value]
    if 0 < len(missing_keys) < len(given):
        problems.append(f"label(s) {', '.join(missing_keys)}: missing, all three are needed")
    return LabelConfig(
        host=given[names.WAO_HOST],
        port=given[names.WAO_PORT],
        model=given[names.WAO_MODEL],
        version=int(version) if version and _INTEGER.fullmatch(version) else None,
        signature=labels.get(names.WAO_MODEL_SIGNATURE),
        scheme=labels.get(names.TENSORFLOW_SCHEME) or None,
        ranges=ranges,
        problems=tuple(problems),
    )


def node_of_metrics(manifest: Mapping[str, Any]) -> str:
    """Return the Node that a NodeMetrics is of, empty where it has no name."""
    return _text(_object(manifest.get("metadata")).get("name"))


def usage_from_metrics(manifest: Mapping[str, Any]) -> CpuUsage | None:
    """Read a NodeMetrics or PodMetrics of `metrics.k8s.io`; None where it has no usage or no time."""
    containers = manifest.get("containers")
    parts = [manifest] if containers is None else _list(containers)
    usages = [_nanocores(_object(_object(it).get("usage"))) for it in parts]
    known = [usage for usage in usages if usage is not None]
    sampled_s = parse_time_s(manifest.get("timestamp"))
    if sampled_s is None or not known or len(known) < len(usages):
        return None
    window_s = parse_go_duration_s(_text(manifest.get("window")))
    return CpuUsage(
        nanocores=min(sum(known), MOST_NANOCORES),
        sampled_s=sampled_s,
        window_s=min(max(window_s or 0.0, 0.0), 3600.0),
    )


def read_nanocores(resources: Mapping[str, Any] | None) -> int:
    """Return the CPU among resources, 0 where there is none that can be read."""
    return _nanocores(resources or {}) or 0


def parse_go_duration_s(text: str) -> float | None:
    """Return the seconds of a Go duration such as `1m30s` or `500ms`; None for what is none."""
    if len(text) > 64 or not _GO_DURATION.fullmatch(text):
        return None
    return sum(float(number) * _GO_UNITS_S[unit] for number, unit in _GO_PART.findall(text))


def parse_time_s(value: object) -> float | None:
    """Return a timestamp in seconds since the epoch; None for what is none."""
    try:
        return datetime.fromisoformat(_text(value)).timestamp()
    except (ValueError, OverflowError):
        return None


def parse_share(value: float) -> Fraction:
    """Return a share that people write as a decimal number, exactly: 0.3 is 3/10."""
    return Fraction(str(value)).limit_denominator(10**6)


def _terms(spec: Mapping[str, Any], at: str) -> tuple[NodeConfigTerms, list[str]]:
    problems: list[str] = []
    collector = _object(spec.get("metricsCollector"))
    predictor = _object(spec.get("predictor"))
    found = {
        "inlet_temp": _term(collector, "inletTemp", f"{at}.metricsCollector", problems),
        "delta_p": _term(collector, "deltaP", f"{at}.metricsCollector", problems),
        "power": _term(predictor, "powerConsumption", f"{at}.predictor", problems),
        "provider": _term(
            predictor, "powerConsumptionEndpointProvider", f"{at}.predictor", problems
        ),
    }
    present = {key: term for key, term in found.items() if term is not None}
    return replace(NodeConfigTerms(), **present), problems


def _term(parent: Mapping[str, Any], key: str, at: str, problems: list[str]) -> EndpointTerm | None:
    value = parent.get(key)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        problems.append(f"{at}.{key}: expected an object, found {type(value).__name__}")
        return None
    secret = value.get("basicAuthSecret")
    interval = value.get("fetchInterval")
    if interval is not None and parse_go_duration_s(_text(interval)) is None:
        problems.append(
            f"{at}.{key}.fetchInterval: expected a duration such as 15s, found {interval!r:.60}; "
            f"{DEFAULT_FETCH_INTERVAL_S:g}s is used"
        )
    return EndpointTerm(
        type=_text(value.get("type")),
        endpoint=_text(value.get("endpoint")),
        secret=_text(_object(secret).get("name")) if secret is not None else None,
        fetch_interval=_text(interval) if interval is not None else None,
    )


def _nanocores(resources: Mapping[str, Any]) -> int | None:
    try:
        return parse_nanocores(resources.get("cpu"))
    except QuantityError:
        return None


def _number(text: str | None) -> float | None:
    # Python takes `1_0` for a number, Go does not.
    if text is None or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""
