"""Pods that a kubelet turned away from the node that they were sent to.

A kubelet looks once more before it starts a pod, and may know what the API server does not yet show. The
pod then ends as Failed and its controller makes another one, which would be sent to the same node at
once: so the controller's next pods stay away from it for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Pod
from berthmaster.cluster.informers import EventKind
from berthmaster_webhook.avoiding import AVOID_S
from berthmaster_webhook.deciding import Tools

logger = logging.getLogger(__name__)

_REASONS = frozenset(
    {
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "TaintToleration",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
    }
)
_OUT_OF = "OutOf"


class KubeletRefusals:
    """Watches for such pods. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        tools: Tools,
        *,
        on_avoid: Callable[[], None] = lambda: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._tools = tools
        self._on_avoid = on_avoid
        self._wall_clock = wall_clock

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Take over a pod that the watch or a list shows; old ones teach nothing."""
        if kind is EventKind.DELETED or not _is_refused(pod):
            return
        controller = pod.metadata.controller()
        node = pod.spec.node_name
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        if controller is None or allocation is None or allocation.node != node:
            return
        created_s = pod.metadata.created_s
        if created_s is None or self._wall_clock() - created_s > AVOID_S:
            return
        now_s = self._tools.clock()
        if node in self._tools.avoided.of(controller.uid, now_s):
            return
        self._tools.avoided.add(controller.uid, node, now_s)
        self._on_avoid()
        logger.warning(
            "refused by the kubelet",
            extra={"pod": pod.key, "node": node, "reason": pod.status.reason},
        )


def _is_refused(pod: Pod) -> bool:
    reason = pod.status.reason
    return pod.status.phase == "Failed" and (reason.startswith(_OUT_OF) or reason in _REASONS)
