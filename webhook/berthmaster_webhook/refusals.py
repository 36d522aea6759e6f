"""Pods that a kubelet turned away from the node that they were sent to.

A kubelet looks once more before it starts a pod, and may know what the API server does not yet show. The
pod then ends as Failed and its controller makes another one, which would be sent to the same node at
once: so the controller's next pods stay away from it for a while, and come after a pause that grows
while more of them are turned away. Otherwise a controller would make and lose a pod per node within
seconds. A kubelet that cannot align a pod refutes the node's topology, too, for everybody: that is the
operator's to say (`NodeInventory`, condition TopologyReady, reason Refuted).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Pod
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.informers import EventKind
from berthmaster_webhook.avoiding import AVOID_S
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.reporting import ref_of
from berthmaster_webhook.telling import about

logger = logging.getLogger(__name__)

REASON = "RefusedByKubelet"
# The first pause of an owner; updaters of topologies look again within about this time.
REFUSED_PAUSE_S = 2.0
_REASONS = frozenset(
    {
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "TaintToleration",
        "UnexpectedAdmissionError",
        names.TOPOLOGY_AFFINITY_ERROR,
    }
)
# Followed by a resource, whose names vendors invent.
_OUT_OF = "OutOf"
_PODS_REMEMBERED = 4096


class KubeletRefusals:
    """Watches for such pods. `wall_clock` gives seconds since the epoch.

    Every replica learns; only the leader counts and tells.
    """

    def __init__(
        self,
        tools: Tools,
        events: EventRecorder,
        *,
        may_write: Callable[[], bool],
        on_avoid: Callable[[], None] = lambda: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._tools = tools
        self._events = events
        self._may_write = may_write
        self._on_avoid = on_avoid
        self._wall_clock = wall_clock
        # Uids, oldest first: a Failed pod stays, and may be shown again and again.
        self._known: OrderedDict[str, None] = OrderedDict()

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Take over a pod that the watch or a list shows; old refusals teach nothing."""
        if kind is EventKind.DELETED or not _is_refused(pod) or not _is_ours(pod):
            return
        at_s = pod.status.started_s or pod.metadata.created_s
        if at_s is None or self._wall_clock() - at_s > AVOID_S or not self._is_new(pod):
            return
        reason = _OUT_OF if pod.status.reason.startswith(_OUT_OF) else pod.status.reason
        node = pod.spec.node_name
        logger.warning(
            "refused by the kubelet",
            extra=about(pod, node=node, reason=pod.status.reason),
        )
        consequence = self._learn(pod)
        if self._may_write():
            self._tools.metrics.kubelet_refusals.labels(reason).inc()
            note = (
                f"the kubelet of {node} turned this pod away ({pod.status.reason}); {consequence}"
            )
            self._events.record(ref_of(pod), REASON, note, action="Placing", type_="Warning")

    def _is_new(self, pod: Pod) -> bool:
        uid = pod.metadata.uid
        if uid in self._known:
            return False
        self._known[uid] = None
        if len(self._known) > _PODS_REMEMBERED:
            self._known.popitem(last=False)
        return True

    def _learn(self, pod: Pod) -> str:
        """Let the owner's next pods avoid the node and pause; return that in words."""
        controller = pod.metadata.controller()
        if controller is None:
            return "nothing owns it, so delete and create it again"
        now_s = self._tools.clock()
        self._tools.avoided.add(controller.uid, pod.spec.node_name, now_s)
        # During a pause nothing is placed: what is refused then was placed before, and is no news.
        if self._tools.pauses.until_s(controller.uid) <= now_s:
            self._tools.pauses.pause(controller.uid)
        self._on_avoid()
        return (
            f"the next pods of {controller.kind} {controller.name} avoid this node for "
            f"{AVOID_S / 60:.0f} min, and wait for a moment before they are placed"
        )


def _is_refused(pod: Pod) -> bool:
    reason = pod.status.reason
    return pod.status.phase == "Failed" and (reason.startswith(_OUT_OF) or reason in _REASONS)


def _is_ours(pod: Pod) -> bool:
    """Return whether the pod, and so its successor, asks for placement; also if it was bound past us."""
    if not pod.spec.node_name:
        return False
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    return allocation is not None or names.PLACEMENT in pod.annotations
