"""What a pod asks of NUMA zones, container by container, and what it holds exclusively.

The kubelet aligns cpu, memory and hugepages of Guaranteed pods and the devices of any pod. A pod
that has neither asks nothing here and costs nothing. Amounts are those of `amounts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import dropwhile
from typing import Any, NamedTuple

import msgspec

from berthmaster.api import names
from berthmaster.api.objects import Container, Pod, Resources
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.numa import (
    NumaSettings,
    NumaStrategy,
    RestrictedPolicy,
    WhenMissing,
    WhenStale,
)
from berthmaster.concerns.lifetimes import add, most_at_once, raise_to
from berthmaster.concerns.numa.amounts import (
    CPU,
    CPU_SCALE,
    MEMORY,
    is_affine,
    is_extended,
    is_memory,
    read_offer,
    read_request,
)
from berthmaster.concerns.shape import InvalidRequestError, Problem

GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"
INIT, SIDECAR, APP = "init", "sidecar", "app"
STRICT, PREFER, IGNORE = "strict", "prefer", "ignore"
_MODES = (STRICT, PREFER, IGNORE)
_FIELD = f"metadata.annotations[{names.NUMA}]"

_PODS_REMEMBERED = 16384
# What is longer is read each time, so that nobody can fill the memory with such.
_REMEMBERED_BYTES = 4096
_ZONE_ID = re.compile(r"[0-9]{1,4}")
_SHAPES = 2**62

Amounts = tuple[tuple[str, int], ...]
_encode = msgspec.msgpack.Encoder().encode


class ContainerAsk(NamedTuple):
    """One container: its amounts by resource name, in the order of the names, zeros included."""

    name: str
    kind: str
    amounts: Amounts


class NumaRequest(NamedTuple):
    """What a pod asks.

    `containers` are the init containers in order, then the others. `pod` is the whole pod's
    effective request, for the scope pod. `resources` are the names in them. `aligned` and
    `aligned_pod` are what the kubelet itself aligns of them; upstream (`is_literal`) has zones give all.
    """

    is_guaranteed: bool
    resources: tuple[str, ...]
    containers: tuple[ContainerAsk, ...]
    pod: Amounts
    aligned: tuple[ContainerAsk, ...]
    aligned_pod: Amounts
    # What init containers hold beyond what the others use again, until the pod goes.
    left: Amounts
    has_pod_resources: bool
    strategy: NumaStrategy
    weights: tuple[tuple[str, int], ...]
    mode: str
    is_strict_upstream: bool
    is_literal: bool
    when_missing: WhenMissing
    when_stale: WhenStale
    restricted: RestrictedPolicy
    aligned_resources: tuple[str, ...]


class NumaUsage(NamedTuple):
    """What a pod holds on its node.

    `zones` is what we gave it, by zone id; None where somebody else placed it, and then its zones
    are predicted from `containers`, what each holds exclusively. `left` is what init containers hold
    beyond that, which no updater reports; `anchor` is what is held in their zone for certain. `reserved`
    is the whole pod's effective request, which upstream's cache takes off, by Kubernetes' rule and by
    upstream's. `coming` is the pod's shape as long as its kubelet has not taken it, afterwards 0.
    """

    containers: tuple[Amounts, ...]
    left: Amounts
    anchor: Amounts
    # The most memory of each kind that has to come together: in scope container, in scope pod.
    together: tuple[Amounts, Amounts]
    zones: tuple[tuple[int, Amounts], ...] | None
    reserved: tuple[Amounts, Amounts] | None
    is_bound: bool
    coming: int = 0


class _Reading(NamedTuple):
    """What a pod's spec says; equal for equal pods, and so reckoned once."""

    qos: str
    names_device: bool
    containers: tuple[ContainerAsk, ...]
    aligned: tuple[ContainerAsk, ...]
    aligned_pod: Amounts
    left: Amounts
    anchor: Amounts
    together: tuple[Amounts, Amounts]
    held: tuple[Amounts, ...]
    # By Kubernetes' rule and by upstream's.
    totals: tuple[Amounts, Amounts]
    resources: tuple[str, ...]


_readings: dict[bytes, _Reading] = {}


def read_pod(pod: Pod, policy: PlacementPolicySpec) -> NumaRequest | None:
    """Return what the pod asks, None if the kubelet aligns nothing of it.

    Raises:
        InvalidRequestError: the annotation is none of strict, prefer, ignore.
    """
    settings = policy.concerns.numa
    mode = pod.annotations.get(names.NUMA, "")
    if mode == IGNORE:
        return None
    _check(mode)
    found = _reading(pod)
    if found.qos == BEST_EFFORT and not found.names_device:
        return None
    # Upstream has every pod with requests look for zones that list them, aligned or not.
    if found.qos != GUARANTEED and not found.names_device and not _is_literal(settings):
        return None
    is_strict = settings.strict_upstream
    return NumaRequest(
        is_guaranteed=found.qos == GUARANTEED,
        resources=found.resources,
        containers=found.containers,
        pod=found.totals[1 if is_strict else 0],
        aligned=found.aligned,
        aligned_pod=found.aligned_pod,
        left=found.left,
        has_pod_resources=pod.spec.resources is not None and not is_strict,
        strategy=settings.scoring_strategy.type,
        weights=_weights(settings),
        mode=mode,
        is_strict_upstream=is_strict,
        is_literal=_is_literal(settings),
        when_missing=settings.when_missing,
        when_stale=settings.when_stale,
        restricted=_restricted(settings),
        aligned_resources=settings.aligned_resources,
    )


def read_usage(pod: Pod, allocated: Mapping[str, Any] | None) -> NumaUsage | None:
    """Return what the pod holds exclusively; never raises."""
    found = _reading(pod)
    if not found.held and not found.left and not allocated:
        return None
    is_ours = allocated is not None and isinstance(allocated.get("zones"), Mapping)
    return NumaUsage(
        containers=found.held,
        left=found.left,
        anchor=found.anchor,
        together=found.together,
        zones=_read_zones(allocated) if found.held or found.left else (),
        reserved=found.totals if is_ours else None,
        is_bound=bool(pod.spec.node_name),
        # The kubelet sets the start once it has taken the pod.
        coming=0 if pod.status.start_time else shape_of(found.aligned),
    )


def shape_of(aligned: Iterable[ContainerAsk]) -> int:
    """Return a number above 0 that is the same for pods of which kubelets align the same."""
    return hash(tuple((it.kind, it.amounts) for it in aligned)) % _SHAPES + 1


def _reading(pod: Pod) -> _Reading:
    spec = pod.spec
    key = _encode(
        (
            spec.containers,
            spec.init_containers,
            spec.overhead,
            spec.resources,
            pod.status.qos_class,
        )
    )
    found = _readings.get(key)
    if found is None:
        found = _read_spec(pod)
        if len(_readings) >= _PODS_REMEMBERED:
            _readings.clear()
        if len(key) <= _REMEMBERED_BYTES:
            _readings[key] = found
    return found


def _read_spec(pod: Pod) -> _Reading:
    qos = qos_class(pod)
    has_pod_resources = pod.spec.resources is not None
    containers = _containers(pod)
    aligned = tuple(
        it._replace(amounts=exclusive(it.amounts, qos == GUARANTEED, has_pod_resources))
        for it in containers
    )
    totals = (effective_request(pod), effective_request(pod, is_upstream=True))
    named = {name for it in containers for name, _ in it.amounts}
    return _Reading(
        qos=qos,
        names_device=_names_device(pod),
        containers=containers,
        aligned=tuple(it for it in aligned if it.amounts),
        aligned_pod=_aligned_pod(aligned),
        left=_left(aligned),
        anchor=_anchor(aligned),
        together=_together(aligned),
        held=tuple(it.amounts for it in aligned if it.amounts and it.kind != INIT),
        totals=totals,
        resources=tuple(sorted(named.union(*(dict(it) for it in totals)))),
    )


def exclusive(amounts: Amounts, is_guaranteed: bool, has_pod_resources: bool) -> Amounts:
    """Return what a container holds alone: whole CPUs, memory, hugepages and devices.

    A fraction of a CPU comes from the shared pool, as do all CPUs of pods that are not Guaranteed
    and of those with requests of their own level.
    """
    is_pinned = is_guaranteed and not has_pod_resources
    return tuple(
        (resource, amount)
        for resource, amount in amounts
        if amount
        and (
            is_extended(resource)
            or (is_pinned and is_affine(resource) and not is_fraction(resource, amount))
        )
    )


def _aligned_pod(containers: Iterable[ContainerAsk]) -> Amounts:
    """Return what a kubelet with scope pod looks for: the most that is held at any time.

    Of memory and hugepages only the kinds that the app containers ask for, as the kubelet has it.
    """
    of_apps = {name for it in containers if it.kind == APP for name, _ in it.amounts}
    peak, _ = _peak(containers)
    return _sorted(
        {name: it for name, it in peak.items() if not is_memory(name) or name in of_apps}
    )


def _left(containers: Sequence[ContainerAsk]) -> Amounts:
    """Return what init containers hold beyond what the other containers use again of it.

    Of CPUs perhaps a few less: the kubelet prefers whole cores, and single CPUs of cores that others have
    begun, so that two containers of odd and even numbers share one CPU less.
    """
    peak, staying = _peak(containers)
    left = {name: amount - staying.get(name, 0) for name, amount in peak.items()}
    counts = [(it.kind, dict(it.amounts).get(CPU, 0) // CPU_SCALE) for it in containers]
    counts = list(dropwhile(lambda it: it[0] != INIT, (it for it in counts if it[1])))
    if counts:
        first, later = counts[0][1], [count for _, count in counts[1:]]
        odd = sum(count % 2 for count in later)
        strays = odd if len(later) > 1 else 0
        strays += any(count % 2 != first % 2 for count in later)
        apart = sum(count for kind, count in counts if kind == INIT) * CPU_SCALE
        left[CPU] = min(left[CPU] + strays * CPU_SCALE, apart)
    return _sorted({name: amount for name, amount in left.items() if amount})


def _anchor(containers: Sequence[ContainerAsk]) -> Amounts:
    """Return what the first container holds that must come to an init container's zone, if one must.

    CPUs and devices that an init container had bind whoever asks for the same.
    """
    had: set[str] = set()
    for it in containers:
        names_ = {name for name, _ in it.amounts if not is_memory(name)}
        if it.kind == INIT:
            had |= names_
        elif had & names_:
            return it.amounts
    return ()


def _together(containers: Sequence[ContainerAsk]) -> tuple[Amounts, Amounts]:
    most: dict[str, int] = {}
    for it in containers:
        raise_to(most, dict(it.amounts))
    whole, _ = _peak(containers)
    of_container, of_pod = (
        _sorted({name: amount for name, amount in it.items() if is_memory(name)})
        for it in (most, whole)
    )
    return of_container, of_pod


def _peak(containers: Iterable[ContainerAsk]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the most that is held at any time, and what is held in the end."""
    return most_at_once((dict(it.amounts), it.kind != INIT) for it in containers)


def qos_class(pod: Pod) -> str:
    """Return the pod's QoS class, reckoned where the API server has not said it."""
    if pod.status.qos_class:
        return pod.status.qos_class
    own = pod.spec.resources
    if own is not None:
        sides = [(own.requests, own.limits)]
    else:
        containers = (*(pod.spec.init_containers or ()), *(pod.spec.containers or ()))
        sides = [
            (it.resources.requests, it.resources.limits) if it.resources else (None, None)
            for it in containers
        ]
    requests: dict[str, int] = {}
    limits: dict[str, int] = {}
    is_limited = True
    for asked, limited in sides:
        some_limits = _nonzero(limited)
        is_limited &= len(some_limits) == 2
        for resource, amount in _nonzero({**(limited or {}), **(asked or {})}).items():
            requests[resource] = requests.get(resource, 0) + amount
        for resource, amount in some_limits.items():
            limits[resource] = limits.get(resource, 0) + amount
    if not requests and not limits:
        return BEST_EFFORT
    return GUARANTEED if is_limited and requests == limits else BURSTABLE


def effective_request(pod: Pod, *, is_upstream: bool = False) -> Amounts:
    """Return the whole pod's request: the most it uses at any time, plus overhead.

    Upstream counts restartable init containers as ordinary ones and knows no requests of the pod
    itself.
    """
    total, _ = most_at_once(
        (
            *(
                (_asked(it), it.is_sidecar and not is_upstream)
                for it in pod.spec.init_containers or ()
            ),
            *((_asked(it), True) for it in pod.spec.containers or ()),
        )
    )
    own = pod.spec.resources
    if own is not None and not is_upstream:
        stated = _read({**(own.limits or {}), **(own.requests or {})})
        total.update({name: amount for name, amount in stated.items() if is_affine(name)})
    add(total, _read(pod.spec.overhead))
    return _sorted(total)


def holds_exclusive(pod: Pod) -> tuple[bool, tuple[str, ...]]:
    """Return whether the pod holds cpu, memory or hugepages alone, and which devices it names.

    As upstream's fingerprints have it: a Guaranteed pod always does, by its memory.
    """
    native = False
    devices: set[str] = set()
    is_guaranteed = qos_class(pod) == GUARANTEED
    for container in _containers(pod):
        if container.kind == INIT:
            continue
        for resource, amount in container.amounts:
            if is_extended(resource):
                devices.add(resource)
            elif is_guaranteed and amount and is_affine(resource):
                native |= not is_fraction(resource, amount)
    return native, tuple(sorted(devices))


def is_aligned(request: NumaRequest, resource: str) -> bool:
    """Return whether the kubelet may align this resource of this pod, whatever the node says."""
    if not is_affine(resource) or request.is_strict_upstream:
        return True
    if request.has_pod_resources or not request.is_guaranteed:
        return False
    return not request.aligned_resources or resource in request.aligned_resources


def is_fraction(resource: str, amount: int) -> bool:
    """Return whether an amount of CPUs is no whole number of them."""
    return resource == CPU and amount % CPU_SCALE != 0


def _restricted(settings: NumaSettings) -> RestrictedPolicy:
    """Return what is done about restricted kubelets; unsaid, what the rest of the settings goes by."""
    if settings.restricted is not None:
        return settings.restricted
    return RestrictedPolicy.PASS if _is_literal(settings) else RestrictedPolicy.PREDICT


def _is_literal(settings: NumaSettings) -> bool:
    """Return whether the zones are judged as upstream does, not as the kubelet will."""
    return settings.is_upstream or settings.strict_upstream


def _check(mode: str) -> None:
    if mode and mode not in _MODES:
        message = f'expected one of {", ".join(_MODES)}, found "{mode[:40]}"'
        raise InvalidRequestError(Problem(field=_FIELD, message=message))


def _weights(settings: NumaSettings) -> tuple[tuple[str, int], ...]:
    listed = settings.scoring_strategy.resources
    return tuple(sorted((it.name, max(1, it.weight)) for it in listed))


def _names_device(pod: Pod) -> bool:
    return any(
        is_extended(resource)
        for container in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))
        if container.resources is not None
        for side in (container.resources.requests, container.resources.limits)
        for resource in side or ()
    )


def _containers(pod: Pod) -> tuple[ContainerAsk, ...]:
    found = [
        ContainerAsk(it.name, SIDECAR if it.is_sidecar else INIT, _sorted(_asked(it)))
        for it in pod.spec.init_containers or ()
    ]
    found += [ContainerAsk(it.name, APP, _sorted(_asked(it))) for it in pod.spec.containers or ()]
    return tuple(found)


def _asked(container: Container) -> dict[str, int]:
    resources = container.resources
    if resources is None:
        return {}
    # The API server copies a limit to a request that is absent.
    return _read({**(resources.limits or {}), **(resources.requests or {})})


def _read(resources: Resources | None) -> dict[str, int]:
    return {name: read_request(name, quantity) for name, quantity in (resources or {}).items()}


def _nonzero(resources: Resources | None) -> dict[str, int]:
    found = {name: it for name, it in (resources or {}).items() if name in (CPU, MEMORY)}
    return {name: amount for name, amount in _read(found).items() if amount}


def _sorted(amounts: Mapping[str, int]) -> Amounts:
    return _intern(tuple(sorted(amounts.items())))


@lru_cache(maxsize=4096)
def _intern(amounts: Amounts) -> Amounts:
    return amounts


def _read_zones(
    allocated: Mapping[str, Any] | None,
) -> tuple[tuple[int, Amounts], ...] | None:
    """Return the zones of an allocation; None where they are not to be had from it."""
    zones = allocated.get("zones") if allocated else None
    if not isinstance(zones, Mapping):
        return None
    found = []
    for id_, amounts in zones.items():
        # An allocation that was forged before our policies were there may hold anything.
        if not (_ZONE_ID.fullmatch(id_) and isinstance(amounts, Mapping)):
            return None
        pairs = [(name, it) for name, it in amounts.items() if isinstance(it, str)]
        found.append((int(id_), _sorted({name: read_offer(name, it) for name, it in pairs})))
    return tuple(sorted(found))


def weight_of(weights: Iterable[tuple[str, int]], resource: str) -> int:
    """Return a resource's weight in the score, 1 where none is given."""
    return next((weight for name, weight in weights if name == resource), 1)
