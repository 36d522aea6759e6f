"""Amounts as whole numbers: cpu in billionths, everything else in thousandths of its unit.

Exact for every quantity that hardware or a pod has. What is finer is rounded against the pod: a
request up, what a zone has down. A zone's amounts are bounded so that 64 of them fit in 63 bits.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from berthmaster.api.quantities import QuantityError, ceil, describe_size, parse_quantity

CPU, MEMORY, HUGEPAGES = "cpu", "memory", "hugepages-"
CPU_SCALE, SCALE = 10**9, 1000
HIGHEST_OFFER = 2**56
# More than any zone, or all of them together, can have.
HIGHEST_REQUEST = 2**62
_NATIVE = "kubernetes.io/"
_HOST_LEVEL = ("ephemeral-storage", "storage")
_ALWAYS_KNOWN = (CPU, MEMORY, "pods", "ephemeral-storage")


def scale_of(resource: str) -> int:
    """Return how many of our units make one unit of the resource."""
    return CPU_SCALE if resource == CPU else SCALE


@lru_cache(maxsize=65536)
def read_offer(resource: str, quantity: str) -> int:
    """Return what a zone has; text that is no quantity, or a negative one, is 0."""
    try:
        number = parse_quantity(quantity)
    except QuantityError:
        return 0
    scaled = number * scale_of(resource)
    return max(0, min(scaled.numerator // scaled.denominator, HIGHEST_OFFER))


@lru_cache(maxsize=65536)
def read_request(resource: str, quantity: str | float) -> int:
    """Return what a container asks; what cannot be read is 0, and the resources concern's to say."""
    try:
        number = parse_quantity(quantity)
    except QuantityError:
        return 0
    return max(0, min(ceil(number * scale_of(resource)), HIGHEST_REQUEST))


@lru_cache(maxsize=4096)
def to_text(resource: str, amount: int) -> str:
    """Return an amount as the shortest exact quantity."""
    number = Fraction(amount, scale_of(resource))
    for scale, suffix in ((1, ""), (10**3, "m"), (10**6, "u"), (10**9, "n")):
        if (number * scale).denominator == 1:
            return f"{(number * scale).numerator}{suffix}"
    raise AssertionError("billionths are the finest unit")


def describe(resource: str, amount: int) -> str:
    """Return an amount for people: `1.5`, `512Mi`."""
    number = Fraction(amount, scale_of(resource))
    if is_memory(resource):
        return describe_size(ceil(number))
    return f"{float(number):.3f}".rstrip("0").rstrip(".")


def whole(resource: str, amount: int) -> int:
    """Return an amount in whole units, rounded up, as scores count it."""
    return -(-amount // scale_of(resource))


def whole_part(resource: str, amount: int) -> int:
    """Return an amount without its fraction: what one container can hold alone of so much."""
    return amount - amount % scale_of(resource)


def is_extended(resource: str) -> bool:
    """Return whether the name is that of a device."""
    return "/" in resource and _NATIVE not in resource


def is_memory(resource: str) -> bool:
    """Return whether the resource is memory or a size of hugepages."""
    return resource == MEMORY or resource.startswith(HUGEPAGES)


def is_affine(resource: str) -> bool:
    """Return whether the kubelet itself aligns the resource: cpu, memory, hugepages."""
    return resource == CPU or is_memory(resource)


def is_host_level(resource: str) -> bool:
    """Return whether the resource may be absent from every zone."""
    return resource in _HOST_LEVEL or is_extended(resource)


def is_known(resource: str, allocatable: frozenset[str]) -> bool:
    """Return whether kube-scheduler's view of a node with these names contains the resource."""
    if resource in _ALWAYS_KNOWN:
        return True
    if resource not in allocatable:
        return False
    return (
        (is_extended(resource) and not resource.startswith("requests."))
        or resource.startswith((HUGEPAGES, "attachable-volumes-"))
        or ("/" in resource and _NATIVE in resource)
    )
