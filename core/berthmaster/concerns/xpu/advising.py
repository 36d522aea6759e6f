"""What the owner of a pod with devices is told when it is created, whatever is decided."""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api.names import DROPPED
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.xpu_names import XPUNames
from berthmaster.concerns.xpu.columns import XPUColumns
from berthmaster.concerns.xpu.request import read_asks, read_containers, read_count


def advise(columns: XPUColumns, pod: Pod, policy: PlacementPolicySpec) -> tuple[str, ...]:
    """Return warnings, the most important first; never raises."""
    names = policy.concerns.xpu.names_in_force
    dropped = pod.annotations.get(DROPPED)
    warnings = [*_advise_privileged(pod, names), *_advise_share(columns, pod, names)]
    if dropped:
        warnings.insert(0, f"dropped, only Berthmaster says which devices a pod has: {dropped}")
    return tuple(warnings)


def _advise_privileged(pod: Pod, names: XPUNames) -> Iterator[str]:
    for container in (*(pod.spec.init_containers or ()), *(pod.spec.containers or ())):
        asked = container.resources
        sides = (asked.limits or {}, asked.requests or {}) if asked is not None else ()
        if container.is_privileged and any(not names.resources.isdisjoint(it) for it in sides):
            yield f"container {container.name} is privileged: it sees all XPUs of its node, not only its own"


def _advise_share(columns: XPUColumns, pod: Pod, names: XPUNames) -> Iterator[str]:
    containers = read_containers(pod, frozenset((names.share_memory,)))
    if not containers:
        return
    if sum(bool(it.amounts) for it in containers) > 1:
        yield (
            f"several containers ask for {names.share_memory}: device plugins of gpushare's kind give "
            "them no device"
        )
    total = read_asks(containers, names, []).total_mib
    count = read_count(pod, names, []) or 1
    largest = int(columns.sizes.max(initial=0))
    if total > count * largest:
        yield (
            f"{total} MiB on {count} device(s): no device of the cluster has more than {largest} MiB; "
            "the pod waits for one"
        )
