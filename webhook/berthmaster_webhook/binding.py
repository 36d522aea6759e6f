"""Whether a pod of mode `bind` may get its node at once, past kube-scheduler.

Setting `spec.nodeName` saves an API write and the scheduler's work. It is safe only where no scheduler
places pods beside us, so only on nodes that a policy names as ours alone by a taint, and only for pods
that ask for nothing that kube-scheduler alone can give. Every other pod of mode `bind` is placed as
`required`, and told why.
"""

from __future__ import annotations

from collections.abc import Iterable

from berthmaster.api.objects import Node, Pod
from berthmaster.api.policy import ExclusiveTaint

FROM_QUEUE = "the pod waited at the gate, and a stored pod's node is set by kube-scheduler"


def bound_as_required(why_not: str) -> str:
    """Return what the owner of a pod is told that asked for `bind` and was placed as `required`."""
    return f"bind became required: {why_not}"


def why_not_bind(
    pod: Pod, node_name: str, node: Node | None, exclusive: Iterable[ExclusiveTaint]
) -> str:
    """Return what keeps a pod from being bound to a node at once, empty if nothing does.

    `exclusive` are the taints by which policies name nodes as ours alone.
    """
    if pod.spec.resource_claims:
        return "spec.resourceClaims: devices are allocated by kube-scheduler"
    for volume in pod.spec.volumes or ():
        if volume.persistent_volume_claim is not None or volume.ephemeral is not None:
            return f"volume {volume.name}: claims are bound by kube-scheduler"
    if pod.spec.scheduling_group is not None:
        return "spec.schedulingGroup: groups are scheduled by kube-scheduler"
    names = tuple(exclusive)
    if not names:
        return "no PlacementPolicy names exclusiveTaints"
    taints = {(it.key, it.value, it.effect) for it in (node and node.spec.taints) or ()}
    if not any((it.key, it.value, it.effect) in taints for it in names):
        return f"node {node_name} has no exclusive taint ({', '.join(map(str, names))})"
    return ""
