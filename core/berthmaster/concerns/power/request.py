"""What a pod would add to a node's CPU usage, under each rule, and what it adds while metrics do not show it.

All amounts are billionths of a core. The rules differ in what of a pod they look at:

    LeastIncrease   the whole pod: containers, sidecars, init containers, overhead, pod-level requests;
                    of that the share that pods use, as far as it was learned
    WAOv1           the first container: its limit must fit, its request counts, else 0.85 of its limit
    WAOv2           all containers: of each its request, else its limit; no init containers
    Peaks           as LeastIncrease, requests alone, and none where none is written
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any, NamedTuple

from berthmaster.api.objects import Pod, ResourceRequirements, Resources
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.power import parse_share
from berthmaster.api.quantities import (
    MOST_NANOCORES,
    QuantityError,
    ceil,
    format_nanocores,
    parse_nanocores,
)
from berthmaster.api.settings.power import PowerRule, UnknownNodes
from berthmaster.concerns.lifetimes import most_at_once

# v1: what a pod without a request is assumed to use of its limit.
LIMIT_SHARE = Fraction(85, 100)
# v2 takes a share of 0 for this one.
DEFAULT_ASSUMPTION = Fraction(1, 2)

# The share of its request that a pod uses is told apart no finer, so that results are remembered.
SHARE_PARTS = 20

_CPU = "cpu"
_SETTLED_PHASES = frozenset({"Running", "Succeeded", "Failed", "Unknown"})
# Starts are told apart no finer, so that pods of a burst share what stands for them.
_START_GRAIN_S = 15


class PowerRequest(NamedTuple):
    """What a pod asks. `need` is what it adds, `limit` what must fit beside (v1 alone)."""

    rule: PowerRule
    need: int
    limit: int = 0
    assumption: Fraction = DEFAULT_ASSUMPTION
    score_base: int = 0
    band_watts: float = 0.0
    band_share: float = 0.0
    zero_watts: float = 0.0
    unknown: UnknownNodes = UnknownNodes.NEUTRAL
    is_strict: bool = False
    # v1: cores that the pod counts until its usage shows.
    assumed: int = 0
    learns: bool = False
    # Set when the request is resolved: whether anything is known of any node, and how many of
    # `SHARE_PARTS` of their requests pods use.
    is_answerable: bool = True
    used_parts: int = SHARE_PARTS


class PowerUsage(NamedTuple):
    """What a pod counts: `whole` and `plain` (v2) until metrics show it, `assumed` under v1.

    `since_s` is when it began to run, in seconds since the epoch; None while it does not.
    """

    whole: int
    plain: int
    assumed: int
    is_pending: bool
    since_s: int | None


def read_request(pod: Pod, policy: PlacementPolicySpec) -> PowerRequest:
    """Return what the pod asks; quantities that cannot be read count 0, others say so."""
    settings = policy.concerns.power
    rule = settings.rule
    if rule is PowerRule.WAO_V1:
        request, limit = _first_container(pod)
        need = request or ceil(limit * LIMIT_SHARE)
        assumed = ceil(limit * LIMIT_SHARE) or request
        return PowerRequest(rule, need, limit, assumed=assumed, is_strict=settings.strict_upstream)
    if rule is PowerRule.WAO_V2:
        assumption = parse_share(settings.pod_usage_assumption) or DEFAULT_ASSUMPTION
        return PowerRequest(
            rule, plain_request(pod), assumption=assumption, score_base=settings.score_base
        )
    if rule is PowerRule.PEAKS:
        return PowerRequest(rule, whole_request(pod, with_limits=False))
    return PowerRequest(
        rule,
        whole_request(pod) or settings.default_request,
        band_watts=settings.min_difference_watts,
        band_share=settings.min_difference_share,
        learns=settings.learn_usage,
        zero_watts=settings.watts_for_zero or 0.0,
        unknown=settings.unknown_nodes,
    )


def read_usage(pod: Pod, allocated: Mapping[str, Any] | None) -> PowerUsage | None:
    """Return what a pod counts on its node; None if nothing."""
    usage = PowerUsage(
        whole=whole_request(pod),
        plain=plain_request(pod),
        assumed=assumed_of(allocated),
        is_pending=pod.status.phase not in _SETTLED_PHASES,
        since_s=_running_since_s(pod),
    )
    return usage if usage.whole or usage.plain or usage.assumed else None


def allocation_of(request: PowerRequest) -> dict[str, Any]:
    """Return what of a request stands on the pod, for `read_usage`."""
    return {"assumed": format_nanocores(request.assumed)} if request.assumed else {}


def assumed_of(allocated: object) -> int:
    """Return what rule WAOv1 assumed that a pod uses, by what `allocation_of` wrote; 0 for nothing."""
    return _nanocores(allocated.get("assumed")) if isinstance(allocated, Mapping) else 0


def plain_request(pod: Pod) -> int:
    """Return v2's sum over containers: of each its request, or its limit where that is 0 or absent."""
    total = 0
    for container in pod.spec.containers or ():
        request, limit = _amounts(container.resources)
        total += request or limit
    return min(total, MOST_NANOCORES)


def whole_request(pod: Pod, *, with_limits: bool = True) -> int:
    """Return what Kubernetes reserves for the pod.

    max(largest step of initialisation, sidecars + containers) + overhead; a request of the pod as a
    whole takes the place of the sum. Limits stand in for requests that are absent, if wanted: the API
    server has done that for stored pods.
    """
    spec = pod.spec
    order = (
        *((it, it.is_sidecar) for it in spec.init_containers or ()),
        *((it, True) for it in spec.containers or ()),
    )
    most, _ = most_at_once(
        ({_CPU: _request(it.resources, with_limits=with_limits)}, stays) for it, stays in order
    )
    as_a_whole = _request(spec.resources, with_limits=with_limits)
    overhead = _nanocores((spec.overhead or {}).get(_CPU))
    return min((as_a_whole or most.get(_CPU, 0)) + overhead, MOST_NANOCORES)


def _first_container(pod: Pod) -> tuple[int, int]:
    containers = pod.spec.containers or ()
    return _amounts(containers[0].resources) if containers else (0, 0)


def _request(resources: ResourceRequirements | None, *, with_limits: bool) -> int:
    request, limit = _amounts(resources)
    is_absent = resources is None or _CPU not in (resources.requests or {})
    return limit if is_absent and with_limits else request


def _amounts(resources: ResourceRequirements | None) -> tuple[int, int]:
    if resources is None:
        return 0, 0
    return _cpu(resources.requests), _cpu(resources.limits)


def _cpu(resources: Resources | None) -> int:
    return _nanocores((resources or {}).get(_CPU))


def _nanocores(value: object) -> int:
    if value is None:
        return 0
    try:
        return parse_nanocores(value)
    except QuantityError:
        return 0


def _running_since_s(pod: Pod) -> int | None:
    """Return since when the pod's containers run, rounded up; None while they do not, or nobody says."""
    if pod.status.phase != "Running":
        return None
    for condition in pod.status.conditions or ():
        if condition.type == "Initialized" and condition.status == "True":
            try:
                at_s = datetime.fromisoformat(condition.last_transition_time or "").timestamp()
            except (ValueError, OverflowError):
                return None
            return -int(-at_s // _START_GRAIN_S) * _START_GRAIN_S
    return None
