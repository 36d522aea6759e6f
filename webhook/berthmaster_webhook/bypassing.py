"""Pods that asked for placement and run without a decision: ungated by hand, or bound by somebody else.

They are counted where they are from what they request; this tells how many there are.
"""

from __future__ import annotations

from msgspec import structs

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode
from berthmaster.cluster.informers import EventKind
from berthmaster.placement.opting import why_exempt
from berthmaster_webhook.metrics import Metrics

_UNGATED_MODES = (Mode.PREFERRED, Mode.OBSERVE, Mode.OFF)


class BypassedPods:
    """Keeps the gauge; the mode counts that stands on the pod."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._uids: set[str] = set()

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Count a pod in or out."""
        if kind is not EventKind.DELETED and is_bypassed(pod):
            self._uids.add(pod.metadata.uid)
        else:
            self._uids.discard(pod.metadata.uid)
        self._metrics.bypassed_pods.set(len(self._uids))


def is_bypassed(pod: Pod) -> bool:
    """Tell whether a stored pod opted in, is bound, and carries no allocation."""
    mode = pod.annotations.get(names.PLACEMENT)
    return (
        mode is not None
        and mode not in _UNGATED_MODES
        and bool(pod.spec.node_name)
        and names.ALLOCATION not in pod.annotations
        and not pod.is_finished
        and not _was_never_ours(pod)
    )


def _was_never_ours(pod: Pod) -> bool:
    # A stored pod has its node by now; whether it came with one cannot be told any more.
    unbound = structs.replace(pod, spec=structs.replace(pod.spec, node_name=""))
    return bool(why_exempt(unbound))
