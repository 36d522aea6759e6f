"""What a kubelet reads of a pod when it hands out CPUs, memory and devices.

Owns the QoS class and the sums over containers. Amounts are exact fractions by resource name; a
request that is missing is its limit, as the API server has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from fractions import Fraction
from typing import Any

import msgspec

from berthmaster.api.quantities import ceil, parse_quantity
from berthmaster_sandbox.world.numa_machines import CPU, HUGEPAGES_PREFIX, MEMORY

Amounts = Mapping[str, Fraction]
NOTHING: Amounts = {}
_QOS_RESOURCES = (CPU, MEMORY)


class Qos(Enum):
    """Name the QoS classes as Kubernetes does."""

    GUARANTEED = "Guaranteed"
    BURSTABLE = "Burstable"
    BEST_EFFORT = "BestEffort"


class Role(Enum):
    """Say when a container runs: before the others, from then on, or as one of the others."""

    INIT = "init"
    SIDECAR = "sidecar"
    APP = "app"


class ContainerView(msgspec.Struct, frozen=True, kw_only=True):
    """One container."""

    name: str
    role: Role
    requests: Amounts = NOTHING
    limits: Amounts = NOTHING

    @property
    def whole_cpus(self) -> int:
        """Return the CPUs it asks for, 0 when that is no whole number of them."""
        asked = self.requests.get(CPU, Fraction(0))
        return ceil(asked) if ceil(asked) * 1000 == ceil(asked * 1000) else 0


class PodView(msgspec.Struct, frozen=True, kw_only=True):
    """One pod; `containers` in the order of admission, and the pod-level amounts if there are any."""

    uid: str
    name: str
    namespace: str
    containers: tuple[ContainerView, ...]
    qos: Qos
    version: str = ""
    node: str = ""
    phase: str = ""
    created: str = ""
    is_going: bool = False
    overhead: Amounts = NOTHING
    pod_level: Amounts | None = None

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def is_finished(self) -> bool:
        """Return whether it will never run again."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def is_pinned(self) -> bool:
        """Return whether the CPU and memory managers care: Guaranteed, and no pod-level amounts."""
        return self.qos is Qos.GUARANTEED and self.pod_level is None

    def effective(self, amounts_of: Mapping[str, Amounts]) -> dict[str, Fraction]:
        """Return what the pod takes at the most at one time, from amounts by container name.

        Sidecars run with the apps and with every init container after them.
        """
        staying: dict[str, Fraction] = {}
        peak: dict[str, Fraction] = {}
        for container in self.containers:
            amounts = amounts_of[container.name]
            if container.role is Role.INIT:
                _raise(peak, {name: staying.get(name, 0) + it for name, it in amounts.items()})
            else:
                for name, amount in amounts.items():
                    staying[name] = staying.get(name, Fraction(0)) + amount
        _raise(peak, staying)
        return peak

    def node_request(self) -> dict[str, Fraction]:
        """Return what the pod counts for on a node as a whole."""
        total = self.effective({it.name: it.requests for it in self.containers})
        total.update(self.pod_level or {})
        for name, amount in self.overhead.items():
            total[name] = total.get(name, Fraction(0)) + amount
        return total


def _raise(peak: dict[str, Fraction], amounts: Mapping[str, Fraction]) -> None:
    for name, amount in amounts.items():
        peak[name] = max(peak.get(name, Fraction(0)), amount)


class _Resources(msgspec.Struct):
    requests: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None


class _Container(msgspec.Struct, rename="camel"):
    name: str
    resources: _Resources | None = None
    restart_policy: str | None = None


class _Spec(msgspec.Struct, rename="camel"):
    containers: list[_Container]
    init_containers: list[_Container] | None = None
    node_name: str = ""
    overhead: dict[str, Any] | None = None
    resources: _Resources | None = None


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    qos_class: str | None = None


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: _Spec
    status: _Status = msgspec.field(default_factory=_Status)


_POD = msgspec.json.Decoder(_Pod)


def decode_pod(raw: bytes) -> PodView:
    """Read a pod; raises `msgspec.DecodeError` or `QuantityError` on what is none."""
    return _view(_POD.decode(raw))


def read_pod(manifest: Mapping[str, Any]) -> PodView:
    """Read a pod as JSON data; raises `msgspec.ValidationError` or `QuantityError`."""
    return _view(msgspec.convert(manifest, _Pod))


def _view(pod: _Pod) -> PodView:
    meta, spec = pod.metadata, pod.spec
    containers = tuple(
        [
            _container(it, Role.SIDECAR if it.restart_policy == "Always" else Role.INIT)
            for it in spec.init_containers or ()
        ]
        + [_container(it, Role.APP) for it in spec.containers]
    )
    limits = _amounts(spec.resources.limits if spec.resources is not None else None)
    requests = limits | _amounts(spec.resources.requests if spec.resources is not None else None)
    has_pod_level = bool(_compute(requests) or _compute(limits))
    qos = (
        Qos(pod.status.qos_class)
        if pod.status.qos_class
        else _classify([(requests, limits)] if has_pod_level else _pairs(containers))
    )
    return PodView(
        uid=meta.uid,
        name=meta.name,
        namespace=meta.namespace,
        containers=containers,
        qos=qos,
        version=meta.resource_version,
        node=spec.node_name,
        phase=pod.status.phase,
        created=meta.creation_timestamp or "",
        is_going=meta.deletion_timestamp is not None,
        overhead=_amounts(spec.overhead),
        pod_level=_compute(requests) if has_pod_level else None,
    )


def _container(container: _Container, role: Role) -> ContainerView:
    resources = container.resources or _Resources()
    limits = _amounts(resources.limits)
    requests = limits | _amounts(resources.requests)
    return ContainerView(name=container.name, role=role, requests=requests, limits=limits)


def _amounts(said: Mapping[str, Any] | None) -> dict[str, Fraction]:
    return {name: parse_quantity(value) for name, value in (said or {}).items()}


def _compute(amounts: Amounts) -> dict[str, Fraction]:
    return {
        name: amount
        for name, amount in amounts.items()
        if name in _QOS_RESOURCES or name.startswith(HUGEPAGES_PREFIX)
    }


def _pairs(containers: Iterable[ContainerView]) -> list[tuple[Amounts, Amounts]]:
    return [(it.requests, it.limits) for it in containers]


def _classify(pairs: Iterable[tuple[Amounts, Amounts]]) -> Qos:
    requested: dict[str, Fraction] = {}
    limited: dict[str, Fraction] = {}
    is_capped = True
    for requests, limits in pairs:
        for name in _QOS_RESOURCES:
            requested[name] = requested.get(name, Fraction(0)) + requests.get(name, 0)
            limited[name] = limited.get(name, Fraction(0)) + limits.get(name, 0)
            is_capped = is_capped and limits.get(name, 0) > 0
    if not any(requested.values()) and not any(limited.values()):
        return Qos.BEST_EFFORT
    return Qos.GUARANTEED if is_capped and requested == limited else Qos.BURSTABLE
