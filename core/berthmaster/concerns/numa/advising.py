"""What the owner of a pod that is being created should know: what its kubelet will not align.

Only where the pod shows that alignment matters: it names a device, has the annotation, or is Guaranteed
but for a detail. The last is a pod with a whole number of CPUs limited to what they are requested as,
and nothing but missing limits, or a fraction of a CPU, in the way.
"""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.api.objects import Container, Pod, Resources
from berthmaster.concerns.numa.amounts import (
    CPU,
    CPU_SCALE,
    MEMORY,
    describe,
    is_extended,
    read_request,
)
from berthmaster.concerns.numa.request import GUARANTEED, IGNORE, is_fraction, qos_class


def advise(pod: Pod) -> tuple[str, ...]:
    """Return at most one sentence of about 120 characters, none for most pods."""
    mode = pod.annotations.get(names.NUMA, "")
    if mode == IGNORE:
        return ()
    containers = (*(pod.spec.init_containers or ()), *(pod.spec.containers or ()))
    device = next((name for it in containers for name in _limits(it) if is_extended(name)), "")
    shows_interest = bool(device or mode)
    faults = list(_faults(pod, containers))
    if not faults or not (shows_interest or _is_nearly_guaranteed(containers)):
        return ()
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    what = f"{device} and CPUs" if device else "CPUs and memory"
    return (f"NUMA: {what} will not be aligned: {faults[0]}{more}",)


def _faults(pod: Pod, containers: tuple[Container, ...]) -> Iterator[str]:
    """Yield what keeps the kubelet from giving the pod CPUs of its own."""
    if pod.spec.resources is not None:
        yield "the pod has resources of its own (spec.resources)"
    elif qos_class(pod) == GUARANTEED:
        for container in containers:
            amount = _amount(_limits(container), CPU)
            # Less than one is meant to share; more is meant to have its own.
            if amount > CPU_SCALE and is_fraction(CPU, amount):
                yield f"container {container.name} asks {describe(CPU, amount)}, no whole number"
    else:
        for container in containers:
            yield from _why_burstable(container)


def _why_burstable(container: Container) -> Iterator[str]:
    limits, requests = _limits(container), _requests(container)
    lacking = [name for name in (CPU, MEMORY) if not _amount(limits, name)]
    if lacking:
        yield f"container {container.name} lacks a limit of {' and '.join(lacking)}"
    for name in (CPU, MEMORY):
        if name not in lacking and _amount(requests, name) != _amount(limits, name):
            yield f"container {container.name} requests less {name} than its limit"


def _is_nearly_guaranteed(containers: tuple[Container, ...]) -> bool:
    is_meant = False
    for container in containers:
        limits, requests = _limits(container), _requests(container)
        for name in (CPU, MEMORY):
            if _amount(limits, name) and _amount(requests, name) != _amount(limits, name):
                return False
        is_meant |= _amount(limits, CPU) >= CPU_SCALE
    return is_meant


def _limits(container: Container) -> Resources:
    return (container.resources.limits if container.resources else None) or {}


def _requests(container: Container) -> Resources:
    """Return what is requested; the API server copies a limit to a request that is absent."""
    asked = (container.resources.requests if container.resources else None) or {}
    return {**_limits(container), **asked}


def _amount(resources: Resources, name: str) -> int:
    return read_request(name, resources[name]) if name in resources else 0
