"""What a pod asks of a node, as kube-scheduler reckons it: amounts, labels, taints, host ports.

Pure reading of one pod. Amounts are whole numbers: cpu in millicores, everything else in units of
the resource (bytes, pieces), rounded up once at the end, so that three containers of 0.5m are 2m.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from berthmaster.api.names import NODE_NAME_FIELD
from berthmaster.api.objects import (
    Container,
    ContainerStatus,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    Pod,
    PodSpec,
    PodStatus,
    Quantity,
    Resources,
    Toleration,
)
from berthmaster.api.quantities import LIMIT, QuantityError, ceil, parse_quantity
from berthmaster.concerns.lifetimes import add, most_at_once, raise_to
from berthmaster.concerns.resources.label_selectors import Requirement
from berthmaster.concerns.resources.labels import to_integer
from berthmaster.concerns.resources.terms import Peer, Wishes, peer_basis, read_peer, read_wishes
from berthmaster.concerns.shape import Problem

CPU, MEMORY, PODS = "cpu", "memory", "pods"
ANY_IP = "0.0.0.0"  # noqa: S104 - compared with, never bound

# What kube-scheduler's score (not its filter) takes a container to use that does not say.
UNSTATED_CPU_MILLICORES = 100
UNSTATED_MEMORY_BYTES = 200 * 1024**2

_NANO = 10**9
_UNSTATED = {CPU: UNSTATED_CPU_MILLICORES * 10**6, MEMORY: UNSTATED_MEMORY_BYTES * _NANO}
# kube-scheduler's order of looking, which decides the reason that is told first.
_ORDER = {PODS: 0, CPU: 1, MEMORY: 2, "ephemeral-storage": 3}
_LABEL_OPERATORS = {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"}

_RESIZE_PENDING = "PodResizePending"
_USAGES_REMEMBERED = 16384
_REMEMBERED_BYTES = 2048

Nanos = dict[str, int]

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a pod takes on its node."""

    ip: str
    protocol: str
    number: int


# Many pods have one of their own, as their labels do: small, and nothing for the garbage collector.
class ResourcesUsage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a pod holds on its node, whoever placed it.

    `amounts` are (resource, amount > 0) in the order of `_ORDER`. `scored_cpu` (millicores) and
    `scored_memory` (bytes) are the same with the substitutes for containers that do not say. `peer` is
    what the pod is to others once it is on a node.
    """

    amounts: tuple[tuple[str, int], ...]
    scored_cpu: int
    scored_memory: int
    ports: tuple[Port, ...] = ()
    peer: Peer | None = None


_usages: dict[bytes, tuple[ResourcesUsage, tuple[Problem, ...]]] = {}
_holdings: dict[bytes, ResourcesUsage] = {}


@dataclass(frozen=True, slots=True)
class Term:
    """Requirements that must all hold."""

    labels: tuple[Requirement, ...]
    fields: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesRequest:
    """What a pod asks: its usage, and the nodes that it accepts.

    `terms` is None without required affinity. Terms that can match nothing (empty, or not valid)
    are left out, so `()` means that no node will do. A request with `problems` is refused everywhere.
    `wishes` are what depends on more than one node; a request without them is local to each row.
    """

    usage: ResourcesUsage
    selector: tuple[Requirement, ...] = ()
    terms: tuple[Term, ...] | None = None
    tolerations: tuple[Toleration, ...] = ()
    problems: tuple[Problem, ...] = ()
    wishes: Wishes | None = None


def read_request(pod: Pod) -> ResourcesRequest:
    """Return what the pod asks; its `problems` are the quantities that cannot be read."""
    usage, problems = read_usage(pod)
    affinity = pod.spec.affinity and pod.spec.affinity.node_affinity
    required = affinity.required if affinity else None
    selector = sorted((pod.spec.node_selector or {}).items())
    return ResourcesRequest(
        usage=usage,
        selector=tuple(Requirement(key, "In", (value,)) for key, value in selector),
        terms=None if required is None else read_terms(required.node_selector_terms or ()),
        tolerations=tuple(pod.spec.tolerations or ()),
        problems=problems,
        wishes=read_wishes(pod),
    )


def read_usage(pod: Pod) -> tuple[ResourcesUsage, tuple[Problem, ...]]:
    """Return what the pod holds on its node, and the quantities that cannot be read.

    Reckoned once for equal pods: those of a workload are, and so is a pod that only moves on.
    """
    basis = _basis(pod)
    return _read(basis, _encode(basis))


def read_holding(pod: Pod) -> ResourcesUsage:
    """Return what the pod holds on its node, and what it is to others there."""
    basis = _basis(pod)
    key = _encode(basis)
    whole_key = key + _encode(peer_basis(pod))
    found = _holdings.get(whole_key)
    if found is None:
        usage, _ = _read(basis, key)
        found = msgspec.structs.replace(usage, peer=read_peer(pod))
        if len(_holdings) >= _USAGES_REMEMBERED:
            _holdings.clear()
        if len(whole_key) <= _REMEMBERED_BYTES:
            _holdings[whole_key] = found
    return found


def _read(basis: Pod, key: bytes) -> tuple[ResourcesUsage, tuple[Problem, ...]]:
    found = _usages.get(key)
    if found is None:
        found = _reckon(basis)
        if len(_usages) >= _USAGES_REMEMBERED:
            _usages.clear()
        # A long one is reckoned each time, so that nobody can fill the memory with such.
        if len(key) <= _REMEMBERED_BYTES:
            _usages[key] = found
    return found


def _basis(pod: Pod) -> Pod:
    """Return the pod with nothing but what its usage depends on."""
    spec, status = pod.spec, pod.status
    return Pod(
        spec=PodSpec(
            containers=spec.containers,
            init_containers=spec.init_containers,
            overhead=spec.overhead,
            resources=spec.resources,
            host_network=spec.host_network,
        ),
        status=PodStatus(
            conditions=[it for it in status.conditions or () if it.type == _RESIZE_PENDING],
            container_statuses=status.container_statuses,
            init_container_statuses=status.init_container_statuses,
        ),
    )


def _reckon(pod: Pod) -> tuple[ResourcesUsage, tuple[Problem, ...]]:
    """Return usage and faults.

    For each resource

        total = max(largest step of initialisation, sidecars + containers) + overhead

    where a step is an init container with the sidecars started before it, and a request of the pod
    itself replaces the inner maximum. Worked: containers 1 + 1, sidecar 0.5, after it an init
    container of 3, overhead 0.1 -> max(3.5, 2.5) + 0.1 = 3.6 cpu.
    """
    reader = _Reader()
    uses = _Uses(pod, reader)
    plain = uses.total({})
    full = uses.total(_UNSTATED)
    uses.apply_pod_level(plain, full)
    overhead = reader.read(pod.spec.overhead, "spec.overhead")
    add(plain, overhead)
    add(full, overhead)
    plain[PODS] = _NANO
    amounts = ((name, to_amount(name, nanos)) for name, nanos in plain.items())
    usage = ResourcesUsage(
        amounts=tuple(sorted((it for it in amounts if it[1]), key=_by_order)),
        scored_cpu=to_amount(CPU, full.get(CPU, 0)),
        scored_memory=to_amount(MEMORY, full.get(MEMORY, 0)),
        ports=_ports(pod),
    )
    return usage, tuple(reader.problems)


def read_capacity(resources: Resources) -> dict[str, int]:
    """Return what a node offers; what cannot be read counts 0."""
    return {name: to_amount(name, nanos) for name, nanos in _Reader().read(resources, "").items()}


def to_amount(name: str, nanos: int) -> int:
    """Return billionths as the whole number kept for a resource, rounded up, at most `LIMIT`."""
    unit = 10**6 if name == CPU else _NANO
    return min(-(-nanos // unit), LIMIT)


class _Reader:
    """Reads quantities and collects the faults."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, resources: Resources | None, field: str) -> Nanos:
        found: Nanos = {}
        for name, quantity in (resources or {}).items():
            try:
                found[name] = _nanos(quantity)
            except QuantityError as error:
                found[name] = 0
                self.problems.append(Problem(field=f"{field}[{name}]", message=str(error)))
        return found


class _Uses:
    """What each container of a pod uses, in billionths."""

    def __init__(self, pod: Pod, reader: _Reader) -> None:
        self._pod = pod
        self._reader = reader
        self._infeasible = any(
            it.type == _RESIZE_PENDING and it.reason == "Infeasible"
            for it in pod.status.conditions or ()
        )
        self._granted = {
            it.name: it
            for it in (
                *(pod.status.init_container_statuses or ()),
                *(pod.status.container_statuses or ()),
            )
        }
        inits = pod.spec.init_containers or ()
        self._containers = self._read(pod.spec.containers or (), "spec.containers")
        self._inits = self._read(inits, "spec.initContainers")
        self._are_sidecars = [it.is_sidecar for it in inits]

    def total(self, unstated: Nanos) -> Nanos:
        """Return the containers' total; `unstated` stands in for requests that are missing."""
        uses = (
            *zip(self._inits, self._are_sidecars, strict=True),
            *((use, True) for use in self._containers),
        )
        total, _ = most_at_once(({**unstated, **use}, stays) for use, stays in uses)
        return total

    def apply_pod_level(self, *totals: Nanos) -> None:
        """Let the requests of the pod itself replace those of its containers."""
        resources = self._pod.spec.resources
        if resources is None:
            return
        stated = {name for use in (*self._containers, *self._inits) for name in use}
        requests = self._reader.read(resources.requests, "spec.resources.requests")
        limits = self._reader.read(resources.limits, "spec.resources.limits")
        defaults = {name: nanos for name, nanos in limits.items() if name not in stated}
        for name, nanos in {**defaults, **requests}.items():
            if name in (CPU, MEMORY) or name.startswith("hugepages-"):
                for total in totals:
                    total[name] = nanos

    def _read(self, containers: Iterable[Container], field: str) -> list[Nanos]:
        return [self._use(it, f"{field}[{index}]") for index, it in enumerate(containers)]

    def _use(self, container: Container, field: str) -> Nanos:
        use: Nanos = {}
        resources = container.resources
        if resources is not None:
            # The API server copies a limit to a request that is absent.
            use.update(self._reader.read(resources.limits, f"{field}.resources.limits"))
            use.update(self._reader.read(resources.requests, f"{field}.resources.requests"))
        status = self._granted.get(container.name)
        if status is not None:
            granted = _granted(status)
            if self._infeasible and granted:
                return granted
            raise_to(use, granted)
        return use


def _granted(status: ContainerStatus) -> Nanos:
    """Return what the kubelet gave or is giving, which in-place resize may leave off the spec."""
    reader = _Reader()
    granted = reader.read(status.allocated_resources, "")
    if status.resources is not None:
        raise_to(granted, reader.read(status.resources.requests, ""))
    return granted


def _nanos(quantity: Quantity) -> int:
    return _text_nanos(quantity if isinstance(quantity, str) else repr(quantity))


@lru_cache(maxsize=65536)
def _text_nanos(text: str) -> int:
    number = parse_quantity(text)
    if number < 0:
        raise QuantityError(f'"{text}" is negative, expected zero or more')
    return ceil(number * _NANO)


def _by_order(amount: tuple[str, int]) -> tuple[int, str]:
    name = amount[0]
    return _ORDER.get(name, len(_ORDER)), name


def _ports(pod: Pod) -> tuple[Port, ...]:
    """Return the host ports; on the host's network the API server makes every port one."""
    sidecars = (it for it in pod.spec.init_containers or () if it.is_sidecar)
    found = set()
    for container in (*(pod.spec.containers or ()), *sidecars):
        for port in container.ports or ():
            number = port.host_port or (port.container_port if pod.spec.host_network else 0)
            if number > 0:
                found.add(Port(port.host_ip or ANY_IP, port.protocol or "TCP", number))
    return tuple(sorted(found, key=lambda it: (it.number, it.protocol, it.ip)))


def read_terms(terms: Iterable[NodeSelectorTerm]) -> tuple[Term, ...]:
    """Return the terms that can match something."""
    found = []
    for term in terms:
        labels = tuple(map(_requirement, term.match_expressions or ()))
        fields = tuple(map(_requirement, term.match_fields or ()))
        valid = all(map(_is_valid_label, labels)) and all(map(_is_valid_field, fields))
        if (labels or fields) and valid:
            found.append(Term(labels, fields))
    return tuple(found)


def _requirement(it: NodeSelectorRequirement) -> Requirement:
    return Requirement(it.key, it.operator, tuple(it.values or ()))


def _is_valid_label(it: Requirement) -> bool:
    if it.operator in ("Exists", "DoesNotExist"):
        return not it.values
    if it.operator in ("Gt", "Lt"):
        return len(it.values) == 1 and to_integer(it.values[0]) is not None
    return it.operator in _LABEL_OPERATORS and bool(it.values)


def _is_valid_field(it: Requirement) -> bool:
    return it.key == NODE_NAME_FIELD and it.operator in ("In", "NotIn") and len(it.values) == 1
